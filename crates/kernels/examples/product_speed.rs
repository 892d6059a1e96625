//! Speed of the products over frozen weights, beside the machine's own limit measured in the same run.
//!
//! `cargo run --release -p fedpipe-kernels --example product_speed [tokens]`
#![expect(unsafe_code, reason = "the limit is measured with the instructions themselves")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use fedpipe_kernels::{CodeBook, FrozenMatrix, Path, Storage, pack_codes};

/// `[out, in]` of the layers of MiniLM (384) and BERT base (768).
const SHAPES: [(usize, usize); 5] = [(384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768)];

fn main() {
    let Ok(tokens) = std::env::args().nth(1).map_or(Ok(512), |tokens| tokens.parse::<usize>()) else {
        eprintln!("usage: product_speed [tokens]");
        std::process::exit(2);
    };
    let threads = rayon::current_num_threads();
    let (f32_limit, bf16_limit) = (limit(false), limit(true));
    println!("path {}, {threads} threads, {tokens} tokens", Path::active());
    println!("limit of the instructions alone, GFLOP/s: f32 {f32_limit:.0}, bf16 {bf16_limit:.0}");
    println!("{:>12} {:>6} {:>9} {:>6} {:>9} {:>6}", "[out, in]", "store", "forward", "ratio", "backward", "ratio");
    for (rows, columns) in SHAPES {
        for weight in formats(rows, columns) {
            let limit = if weight.storage() == Storage::F32 { f32_limit } else { bf16_limit };
            let x = values(tokens * columns);
            let dy = values(tokens * rows);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            let flop = 2 * tokens * rows * columns;
            let forward = speed(flop, || weight.product(black_box(&x), tokens, None, &mut y));
            let backward = speed(flop, || weight.product_transposed(black_box(&dy), tokens, &mut dx));
            let shape = format!("{rows}x{columns}");
            let store = match weight.storage() {
                Storage::F32 => "f32".to_owned(),
                Storage::Bf16 => "bf16".to_owned(),
                Storage::Codes { bits } => format!("{bits} bit"),
            };
            let (of, ob) = (forward / limit, backward / limit);
            println!("{shape:>12} {store:>6} {forward:>9.1} {of:>6.2} {backward:>9.1} {ob:>6.2}");
        }
    }
}

fn formats(rows: usize, columns: usize) -> Vec<FrozenMatrix> {
    let len = rows * columns;
    let mut formats =
        vec![FrozenMatrix::from_f32(rows, columns, values(len)), FrozenMatrix::bf16(rows, columns, &values(len))];
    for bits in [2u8, 3, 4, 8] {
        let codes: Vec<u8> = (0..len).map(|i| (i * 37 % 251) as u8 >> (8 - bits)).collect();
        let book = CodeBook { bits, table: values(1 << bits) };
        formats.push(FrozenMatrix::from_codes(
            rows,
            columns,
            &book,
            pack_codes(bits, &codes),
            vec![1.0; len.div_ceil(64)],
            64,
        ));
    }
    formats
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0).collect()
}

/// GFLOP/s of the fastest of several runs.
fn speed(flop: usize, mut body: impl FnMut()) -> f64 {
    body();
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed());
    }
    flop as f64 / best.as_secs_f64() / 1e9
}

/// GFLOP/s of multiply-adds between registers, on all threads.
fn limit(pairs: bool) -> f64 {
    const STEPS: usize = 1 << 16;
    let flop_a_step = registers(1, pairs);
    let all = STEPS * flop_a_step * rayon::current_num_threads();
    speed(all, || drop(rayon::broadcast(|_| registers(STEPS, pairs))))
}

/// Runs multiply-adds on twelve or more independent accumulators; returns the operations of a step.
fn registers(steps: usize, pairs: bool) -> usize {
    match Path::active() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the active path is supported.
        Path::Avx512Bf16 if pairs => unsafe { x86::dot_bf16(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx512Bf16 => unsafe { x86::fused_512(steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Path::Avx2 => unsafe { x86::fused_256(steps) },
        _ => plain(steps),
    }
}

fn plain(steps: usize) -> usize {
    const LANES: usize = 32;
    let mut sums = [1f32; LANES];
    let factor = black_box(0.5f32);
    for _ in 0..steps {
        sums.iter_mut().for_each(|sum| *sum = *sum * factor + factor);
    }
    black_box(sums);
    2 * LANES
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps,
    };
    use std::hint::black_box;
    use std::mem::transmute;

    const SUMS: usize = 14;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_bf16(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        // SAFETY: both types are 512 plain bits.
        let ones = unsafe { transmute::<__m512, __m512bh>(_mm512_set1_ps(black_box(1.0))) };
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
        SUMS * 16 * 4
    }

    #[target_feature(enable = "avx512f")]
    pub fn fused_512(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(0.0); SUMS];
        let ones = _mm512_set1_ps(black_box(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        SUMS * 16 * 2
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fused_256(steps: usize) -> usize {
        let mut sums = [_mm256_set1_ps(0.0); SUMS];
        let ones = _mm256_set1_ps(black_box(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(ones, ones, *sum);
            }
        }
        black_box(sums);
        SUMS * 8 * 2
    }
}
