//! Thin dense products, in every orientation, on every path.

mod common;

use common::{assert_close, assert_same_bits_on_any_pool, paths, product, uniform};
use fedpipe_kernels::dense::{Matrix, Write, matmul};
use proptest::prelude::*;

fn oriented(rows: usize, columns: usize, data: &[f32], transposed: bool) -> Matrix<'_> {
    if transposed { Matrix::new(columns, rows, data).transposed() } else { Matrix::new(rows, columns, data) }
}

fn check(m: usize, n: usize, k: usize, scale: f32, seed: u64) {
    let (a, b, c) = (uniform(seed, m * k), uniform(seed + 1, k * n), uniform(seed + 2, m * n));
    for (left_transposed, right_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
        let left = |i: usize, p: usize| if left_transposed { a[p * m + i] } else { a[i * k + p] };
        let right = |p: usize, j: usize| if right_transposed { b[j * k + p] } else { b[p * n + j] };
        for write in [Write::Overwrite, Write::Accumulate] {
            let base = |i: usize, j: usize| if write == Write::Accumulate { c[i * n + j] } else { 0.0 };
            let expected = product((m, n, k), left, right, f64::from(scale), base);
            for path in paths() {
                let mut output = c.clone();
                let left = oriented(m, k, &a, left_transposed);
                let right = oriented(k, n, &b, right_transposed);
                path.scope(|| matmul(left, right, scale, write, &mut output));
                let what = format!("{m}·{n}·{k}, {left_transposed}, {right_transposed}, {write:?} on {path}");
                assert_close(&output, &expected, k, &what);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_match_f64(m in 0usize..70, n in 0usize..70, k in 0usize..90, scale in -2f32..2.0, seed in 0u64..1000) {
        check(m, n, k, scale, seed);
    }
}

#[test]
fn products_of_adapter_shapes_match_f64() {
    // u = x·Aᵀ, y += u·Bᵀ and dB = dyᵀ·u at rank 8; a depth of several blocks.
    for (m, n, k) in [(130, 8, 96), (130, 96, 8), (96, 8, 130), (1, 8, 1601), (1200, 1, 3)] {
        check(m, n, k, 0.5, 3);
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (tokens, rank, width) = (700, 8, 300);
    let (dy, u) = (uniform(1, tokens * width), uniform(2, tokens * rank));
    for path in paths() {
        assert_same_bits_on_any_pool(&format!("dB on {path}"), || {
            path.scope(|| {
                let mut db = vec![0.0; width * rank];
                let dy = Matrix::new(tokens, width, &dy).transposed();
                matmul(dy, Matrix::new(tokens, rank, &u), 2.0, Write::Overwrite, &mut db);
                db
            })
        });
    }
}
