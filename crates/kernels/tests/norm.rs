//! Layer norm and RMS norm against f64, forward and backward, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, paths, uniform};
use fedpipe_kernels::{layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward};
use proptest::prelude::*;

const EPS: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Norm {
    Layer,
    Rms,
}

/// `[y, dx]` of the kernels.
fn run(norm: Norm, x: &[f32], gamma: &[f32], beta: &[f32], dy: &[f32]) -> [Vec<f32>; 2] {
    let hidden = gamma.len();
    let rows = x.len() / hidden;
    let [mut y, mut dx] = [(); 2].map(|()| vec![f32::NAN; x.len()]);
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![f32::NAN; rows]);
    match norm {
        Norm::Layer => {
            layer_norm_forward(x, hidden, gamma, beta, EPS, &mut y, &mut mean, &mut rstd);
            layer_norm_backward(x, hidden, gamma, &mean, &rstd, dy, &mut dx);
        }
        Norm::Rms => {
            rms_norm_forward(x, hidden, gamma, EPS, &mut y, &mut rstd);
            rms_norm_backward(x, hidden, gamma, &rstd, dy, &mut dx);
        }
    }
    [y, dx]
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
fn row_gradient(norm: Norm, x: &[f64], gamma: &[f32], beta: &[f32], dy: &[f32]) -> Vec<f64> {
    let loss = |x: &[f64]| -> f64 { row(norm, x, gamma, beta).iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum() };
    let spread = row_spread(x);
    let step = 1e-5 * spread;
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

fn check(norm: Norm, rows: usize, hidden: usize, offset: f32, seed: u64) {
    let x: Vec<f32> = uniform(seed, rows * hidden).iter().map(|x| x + offset).collect();
    let [gamma, beta] = [1, 2].map(|i| uniform(seed + i, hidden));
    let dy = uniform(seed + 3, x.len());
    for path in paths() {
        let [y, dx] = path.scope(|| run(norm, &x, &gamma, &beta, &dy));
        for r in 0..rows {
            let at = r * hidden..(r + 1) * hidden;
            let wide: Vec<f64> = x[at.clone()].iter().map(|&x| f64::from(x)).collect();
            let expected_y = row(norm, &wide, &gamma, &beta);
            let expected_dx = row_gradient(norm, &wide, &gamma, &beta, &dy[at.clone()]);
            // Roundings of x and its mean are magnified by their size over the row's spread; a gradient has the unit
            // of 1/spread.
            let spread = row_spread(&wide);
            let magnified = 1.0 + f64::from(offset.abs()) / spread;
            let limits = [2e-6 * magnified, 4e-6 * magnified / spread];
            for ((actual, expected), limit) in [&y, &dx].into_iter().zip([expected_y, expected_dx]).zip(limits) {
                for (i, (&actual, expected)) in actual[at.clone()].iter().zip(expected).enumerate() {
                    let error = (f64::from(actual) - expected).abs();
                    let what = format!("{norm:?} on {path}, [{rows}, {hidden}] + {offset}: row {r}, {i}");
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
        check(Norm::Layer, rows, hidden, offset, seed);
        check(Norm::Rms, rows, hidden, offset, seed);
    }
}

#[test]
fn a_large_mean_does_not_cancel() {
    check(Norm::Layer, 2, 768, 100.0, 1);
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (rows, hidden) = (300, 384);
    let [x, dy] = [1, 2].map(|seed| uniform(seed, rows * hidden));
    let [gamma, beta] = [3, 4].map(|seed| uniform(seed, hidden));
    for path in paths() {
        for norm in [Norm::Layer, Norm::Rms] {
            let what = format!("{norm:?} on {path}");
            assert_same_bits_on_any_pool(&what, || path.scope(|| run(norm, &x, &gamma, &beta, &dy).concat()));
        }
    }
}

#[test]
#[should_panic(expected = "gamma is [hidden]")]
fn a_wrong_length_is_named() {
    rms_norm_forward(&[0.0; 4], 2, &[1.0; 3], EPS, &mut [0.0; 4], &mut [0.0; 2]);
}
