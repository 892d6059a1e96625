//! The forward pass of attention.

use super::{AttentionShape, Job, TILE, head_of, scores_stride};
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::gemm::{Across, Kernel, Left, Operand, Right, Strided, TargetBase, for_each, multiply_into};
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use crate::vector::{exp, max, sum};
use std::ops::Range;

/// `out = softmax(scale · q·kᵀ)·v` within each sequence and head.
///
/// Sequence `i` has the rows `queries[i]..queries[i + 1]` of `q` and `out`, `[query tokens, heads·head_dim]`, and the rows
/// `keys[i]..keys[i + 1]` of `k` and `v`, `[key tokens, kv_heads·head_dim]`; in training both offsets are the same.
/// `log_sum_exp` `[query tokens, heads]` receives the logarithm of each softmax's denominator, for
/// [`attention_backward`](crate::attention_backward).
///
/// # Panics
/// When a slice does not have its length, the offsets fall, `kv_heads` does not divide `heads`, the scale is not positive,
/// a window is 0, or a sequence has queries but no keys, or fewer keys than queries although there is a mask.
#[expect(clippy::too_many_arguments, reason = "the tensors of the formula")]
pub fn attention_forward<E: Element>(
    shape: &AttentionShape,
    queries: &[usize],
    keys: &[usize],
    q: &[E],
    k: &[E],
    v: &[E],
    out: &mut [E],
    log_sum_exp: &mut [f32],
) {
    let (tokens, key_tokens) = shape.check(queries, keys);
    assert_eq!(q.len(), tokens * shape.query_width(), "q is [query tokens, heads·head_dim]");
    assert_eq!(k.len(), key_tokens * shape.key_width(), "k is [key tokens, kv_heads·head_dim]");
    assert_eq!(v.len(), k.len(), "v is [key tokens, kv_heads·head_dim]");
    assert_eq!(out.len(), q.len(), "out is [query tokens, heads·head_dim]");
    assert_eq!(log_sum_exp.len(), tokens * shape.heads, "log_sum_exp is [query tokens, heads]");
    let inputs = Inputs { shape, path: Path::current(), q, k, v };
    let (out, log_sum_exp) = (SharedSlice::new(out), SharedSlice::new(log_sum_exp));
    let jobs = shape.jobs(queries, keys);
    for_each(jobs.len(), shape.is_parallel(&jobs), |i| {
        let job = &jobs[i];
        match inputs.path {
            _ if job.queries.is_empty() => {}
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the path is a supported one. Jobs differ in their sequences or their heads, so no two write the same
            // elements.
            Path::Amx | Path::Avx512Bf16 => unsafe { super::avx512::forward(&inputs, job, out, log_sum_exp) },
            // SAFETY: as above.
            _ => unsafe { inputs.forward(job, out, log_sum_exp) },
        }
    });
}

pub(super) struct Inputs<'a, E> {
    pub(super) shape: &'a AttentionShape,
    pub(super) path: Path,
    pub(super) q: &'a [E],
    pub(super) k: &'a [E],
    pub(super) v: &'a [E],
}

impl<E: Element> Inputs<'_, E> {
    /// # Safety
    /// Nobody else touches this sequence and these heads of `out` and `log_sum_exp`.
    unsafe fn forward(&self, job: &Job, out: SharedSlice<'_, E>, log_sum_exp: SharedSlice<'_>) {
        let &Self { shape, path, k, v, .. } = self;
        let (dim, n, kernel) = (shape.head_dim, job.keys.len(), Kernel::f32(path));
        for kv_head in job.kv_heads.clone() {
            let [keys, values] = [k, v].map(|data| head_of(data, shape.key_width(), job.keys.start, kv_head * dim));
            let keys = Right::pack(kernel, &Operand { source: &keys, across: Across::Rows }, n, dim);
            let values = Right::pack(kernel, &Operand { source: &values, across: Across::Columns }, dim, n);
            for head in Job::heads(shape, kv_head) {
                // SAFETY: the caller's promise.
                unsafe { self.head(job, head, &keys, &values, out, log_sum_exp) };
            }
        }
    }

    /// One query head.
    ///
    /// # Safety
    /// As [`Inputs::forward`].
    unsafe fn head(
        &self,
        job: &Job,
        head: usize,
        keys: &Right,
        values: &Right,
        out: SharedSlice<'_, E>,
        log_sum_exp: SharedSlice<'_>,
    ) {
        let &Self { shape, path, q, .. } = self;
        let (m, n, dim, kernel) = (job.queries.len(), job.keys.len(), shape.head_dim, Kernel::f32(path));
        let (width, column) = (shape.query_width(), head * dim);
        let mut scores = Scratch::<f32>::take(TILE.min(m) * scores_stride(n));
        let mut sums = Scratch::<f32>::take(TILE.min(m) * dim);
        for first in (0..m).step_by(TILE) {
            let last = m.min(first + TILE);
            let (rows, token) = (last - first, job.queries.start + first);
            // The keys before a window cost their time here, and get no weight.
            let visible = shape.mask.seen(last - 1, m, n).end;
            let stride = scores_stride(visible);
            let scores = &mut scores[..rows * stride];

            let queries = head_of(q, width, token, column);
            let left = Left::pack(kernel, &Operand { source: &queries, across: Across::Rows }, rows, dim);
            multiply_into(kernel, &left, keys, visible, scores, stride, shape.scale, TargetBase::Zero);

            let (mut inverses, mut log_sums) = ([0f32; TILE], [0f32; TILE]);
            let seen = std::array::from_fn(|row| shape.mask.seen((first + row).min(last - 1), m, n));
            exponentials(path, scores, visible, &seen, &mut inverses[..rows], &mut log_sums[..rows]);

            let probabilities = Strided { data: &*scores, row_stride: stride };
            let left = Left::pack(kernel, &Operand { source: &probabilities, across: Across::Rows }, rows, visible);
            multiply_into(kernel, &left, values, dim, &mut sums, dim, 1.0, TargetBase::Zero);
            let softmax = inverses.into_iter().zip(log_sums);
            for ((i, (inverse, log_sum)), sums) in softmax.take(rows).enumerate().zip(sums.chunks_exact(dim)) {
                let token = token + i;
                // SAFETY: the caller's promise.
                let (out, to) = unsafe {
                    (out.slice(token * width + column, dim), log_sum_exp.slice(token * shape.heads + head, 1))
                };
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::from_f32(sum * inverse));
                to[0] = log_sum;
            }
        }
    }
}

multiversion!(fn exponentials(
    scores: &mut [f32],
    visible: usize,
    seen: &[Range<usize>; TILE],
    inverses: &mut [f32],
    log_sums: &mut [f32],
) = exponentials_body);

/// Turns each row of scores into the numerators of its softmax, and gives the inverse and the logarithm of its sum. Of
/// the `visible` keys, row `i` sees those of `seen[i]`; the others become 0.
#[inline(always)]
fn exponentials_body<const FMA: bool>(
    scores: &mut [f32],
    visible: usize,
    seen: &[Range<usize>; TILE],
    inverses: &mut [f32],
    log_sums: &mut [f32],
) {
    let rows = scores.chunks_exact_mut(scores_stride(visible)).zip(inverses.iter_mut().zip(log_sums));
    for ((row, (inverse, log_sum)), seen) in rows.zip(seen) {
        row[..seen.start].fill(0.0);
        row[seen.end..visible].fill(0.0);
        let row = &mut row[seen.clone()];
        let largest = max(row);
        row.iter_mut().for_each(|score| *score = exp::<FMA>(*score - largest));
        let total = sum(row, |numerator| numerator);
        *inverse = total.recip();
        *log_sum = largest + total.ln();
    }
}
