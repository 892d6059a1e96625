//! Attention over ragged batches against f64, forward and backward, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, paths, uniform};
use fedpipe_kernels::{AttentionShape, attention_backward, attention_forward};
use proptest::prelude::*;

struct Batch {
    shape: AttentionShape,
    offsets: Vec<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

impl Batch {
    fn new(shape: AttentionShape, lengths: &[usize], seed: u64) -> Self {
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |end, len| {
            *end += len;
            Some(*end)
        }));
        let tokens = offsets[lengths.len()];
        let (queries, keys) = (tokens * shape.heads * shape.head_dim, tokens * shape.kv_heads * shape.head_dim);
        let [q, dout] = [1, 2].map(|i| uniform(seed + i, queries));
        let [k, v] = [3, 4].map(|i| uniform(seed + i, keys));
        Self { shape, offsets, q, k, v, dout }
    }

    /// `[out, log_sum_exp, dq, dk, dv]` of the kernels.
    fn run(&self) -> [Vec<f32>; 5] {
        let Self { shape, offsets, q, k, v, dout } = self;
        let tokens = offsets[offsets.len() - 1];
        let mut out = vec![f32::NAN; q.len()];
        let mut log_sum_exp = vec![f32::NAN; tokens * shape.heads];
        attention_forward(shape, offsets, q, k, v, &mut out, &mut log_sum_exp);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![f32::NAN; x.len()]);
        attention_backward(shape, offsets, q, k, v, &out, &log_sum_exp, dout, &mut dq, &mut dk, &mut dv);
        [out, log_sum_exp, dq, dk, dv]
    }

    /// The same by the textbook in f64: the whole probability matrix, then the chain rule through it.
    fn reference(&self) -> [Vec<f64>; 5] {
        let Self { shape, offsets, .. } = self;
        let [q, k, v, dout] = [&self.q, &self.k, &self.v, &self.dout].map(|x| widened(x));
        let tokens = offsets[offsets.len() - 1];
        let mut log_sum_exp = vec![0.0; tokens * shape.heads];
        let [mut out, mut dq] = [&q, &q].map(|x| vec![0.0; x.len()]);
        let [mut dk, mut dv] = [&k, &v].map(|x| vec![0.0; x.len()]);
        let (dim, scale) = (shape.head_dim, f64::from(shape.scale));
        for pair in offsets.windows(2) {
            for head in 0..shape.heads {
                let query = |i: usize| (i * shape.heads + head) * dim;
                let key = |j: usize| (j * shape.kv_heads + head / (shape.heads / shape.kv_heads)) * dim;
                let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                for i in pair[0]..pair[1] {
                    let q_i = query(i)..query(i) + dim;
                    let seen = pair[0]..if shape.causal { i + 1 } else { pair[1] };
                    let scores = seen.clone().map(|j| scale * inner(&q[q_i.clone()], &k[key(j)..key(j) + dim]));
                    let exponentials: Vec<f64> = scores.map(f64::exp).collect();
                    let total: f64 = exponentials.iter().sum();
                    log_sum_exp[i * shape.heads + head] = total.ln();
                    let p: Vec<f64> = exponentials.iter().map(|e| e / total).collect();
                    let dp: Vec<f64> =
                        seen.clone().map(|j| inner(&dout[q_i.clone()], &v[key(j)..key(j) + dim])).collect();
                    let mean = inner(&p, &dp);
                    for ((j, p), dp) in seen.zip(&p).zip(&dp) {
                        let ds = p * (dp - mean) * scale;
                        for d in 0..dim {
                            out[query(i) + d] += p * v[key(j) + d];
                            dq[query(i) + d] += ds * k[key(j) + d];
                            dk[key(j) + d] += ds * q[query(i) + d];
                            dv[key(j) + d] += p * dout[query(i) + d];
                        }
                    }
                }
            }
        }
        [out, log_sum_exp, dq, dk, dv]
    }

    fn check(&self) {
        let expected = self.reference();
        for path in paths() {
            let actual = path.scope(|| self.run());
            for ((name, actual), expected) in NAMES.iter().zip(&actual).zip(&expected) {
                // Inputs are below 1 and the sums convex or short: a few roundings of the largest element.
                let largest = expected.iter().fold(1f64, |largest, x| largest.max(x.abs()));
                for (i, (&actual, expected)) in actual.iter().zip(expected).enumerate() {
                    let error = (f64::from(actual) - expected).abs();
                    let what = format!("{name}[{i}] on {path} of {:?} {:?}", self.shape, self.offsets);
                    assert!(error <= 2e-6 * largest, "{what}: {actual}, not {expected}");
                }
            }
        }
    }
}

const NAMES: [&str; 5] = ["out", "log_sum_exp", "dq", "dk", "dv"];

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn shape(kv_heads: usize, group: usize, head_dim: usize, causal: bool) -> AttentionShape {
    AttentionShape { heads: kv_heads * group, kv_heads, head_dim, causal, scale: (head_dim as f32).sqrt().recip() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn ragged_batches_match_f64(
        lengths in prop::collection::vec(0usize..90, 0..5),
        kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..40, causal: bool, seed in 0u64..1000,
    ) {
        Batch::new(shape(kv_heads, group, head_dim, causal), &lengths, seed).check();
    }
}

#[test]
fn the_common_shapes_match_f64() {
    for (head_dim, causal) in [(32, false), (64, true), (64, false)] {
        Batch::new(shape(2, 1, head_dim, causal), &[128, 1, 0, 256, 65], 5).check();
    }
}

#[test]
fn a_sequence_of_many_tiles_matches_f64() {
    Batch::new(shape(1, 1, 8, true), &[1500], 6).check();
}

#[test]
fn gradients_match_finite_differences() {
    let batch = Batch::new(shape(1, 2, 3, true), &[4, 7], 9);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        let (shape, offsets) = (batch.shape, batch.offsets.clone());
        let (q, k, v, dout) = (q.to_vec(), k.to_vec(), v.to_vec(), batch.dout.clone());
        let [out, ..] = Batch { shape, offsets, q, k, v, dout }.reference();
        out.iter().zip(&batch.dout).map(|(out, &dout)| out * f64::from(dout)).sum::<f64>()
    };
    let [_, _, dq, dk, dv] = batch.run();
    for (which, gradient) in [dq, dk, dv].iter().enumerate() {
        for (i, &gradient) in gradient.iter().enumerate() {
            // Exact in f32 for |x| < 1 on the inputs' grid of 2^-23.
            const STEP: f32 = 1.0 / 512.0;
            let moved = |by: f32| {
                let mut inputs = [batch.q.clone(), batch.k.clone(), batch.v.clone()];
                inputs[which][i] += by;
                loss(&inputs[0], &inputs[1], &inputs[2])
            };
            let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
            assert!((slope - f64::from(gradient)).abs() < 1e-5, "input {which}[{i}]: {gradient}, not {slope}");
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut batch = Batch::new(shape(1, 1, 4, false), &[20], 1);
    batch.q.iter_mut().for_each(|q| *q *= 1e4);
    for path in paths() {
        for (name, values) in NAMES.iter().zip(path.scope(|| batch.run())) {
            assert!(values.iter().all(|value| value.is_finite()), "{name} on {path}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let batch = Batch::new(shape(2, 2, 32, true), &[70, 3, 130, 64, 0, 40], 2);
    for path in paths() {
        assert_same_bits_on_any_pool(&format!("attention on {path}"), || path.scope(|| batch.run().concat()));
    }
}

#[test]
#[should_panic(expected = "kv_heads divides heads")]
fn a_wrong_shape_is_named() {
    let shape = AttentionShape { heads: 3, kv_heads: 2, head_dim: 1, causal: false, scale: 1.0 };
    attention_forward(&shape, &[0], &[], &[], &[], &mut [], &mut []);
}
