//! Embedding: rows of frozen tables, gathered and summed.

use rayon::prelude::*;

use crate::add::add;
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::frozen::FrozenMatrix;
use crate::gemm::Rows;
use crate::scratch::Scratch;
use crate::vector::{LEAST_JOBS, rows_a_job};

/// `out[token] = Σ table[ids[token]]` over pairs of a table `[entries, hidden]` and the ids of all tokens `[tokens]`: the
/// words, positions and segments of a model. `out` is `[tokens, hidden]`; the sum is rounded once.
///
/// # Panics
/// When there are no tables, the lengths do not fit each other, or an id has no row.
pub fn gather<E: Element>(tables: &[(&FrozenMatrix, &[u32])], out: &mut [E]) {
    let Some((first, first_ids)) = tables.first() else { panic!("a gather from no tables") };
    let (tokens, hidden) = (first_ids.len(), first.columns());
    assert_eq!(out.len(), tokens * hidden, "out is [tokens, hidden]");
    for (table, ids) in tables {
        assert_eq!(table.columns(), hidden, "every table is [entries, hidden]");
        assert_eq!(ids.len(), tokens, "one id a token for every table");
        if let Some(beyond) = ids.iter().find(|&&id| id as usize >= table.rows()) {
            panic!("id {beyond} of an embedding table of {} rows", table.rows());
        }
    }
    if hidden == 0 {
        return;
    }
    let path = Path::current();
    let at_once = rows_a_job(hidden);
    out.par_chunks_mut(at_once * hidden).enumerate().with_min_len(LEAST_JOBS).for_each(|(chunk, out)| {
        let (mut sum, mut row) = (Scratch::<f32>::take(hidden), Scratch::<f32>::take(hidden));
        for (i, out) in out.chunks_exact_mut(hidden).enumerate() {
            let token = chunk * at_once + i;
            sum.fill(0.0);
            for (table, ids) in tables {
                table.read(path, ids[token] as usize, 0..hidden, &mut row);
                add(path, &row, &mut sum);
            }
            narrow(path, &sum, out);
        }
    });
}

multiversion!(fn narrow<E: Element>(from: &[f32], to: &mut [E]) = narrow_body);

#[inline(always)]
fn narrow_body<const FMA: bool, E: Element>(from: &[f32], to: &mut [E]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::from_f32(from));
}
