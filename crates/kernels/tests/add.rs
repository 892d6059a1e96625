//! Sums against f64, on every path.

mod common;

use common::{assert_same_bits_on_any_pool, elements, paths, rounding, uniform, wide};
use fedpipe_kernels::{Element, add_into};
use half::bf16;
use proptest::prelude::*;

fn check<E: Element>(len: usize, seed: u64) {
    let [x, before] = [0, 1].map(|i| elements::<E>(seed + i, len));
    for path in paths() {
        let mut y = before.clone();
        path.scope(|| add_into(&x, &mut y));
        for ((x, before), y) in wide(&x).into_iter().zip(wide(&before)).zip(wide(&y)) {
            let expected = x + before;
            let limit = (rounding::<E>() + common::ROUNDING) * expected.abs();
            assert!((y - expected).abs() <= limit, "{x} + {before} on {path} is {y}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sums_match_f64(len in 0usize..200, seed in 0u64..1000) {
        check::<f32>(len, seed);
        check::<bf16>(len, seed);
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let x = uniform(1, 100_001);
    assert_same_bits_on_any_pool("add", || {
        let mut y = uniform(2, x.len());
        add_into(&x, &mut y);
        y
    });
}
