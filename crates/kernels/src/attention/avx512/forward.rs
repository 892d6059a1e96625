//! The forward pass of some heads of one sequence.

use super::head::{Head, Step};
use super::layout::{elements, lanes, pieces, stack, turn};
use super::softmax::{Denominators, numerators};
use super::tile::{Former, Multiplier, ROWS, Size, product};
use super::{LANES, WIDE, cuts, lines, lines_mut, wides, wides_mut};
use std::ops::Range;

use crate::attention::forward::Inputs;
use crate::attention::{AttentionShape, Job};
use crate::element::Element;
use crate::scratch::Scratch;
use crate::shared::SharedSlice;

/// Working memory of one head.
struct Buffers {
    /// A head as rows.
    rows: Scratch<u32>,
    /// The keys, turned.
    keys: Scratch<u32>,
    /// The values, stacked.
    values: Scratch<u32>,
    /// The scores of one tile: `[panels of keys, ROWS, 32]`.
    scores: Scratch<f32>,
    /// Their softmax's numerators as rows.
    numerators: Scratch<u32>,
    /// The products of these with values.
    sums: Scratch<f32>,
}

/// # Safety
/// Nobody else touches this sequence and these heads of `out` and `log_sum_exp`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(in crate::attention) unsafe fn forward<E: Element>(
    inputs: &Inputs<'_, E>,
    job: &Job,
    out: SharedSlice<'_, E>,
    log_sum_exp: SharedSlice<'_>,
) {
    let Inputs { shape, k, v, .. } = inputs;
    let (m, n, dim) = (job.queries.len(), job.keys.len(), shape.head_dim);
    let padded = n.next_multiple_of(LANES);
    let by = Multiplier::of::<E>(inputs.path);
    let (panels, depth) = (n.div_ceil(WIDE), lanes::<E>(dim));
    let mut buffers = Buffers {
        rows: Scratch::take(pieces::<E>(dim) * padded.max(m) * LANES),
        keys: Scratch::take(panels * depth * WIDE),
        values: Scratch::take(dim.div_ceil(WIDE) * lanes::<E>(n) * WIDE),
        scores: Scratch::take(panels * ROWS * WIDE),
        numerators: Scratch::take(panels * ROWS * WIDE / elements::<E>()),
        sums: Scratch::take(ROWS * WIDE),
    };
    for kv_head in job.kv_heads.clone() {
        let keys = Head { width: shape.key_width(), tokens: job.keys.clone(), column: kv_head * dim, dim };
        keys.read(k, padded, &mut buffers.rows);
        turn(lines(&buffers.rows), n, padded, depth, wides_mut(&mut buffers.keys));
        keys.read(v, padded, &mut buffers.rows);
        stack::<E>(lines(&buffers.rows), n, dim, padded, wides_mut(&mut buffers.values));
        for head in Job::heads(shape, kv_head) {
            let queries = Head { width: shape.query_width(), tokens: job.queries.clone(), column: head * dim, dim };
            queries.read(inputs.q, m, &mut buffers.rows);
            let tiles = || cuts(0..m, by.most_rows(), 1);
            let steps = tiles().count();
            for (step, tile) in tiles().enumerate() {
                queries.fetch_to_write(tile.clone(), out);
                queries.fetch_next(tile.clone(), inputs.q);
                let step = Step { step, steps };
                keys.fetch_next(step.of(n), k);
                keys.fetch_next(step.of(n), v);
                let visible = visible(shape, tile.clone(), m, n);
                let denominators = softmax(inputs, &by, job, tile.clone(), visible.clone(), &mut buffers);
                let left = lines(&buffers.numerators);
                for (panel, values) in wides(&buffers.values).chunks_exact(lanes::<E>(n)).enumerate() {
                    let columns = WIDE.min(dim - panel * WIDE);
                    let size = Size { rows: tile.len(), columns, depth: lanes::<E>(visible.len()) };
                    let values = &values[visible.start / elements::<E>()..];
                    let sums = wides_mut(&mut buffers.sums);
                    product::<E>(&by, left, ROWS, values, size, Former::Overwritten, sums);
                    // SAFETY: the caller's promise.
                    unsafe { queries.write(tile.clone(), panel, sums, |row| denominators.inverses[row], out) };
                }
                for (row, log) in tile.zip(denominators.logs) {
                    let token = job.queries.start + row;
                    // SAFETY: the caller's promise.
                    let to = unsafe { log_sum_exp.slice(token * shape.heads + head, 1) };
                    to[0] = log;
                }
            }
        }
    }
}

/// The keys that a tile of queries sees, from the beginning of a panel on.
fn visible(shape: &AttentionShape, tile: Range<usize>, m: usize, n: usize) -> Range<usize> {
    let seen = shape.mask.seen_by_any(tile, m, n);
    seen.start / WIDE * WIDE..seen.end
}

/// Computes the numerators of a tile of queries, which lie in `buffers.rows`, over the keys `visible`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn softmax<E: Element>(
    inputs: &Inputs<'_, E>,
    by: &Multiplier,
    job: &Job,
    tile: Range<usize>,
    visible: Range<usize>,
    buffers: &mut Buffers,
) -> Denominators {
    let shape = inputs.shape;
    let (m, n, depth) = (job.queries.len(), job.keys.len(), lanes::<E>(shape.head_dim));
    let queries = &lines(&buffers.rows)[tile.start..];
    let keys = wides(&buffers.keys).chunks_exact(depth).skip(visible.start / WIDE);
    let panels = keys.zip(wides_mut(&mut buffers.scores).chunks_exact_mut(ROWS));
    for (panel, (keys, scores)) in panels.take(visible.len().div_ceil(WIDE)).enumerate() {
        let size = Size { rows: tile.len(), columns: WIDE.min(visible.len() - panel * WIDE), depth };
        product::<E>(by, queries, m, keys, size, Former::Overwritten, scores);
    }
    let seen = |row| {
        let seen = shape.mask.seen(tile.start + row, m, n);
        seen.start.saturating_sub(visible.start)..seen.end - visible.start
    };
    let (scores, to) = (wides(&buffers.scores), lines_mut(&mut buffers.numerators));
    numerators::<E>(scores, tile.len(), visible.len(), seen, shape.scale, to)
}
