//! Gathered and summed embeddings, from every format, on every path.

mod common;

use common::{Weight, assert_same_bits_on_any_pool, paths, rounding, weights, wide, words};
use fedpipe_kernels::{Element, FrozenMatrix, gather};
use half::bf16;
use proptest::prelude::*;

fn ids(tokens: usize, rows: usize, seed: u64) -> Vec<u32> {
    words(seed, tokens).map(|word| (word % rows as u64) as u32).collect()
}

fn check<E: Element>(tables: &[&Weight], tokens: usize, seed: u64) {
    let hidden = tables[0].matrix.columns();
    let ids: Vec<_> = (seed..).zip(tables).map(|(seed, table)| ids(tokens, table.matrix.rows(), seed)).collect();
    let pairs: Vec<_> = tables.iter().zip(&ids).map(|(table, ids)| (&table.matrix, ids.as_slice())).collect();
    for path in paths() {
        let mut out = vec![E::from_f32(f32::NAN); tokens * hidden];
        path.scope(|| gather(&pairs, &mut out));
        for (i, actual) in wide(&out).into_iter().enumerate() {
            let (token, column) = (i / hidden, i % hidden);
            let terms = tables.iter().zip(&ids);
            let terms = terms.map(|(table, ids)| f64::from(table.values[ids[token] as usize * hidden + column]));
            let (expected, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
            let limit = 3.0 * common::ROUNDING * magnitude + rounding::<E>() * expected.abs();
            let names: Vec<_> = tables.iter().map(|table| &table.name).collect();
            assert!((actual - expected).abs() <= limit, "{names:?} on {path}, {i}: {actual}, not {expected}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn sums_match_f64(tokens in 0usize..20, hidden in 1usize..100, seed in 0u64..1000) {
        let (words, positions) = (weights(50, hidden, seed), weights(7, hidden, seed + 1));
        for (word, position) in words.iter().zip(positions.iter().rev()) {
            check::<f32>(&[word], tokens, seed);
            check::<bf16>(&[word, position], tokens, seed);
            check::<f32>(&[word, position, word], tokens, seed);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    for table in weights(100, 384, 1) {
        let ids = ids(400, 100, 2);
        assert_same_bits_on_any_pool(&table.name, || {
            let mut out = vec![0f32; 400 * 384];
            gather(&[(&table.matrix, &ids), (&table.matrix, &ids)], &mut out);
            out
        });
    }
}

#[test]
#[should_panic(expected = "id 3 of an embedding table of 3 rows")]
fn an_id_beyond_the_table_is_named() {
    gather(&[(&FrozenMatrix::f32(3, 1, &[0.0; 3]), &[0, 3])], &mut [0f32; 2]);
}
