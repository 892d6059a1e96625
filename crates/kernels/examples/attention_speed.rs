//! Speed of attention, forward and backward, beside the machine's own limit measured in the same run.
//!
//! `cargo run --release -p fedpipe-kernels --example attention_speed [milliseconds a figure]`
#![expect(unsafe_code, reason = "the limit is measured with the instructions themselves")]

#[expect(dead_code, reason = "the benchmark of products uses the rest")]
#[path = "bench_products/limit.rs"]
mod limit;

use std::hint::black_box;
use std::time::{Duration, Instant};

use fedpipe_kernels::{AttentionShape, Element, Mask, Path, attention_backward, attention_forward};
use half::bf16;
use limit::{Instruction, Limits};

/// Heads of MiniLM and BERT base.
const HEADS: usize = 12;
/// Layers of MiniLM.
const LAYERS: f64 = 6.0;
/// A batch as 20 Newsgroups gives it: most texts are longer than the 256 tokens that are kept of them; 172 on average.
const NEWSGROUPS: [usize; 16] = [20, 256, 48, 256, 76, 98, 256, 118, 136, 154, 256, 172, 192, 256, 204, 256];

fn main() {
    let Ok(milliseconds) = std::env::args().nth(1).map_or(Ok(300), |argument| argument.parse()) else {
        eprintln!("usage: attention_speed [milliseconds a figure]");
        std::process::exit(2);
    };
    let time = Duration::from_millis(milliseconds);
    println!("path {}, {} threads, {HEADS} heads; µs a token and layer", Path::active(), rayon::current_num_threads());
    println!(
        "{:>12} {:>4} {:>5} {:>9} {:>6} {:>9} {:>6} {:>14}",
        "lengths", "dim", "store", "forward", "ratio", "backward", "ratio", "six layers"
    );
    let shapes: [(&str, Vec<usize>); 6] = [
        ("20 - 32", (0..64).map(|i| 20 + i * 5 % 13).collect()),
        ("64", vec![64; 32]),
        ("128", vec![128; 16]),
        ("newsgroups", NEWSGROUPS.to_vec()),
        ("256", vec![256; 8]),
        ("1024", vec![1024; 2]),
    ];
    for (name, lengths) in &shapes {
        for head_dim in [32, 64] {
            report::<bf16>(name, lengths, head_dim, time);
            report::<f32>(name, lengths, head_dim, time);
        }
    }
}

/// Measures one shape and prints its line.
fn report<E: Element>(name: &str, lengths: &[usize], head_dim: usize, time: Duration) {
    let scale = (head_dim as f32).sqrt().recip();
    let shape = AttentionShape { heads: HEADS, kv_heads: HEADS, head_dim, mask: Mask::Full, scale };
    let mut offsets = vec![0];
    offsets.extend(lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    }));
    let (tokens, width) = (lengths.iter().sum::<usize>(), HEADS * head_dim);
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| values::<E>(seed, tokens * width));
    let [mut out, mut dq, mut dk, mut dv] = [0; 4].map(|_| vec![E::default(); tokens * width]);
    let mut log_sum_exp = vec![0.0; tokens * HEADS];

    let instruction = Instruction::of(Path::active(), !E::IS_BF16);
    let mut limits = Limits::default();
    limits.measure(instruction);
    let forward = fastest(time, || {
        attention_forward(&shape, &offsets, &offsets, black_box(&q), &k, &v, &mut out, &mut log_sum_exp);
    });
    limits.measure(instruction);
    let backward = fastest(time, || {
        let q = black_box(&q);
        attention_backward(&shape, &offsets, &offsets, q, &k, &v, &out, &log_sum_exp, &dout, &mut dq, &mut dk, &mut dv);
    });
    limits.measure(instruction);

    // Two products forward, five backward, of 2 operations for each query, key and element of a head.
    let product = lengths.iter().map(|length| 2 * length * length * width).sum::<usize>() as f64;
    let share = |products: f64, seconds: f64| products * product / seconds / 1e9 / limits.gflops(instruction);
    let each = |seconds: f64| seconds * 1e6 / tokens as f64;
    println!(
        "{name:>12} {head_dim:>4} {:>5} {:>9.3} {:>6.2} {:>9.3} {:>6.2} {:>14.1}",
        if E::IS_BF16 { "bf16" } else { "f32" },
        each(forward),
        share(2.0, forward),
        each(backward),
        share(5.0, backward),
        LAYERS * each(forward + backward),
    );
}

/// Seconds of the fastest of several runs.
fn fastest(time: Duration, mut body: impl FnMut()) -> f64 {
    body();
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < time {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
    }
    best.as_secs_f64()
}

/// Uniform in [-1, 1), by a linear congruence.
fn values<E: Element>(seed: u32, len: usize) -> Vec<E> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        E::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    std::iter::repeat_with(next).take(len).collect()
}
