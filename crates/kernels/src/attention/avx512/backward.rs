//! The backward pass of some heads of one sequence.
//!
//! Tiles are of keys by all queries, so that the gradients of keys and values are whole at once and only that of the
//! queries is summed up in memory.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::head::{Head, Step};
use super::layout::{elements, lanes, pieces, stack, turn};
use super::softmax::{Queries, Slopes, slopes};
use super::tile::{Former, Multiplier, ROWS, Size, product, product_turned};
use super::{LANES, WIDE, Wide, columns_below, cuts, lines, lines_mut, wides, wides_mut};
use crate::attention::backward::{Gradients, Inputs};
use crate::attention::{AttentionShape, Job, TILE};
use crate::element::Element;
use crate::scratch::Scratch;
use crate::shared::SharedSlice;

/// Working memory of one head.
struct Buffers {
    rows: Scratch<u32>,
    /// Keys and values as rows, for the scores and for `dp`.
    keys: Scratch<u32>,
    values: Scratch<u32>,
    /// Keys stacked, for `dq`.
    keys_stacked: Scratch<u32>,
    /// Queries and the output's gradient turned, for the scores and for `dp`.
    queries_turned: Scratch<u32>,
    dout_turned: Scratch<u32>,
    /// The same stacked, for `dk` and `dv`.
    queries_stacked: Scratch<u32>,
    dout_stacked: Scratch<u32>,
    /// Two vectors a query, see [`Queries`].
    logs: Scratch<f32>,
    inner: Scratch<f32>,
    /// Probabilities and slopes of a tile as rows, and the slopes stacked.
    p: Scratch<u32>,
    ds: Scratch<u32>,
    ds_stacked: Scratch<u32>,
    /// `[panels of elements, rows, 32]`.
    dq: Scratch<f32>,
    dk: Scratch<f32>,
    dv: Scratch<f32>,
}

impl Buffers {
    fn take<E: Element>(dim: usize, m: usize, n: usize) -> Self {
        let panels = m.div_ceil(WIDE);
        let rows = |rows: usize| Scratch::take(pieces::<E>(dim) * rows * LANES);
        let turned = || Scratch::take(panels * lanes::<E>(dim) * WIDE);
        let stacked = |rows: usize| Scratch::take(dim.div_ceil(WIDE) * lanes::<E>(rows) * WIDE);
        let sums = |rows: usize| Scratch::take(dim.div_ceil(WIDE) * rows * WIDE);
        let tile = || Scratch::take(panels * (WIDE / elements::<E>()) * STRIDE);
        Self {
            rows: rows(m.next_multiple_of(LANES)),
            keys: rows(n.next_multiple_of(2)),
            values: rows(n.next_multiple_of(2)),
            keys_stacked: stacked(n),
            queries_turned: turned(),
            dout_turned: turned(),
            queries_stacked: stacked(m),
            dout_stacked: stacked(m),
            logs: Scratch::take(panels * WIDE),
            inner: Scratch::take(panels * WIDE),
            p: tile(),
            ds: tile(),
            ds_stacked: Scratch::take(panels * lanes::<E>(TILE) * WIDE),
            dq: sums(m),
            dk: sums(n),
            dv: sums(n),
        }
    }
}

/// Rows from one piece of a tile to the next: odd, lest they all fall in few cache sets.
const STRIDE: usize = TILE + 1;

/// # Safety
/// Nobody else touches this sequence and these heads of the gradients.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(in crate::attention) unsafe fn backward<E: Element>(
    inputs: &Inputs<'_, E>,
    job: &Job,
    gradients: &Gradients<'_, E>,
) {
    let Inputs { shape, k, v, .. } = inputs;
    let (m, n, dim) = (job.queries.len(), job.keys.len(), shape.head_dim);
    let mut buffers = Buffers::take::<E>(dim, m, n);
    let by = Multiplier::of::<E>(inputs.path);
    let padded = n.next_multiple_of(2);
    for kv_head in job.kv_heads.clone() {
        let keys = Head { width: shape.key_width(), tokens: job.keys.clone(), column: kv_head * dim, dim };
        keys.read(k, padded, &mut buffers.keys);
        keys.read(v, padded, &mut buffers.values);
        stack::<E>(lines(&buffers.keys), n, dim, padded, wides_mut(&mut buffers.keys_stacked));
        for (i, head) in Job::heads(shape, kv_head).enumerate() {
            let queries = Head { width: shape.query_width(), tokens: job.queries.clone(), column: head * dim, dim };
            lay_out(inputs, head, &queries, &mut buffers);
            let blocks = |tile| cuts(tile, by.most_rows(), 2).count();
            let steps = m.div_ceil(WIDE) * cuts(0..n, TILE, 2).map(blocks).sum::<usize>();
            let mut step = Step { step: 0, steps };
            let mut fetch = || {
                for data in [inputs.q, inputs.out, inputs.dout] {
                    queries.fetch_next(step.of(m), data);
                }
                queries.fetch_to_write(step.of(m), gradients.dq);
                for data in [k, v] {
                    keys.fetch_next(step.of(n), data);
                }
                for gradient in [gradients.dk, gradients.dv] {
                    keys.fetch_to_write(step.of(n), gradient);
                }
                step.step += 1;
            };
            let mut written = 0;
            for tile in cuts(0..n, TILE, 2) {
                let seeing = seeing(inputs.shape, tile.clone(), m, n);
                probabilities(inputs, &by, job, tile.clone(), seeing.clone(), &mut fetch, &mut buffers);
                let former = if i == 0 { Former::Overwritten } else { Former::Added };
                add_to_keys_and_values::<E>(&by, (m, n, dim), tile.clone(), seeing.clone(), former, &mut buffers);
                add_to_queries::<E>(&by, (m, n, dim), tile, seeing.clone(), written, &mut buffers);
                written = written.max(seeing.end);
            }
            // SAFETY: the caller's promise.
            unsafe { write(&queries, wides(&buffers.dq), shape.scale, gradients.dq) };
        }
        // SAFETY: the caller's promise.
        unsafe {
            write(&keys, wides(&buffers.dk), shape.scale, gradients.dk);
            write(&keys, wides(&buffers.dv), 1.0, gradients.dv);
        }
    }
}

/// Lays out what a query head's products read.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn lay_out<E: Element>(inputs: &Inputs<'_, E>, head: usize, queries: &Head, buffers: &mut Buffers) {
    let (m, dim) = (queries.tokens.len(), queries.dim);
    let (padded, depth) = (m.next_multiple_of(LANES), lanes::<E>(dim));
    let turned_and_stacked = [
        (inputs.q, &mut buffers.queries_turned, &mut buffers.queries_stacked),
        (inputs.dout, &mut buffers.dout_turned, &mut buffers.dout_stacked),
    ];
    for (from, turned, stacked) in turned_and_stacked {
        queries.read(from, padded, &mut buffers.rows);
        turn(lines(&buffers.rows), m, padded, depth, wides_mut(turned));
        stack::<E>(lines(&buffers.rows), m, dim, padded, wides_mut(stacked));
    }
    queries.inner(inputs.out, inputs.dout, &mut buffers.inner);
    for (token, to) in queries.tokens.clone().zip(&mut *buffers.logs) {
        *to = inputs.log_sum_exp[token * inputs.shape.heads + head] * LOG2_E;
    }
    buffers.logs[m..].fill(0.0);
}

/// The panels of `m` queries that see any of a tile of keys, of `n`; both ends never fall from tile to tile.
fn seeing(shape: &AttentionShape, tile: Range<usize>, m: usize, n: usize) -> Range<usize> {
    let (first, last) = (shape.mask.seeing(tile.start, m, n), shape.mask.seeing(tile.end - 1, m, n));
    first.start / WIDE..last.end.div_ceil(WIDE)
}

/// Computes the probabilities and the slopes of a tile of keys, by the panels of queries `seeing`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn probabilities<E: Element>(
    inputs: &Inputs<'_, E>,
    by: &Multiplier,
    job: &Job,
    tile: Range<usize>,
    seeing: Range<usize>,
    mut fetch: impl FnMut(),
    buffers: &mut Buffers,
) {
    let shape = inputs.shape;
    let (m, n, depth) = (job.queries.len(), job.keys.len(), lanes::<E>(shape.head_dim));
    let padded = n.next_multiple_of(2);
    let (mut scores, mut dp): ([Wide<f32>; ROWS], [Wide<f32>; ROWS]) = Default::default();
    for panel in seeing {
        let count = WIDE.min(m - panel * WIDE);
        let [queries, dout] =
            [&buffers.queries_turned, &buffers.dout_turned].map(|turned| &wides(turned)[panel * depth..][..depth]);
        let of_queries = Queries { logs: wides(&buffers.logs)[panel], inner: wides(&buffers.inner)[panel] };
        let mut to = Slopes {
            p: lines_mut(&mut buffers.p),
            ds: lines_mut(&mut buffers.ds),
            stacked: &mut wides_mut(&mut buffers.ds_stacked)[panel * lanes::<E>(TILE)..],
            stride: STRIDE,
            panel,
            row: 0,
        };
        for block in cuts(tile.clone(), by.most_rows(), 2) {
            fetch();
            let size = Size { rows: block.len(), columns: count, depth };
            let [keys, values] = [&buffers.keys, &buffers.values].map(|rows| &lines(rows)[block.start..]);
            product::<E>(by, keys, padded, queries, size, Former::Overwritten, &mut scores);
            product::<E>(by, values, padded, dout, size, Former::Overwritten, &mut dp);
            let seen = |row| {
                let seeing = shape.mask.seeing(block.start + row, m, n);
                let below = |query: usize| columns_below(query.saturating_sub(panel * WIDE));
                below(seeing.end) & !below(seeing.start)
            };
            to.row = block.start - tile.start;
            slopes::<E>(&scores[..block.len()], &dp[..block.len()], seen, &of_queries, shape.scale, &mut to);
        }
    }
}

/// Adds a tile of keys, which the panels of queries `seeing` see, to the gradients of keys and values: `dv = pᵀ·dout`,
/// `dk = dsᵀ·q`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_to_keys_and_values<E: Element>(
    by: &Multiplier,
    (m, n, dim): (usize, usize, usize),
    tile: Range<usize>,
    seeing: Range<usize>,
    former: Former,
    buffers: &mut Buffers,
) {
    let skipped = seeing.start * WIDE / elements::<E>();
    let depth = lanes::<E>(m.min(seeing.end * WIDE)).saturating_sub(skipped);
    if depth == 0 {
        if former == Former::Overwritten {
            for panel in 0..dim.div_ceil(WIDE) {
                for sums in [&mut buffers.dv, &mut buffers.dk] {
                    wides_mut(sums)[panel * n + tile.start..panel * n + tile.end].fill([[0.0; LANES]; 2]);
                }
            }
        }
        return;
    }
    for block in cuts(tile.clone(), by.most_rows(), 2) {
        let row = skipped / LANES * STRIDE + block.start - tile.start;
        for panel in 0..dim.div_ceil(WIDE) {
            let size = Size { rows: block.len(), columns: WIDE.min(dim - panel * WIDE), depth };
            let from = panel * lanes::<E>(m) + skipped;
            let to = panel * n + block.start;
            let (p, dout) = (&lines(&buffers.p)[row..], &wides(&buffers.dout_stacked)[from..]);
            product::<E>(by, p, STRIDE, dout, size, former, &mut wides_mut(&mut buffers.dv)[to..]);
            let (ds, q) = (&lines(&buffers.ds)[row..], &wides(&buffers.queries_stacked)[from..]);
            product::<E>(by, ds, STRIDE, q, size, former, &mut wides_mut(&mut buffers.dk)[to..]);
        }
    }
}

/// Adds a tile of keys to the gradient of the panels of queries `seeing`, of which some are `written`: `dq = ds·k`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_to_queries<E: Element>(
    by: &Multiplier,
    (m, n, dim): (usize, usize, usize),
    tile: Range<usize>,
    seeing: Range<usize>,
    written: usize,
    buffers: &mut Buffers,
) {
    for panel in seeing {
        let former = if panel < written { Former::Added } else { Former::Overwritten };
        let ds = &wides(&buffers.ds_stacked)[panel * lanes::<E>(TILE)..];
        for rows in cuts(0..WIDE.min(m - panel * WIDE), by.most_rows(), 1) {
            for columns in 0..dim.div_ceil(WIDE) {
                let size =
                    Size { rows: rows.len(), columns: WIDE.min(dim - columns * WIDE), depth: lanes::<E>(tile.len()) };
                let keys = &wides(&buffers.keys_stacked)[columns * lanes::<E>(n) + tile.start / elements::<E>()..];
                let to = columns * m + panel * WIDE + rows.start;
                product_turned::<E>(by, ds, rows.start, keys, size, former, &mut wides_mut(&mut buffers.dq)[to..]);
            }
        }
    }
}

/// Writes the sums of a head, `[panels, rows, 32]`, times `scale`.
///
/// # Safety
/// Nobody else touches these elements.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn write<E: Element>(head: &Head, sums: &[Wide<f32>], scale: f32, to: SharedSlice<'_, E>) {
    let rows = head.tokens.len();
    for (panel, sums) in sums.chunks_exact(rows).take(head.dim.div_ceil(WIDE)).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { head.write(0..rows, panel, sums, |_| scale, to) };
    }
}
