//! Products over frozen weights, in every format, both ways, on every path.

mod common;

use common::{Weight, assert_close, assert_same_bits_on_any_pool, coded, paths, product, uniform, weights};
use fedpipe_kernels::{FrozenMatrix, Path, Storage};
use proptest::prelude::*;

fn check_forward(weight: &Weight, tokens: usize, path: Path, seed: u64) {
    let (rows, columns) = (weight.matrix.rows(), weight.matrix.columns());
    let x = uniform(seed, tokens * columns);
    let bias = uniform(seed + 1, rows);
    let (seen_x, seen_w) = (weight.inputs_on(path, &x), weight.on(path));
    for bias in [None, Some(bias.as_slice())] {
        let mut y = vec![f32::NAN; tokens * rows];
        path.scope(|| weight.matrix.product(&x, tokens, bias, &mut y));
        let expected = product(
            (tokens, rows, columns),
            |i, p| seen_x[i * columns + p],
            |p, j| seen_w[j * columns + p],
            1.0,
            |_, j| bias.map_or(0.0, |bias| bias[j]),
        );
        let what = format!("forward {} on {path}, [{tokens}, {columns}]·[{columns}, {rows}]", weight.name);
        assert_close(&y, &expected, columns, &what);
    }
}

fn check_backward(weight: &Weight, tokens: usize, path: Path, seed: u64) {
    let (rows, columns) = (weight.matrix.rows(), weight.matrix.columns());
    let dy = uniform(seed, tokens * rows);
    let (seen_dy, seen_w) = (weight.inputs_on(path, &dy), weight.on(path));
    let mut dx = vec![f32::NAN; tokens * columns];
    path.scope(|| weight.matrix.product_transposed(&dy, tokens, &mut dx));
    let expected =
        product((tokens, columns, rows), |i, p| seen_dy[i * rows + p], |p, j| seen_w[p * columns + j], 1.0, |_, _| 0.0);
    let what = format!("backward {} on {path}, [{tokens}, {rows}]·[{rows}, {columns}]", weight.name);
    assert_close(&dx, &expected, rows, &what);
}

fn check(rows: usize, columns: usize, tokens: usize, seed: u64) {
    for weight in weights(rows, columns, seed) {
        for path in paths() {
            check_forward(&weight, tokens, path, seed);
            check_backward(&weight, tokens, path, seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_match_f64_in_every_format(
        rows in 1usize..140, columns in 1usize..140, tokens in 0usize..40, seed in 0u64..1000,
    ) {
        check(rows, columns, tokens, seed);
    }
}

#[test]
fn products_match_f64_at_the_edges_of_tiles_and_blocks() {
    // One element; a row and a column; tile widths and one beside them; a depth of several blocks, odd at the end.
    for (rows, columns, tokens) in [(1, 1, 1), (1, 200, 3), (200, 1, 3), (64, 64, 14), (65, 63, 15), (17, 1537, 2)] {
        check(rows, columns, tokens, 7);
        check(columns, rows, tokens, 8);
    }
    // Few rows, over panels in more than one run of lines, the last panel alone and not full.
    for tokens in 1..=8 {
        check(150, 41, tokens, 6);
    }
    // Right sides that are read as they are stored: several blocks deep, for few rows and for many.
    // Many columns, lest the rows be cut into few for each thread.
    let plain = &weights(1100, 41, 9)[0];
    let wide = &weights(700, 16 * 64 + 41, 9)[0];
    for path in paths() {
        check_backward(plain, 20, path, 10);
        check_backward(wide, 150, path, 10);
    }
}

#[test]
fn products_match_f64_beyond_the_rows_packed_at_once() {
    let weight = coded(48, 70, 4, 64, 3);
    check_forward(&weight, 1100, Path::best(), 4);
    check_backward(&weight, 1100, Path::best(), 5);
    // More where they are not packed, but lie as tiles read them.
    let plain = &weights(24, 32, 3)[0];
    check_forward(plain, 4100, Path::best(), 4);
    check_backward(plain, 4100, Path::best(), 5);
}

#[test]
fn a_matrix_without_rows_or_columns_gives_the_bias() {
    let mut y = [f32::NAN; 4];
    FrozenMatrix::f32(2, 0, &[]).product(&[], 2, Some(&[1.0, 2.0]), &mut y);
    assert_eq!(y, [1.0, 2.0, 1.0, 2.0]);
    FrozenMatrix::f32(0, 2, &[]).product_transposed(&[], 2, &mut y);
    assert_eq!(y, [0.0; 4]);
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let (rows, columns, tokens) = (200, 900, 130);
    for weight in weights(rows, columns, 11) {
        let (x, dy) = (uniform(12, tokens * columns), uniform(13, tokens * rows));
        for path in paths() {
            assert_same_bits_on_any_pool(&format!("{} on {path}", weight.name), || {
                path.scope(|| {
                    let (mut y, mut dx) = (vec![0.0; tokens * rows], vec![0.0; tokens * columns]);
                    weight.matrix.product(&x, tokens, None, &mut y);
                    weight.matrix.product_transposed(&dy, tokens, &mut dx);
                    y.extend(dx);
                    y
                })
            });
        }
    }
}

#[test]
fn a_token_s_result_does_not_depend_on_the_batch() {
    let (rows, columns, tokens) = (70, 800, 33);
    for weight in weights(rows, columns, 21) {
        let x = uniform(22, tokens * columns);
        for path in paths() {
            path.scope(|| {
                let product = |tokens: std::ops::Range<usize>| {
                    let mut y = vec![0.0; tokens.len() * rows];
                    weight.matrix.product(&x[tokens.start * columns..tokens.end * columns], tokens.len(), None, &mut y);
                    y
                };
                // Many rows, and those few that go without packing.
                for (whole, parts) in [(0..tokens, [0..9, 12..28, 20..33]), (5..8, [5..6, 6..8, 7..8])] {
                    let together = product(whole.clone());
                    for part in parts {
                        let same = &together[(part.start - whole.start) * rows..(part.end - whole.start) * rows];
                        assert!(product(part.clone()) == same, "{} on {path}: tokens {part:?}", weight.name);
                    }
                }
            });
        }
    }
}

#[test]
fn a_token_s_gradient_does_not_depend_on_the_batch() {
    let (rows, columns, tokens) = (600, 70, 140);
    for weight in weights(rows, columns, 23) {
        let dy = uniform(24, tokens * rows);
        for path in paths() {
            path.scope(|| {
                let product = |tokens: std::ops::Range<usize>| {
                    let mut dx = vec![0.0; tokens.len() * columns];
                    let dy = &dy[tokens.start * rows..tokens.end * rows];
                    weight.matrix.product_transposed(dy, tokens.len(), &mut dx);
                    dx
                };
                let together = product(0..tokens);
                for part in [0..1, 3..9, 10..50, 11..140] {
                    let same = &together[part.start * columns..part.end * columns];
                    assert!(product(part.clone()) == same, "{} on {path}: tokens {part:?}", weight.name);
                }
            });
        }
    }
}

#[test]
fn rows_and_dequantize_give_the_stored_values() {
    for weight in weights(9, 77, 31) {
        for path in paths() {
            path.scope(|| {
                assert_eq!(weight.matrix.dequantize(), weight.values, "{} on {path}", weight.name);
                let mut row = vec![0.0; 77];
                weight.matrix.row_into(5, &mut row);
                assert_eq!(row, weight.values[5 * 77..6 * 77], "{} on {path}", weight.name);
            });
        }
    }
}

#[test]
fn bf16_storage_rounds_ties_to_even_and_keeps_special_values() {
    // 1 + 2^-8 lies between 1 and 1 + 2^-7: even is 1. 1 + 3·2^-8 lies between 1 + 2^-7 and 1 + 2^-6: even is the latter.
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::NEG_INFINITY, f32::from_bits(0x7fff_ffff), -0.0];
    for path in paths() {
        let stored = path.scope(|| FrozenMatrix::bf16(1, 6, &values).dequantize());
        assert_eq!(stored[..4], [1.0, 1.0 + 1.0 / 64.0, f32::INFINITY, f32::NEG_INFINITY], "{path}");
        assert!(stored[4].is_nan() && stored[5].to_bits() == (-0f32).to_bits(), "{path}");
    }
}

#[test]
fn int8_rounds_to_the_nearest_even_code_of_each_row() {
    // By hand. The scale of the first row is 2, so 1 and 3 and 5 lie half-way between codes; zeros stay zeros; a scale that
    // is subnormal, rounded from 1.57 to 2 units, gives 100 times it, the largest value being 200 units.
    let unit = f32::from_bits(1);
    let values = [254.0, 1.0, 3.0, -5.0, 5.1, 0.0, -0.0, 0.0, 0.0, 0.0, 200.0 * unit, 3.0 * unit, -unit, 0.0, 0.0];
    let expected = [254.0, 0.0, 4.0, -4.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 200.0 * unit, 4.0 * unit, 0.0, 0.0, 0.0];
    for path in paths() {
        path.scope(|| assert_eq!(FrozenMatrix::int8(3, 5, &values).dequantize(), expected, "{path}"));
    }
}

#[test]
fn memory_at_rest_is_what_the_format_promises() {
    // 100 · 64 weights, 100 rows and 100 blocks of 64.
    let expected = [25_600, 12_800, 6_400 + 400, 1_600 + 400, 2_400 + 400, 3_200 + 400, 6_400 + 400, 3_200 + 200];
    let storage = [2, 3, 4, 8, 4].map(|bits| Storage::Codes { bits });
    let storage: Vec<_> = [Storage::F32, Storage::Bf16, Storage::Int8].into_iter().chain(storage).collect();
    for ((weight, bytes), storage) in weights(100, 64, 1).iter().zip(expected).zip(storage) {
        assert_eq!((weight.matrix.bytes(), weight.matrix.storage()), (bytes, storage), "{}", weight.name);
    }
}

#[test]
#[should_panic(expected = "x is [tokens, columns]")]
fn a_wrong_length_is_named() {
    FrozenMatrix::f32(2, 2, &[0.0; 4]).product(&[0.0; 3], 2, None, &mut [0.0; 4]);
}
