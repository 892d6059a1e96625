//! The fused loss of a language model's head against f64, in every format, on every path.

mod common;

use common::{Weight, assert_same_bits_on_any_pool, elements, paths, rounding, uniform, weights, wide, words};
use fedpipe_kernels::{Element, FrozenMatrix, IGNORED, Path, TokenLoss, linear_cross_entropy};
use half::bf16;
use proptest::prelude::*;

/// Targets, one in four of them ignored.
fn targets(tokens: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let target = |word: u64| if word.is_multiple_of(4) { IGNORED } else { (word / 4 % vocabulary as u64) as u32 };
    words(seed, tokens).map(target).collect()
}

/// What one token contributes, in f64.
struct Reference {
    loss: f64,
    /// What rounding its logits may change in it.
    loss_error: f64,
    /// The gradient of the token's loss, and the sum of the magnitudes that went into it.
    dx: Vec<(f64, f64)>,
}

fn reference(x: &[f64], w: &[f64], bias: Option<&[f32]>, target: usize) -> Reference {
    let hidden = x.len();
    let rows = || w.chunks_exact(hidden).enumerate();
    let bias = |v: usize| bias.map_or(0.0, |bias| f64::from(bias[v]));
    let terms = |row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).collect::<Vec<_>>();
    let logits: Vec<f64> = rows().map(|(v, row)| bias(v) + terms(row).iter().sum::<f64>()).collect();
    let magnitude = rows().map(|(v, row)| bias(v).abs() + terms(row).iter().map(|term| term.abs()).sum::<f64>());
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let share = |v: usize| (logits[v] - max).exp() / sum;
    let others: f64 = (0..logits.len()).filter(|&v| v != target).map(share).sum();
    let dx = (0..hidden).map(|i| {
        let pulled = others * w[target * hidden + i];
        let pushed = rows().filter(|&(v, _)| v != target).map(|(v, row)| share(v) * row[i]);
        pushed.fold((-pulled, pulled.abs()), |(sum, all), term| (sum + term, all + term.abs()))
    });
    Reference {
        loss: max - logits[target] + sum.ln(),
        loss_error: (2 * hidden + 8) as f64 * common::ROUNDING * (1.0 + magnitude.fold(0.0, f64::max)),
        dx: dx.collect(),
    }
}

struct Case<'a, E> {
    weight: &'a Weight,
    bias: Option<&'a [f32]>,
    x: Vec<E>,
    targets: Vec<u32>,
}

impl<E: Element> Case<'_, E> {
    fn run(&self) -> (TokenLoss, Vec<E>) {
        let mut dx = vec![E::from_f32(f32::NAN); self.x.len()];
        let loss = linear_cross_entropy(&self.x, &self.weight.matrix, self.bias, &self.targets, Some(&mut dx));
        (loss, dx)
    }

    fn check(&self, path: Path) {
        let hidden = self.weight.matrix.columns();
        let what = format!("{} on {path}, {:?}", self.weight.name, [self.targets.len(), self.weight.matrix.rows()]);
        let (loss, dx) = path.scope(|| self.run());
        let alone = |dx| linear_cross_entropy(&self.x, &self.weight.matrix, self.bias, &self.targets, dx);
        assert_eq!(path.scope(|| alone(None)), loss, "{what}: with a gradient or without");

        let x: Vec<f32> = self.x.iter().map(|x| x.to_f32()).collect();
        let (x, w) = (wide(&self.weight.inputs_on(path, &x)), wide(&self.weight.on(path)));
        let counted = self.targets.iter().filter(|&&target| target != IGNORED).count();
        let (mut expected, mut error) = (0.0, 1e-12);
        for (token, &target) in self.targets.iter().enumerate() {
            let at = token * hidden..(token + 1) * hidden;
            let actual = wide(&dx[at.clone()]);
            if target == IGNORED {
                assert!(actual.iter().all(|&dx| dx == 0.0), "{what}: gradient of an ignored token");
                continue;
            }
            let reference = reference(&x[at], &w, self.bias, target as usize);
            expected += reference.loss / counted as f64;
            error += reference.loss_error / counted as f64;
            // Shares are as wrong as their logits, and are rounded where the product is in bf16.
            let rounded = path.multiplies_bf16() && self.weight.name != "f32";
            let share_error = 2.0 * reference.loss_error + if rounded { 1.0 / 128.0 } else { 1e-6 };
            for (actual, (dx, magnitude)) in actual.into_iter().zip(reference.dx) {
                let (dx, magnitude) = (dx / counted as f64, magnitude / counted as f64);
                let limit = share_error * magnitude + rounding::<E>() * dx.abs() + 1e-30;
                assert!((actual - dx).abs() <= limit, "{what}: token {token}: {actual}, not {dx} (± {limit:e})");
            }
        }
        assert_eq!(loss.counted, counted, "{what}");
        assert!((loss.mean - expected).abs() <= error, "{what}: {}, not {expected} (± {error:e})", loss.mean);
    }
}

fn check<E: Element>(tokens: usize, vocabulary: usize, hidden: usize, scale: f32, seed: u64) {
    let bias = uniform(seed + 1, vocabulary);
    for weight in &weights(vocabulary, hidden, seed) {
        let x = elements::<E>(seed + 2, tokens * hidden).iter().map(|x| E::from_f32(scale * x.to_f32())).collect();
        let bias = (!seed.is_multiple_of(3)).then_some(bias.as_slice());
        let case = Case { weight, bias, x, targets: targets(tokens, vocabulary, seed + 3) };
        paths().for_each(|path| case.check(path));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn losses_and_gradients_match_f64(
        tokens in 0usize..12, vocabulary in 1usize..150, hidden in 1usize..70, scale in 0.1f32..20.0, seed in 0u64..1000,
    ) {
        check::<f32>(tokens, vocabulary, hidden, scale, seed);
        check::<bf16>(tokens, vocabulary, hidden, scale, seed);
    }
}

#[test]
fn a_vocabulary_of_several_tiles_is_folded() {
    check::<f32>(9, 2500, 33, 5.0, 1);
    check::<bf16>(9, 1025, 16, 5.0, 2);
}

#[test]
fn tokens_of_several_tiles_are_all_counted() {
    check::<f32>(1400, 5, 8, 1.0, 4);
}

#[test]
fn logits_beyond_the_range_of_exp_are_safe() {
    // Logits of up to thousands, of either sign, the largest of them in any of three tiles.
    check::<f32>(12, 2100, 8, 3000.0, 5);
}

#[test]
fn a_loss_by_hand() {
    // Logits 0 and -d: the loss is ln(1 + e^-d), and pushes by its slope, p - 1.
    let weight = FrozenMatrix::f32(2, 1, &[1.0, 0.0]);
    for path in paths() {
        path.scope(|| {
            for d in [0f32, 1.0, 30.0, -30.0] {
                let mut dx = [f32::NAN];
                let loss = linear_cross_entropy(&[d], &weight, None, &[0], Some(&mut dx));
                let (wide, slope) = (f64::from(d), -1.0 / (1.0 + f64::from(d).exp()));
                assert!((loss.mean - (-wide).exp().ln_1p()).abs() <= 1e-6 * loss.mean, "{d} on {path}: {loss:?}");
                // Relative: where the model is sure, 1 - p is small and must not be lost.
                assert!((f64::from(dx[0]) - slope).abs() <= 1e-6 * slope.abs(), "{d} on {path}: {dx:?}, not {slope}");
            }
        });
    }
}

#[test]
fn entries_that_a_bias_rules_out_have_no_share() {
    let weight = FrozenMatrix::f32(1500, 1, &[1.0; 1500]);
    // The whole first tile, and half of the second.
    let bias: Vec<f32> = (0..1500).map(|v| if v < 1250 { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mut dx = [f32::NAN];
    let loss = linear_cross_entropy(&[2f32], &weight, Some(&bias), &[1400], Some(&mut dx));
    assert!((loss.mean - 250f64.ln()).abs() < 1e-6 && dx[0].abs() < 1e-6, "{loss:?} {dx:?}");
}

#[test]
fn without_counted_tokens_there_is_no_loss() {
    let weight = FrozenMatrix::f32(2, 1, &[1.0, 2.0]);
    let mut dx = [f32::NAN; 2];
    let loss = linear_cross_entropy(&[1.0, 2.0], &weight, None, &[IGNORED; 2], Some(&mut dx));
    assert_eq!((loss, dx), (TokenLoss { mean: 0.0, counted: 0 }, [0.0; 2]));
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (tokens, vocabulary, hidden) = (120, 1300, 48);
    for weight in &weights(vocabulary, hidden, 1) {
        let x: Vec<f32> = uniform(2, tokens * hidden);
        let case = Case { weight, bias: None, x, targets: targets(tokens, vocabulary, 3) };
        for path in paths() {
            assert_same_bits_on_any_pool(&format!("{} on {path}", weight.name), || {
                let (loss, mut dx) = path.scope(|| case.run());
                dx.push(loss.mean as f32);
                dx
            });
        }
    }
}

#[test]
#[should_panic(expected = "target 2 of a vocabulary of 2")]
fn a_target_beyond_the_vocabulary_is_named() {
    linear_cross_entropy(&[1f32], &FrozenMatrix::f32(2, 1, &[0.0; 2]), None, &[2], None);
}
