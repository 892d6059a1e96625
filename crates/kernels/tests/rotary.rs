//! The rotary embedding against its formula in f64, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, elements, paths, rounding, uniform, wide, words};
use fedpipe_kernels::{Element, RotaryTable};
use half::bf16;
use proptest::prelude::*;

const THETA: f64 = 10_000.0;

/// `x·cos + rotate_half(x)·sin` of one head, as Hugging Face's Llama writes it.
fn reference(x: &[f64], position: u32) -> Vec<f64> {
    let (dim, half) = (x.len(), x.len() / 2);
    let angle = |i: usize| f64::from(position) / THETA.powf(2.0 * (i % half) as f64 / dim as f64);
    let rotated = |i: usize| if i < half { -x[i + half] } else { x[i - half] };
    (0..dim).map(|i| x[i] * angle(i).cos() + rotated(i) * angle(i).sin()).collect()
}

fn positions(tokens: usize, below: u64, seed: u64) -> Vec<u32> {
    words(seed, tokens).map(|word| (word % below) as u32).collect()
}

fn check<E: Element>(tokens: usize, heads: usize, half: usize, seed: u64) {
    let table = RotaryTable::new(2 * half, 300, THETA);
    assert_eq!((table.head_dim(), table.positions()), (2 * half, 300));
    let positions = positions(tokens, 300, seed);
    let x = elements::<E>(seed, tokens * heads * 2 * half);
    let heads_of = |values: &[f64]| values.chunks(2 * half).map(<[f64]>::to_vec).collect::<Vec<_>>();
    for path in paths() {
        let mut y = x.clone();
        path.scope(|| table.forward(&positions, heads, &mut y));
        let mut back = y.clone();
        path.scope(|| table.backward(&positions, heads, &mut back));
        for (i, (x, y)) in heads_of(&wide(&x)).into_iter().zip(heads_of(&wide(&y))).enumerate() {
            for (actual, expected) in y.iter().zip(reference(&x, positions[i / heads])) {
                // Cosine, sine, two products and a sum, of terms of at most 1; then stored.
                let limit = 4.0 * common::ROUNDING + rounding::<E>() * expected.abs();
                assert!((actual - expected).abs() <= limit, "head {i} on {path}: {actual}, not {expected}");
            }
        }
        for (actual, expected) in wide(&back).into_iter().zip(wide(&x)) {
            assert!((actual - expected).abs() <= 6.0 * rounding::<E>(), "back on {path}: {actual}, not {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn turns_match_f64_and_back(tokens in 0usize..12, heads in 1usize..5, half in 1usize..40, seed in 0u64..1000) {
        check::<f32>(tokens, heads, half, seed);
        check::<bf16>(tokens, heads, half, seed);
    }
}

#[test]
fn the_backward_pass_is_the_transposed_map() {
    // ⟨R·x, dy⟩ = ⟨x, Rᵀ·dy⟩ for any x and dy.
    let table = RotaryTable::new(64, 50, THETA);
    let positions = positions(20, 50, 1);
    let [x, dy] = [2, 3].map(|seed| uniform(seed, 20 * 3 * 64));
    let (mut y, mut dx) = (x.clone(), dy.clone());
    table.forward(&positions, 3, &mut y);
    table.backward(&positions, 3, &mut dx);
    let dot = |a: &[f32], b: &[f32]| wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&y, &dy) - dot(&x, &dx)).abs() < 1e-4);
}

#[test]
fn frequencies_may_be_given() {
    let frequencies: Vec<f64> = (0..16).map(|i| THETA.powf(-f64::from(i) / 16.0)).collect();
    let positions = positions(9, 40, 1);
    let turn = |table: RotaryTable| {
        let mut x = uniform(1, 9 * 32);
        table.forward(&positions, 1, &mut x);
        x
    };
    assert_eq!(turn(RotaryTable::from_inverse_frequencies(&frequencies, 40)), turn(RotaryTable::new(32, 40, THETA)));
    let scaled: Vec<f64> = frequencies.iter().map(|frequency| frequency / 4.0).collect();
    assert_ne!(turn(RotaryTable::from_inverse_frequencies(&scaled, 40)), turn(RotaryTable::new(32, 40, THETA)));
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let table = RotaryTable::new(64, 400, THETA);
    let positions: Vec<u32> = (0..400).collect();
    for path in paths() {
        assert_same_bits_on_any_pool(&format!("rotary on {path}"), || {
            let mut x = uniform(1, 400 * 4 * 64);
            path.scope(|| table.forward(&positions, 4, &mut x));
            x
        });
    }
}

#[test]
#[should_panic(expected = "position 5 of a rotary table of 5 positions")]
fn a_position_beyond_the_table_is_named() {
    RotaryTable::new(2, 5, THETA).forward(&[4, 5], 1, &mut [0f32; 4]);
}
