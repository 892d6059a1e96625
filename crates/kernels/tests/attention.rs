//! Attention over ragged batches against f64, forward and backward, of both elements, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, paths, uniform};
use fedpipe_kernels::{AttentionShape, Element, Mask, attention_backward, attention_forward};
use half::bf16;
use proptest::prelude::*;

struct Batch<E> {
    shape: AttentionShape,
    queries: Vec<usize>,
    keys: Vec<usize>,
    q: Vec<E>,
    k: Vec<E>,
    v: Vec<E>,
    dout: Vec<E>,
}

impl<E: Element> Batch<E> {
    /// Of sequences of so many queries and keys.
    fn new(shape: AttentionShape, lengths: &[(usize, usize)], seed: u64) -> Self {
        let offsets = |length: fn(&(usize, usize)) -> usize| {
            std::iter::once(0).chain(lengths.iter().map(length).scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
        };
        let (queries, keys): (Vec<_>, Vec<_>) = (offsets(|it| it.0).collect(), offsets(|it| it.1).collect());
        let query_len = queries[lengths.len()] * shape.heads * shape.head_dim;
        let key_len = keys[lengths.len()] * shape.kv_heads * shape.head_dim;
        let of = |seed, len| uniform(seed, len).into_iter().map(E::from_f32).collect();
        let [q, dout] = [1, 2].map(|i| of(seed + i, query_len));
        let [k, v] = [3, 4].map(|i| of(seed + i, key_len));
        Self { shape, queries, keys, q, k, v, dout }
    }

    /// `[out, log_sum_exp, dq, dk, dv]` of the kernels.
    fn run(&self) -> [Vec<f32>; 5] {
        let Self { shape, queries, keys, q, k, v, dout } = self;
        let unset = E::from_f32(f32::NAN);
        let mut out = vec![unset; q.len()];
        let mut log_sum_exp = vec![f32::NAN; queries[queries.len() - 1] * shape.heads];
        attention_forward(shape, queries, keys, q, k, v, &mut out, &mut log_sum_exp);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![unset; x.len()]);
        attention_backward(shape, queries, keys, q, k, v, &out, &log_sum_exp, dout, &mut dq, &mut dk, &mut dv);
        let [out, dq, dk, dv] = [out, dq, dk, dv].map(|x| x.into_iter().map(E::to_f32).collect());
        [out, log_sum_exp, dq, dk, dv]
    }

    /// The same by the textbook in f64: the whole probability matrix, then the chain rule through it.
    fn reference(&self) -> [Vec<f64>; 5] {
        let Self { shape, queries, keys, .. } = self;
        let [q, k, v, dout] = [&self.q, &self.k, &self.v, &self.dout].map(|x| widened(x));
        let mut log_sum_exp = vec![0.0; queries[queries.len() - 1] * shape.heads];
        let [mut out, mut dq] = [&q, &q].map(|x| vec![0.0; x.len()]);
        let [mut dk, mut dv] = [&k, &v].map(|x| vec![0.0; x.len()]);
        let (dim, scale) = (shape.head_dim, f64::from(shape.scale));
        for (queries, keys) in queries.windows(2).zip(keys.windows(2)) {
            for head in 0..shape.heads {
                let query = |i: usize| (i * shape.heads + head) * dim;
                let key = |j: usize| (j * shape.kv_heads + head / (shape.heads / shape.kv_heads)) * dim;
                let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                for i in queries[0]..queries[1] {
                    let q_i = query(i)..query(i) + dim;
                    let end = || keys[1] - (queries[1] - 1 - i);
                    let seen = match shape.mask {
                        Mask::Full => keys[0]..keys[1],
                        Mask::Causal => keys[0]..end(),
                        Mask::Window(width) => keys[0].max(end().saturating_sub(width))..end(),
                    };
                    let scores: Vec<f64> =
                        seen.clone().map(|j| scale * inner(&q[q_i.clone()], &k[key(j)..key(j) + dim])).collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let exponentials: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                    let total: f64 = exponentials.iter().sum();
                    log_sum_exp[i * shape.heads + head] = largest + total.ln();
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
        // In f32 a few roundings of the largest element: inputs are below 1 and the sums convex or short. In bf16 a few
        // of 2^-9: of the probabilities, of their slopes, which `out`'s rounding shifts too, and of the result. The
        // logarithm never meets bf16.
        let tolerances = if E::IS_BF16 { [1e-2, 2e-6, 1e-2, 1e-2, 1e-2] } else { [2e-6; 5] };
        for path in paths() {
            let actual = path.scope(|| self.run());
            for (i, name) in NAMES.iter().enumerate() {
                let largest = expected[i].iter().fold(1f64, |largest, x| largest.max(x.abs()));
                for (j, (&actual, expected)) in actual[i].iter().zip(&expected[i]).enumerate() {
                    let error = (f64::from(actual) - expected).abs();
                    let what = format!("{name}[{j}] on {path} of {:?} {:?} {:?}", self.shape, self.queries, self.keys);
                    assert!(error <= tolerances[i] * largest, "{what}: {actual}, not {expected}");
                }
            }
        }
    }
}

const NAMES: [&str; 5] = ["out", "log_sum_exp", "dq", "dk", "dv"];

fn widened<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x.to_f32())).collect()
}

fn shape(kv_heads: usize, group: usize, head_dim: usize, mask: Mask) -> AttentionShape {
    AttentionShape { heads: kv_heads * group, kv_heads, head_dim, mask, scale: (head_dim as f32).sqrt().recip() }
}

/// As many queries as keys: training.
fn same<const N: usize>(lengths: [usize; N]) -> [(usize, usize); N] {
    lengths.map(|length| (length, length))
}

/// Both elements.
fn check(shape: AttentionShape, lengths: &[(usize, usize)], seed: u64) {
    Batch::<f32>::new(shape, lengths, seed).check();
    Batch::<bf16>::new(shape, lengths, seed).check();
}

/// Queries and more keys than these, or none of either, or keys alone.
fn lengths(causal: bool) -> impl Strategy<Value = (usize, usize)> {
    (0usize..70, 0usize..70).prop_map(move |(m, more)| match (m, more) {
        (0, _) => (0, more),
        _ if causal => (m, m + more),
        _ => (m, more + 1),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn ragged_batches_match_f64(
        lengths in prop::collection::vec(lengths(false), 0..5),
        kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..80, seed in 0u64..1000,
    ) {
        check(shape(kv_heads, group, head_dim, Mask::Full), &lengths, seed);
    }

    #[test]
    fn causal_batches_match_f64(
        lengths in prop::collection::vec(lengths(true), 0..5),
        kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..80, seed in 0u64..1000,
    ) {
        check(shape(kv_heads, group, head_dim, Mask::Causal), &lengths, seed);
    }

    #[test]
    fn windows_match_f64(
        lengths in prop::collection::vec(lengths(true), 0..5), width in 1usize..100,
        kv_heads in 1usize..3, group in 1usize..4, head_dim in 1usize..80, seed in 0u64..1000,
    ) {
        check(shape(kv_heads, group, head_dim, Mask::Window(width)), &lengths, seed);
    }
}

#[test]
fn the_common_shapes_match_f64() {
    for (head_dim, mask) in [(32, Mask::Full), (64, Mask::Causal), (64, Mask::Full), (64, Mask::Window(80))] {
        check(shape(2, 1, head_dim, mask), &same([128, 1, 0, 256, 65]), 5);
    }
}

#[test]
fn the_edges_of_tiles_match_f64() {
    // Rows of a register tile and of a tile of scores, columns of one and of two vectors, and one beside each.
    for length in [1, 2, 13, 14, 15, 16, 17, 28, 29, 32, 33, 63, 64, 65, 66] {
        for mask in [if length % 2 == 0 { Mask::Causal } else { Mask::Full }, Mask::Window(length / 2 + 1)] {
            check(shape(1, 1, 32, mask), &[(length, length), (1, length), (length, 67)], 7);
        }
    }
}

#[test]
fn a_sequence_of_many_tiles_matches_f64() {
    for mask in [Mask::Causal, Mask::Window(300), Mask::Window(usize::MAX)] {
        check(shape(1, 1, 8, mask), &[(1500, 1500), (3, 1100)], 6);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let batch = Batch::<f32>::new(shape(1, 2, 3, Mask::Window(4)), &[(4, 4), (5, 7)], 9);
    let loss = |q: &[f32], k: &[f32], v: &[f32]| {
        let (shape, queries, keys) = (batch.shape, batch.queries.clone(), batch.keys.clone());
        let (q, k, v, dout) = (q.to_vec(), k.to_vec(), v.to_vec(), batch.dout.clone());
        let [out, ..] = Batch { shape, queries, keys, q, k, v, dout }.reference();
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
    fn check<E: Element>() {
        for mask in [Mask::Full, Mask::Causal, Mask::Window(9)] {
            let mut batch = Batch::<E>::new(shape(1, 1, 4, mask), &[(20, 20), (40, 50)], 1);
            batch.q.iter_mut().for_each(|q| *q = E::from_f32(q.to_f32() * 1e4));
            for path in paths() {
                for (name, values) in NAMES.iter().zip(path.scope(|| batch.run())) {
                    assert!(values.iter().all(|value| value.is_finite()), "{name} on {path}");
                }
            }
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
fn a_hidden_key_counts_for_nothing() {
    // All but the last query are blind to the last key, be its score ever so large.
    fn check<E: Element>() {
        let mut batch = Batch::<E>::new(shape(1, 1, 4, Mask::Causal), &[(20, 33)], 3);
        let before = paths().map(|path| path.scope(|| batch.run())).collect::<Vec<_>>();
        let last = batch.k.len() - 4;
        batch.k[last..].fill(E::from_f32(1e4));
        for (path, [out, log_sum_exp, ..]) in paths().zip(before) {
            let [out_after, log_after, ..] = path.scope(|| batch.run());
            assert_eq!(out[..19 * 4], out_after[..19 * 4], "{path}");
            assert_eq!(log_sum_exp[..19], log_after[..19], "{path}");
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
fn a_window_as_wide_as_the_text_changes_no_bit() {
    fn check<E: Element>() {
        let lengths = [(70, 70), (1, 130), (5, 9)];
        let [causal, window] =
            [Mask::Causal, Mask::Window(130)].map(|mask| Batch::<E>::new(shape(2, 2, 32, mask), &lengths, 4));
        for path in paths() {
            assert!(path.scope(|| causal.run()) == path.scope(|| window.run()), "{path}");
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
fn results_do_not_depend_on_the_threads() {
    fn check<E: Element>() {
        let batch = Batch::<E>::new(shape(2, 2, 32, Mask::Causal), &same([70, 3, 130, 64, 0, 40]), 2);
        for path in paths() {
            assert_same_bits_on_any_pool(&format!("attention on {path}"), || path.scope(|| batch.run().concat()));
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
fn a_sequence_s_result_does_not_depend_on_the_batch() {
    fn check<E: Element>() {
        let (shape, lengths) = (shape(2, 1, 32, Mask::Full), [(30, 40), (65, 65), (1, 200)]);
        let together = Batch::<E>::new(shape, &lengths, 8);
        let (from, to) = (together.queries[1] * 64, together.queries[2] * 64);
        let keys = together.keys[1] * 64..together.keys[2] * 64;
        let alone = Batch {
            shape,
            queries: vec![0, 65],
            keys: vec![0, 65],
            q: together.q[from..to].to_vec(),
            k: together.k[keys.clone()].to_vec(),
            v: together.v[keys.clone()].to_vec(),
            dout: together.dout[from..to].to_vec(),
        };
        for path in paths() {
            let ([out, _, dq, dk, dv], alone) = path.scope(|| (together.run(), alone.run()));
            assert!(out[from..to] == alone[0] && dq[from..to] == alone[2], "{path}");
            assert!(dk[keys.clone()] == alone[3] && dv[keys.clone()] == alone[4], "{path}");
        }
    }
    check::<f32>();
    check::<bf16>();
}

#[test]
#[should_panic(expected = "kv_heads divides heads")]
fn a_wrong_shape_is_named() {
    let shape = AttentionShape { heads: 3, kv_heads: 2, head_dim: 1, mask: Mask::Full, scale: 1.0 };
    attention_forward::<f32>(&shape, &[0], &[0], &[], &[], &[], &mut [], &mut []);
}

#[test]
#[should_panic(expected = "sequence 0 has 1 queries but no keys")]
fn queries_without_keys_are_a_bug() {
    let shape = shape(1, 1, 1, Mask::Full);
    attention_forward(&shape, &[0, 1], &[0, 0], &[0.0], &[], &[], &mut [0.0], &mut [0.0]);
}
