//! AdamW against its formula in f64, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, paths, uniform};
use fedpipe_kernels::{AdamW, Parameter};
use proptest::prelude::*;

const ADAMW: AdamW = AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// Values and moments after steps with the gradients given.
fn run(adamw: AdamW, value: &[f32], gradients: &[Vec<f32>]) -> [Vec<f32>; 3] {
    let mut state = [value.to_vec(), vec![0.0; value.len()], vec![0.0; value.len()]];
    for (step, gradient) in (1..).zip(gradients) {
        let [value, first_moment, second_moment] = &mut state;
        adamw.step(step, &mut [Parameter { value, gradient, first_moment, second_moment }]);
    }
    state
}

fn reference(adamw: AdamW, value: f32, gradients: impl Iterator<Item = f32>) -> f64 {
    let (mut value, mut first, mut second) = (f64::from(value), 0.0, 0.0);
    for (step, gradient) in (1..).zip(gradients) {
        let gradient = f64::from(gradient);
        value *= 1.0 - adamw.learning_rate * adamw.weight_decay;
        first = adamw.beta1 * first + (1.0 - adamw.beta1) * gradient;
        second = adamw.beta2 * second + (1.0 - adamw.beta2) * gradient * gradient;
        let first_hat = first / (1.0 - adamw.beta1.powi(step));
        let second_hat = second / (1.0 - adamw.beta2.powi(step));
        value -= adamw.learning_rate * first_hat / (second_hat.sqrt() + adamw.eps);
    }
    value
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn steps_match_f64(len in 0usize..100, steps in 1u64..12, seed in 0u64..1000) {
        let value = uniform(seed, len);
        let gradients: Vec<_> = (0..steps).map(|step| uniform(seed + 1 + step, len)).collect();
        for path in paths() {
            let [actual, ..] = path.scope(|| run(ADAMW, &value, &gradients));
            for (i, &actual) in actual.iter().enumerate() {
                let expected = reference(ADAMW, value[i], gradients.iter().map(|gradient| gradient[i]));
                prop_assert!((f64::from(actual) - expected).abs() < 2e-6, "{} on {}: not {}", actual, path, expected);
            }
        }
    }
}

#[test]
fn one_step_by_hand() {
    // After one step the corrected moments are g and g²: value·(1 - 0.001) - 0.01·sign(g), but for eps.
    for path in paths() {
        let [value, first, second] = path.scope(|| run(ADAMW, &[1.0, -2.0], &[vec![0.5, -0.25]]));
        let close = |actual: f32, expected: f32| (actual - expected).abs() < 1e-6;
        assert!(close(value[0], 0.989) && close(value[1], -1.988), "{path}: {value:?}");
        assert!(close(first[0], 0.05) && close(second[0], 0.000_25), "{path}: {first:?} {second:?}");
    }
}

#[test]
fn every_parameter_of_a_list_is_updated() {
    let lengths = [0, 1, 5, 40_000];
    let mut states: Vec<_> = lengths.map(|len| [vec![1.0; len], vec![0.0; len], vec![0.0; len]]).into();
    let gradient = vec![1.0; 40_000];
    let parameters = states.iter_mut().map(|[value, first_moment, second_moment]| Parameter {
        gradient: &gradient[..value.len()],
        value,
        first_moment,
        second_moment,
    });
    ADAMW.step(1, &mut parameters.collect::<Vec<_>>());
    for [value, ..] in &states {
        assert!(value.iter().all(|value| (value - 0.989).abs() < 1e-6));
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (value, gradient) = (uniform(1, 60_000), uniform(2, 60_000));
    assert_same_bits_on_any_pool("adamw", || run(ADAMW, &value, std::slice::from_ref(&gradient)).concat());
}
