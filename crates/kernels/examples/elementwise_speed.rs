//! Time of the element-wise kernels beside a copy of the same elements, measured in the same run.
//!
//! `cargo run --release -p fedpipe-kernels --example elementwise_speed [rows] [hidden]`

use std::hint::black_box;
use std::time::{Duration, Instant};

use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{
    Activation, Element, FrozenMatrix, NormOutput, NormSaved, Path, RotaryTable, add_into, dropout, gather,
    layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward,
};
use half::bf16;

const HEAD_DIM: usize = 64;

fn main() {
    let arguments: Option<Vec<usize>> = std::env::args().skip(1).map(|argument| argument.parse().ok()).collect();
    let (rows, hidden) = match arguments.as_deref() {
        Some([]) => (2048, 768),
        Some(&[rows, hidden]) if hidden % HEAD_DIM == 0 => (rows, hidden),
        _ => {
            eprintln!("usage: elementwise_speed [rows] [hidden, a multiple of {HEAD_DIM}]");
            std::process::exit(2);
        }
    };
    println!("path {}, {} threads, [{rows}, {hidden}]", Path::active(), rayon::current_num_threads());
    println!("{:>22} {:>10} {:>8} {:>10} {:>8}", "", "f32 µs", "copies", "bf16 µs", "copies");
    // On a thread of the pool, as a training loop is best run: calls from outside wait for it to wake up.
    let (single, half) = rayon::scope(|_| (measure::<f32>(rows, hidden), measure::<bf16>(rows, hidden)));
    for ((name, single), (_, half)) in single.into_iter().zip(half) {
        println!("{name:>22} {:>10.1} {:>8.2} {:>10.1} {:>8.2}", single.0, single.1, half.0, half.1);
    }
}

/// Microseconds of each kernel, and as a multiple of a copy.
fn measure<E: Element>(rows: usize, hidden: usize) -> Vec<(&'static str, (f64, f64))> {
    let len = rows * hidden;
    let values = || (0..len).map(|i| E::from_f32((i * 37 % 251) as f32 / 125.0 - 1.0)).collect::<Vec<_>>();
    let (x, up, residual) = (values(), values(), values());
    let [mut y, mut z, mut sum] = [(); 3].map(|()| values());
    let (gamma, mut rstd) = (vec![1f32; hidden], vec![1f32; rows]);
    let table = RotaryTable::new(HEAD_DIM, rows, 1e4);
    let positions: Vec<u32> = (0..rows as u32).collect();
    let words = FrozenMatrix::bf16(rows, hidden, &vec![1.0; len]);

    let mut times = Vec::new();
    let mut record = |name, body: &mut dyn FnMut()| times.push((name, best(body)));
    record("copy", &mut || copy(black_box(&x), &mut y));
    record("add", &mut || add_into(black_box(&x), &mut y));
    record("dropout", &mut || dropout(black_box(&x), 0.1, 1, Write::Overwrite, &mut y));
    record("gelu", &mut || Activation::Gelu.forward(black_box(&x), &mut y));
    record("gelu backward", &mut || Activation::Gelu.backward(black_box(&x), &up, &mut y));
    record("swiglu", &mut || Activation::Silu.gate_forward(black_box(&x), &up, &mut y));
    record("swiglu backward", &mut || Activation::Silu.gate_backward(black_box(&x), &up, &residual, &mut y, &mut z));
    record("layer norm", &mut || {
        let output = NormOutput { y: &mut y, sum: None, saved: None };
        layer_norm_forward(black_box(&x), Some(&residual), &gamma, &gamma, 1e-5, output);
    });
    record("layer norm backward", &mut || {
        layer_norm_backward(black_box(&x), &rstd, &gamma, &up, Write::Overwrite, &mut y);
    });
    record("rms norm, all kept", &mut || {
        let saved = NormSaved { normed: &mut z, rstd: &mut rstd };
        let output = NormOutput { y: &mut y, sum: Some(&mut sum), saved: Some(saved) };
        rms_norm_forward(black_box(&x), Some(&residual), &gamma, 1e-5, output);
    });
    record("rms norm backward", &mut || {
        rms_norm_backward(black_box(&x), &rstd, &gamma, &up, Write::Accumulate, &mut y);
    });
    record("rotary", &mut || table.forward(black_box(&positions), hidden / HEAD_DIM, &mut y));
    record("gather", &mut || gather(black_box(&[(&words, &positions)]), &mut y));
    let copied = times[0].1;
    times.into_iter().map(|(name, time)| (name, (time, time / copied))).collect()
}

/// A copy on all threads, in the kernels' own pieces.
fn copy<E: Element>(x: &[E], y: &mut [E]) {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 13;
    x.par_chunks(PIECE).zip(y.par_chunks_mut(PIECE)).with_min_len(2).for_each(|(x, y)| y.copy_from_slice(x));
}

/// Microseconds of the fastest of several runs.
fn best(body: &mut dyn FnMut()) -> f64 {
    body();
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
    }
    best.as_secs_f64() * 1e6
}
