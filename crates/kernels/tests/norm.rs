//! Layer norm and RMS norm against f64, forward and backward, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, elements, paths, rounding, uniform, wide};
use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{
    Element, NormOutput, NormSaved, layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward,
};
use half::bf16;
use proptest::prelude::*;

const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Norm {
    Layer,
    Rms,
}

/// What goes into a norm and its gradient.
struct Inputs<E> {
    x: Vec<E>,
    residual: Option<Vec<E>>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    dy: Vec<E>,
    /// What `dx` holds before; added to if `write` says so.
    before: Vec<E>,
    write: Write,
}

impl<E: Element> Inputs<E> {
    fn new(rows: usize, hidden: usize, offset: f32, seed: u64) -> Self {
        let x = uniform(seed, rows * hidden).into_iter().map(|x| E::from_f32(x + offset)).collect();
        Self {
            x,
            residual: (!seed.is_multiple_of(3)).then(|| elements(seed + 4, rows * hidden)),
            gamma: uniform(seed + 1, hidden),
            beta: uniform(seed + 2, hidden),
            dy: elements(seed + 3, rows * hidden),
            before: elements(seed + 5, rows * hidden),
            write: if seed.is_multiple_of(2) { Write::Overwrite } else { Write::Accumulate },
        }
    }

    /// What is normalised.
    fn sum(&self) -> Vec<E> {
        let residual = |i: usize| self.residual.as_ref().map_or(0.0, |residual| residual[i].to_f32());
        self.x.iter().enumerate().map(|(i, x)| E::from_f32(x.to_f32() + residual(i))).collect()
    }
}

/// `[y, sum, dx]` of the kernels.
fn run<E: Element>(norm: Norm, inputs: &Inputs<E>) -> [Vec<E>; 3] {
    let Inputs { x, residual, gamma, beta, dy, before, write } = inputs;
    let [mut y, mut sum, mut normed] = [(); 3].map(|()| vec![E::from_f32(f32::NAN); x.len()]);
    let mut rstd = vec![f32::NAN; x.len() / gamma.len()];
    let mut dx = before.clone();
    let saved = NormSaved { normed: &mut normed, rstd: &mut rstd };
    let output = NormOutput { y: &mut y, sum: Some(&mut sum), saved: Some(saved) };
    match norm {
        Norm::Layer => {
            layer_norm_forward(x, residual.as_deref(), gamma, beta, EPS, output);
            layer_norm_backward(&normed, &rstd, gamma, dy, *write, &mut dx);
        }
        Norm::Rms => {
            rms_norm_forward(x, residual.as_deref(), gamma, EPS, output);
            rms_norm_backward(&normed, &rstd, gamma, dy, *write, &mut dx);
        }
    }
    [y, sum, dx]
}

/// One row of the norm in f64.
fn row(norm: Norm, x: &[f64], gamma: &[f32], beta: &[f32]) -> Vec<f64> {
    let hidden = x.len() as f64;
    let mean = if let Norm::Layer = norm { x.iter().sum::<f64>() / hidden } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / hidden;
    let normal = |x: &f64| (x - mean) / (variance + f64::from(EPS)).sqrt();
    let shift = |i: usize| if let Norm::Layer = norm { f64::from(beta[i]) } else { 0.0 };
    x.iter().enumerate().map(|(i, x)| normal(x) * f64::from(gamma[i]) + shift(i)).collect()
}

/// The gradient of `Σ dy·y` by one row, by central differences of the f64 forward.
fn row_gradient(norm: Norm, x: &[f64], gamma: &[f32], beta: &[f32], dy: &[f64]) -> Vec<f64> {
    let loss = |x: &[f64]| -> f64 { row(norm, x, gamma, beta).iter().zip(dy).map(|(y, &dy)| y * dy).sum() };
    let step = 1e-5 * row_spread(x);
    (0..x.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut x = x.to_vec();
                x[i] += by;
                loss(&x)
            };
            (moved(step) - moved(-step)) / (2.0 * step)
        })
        .collect()
}

fn row_spread(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt() + f64::from(EPS).sqrt()
}

fn check<E: Element>(norm: Norm, rows: usize, hidden: usize, offset: f32, seed: u64) {
    let inputs = Inputs::<E>::new(rows, hidden, offset, seed);
    let (sum, dy, before) = (wide(&inputs.sum()), wide(&inputs.dy), wide(&inputs.before));
    for path in paths() {
        let [y, actual_sum, dx] = path.scope(|| run(norm, &inputs)).map(|values| wide(&values));
        assert_eq!(actual_sum, sum, "{norm:?} on {path}: the sum");
        for r in 0..rows {
            let at = r * hidden..(r + 1) * hidden;
            let sum = &sum[at.clone()];
            let expected_y = row(norm, sum, &inputs.gamma, &inputs.beta);
            let gradient = row_gradient(norm, sum, &inputs.gamma, &inputs.beta, &dy[at.clone()]);
            let expected_dx: Vec<_> = match inputs.write {
                Write::Overwrite => gradient,
                Write::Accumulate => gradient.iter().zip(&before[at.clone()]).map(|(dx, before)| dx + before).collect(),
            };
            // Roundings of x and its mean are magnified by their size over the row's spread; a gradient has the unit
            // of 1/spread. Of bf16, the normalised row is rounded once more for the gradient, up to 16 times that.
            let spread = row_spread(sum);
            let largest = sum.iter().fold(0f64, |largest, x| largest.max(x.abs()));
            let magnified = 1.0 + largest / spread;
            let saved = if E::IS_BF16 { 16.0 * rounding::<E>() } else { 0.0 };
            let limits = [2e-6 * magnified, (4e-6 * magnified + saved) / spread];
            for ((actual, expected), limit) in [&y, &dx].into_iter().zip([expected_y, expected_dx]).zip(limits) {
                for (i, (&actual, expected)) in actual[at.clone()].iter().zip(expected).enumerate() {
                    let limit = limit + rounding::<E>() * expected.abs();
                    let what = format!("{norm:?} on {path}, [{rows}, {hidden}] + {offset}: row {r}, {i}");
                    let error = (actual - expected).abs();
                    assert!(error <= limit, "{what}: {actual}, not {expected} (± {limit:e})");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn norms_match_f64(rows in 0usize..5, hidden in 1usize..150, offset in -3f32..3.0, seed in 0u64..1000) {
        for norm in [Norm::Layer, Norm::Rms] {
            check::<f32>(norm, rows, hidden, offset, seed);
            check::<bf16>(norm, rows, hidden, offset, seed);
        }
    }
}

#[test]
fn a_large_mean_does_not_cancel() {
    check::<f32>(Norm::Layer, 2, 768, 100.0, 1);
}

#[test]
fn the_result_does_not_depend_on_what_is_kept() {
    let inputs = Inputs::<bf16>::new(3, 40, 0.0, 1);
    let Inputs { x, residual, gamma, beta, .. } = &inputs;
    for path in paths() {
        path.scope(|| {
            for norm in [Norm::Layer, Norm::Rms] {
                let [kept, ..] = run(norm, &inputs);
                let mut y = vec![bf16::NAN; x.len()];
                let output = NormOutput { y: &mut y, sum: None, saved: None };
                match norm {
                    Norm::Layer => layer_norm_forward(x, residual.as_deref(), gamma, beta, EPS, output),
                    Norm::Rms => rms_norm_forward(x, residual.as_deref(), gamma, EPS, output),
                }
                assert_eq!(y, kept, "{norm:?} on {path}");
            }
        });
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let inputs = Inputs::<f32>::new(300, 384, 0.0, 1);
    for path in paths() {
        for norm in [Norm::Layer, Norm::Rms] {
            let what = format!("{norm:?} on {path}");
            assert_same_bits_on_any_pool(&what, || path.scope(|| run(norm, &inputs).concat()));
        }
    }
}

#[test]
#[should_panic(expected = "x is [rows, 3]")]
fn a_wrong_length_is_named() {
    rms_norm_forward(&[0f32; 4], None, &[1.0; 3], EPS, NormOutput { y: &mut [0.0; 4], sum: None, saved: None });
}
