//! Linear layers with factors, forward and backward, against sums in f64, on every path.

mod common;

use common::{Expected, assert_same_bits_on_any_pool, paths, rounded, uniform, weights};
use fedpipe_kernels::{
    Element, FrozenMatrix, InputGradient, LinearGradient, LinearLayer, LinearOutput, LowRankFactors, Path, Storage,
    factor_gradient, linear_backward, linear_forward,
};
use half::bf16;
use proptest::prelude::*;

/// A, B and the rank of a pair of factors.
type Pair = (Vec<f32>, Vec<f32>, usize);

/// Some layers over one input, each with factors.
struct Case {
    tokens: usize,
    inputs: usize,
    weights: Vec<(FrozenMatrix, Vec<f32>)>,
    bias: Vec<Vec<f32>>,
    /// The pairs of every layer.
    factors: Vec<Vec<Pair>>,
}

const SCALE: f32 = 1.5;

impl Case {
    fn new(tokens: usize, inputs: usize, outputs: &[usize], ranks: &[usize], format: usize) -> Self {
        let mut case = Self { tokens, inputs, weights: vec![], bias: vec![], factors: vec![] };
        for (i, &outputs) in outputs.iter().enumerate() {
            let seed = 100 * (1 + i as u64);
            let weight = weights(outputs, inputs, seed).swap_remove(format);
            case.weights.push((weight.matrix, weight.values));
            case.bias.push(uniform(seed + 1, outputs));
            let pair = |(f, &rank): (usize, &usize)| {
                let seed = seed + 10 * (f as u64 + 1);
                (uniform(seed, rank * inputs), uniform(seed + 1, outputs * rank), rank)
            };
            case.factors.push(ranks.iter().enumerate().map(pair).collect());
        }
        case
    }

    fn x<E: Element>(&self) -> Vec<E> {
        uniform(7, self.tokens * self.inputs).into_iter().map(E::from_f32).collect()
    }

    fn dy<E: Element>(&self, layer: usize) -> Vec<E> {
        let outputs = self.weights[layer].0.rows();
        uniform(11 + layer as u64, self.tokens * outputs).into_iter().map(E::from_f32).collect()
    }

    fn with_layers<R>(&self, body: impl FnOnce(&[LinearLayer<'_>]) -> R) -> R {
        let pairs: Vec<Vec<LowRankFactors<'_>>> = self
            .factors
            .iter()
            .map(|of| of.iter().map(|(a, b, rank)| LowRankFactors { a, b, rank: *rank, scale: SCALE }).collect())
            .collect();
        let layers: Vec<LinearLayer<'_>> = self
            .weights
            .iter()
            .zip(&self.bias)
            .zip(&pairs)
            .map(|(((weight, _), bias), factors)| LinearLayer { weight, bias: Some(bias), factors })
            .collect();
        body(&layers)
    }

    fn lows(&self, layer: usize) -> Vec<Vec<f32>> {
        self.factors[layer].iter().map(|(_, _, rank)| vec![f32::NAN; self.tokens * rank]).collect()
    }

    /// y of every layer, then the low sides of every layer.
    fn forward<E: Element>(&self) -> (Vec<Vec<E>>, Vec<Vec<Vec<f32>>>) {
        let x = self.x::<E>();
        let mut ys: Vec<Vec<E>> =
            self.weights.iter().map(|(w, _)| vec![E::from_f32(f32::NAN); self.tokens * w.rows()]).collect();
        let mut lows: Vec<_> = (0..self.weights.len()).map(|layer| self.lows(layer)).collect();
        self.with_layers(|layers| {
            let mut outputs: Vec<_> = ys
                .iter_mut()
                .zip(&mut lows)
                .map(|(y, lows)| LinearOutput {
                    y,
                    lows: lows.iter_mut().map(Vec::as_mut_slice).collect(),
                    dropped: vec![],
                })
                .collect();
            linear_forward(&x, self.tokens, layers, &mut outputs);
        });
        (ys, lows)
    }

    /// dx, added to `before` if that is given, and the low sides of every layer.
    fn backward<E: Element>(&self, before: Option<&[E]>) -> (Vec<E>, Vec<Vec<Vec<f32>>>) {
        let dys: Vec<Vec<E>> = (0..self.weights.len()).map(|layer| self.dy(layer)).collect();
        let mut lows: Vec<_> = (0..self.weights.len()).map(|layer| self.lows(layer)).collect();
        let mut dx = before.map_or_else(|| vec![E::from_f32(f32::NAN); self.tokens * self.inputs], <[E]>::to_vec);
        self.with_layers(|layers| {
            let mut gradients: Vec<_> = dys
                .iter()
                .zip(&mut lows)
                .map(|(dy, lows)| LinearGradient {
                    dy,
                    lows: lows.iter_mut().map(Vec::as_mut_slice).collect(),
                    dropped: vec![],
                })
                .collect();
            let dx = match before {
                None => InputGradient::Overwrite(&mut dx),
                Some(_) => InputGradient::Accumulate(&mut dx),
            };
            linear_backward(self.tokens, layers, &mut gradients, dx);
        });
        (dx, lows)
    }
}

/// Within the rounding of a sum of that size: of f32 everywhere, and of bf16 where a path multiplies or an element is one.
fn assert_near<E: Element>(actual: &[E], expected: &[Expected], halves: bool, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        // Three roundings to bf16 on the way (a factor, the low side, the other factor) and one of the result, at most 2⁻⁸ each.
        let relative = if halves { 1.0 / 64.0 } else { 2e-5 };
        let error = (f64::from(actual.to_f32()) - expected.value).abs();
        assert!(
            error <= relative * expected.magnitude + 1e-6,
            "{what}: element {i} is {}, not {expected:?}",
            actual.to_f32()
        );
    }
}

fn expect(terms: impl Iterator<Item = f64>) -> Expected {
    terms.fold(Expected { value: 0.0, magnitude: 0.0 }, |sum, term| Expected {
        value: sum.value + term,
        magnitude: sum.magnitude + term.abs(),
    })
}

fn f(x: f32) -> f64 {
    f64::from(x)
}

fn check<E: Element>(case: &Case, path: Path) {
    let halves = E::IS_BF16 || path.multiplies_bf16() && case.weights[0].0.storage() != Storage::F32;
    let what = |part: &str| format!("{part} on {path}, {:?}", case.weights[0].0.storage());
    let x: Vec<f32> = case.x::<E>().iter().map(|x| x.to_f32()).collect();
    let (ys, lows) = case.forward::<E>();
    let before: Vec<E> = uniform(5, x.len()).into_iter().map(E::from_f32).collect();
    let (dx, low_gradients) = case.backward::<E>(None);
    let (sum, _) = case.backward::<E>(Some(&before));
    let mut expected_dx = vec![Expected { value: 0.0, magnitude: 0.0 }; x.len()];
    for (layer, (matrix, values)) in case.weights.iter().enumerate() {
        let (inputs, outputs) = (case.inputs, matrix.rows());
        let dy: Vec<f32> = case.dy::<E>(layer).iter().map(|y| y.to_f32()).collect();
        let mut delta = values.iter().map(|&w| f(w)).collect::<Vec<_>>();
        for (a, b, rank) in &case.factors[layer] {
            for (o, row) in delta.chunks_exact_mut(inputs).enumerate() {
                for (i, value) in row.iter_mut().enumerate() {
                    *value += (0..*rank).map(|k| f(SCALE) * f(b[o * rank + k]) * f(a[k * inputs + i])).sum::<f64>();
                }
            }
        }
        // Magnitudes by the parts, not by their sum: they round on their own.
        let part = |o: usize, i: usize| {
            let own = f(values[o * inputs + i]).abs();
            let pairs = case.factors[layer].iter();
            own + pairs
                .map(|(a, b, r)| (0..*r).map(|k| f(SCALE) * f(b[o * r + k] * a[k * inputs + i]).abs()).sum::<f64>())
                .sum::<f64>()
        };
        let mut y = Vec::new();
        for t in 0..case.tokens {
            for o in 0..outputs {
                let terms = (0..inputs).map(|i| f(x[t * inputs + i]) * delta[o * inputs + i]);
                let value = terms.sum::<f64>() + f(case.bias[layer][o]);
                let magnitude = (0..inputs).map(|i| f(x[t * inputs + i]).abs() * part(o, i)).sum::<f64>()
                    + f(case.bias[layer][o]).abs();
                y.push(Expected { value, magnitude });
            }
            for i in 0..inputs {
                let to = &mut expected_dx[t * inputs + i];
                to.value += (0..outputs).map(|o| f(dy[t * outputs + o]) * delta[o * inputs + i]).sum::<f64>();
                to.magnitude += (0..outputs).map(|o| f(dy[t * outputs + o]).abs() * part(o, i)).sum::<f64>();
            }
        }
        assert_near(&ys[layer], &y, halves, &what("y"));
        for (k, (a, b, rank)) in case.factors[layer].iter().enumerate() {
            let low = |t: usize, k: usize| {
                expect((0..inputs).map(|i| f(SCALE) * f(x[t * inputs + i]) * f(a[k * inputs + i])))
            };
            let back = |t: usize, k: usize| {
                expect((0..outputs).map(|o| f(SCALE) * f(dy[t * outputs + o]) * f(b[o * rank + k])))
            };
            let all = |of: &dyn Fn(usize, usize) -> Expected| -> Vec<Expected> {
                (0..case.tokens).flat_map(|t| (0..*rank).map(move |k| (t, k))).map(|(t, k)| of(t, k)).collect()
            };
            assert_near(&lows[layer][k], &all(&low), halves, &what("low"));
            assert_near(&low_gradients[layer][k], &all(&back), halves, &what("gradient of low"));
        }
    }
    assert_near(&dx, &expected_dx, halves, &what("dx"));
    for (expected, before) in expected_dx.iter_mut().zip(&before) {
        expected.value += f(before.to_f32());
        expected.magnitude += f(before.to_f32()).abs();
    }
    assert_near(&sum, &expected_dx, halves, &what("dx added to"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layers_with_factors_are_what_the_formula_says(
        tokens in 1usize..70,
        inputs in 1usize..150,
        outputs in prop::collection::vec(1usize..140, 1..4),
        ranks in prop::collection::vec(1usize..20, 0..3),
        format in 0usize..5,
    ) {
        let case = Case::new(tokens, inputs, &outputs, &ranks, format);
        for path in paths() {
            path.scope(|| {
                check::<f32>(&case, path);
                check::<bf16>(&case, path);
            });
        }
    }

    #[test]
    fn few_rows_are_what_the_formula_says(
        tokens in 1usize..10,
        inputs in 1usize..700,
        outputs in prop::collection::vec(1usize..90, 1..3),
        ranks in prop::collection::vec(1usize..20, 0..3),
        format in 0usize..8,
    ) {
        let case = Case::new(tokens, inputs, &outputs, &ranks, format);
        for path in paths() {
            path.scope(|| {
                check::<f32>(&case, path);
                check::<bf16>(&case, path);
            });
        }
    }

    #[test]
    fn a_factor_gradient_sums_over_the_tokens(tokens in 0usize..40, width in 1usize..200, rank in 1usize..11) {
        let (low, x) = (uniform(1, tokens * rank), rounded(&uniform(2, tokens * width)));
        let halves: Vec<bf16> = x.iter().map(|&x| Element::from_f32(x)).collect();
        let expected: Vec<Expected> = (0..rank * width)
            .map(|i| expect((0..tokens).map(|t| f(low[t * rank + i / width]) * f(x[t * width + i % width]))))
            .collect();
        for path in paths() {
            path.scope(|| {
                let (mut of_f32, mut of_bf16) = (vec![f32::NAN; rank * width], vec![f32::NAN; rank * width]);
                factor_gradient(&low, rank, &x, width, &mut of_f32);
                factor_gradient(&low, rank, &halves, width, &mut of_bf16);
                assert_near(&of_f32, &expected, false, "factor gradient");
                assert_eq!(of_f32, of_bf16, "the sums are in f32 whatever the element");
            });
        }
    }
}

/// A depth of several blocks, more rows than are packed at once, and both at once.
#[test]
fn large_products_are_cut_without_a_seam() {
    for (tokens, inputs, outputs) in [(3, 5000, 40), (2300, 70, 33), (40, 33, 4500)] {
        for format in [0, 1] {
            let case = Case::new(tokens, inputs, &[outputs, 20], &[3], format);
            for path in paths() {
                path.scope(|| check::<bf16>(&case, path));
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for path in paths() {
        let case = Case::new(300, 130, &[96, 200], &[4, 9], 1);
        assert_same_bits_on_any_pool("forward", || {
            path.scope(|| case.forward::<bf16>().0.concat().into_iter().map(Element::to_f32).collect())
        });
        let few = Case::new(2, 1300, &[96, 200], &[4], 1);
        assert_same_bits_on_any_pool("forward of few rows", || {
            path.scope(|| few.forward::<bf16>().0.concat().into_iter().map(Element::to_f32).collect())
        });
        assert_same_bits_on_any_pool("backward", || path.scope(|| case.backward::<f32>(None).0));
        let (low, x) = (uniform(1, 900 * 9), uniform(2, 900 * 300));
        assert_same_bits_on_any_pool("factor gradient", || {
            let mut gradient = vec![0.0; 9 * 300];
            path.scope(|| factor_gradient(&low, 9, &x, 300, &mut gradient));
            gradient
        });
    }
}

/// What a pair of factors reads in place of x is its own: neither the frozen product nor other pairs see it.
#[test]
fn factors_may_read_what_dropout_left() {
    let case = Case::new(30, 50, &[40], &[3, 5], 0);
    let x = case.x::<f32>();
    let dropped: Vec<f32> = x.iter().enumerate().map(|(i, x)| if i % 3 == 0 { 0.0 } else { 1.5 * x }).collect();
    let (plain, lows) = case.forward::<f32>();
    let (plain, lows) = (&plain[0], &lows[0]);
    let mut y = vec![0.0; 30 * 40];
    let mut own = case.lows(0);
    let mut back = (case.lows(0), vec![0.0; x.len()], vec![0.0; x.len()]);
    case.with_layers(|layers| {
        let lows = own.iter_mut().map(Vec::as_mut_slice).collect();
        let output = LinearOutput { y: &mut y, lows, dropped: vec![Some(&dropped), None] };
        linear_forward(&x, 30, layers, &mut [output]);
        let dy = case.dy::<f32>(0);
        let (lows, of_dropped, dx) = &mut back;
        let lows = lows.iter_mut().map(Vec::as_mut_slice).collect();
        let gradient = LinearGradient { dy: &dy, lows, dropped: vec![Some(of_dropped), None] };
        linear_backward(30, layers, &mut [gradient], InputGradient::Overwrite(dx));
    });
    assert_eq!(own[1], lows[1], "the second pair reads x");
    let (a, b, rank) = &case.factors[0][0];
    for t in 0..30 {
        for k in 0..*rank {
            let expected: f64 = (0..50).map(|i| f(SCALE) * f(dropped[t * 50 + i]) * f(a[k * 50 + i])).sum();
            assert!((f(own[0][t * rank + k]) - expected).abs() < 1e-4);
        }
        for o in 0..40 {
            let change: f64 =
                (0..*rank).map(|k| f(own[0][t * rank + k] - lows[0][t * rank + k]) * f(b[o * rank + k])).sum();
            assert!((f(y[t * 40 + o] - plain[t * 40 + o]) - change).abs() < 1e-4);
        }
    }
    let (whole, _) = case.backward::<f32>(None);
    for ((whole, of_dropped), dx) in whole.iter().zip(&back.1).zip(&back.2) {
        assert!((whole - (of_dropped + dx)).abs() < 1e-4, "both gradients together are the whole");
    }
}
