//! Small inputs are computed on the caller's thread: handing them to a pool costs more than it brings.

use std::sync::mpsc::channel;
use std::time::Duration;

use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{
    Activation, AdamW, FrozenMatrix, NormOutput, NormSaved, Parameter, RotaryTable, add_into, dropout, gather,
    layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward,
};

const ROWS: usize = 32;
const HIDDEN: usize = 768;

/// Every element-wise kernel once.
fn everything() {
    let x = vec![0.5f32; ROWS * HIDDEN];
    let [mut a, mut b, mut c] = [(); 3].map(|()| x.clone());
    Activation::Gelu.forward(&x, &mut a);
    Activation::Gelu.backward(&x, &a, &mut b);
    Activation::Silu.gate_forward(&a, &b, &mut c);
    Activation::Silu.gate_backward(&x, &b, &c, &mut a, &mut vec![0.0; x.len()]);
    let (gamma, mut rstd) = (vec![1.0; HIDDEN], vec![0.0; ROWS]);
    let saved = NormSaved { normed: &mut a, rstd: &mut rstd };
    layer_norm_forward(&x, None, &gamma, &gamma, 1e-5, NormOutput { y: &mut b, sum: None, saved: Some(saved) });
    layer_norm_backward(&a, &rstd, &gamma, &x, Write::Overwrite, &mut c);
    rms_norm_forward(&x, Some(&c), &gamma, 1e-5, NormOutput { y: &mut b, sum: Some(&mut a), saved: None });
    rms_norm_backward(&a, &rstd, &gamma, &x, Write::Accumulate, &mut c);
    RotaryTable::new(64, 1, 1e4).forward(&[0; ROWS], HIDDEN / 64, &mut c);
    gather(&[(&FrozenMatrix::f32(1, HIDDEN, &gamma), &[0; ROWS])], &mut a);
    dropout(&x, 0.1, 1, Write::Overwrite, &mut b);
    add_into(&x, &mut c);
    // Thirty tensors, fewer elements in all than one thread is worth.
    let mut states: Vec<[Vec<f32>; 3]> = vec![[(); 3].map(|()| vec![0.0; 1000]); 30];
    let parameters = states.iter_mut().map(|[value, first_moment, second_moment]| Parameter {
        value,
        gradient: &x[..1000],
        first_moment,
        second_moment,
    });
    let adamw = AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    adamw.step(1, &mut parameters.collect::<Vec<_>>());
}

/// The test's own binary, because it takes every thread of the global pool.
#[test]
fn small_inputs_need_no_thread_of_the_pool() {
    let (release, blocked) = channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    rayon::spawn_broadcast(move |_| drop(blocked.lock().map(|blocked| blocked.recv())));
    let (done, finished) = channel();
    std::thread::spawn(move || {
        everything();
        done.send(()).expect("the test waits");
    });
    // Not a measure of time: whoever waits for a thread of the pool waits forever.
    finished.recv_timeout(Duration::from_secs(60)).expect("a kernel waits for a thread of the pool, or panicked");
    drop(release);
}
