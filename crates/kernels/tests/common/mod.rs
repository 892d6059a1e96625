//! What the tests share: inputs, the paths to walk, and products in f64 to compare with.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]

use fedpipe_kernels::{CodeBook, Element, FrozenMatrix, Path, pack_codes};
use half::bf16;

/// Half a unit in the last place of f32, the rounding of one operation.
pub const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

pub fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_supported())
}

/// Uniform in [-1, 1), by SplitMix64.
pub fn uniform(seed: u64, len: usize) -> Vec<f32> {
    words(seed, len).map(|word| (word >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// [`uniform`], rounded to the element type.
pub fn elements<E: Element>(seed: u64, len: usize) -> Vec<E> {
    uniform(seed, len).into_iter().map(E::from_f32).collect()
}

pub fn wide<E: Element>(values: &[E]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.to_f32())).collect()
}

/// Half a unit in the last place of the element type.
pub fn rounding<E: Element>() -> f64 {
    if E::IS_BF16 { 1.0 / 256.0 } else { ROUNDING }
}

pub fn words(seed: u64, len: usize) -> impl Iterator<Item = u64> {
    let mut state = seed;
    (0..len).map(move |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A result and the sum of the magnitudes that went into it, which its rounding errors are proportional to.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub value: f64,
    pub magnitude: f64,
}

/// `base + scale · left · right` with `left` `[m, k]`, `right` `[k, n]`, both given by element.
pub fn product(
    (m, n, k): (usize, usize, usize),
    left: impl Fn(usize, usize) -> f32,
    right: impl Fn(usize, usize) -> f32,
    scale: f64,
    base: impl Fn(usize, usize) -> f32,
) -> Vec<Expected> {
    let mut expected = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let base = f64::from(base(i, j));
            let mut sum = Expected { value: base, magnitude: base.abs() };
            for p in 0..k {
                let term = scale * f64::from(left(i, p)) * f64::from(right(p, j));
                sum.value += term;
                sum.magnitude += term.abs();
            }
            expected.push(sum);
        }
    }
    expected
}

/// Compares sums of `depth` terms: each operation may round once.
pub fn assert_close(actual: &[f32], expected: &[Expected], depth: usize, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&actual, expected)) in actual.iter().zip(expected).enumerate() {
        let tolerance = (depth + 4) as f64 * ROUNDING * expected.magnitude + 1e-30;
        let error = (f64::from(actual) - expected.value).abs();
        assert!(error <= tolerance, "{what}: element {i} is {actual}, not {expected:?} (± {tolerance:e})");
    }
}

/// Runs `body` on pools of 1, 2 and 3 threads and checks that it gives the same bits.
pub fn assert_same_bits_on_any_pool<E: Element>(what: &str, body: impl Fn() -> Vec<E> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(&body).into_iter().map(|value| value.to_f32().to_bits()).collect::<Vec<_>>()
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{what}: {threads} threads give other bits than one");
    }
}

/// A weight in one of the formats, and its values as the products see them on a path.
pub struct Weight {
    pub name: String,
    pub matrix: FrozenMatrix,
    pub values: Vec<f32>,
    rounded: bool,
}

impl Weight {
    /// The values that a path multiplies.
    pub fn on(&self, path: Path) -> Vec<f32> {
        if self.rounded && path.multiplies_bf16() { rounded(&self.values) } else { self.values.clone() }
    }

    /// The inputs that a path multiplies.
    pub fn inputs_on(&self, path: Path, x: &[f32]) -> Vec<f32> {
        if self.rounded && path.multiplies_bf16() { rounded(x) } else { x.to_vec() }
    }
}

pub fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
}

/// One weight in every format.
pub fn weights(rows: usize, columns: usize, seed: u64) -> Vec<Weight> {
    let plain = uniform(seed, rows * columns);
    let mut weights = vec![
        Weight {
            name: "f32".into(),
            matrix: FrozenMatrix::f32(rows, columns, &plain),
            values: plain.clone(),
            rounded: false,
        },
        Weight {
            name: "bf16".into(),
            matrix: FrozenMatrix::bf16(rows, columns, &plain),
            values: rounded(&plain),
            rounded: true,
        },
    ];
    weights.push(integers(rows, columns, seed));
    weights.extend([2, 3, 4, 8].map(|bits| coded(rows, columns, bits, 64, seed)));
    weights.push(coded(rows, columns, 4, 128, seed));
    weights
}

/// A weight of random 8-bit integers and random scales.
pub fn integers(rows: usize, columns: usize, seed: u64) -> Weight {
    let codes: Vec<i8> = words(seed, rows * columns).map(|word| (word >> 56) as i8).collect();
    let scales: Vec<f32> = uniform(seed + 1, rows).iter().map(|x| (x.abs() + 0.1) / 128.0).collect();
    let values = codes.iter().enumerate().map(|(i, &code)| f32::from(code) * scales[i / columns]).collect();
    let matrix = FrozenMatrix::from_int8(rows, columns, codes, scales);
    Weight { name: "int8".into(), matrix, values, rounded: true }
}

/// A weight of random codes over a random code book.
pub fn coded(rows: usize, columns: usize, bits: u8, block: usize, seed: u64) -> Weight {
    let len = rows * columns;
    let codes: Vec<u8> = words(seed, len).map(|word| (word >> (64 - bits)) as u8).collect();
    let book = CodeBook { bits, table: uniform(seed + 1, 1 << bits) };
    let absmax: Vec<f32> = uniform(seed + 2, len.div_ceil(block)).iter().map(|x| x.abs() + 0.1).collect();
    let values = (0..len).map(|i| book.table[usize::from(codes[i])] * absmax[i / block]).collect();
    let matrix = FrozenMatrix::from_codes(rows, columns, &book, pack_codes(bits, &codes), absmax, block);
    Weight { name: format!("{bits} bits, block {block}"), matrix, values, rounded: true }
}
