//! Activations against f64, values and slopes, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, elements, paths, rounding, uniform, wide};
use fedpipe_kernels::{Activation, Element};
use half::bf16;

const ALL: [Activation; 3] = [Activation::Gelu, Activation::GeluTanh, Activation::Silu];

/// `erfc(x)` for x ≥ 0: the Taylor series of erf below 3, beyond it the continued fraction, evaluated from far enough
/// down that both are exact to f64.
fn erfc(x: f64) -> f64 {
    const SQRT_PI: f64 = 1.772_453_850_905_516;
    if x < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - 2.0 / SQRT_PI * sum
    } else {
        let fraction = (1..200).rev().fold(x, |below, n| x + f64::from(n) / 2.0 / below);
        (-x * x).exp() / (SQRT_PI * fraction)
    }
}

fn value(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => {
            let tail = 0.5 * erfc(x.abs() / std::f64::consts::SQRT_2);
            x * if x < 0.0 { tail } else { 1.0 - tail }
        }
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

fn grid<E: Element>() -> Vec<E> {
    let grid = (-1_200..=1_200).map(|i| i as f32 / 100.0).chain([-1e4, -50.0, -1e-6, 1e-6, 50.0, 1e4]);
    grid.map(E::from_f32).collect()
}

/// What storing a result may round.
fn storing<E: Element>(value: f64) -> f64 {
    if E::IS_BF16 { rounding::<E>() * value.abs() } else { 0.0 }
}

#[test]
fn erfc_has_its_tabulated_values() {
    // Abramowitz and Stegun, table 7.1, and OEIS A099286 for erf(1).
    for (x, expected) in
        [(0.5, 0.479_500_122_186_953_5), (1.0, 0.157_299_207_050_285_13), (4.0, 1.541_725_790_028_002e-8)]
    {
        assert!((erfc(x) - expected).abs() < 1e-14 * (1.0 + expected), "erfc({x})");
    }
}

#[test]
fn values_are_within_1e_6_or_two_units_in_the_last_place() {
    check_values::<f32>();
    check_values::<bf16>();
}

fn check_values<E: Element>() {
    let x = grid::<E>();
    for path in paths() {
        for kind in ALL {
            let mut y = vec![E::from_f32(f32::NAN); x.len()];
            path.scope(|| kind.forward(&x, &mut y));
            for (x, y) in wide(&x).into_iter().zip(wide(&y)) {
                let expected = value(kind, x);
                let limit = 1e-6f64.max(2.4e-7 * expected.abs()) + storing::<E>(expected);
                assert!((y - expected).abs() <= limit, "{kind:?}({x}) on {path} is {y}, not {expected}");
            }
        }
    }
}

/// The slope by central differences of the f64 value.
fn slope(kind: Activation, x: f64) -> f64 {
    const STEP: f64 = 1e-4;
    (value(kind, x + STEP) - value(kind, x - STEP)) / (2.0 * STEP)
}

#[test]
fn slopes_match_finite_differences() {
    check_slopes::<f32>();
    check_slopes::<bf16>();
}

fn check_slopes<E: Element>() {
    let x = grid::<E>();
    let dy = elements::<E>(1, x.len());
    for path in paths() {
        for kind in ALL {
            let mut dx = vec![E::from_f32(f32::NAN); x.len()];
            path.scope(|| kind.backward(&x, &dy, &mut dx));
            for ((x, dy), dx) in wide(&x).into_iter().zip(wide(&dy)).zip(wide(&dx)) {
                let expected = dy * slope(kind, x);
                let limit = 1e-6 + storing::<E>(expected);
                assert!((dx - expected).abs() <= limit, "{kind:?}'({x})·{dy} on {path} is {dx}, not {expected}");
            }
        }
    }
}

#[test]
fn gates_match_f64() {
    check_gates::<f32>();
    check_gates::<bf16>();
}

fn check_gates<E: Element>() {
    let gate = grid::<E>();
    let [up, dy] = [1, 2].map(|seed| elements::<E>(seed, gate.len()));
    for path in paths() {
        for kind in ALL {
            let [mut y, mut dgate, mut dup] = [(); 3].map(|()| vec![E::from_f32(f32::NAN); gate.len()]);
            path.scope(|| {
                kind.gate_forward(&gate, &up, &mut y);
                kind.gate_backward(&gate, &up, &dy, &mut dgate, &mut dup);
            });
            let [gate, up, dy, y, dgate, dup] = [&gate, &up, &dy, &y, &dgate, &dup].map(|values| wide(values));
            for i in 0..gate.len() {
                let (f, slope) = (value(kind, gate[i]), slope(kind, gate[i]));
                for (what, actual, expected) in
                    [("y", y[i], f * up[i]), ("dgate", dgate[i], dy[i] * up[i] * slope), ("dup", dup[i], dy[i] * f)]
                {
                    // A relative part, for the roundings of the products.
                    let limit = 1e-6f64.max(4e-7 * expected.abs()) + storing::<E>(expected);
                    let at = format!("{what} of {kind:?} on {path}, gate {}", gate[i]);
                    assert!((actual - expected).abs() <= limit, "{at}: {actual}, not {expected}");
                }
            }
        }
    }
}

#[test]
fn infinite_inputs_have_their_limits_and_nan_stays() {
    for path in paths() {
        for kind in ALL {
            let mut y = [0.0; 2];
            path.scope(|| kind.forward(&[f32::INFINITY, f32::NAN], &mut y));
            assert!(y[0] == f32::INFINITY && y[1].is_nan(), "{kind:?} on {path}: {y:?}");
            let mut dx = [0.0; 2];
            path.scope(|| kind.backward(&[f32::MAX, f32::MIN], &[1.0; 2], &mut dx));
            assert_eq!(dx, [1.0, 0.0], "{kind:?} on {path}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = uniform(1, 70_001);
    for path in paths() {
        assert_same_bits_on_any_pool(&format!("activations on {path}"), || {
            path.scope(|| {
                let [mut y, mut dx, mut dgate, mut dup] = [(); 4].map(|()| vec![0.0; x.len()]);
                Activation::Gelu.forward(&x, &mut y);
                Activation::Gelu.backward(&x, &y, &mut dx);
                Activation::Silu.gate_backward(&x, &y, &dx, &mut dgate, &mut dup);
                Activation::Silu.gate_forward(&dgate, &dup, &mut y);
                [y, dx, dgate, dup].concat()
            })
        });
    }
}
