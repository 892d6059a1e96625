//! Dropout: the statistics of its mask, and that the mask is the same wherever it is made.

mod common;

use common::{assert_same_bits_on_any_pool, elements, paths, rounding, uniform};
use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{Element, dropout};
use half::bf16;
use proptest::prelude::*;

const COUNT: usize = 1 << 20;

/// 1 where an element is kept, 0 where it is dropped.
fn mask(len: usize, probability: f32, key: u64) -> Vec<f64> {
    let mut y = vec![f32::NAN; len];
    dropout(&vec![1.0; len], probability, key, Write::Overwrite, &mut y);
    y.iter().map(|&y| f64::from(u8::from(y != 0.0))).collect()
}

/// The mask about its expectation, in units of its standard deviation.
fn standardised(probability: f32, key: u64) -> Vec<f64> {
    let dropped = f64::from(probability);
    let deviation = (dropped * (1.0 - dropped)).sqrt();
    mask(COUNT, probability, key).iter().map(|mask| (mask - (1.0 - dropped)) / deviation).collect()
}

/// Five standard deviations of a mean of products of `count` independent standardised masks.
fn limit(count: usize) -> f64 {
    5.0 / (count as f64).sqrt()
}

fn correlation(x: &[f64], y: &[f64], lag: usize) -> f64 {
    let count = x.len() - lag;
    x[..count].iter().zip(&y[lag..]).map(|(x, y)| x * y).sum::<f64>() / count as f64
}

/// Neighbours, vectors, the quarters of a group, groups, and the jobs of threads.
const LAGS: [usize; 14] = [1, 2, 3, 7, 8, 16, 63, 64, 65, 128, 192, 256, 1 << 13, 1 << 14];

#[test]
fn elements_are_dropped_at_the_probability_given() {
    for probability in [0.01, 0.1, 0.5, 0.9] {
        for key in [0, 1, 1 << 32, u64::MAX] {
            let x = standardised(probability, key);
            let mean = x.iter().sum::<f64>() / COUNT as f64;
            assert!(mean.abs() < limit(COUNT), "p {probability}, key {key}: mean {mean}");
        }
    }
}

#[test]
fn windows_of_the_mask_vary_as_independent_draws() {
    for window in [16, 128, 256, 1000] {
        let x = standardised(0.3, 7);
        let sums = x.chunks_exact(window).map(|window| window.iter().sum::<f64>());
        let count = COUNT / window;
        let variance = sums.map(|sum| sum * sum).sum::<f64>() / (count * window) as f64;
        // The variance of a squared normal is 2.
        assert!((variance - 1.0).abs() < 2f64.sqrt() * limit(count), "windows of {window}: variance {variance}");
    }
}

#[test]
fn elements_do_not_depend_on_each_other() {
    for key in [0, 1, 1 << 40] {
        let x = standardised(0.3, key);
        for lag in LAGS {
            let correlation = correlation(&x, &x, lag);
            assert!(correlation.abs() < limit(COUNT - lag), "key {key}, lag {lag}: {correlation}");
        }
    }
}

#[test]
fn keys_do_not_depend_on_each_other() {
    let keys = [0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 63, u64::MAX];
    let masks = keys.map(|key| standardised(0.5, key));
    for (i, x) in masks.iter().enumerate() {
        for (j, y) in masks.iter().enumerate().skip(i + 1) {
            for lag in [0].into_iter().chain(LAGS) {
                let correlation = correlation(x, y, lag);
                let what = format!("keys {} and {}, lag {lag}", keys[i], keys[j]);
                assert!(correlation.abs() < limit(COUNT - lag), "{what}: {correlation}");
            }
        }
    }
}

fn check<E: Element>(len: usize, probability: f32, key: u64) {
    let [x, before] = [1, 2].map(|seed| elements::<E>(seed, len));
    // The mask of a longer slice, made in another call: the same for the elements that both have.
    let mask = mask(len + 1000, probability, key);
    let rounded = (f64::from(probability) * 65_536.0).round() / 65_536.0;
    for path in paths() {
        let (mut y, mut sum) = (vec![E::from_f32(f32::NAN); len], before.clone());
        path.scope(|| {
            dropout(&x, probability, key, Write::Overwrite, &mut y);
            dropout(&x, probability, key, Write::Accumulate, &mut sum);
        });
        for i in 0..len {
            let kept = f64::from(x[i].to_f32()) * mask[i] / (1.0 - rounded);
            for (actual, expected) in [(y[i], kept), (sum[i], kept + f64::from(before[i].to_f32()))] {
                let limit = 4.0 * common::ROUNDING * (1.0 + kept.abs()) + rounding::<E>() * expected.abs();
                let error = (f64::from(actual.to_f32()) - expected).abs();
                assert!(error <= limit, "{i} of {len}, p {probability} on {path}: {}, not {expected}", actual.to_f32());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_kept_is_scaled(len in 0usize..3000, probability in 0f32..0.99, key in any::<u64>()) {
        check::<f32>(len, probability, key);
        check::<bf16>(len, probability, key);
    }
}

#[test]
fn a_probability_of_nothing_changes_nothing() {
    let x = uniform(1, 1000);
    let mut y = vec![f32::NAN; 1000];
    dropout(&x, 0.0, 1, Write::Overwrite, &mut y);
    assert_eq!(x, y);
}

#[test]
fn what_is_dropped_is_zero_even_if_it_was_not_finite() {
    let mut y = [0f32; 500];
    dropout(&[f32::INFINITY; 500], 0.5, 1, Write::Overwrite, &mut y);
    assert!(y.iter().all(|&y| y == 0.0 || y == f32::INFINITY) && y.contains(&0.0));
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = uniform(1, 100_001);
    for path in paths() {
        assert_same_bits_on_any_pool(&format!("dropout on {path}"), || {
            let mut y = vec![0.0; x.len()];
            path.scope(|| dropout(&x, 0.1, 5, Write::Overwrite, &mut y));
            y
        });
    }
}

#[test]
#[should_panic(expected = "a dropout probability of 1; it must be in [0, 1)")]
fn dropping_everything_is_refused() {
    dropout(&[0f32], 1.0, 0, Write::Overwrite, &mut [0.0]);
}
