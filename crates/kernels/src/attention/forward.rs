//! The forward pass of attention.

use super::{AttentionShape, TILE, head_of, scores_stride};
use crate::dispatch::{Path, multiversion};
use crate::gemm::{
    Across, Kernel, Left, Operand, Right, Strided, Target, TargetBase, for_each, multiply, multiply_into,
};
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use crate::vector::{exp, max, sum};

/// `out = softmax(scale · q·kᵀ)·v` within each sequence and head.
///
/// `offsets` are the sequences' first tokens and, last, the number of tokens. `q` and `out` are
/// `[tokens, heads·head_dim]`, `k` and `v` `[tokens, kv_heads·head_dim]`. `log_sum_exp` `[tokens, heads]` receives the
/// logarithm of each softmax's denominator, for [`attention_backward`](crate::attention_backward).
///
/// # Panics
/// When a slice does not have its length, the offsets fall, or `kv_heads` does not divide `heads`.
pub fn attention_forward(
    shape: &AttentionShape,
    offsets: &[usize],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    let tokens = shape.check(offsets);
    assert_eq!(q.len(), tokens * shape.query_width(), "q is [tokens, heads·head_dim]");
    assert_eq!(k.len(), tokens * shape.key_width(), "k is [tokens, kv_heads·head_dim]");
    assert_eq!(v.len(), k.len(), "v is [tokens, kv_heads·head_dim]");
    assert_eq!(out.len(), q.len(), "out is [tokens, heads·head_dim]");
    assert_eq!(log_sum_exp.len(), tokens * shape.heads, "log_sum_exp is [tokens, heads]");
    let path = Path::current();
    let (out, log_sum_exp) = (SharedSlice::new(out), SharedSlice::new(log_sum_exp));
    for_each((offsets.len() - 1) * shape.heads, shape.is_parallel(offsets), |job| {
        let (sequence, head) = (job / shape.heads, job % shape.heads);
        let head = Head { shape, path, start: offsets[sequence], end: offsets[sequence + 1], head };
        // SAFETY: each job writes the rows of its sequence and the columns of its head, and no other job does.
        unsafe { head.forward(q, k, v, out, log_sum_exp) };
    });
}

/// One head of one sequence.
struct Head<'a> {
    shape: &'a AttentionShape,
    path: Path,
    start: usize,
    end: usize,
    head: usize,
}

impl Head<'_> {
    /// # Safety
    /// Nobody else touches this sequence and head of `out` and `log_sum_exp`.
    unsafe fn forward(&self, q: &[f32], k: &[f32], v: &[f32], out: SharedSlice<'_>, log_sum_exp: SharedSlice<'_>) {
        let &Self { shape, path, start, end, head } = self;
        let (dim, len, kernel) = (shape.head_dim, end - start, Kernel::f32(path));
        if len == 0 {
            return;
        }
        let (width, column) = (shape.query_width(), head * dim);
        let key_column = head / shape.group() * dim;
        let keys = head_of(k, shape.key_width(), start, key_column);
        let values = head_of(v, shape.key_width(), start, key_column);
        let keys = Right::pack(kernel, &Operand { source: &keys, across: Across::Rows }, len, dim);
        let values = Right::pack(kernel, &Operand { source: &values, across: Across::Columns }, dim, len);
        let mut buffer = Scratch::<f32>::take(TILE.min(len) * scores_stride(len));
        for first in (0..len).step_by(TILE) {
            let last = len.min(first + TILE);
            let (rows, visible) = (last - first, shape.visible(last, len));
            let stride = scores_stride(visible);
            let scores = &mut buffer[..rows * stride];

            let queries = head_of(q, width, start + first, column);
            let left = Left::pack(kernel, &Operand { source: &queries, across: Across::Rows }, rows, dim);
            multiply_into(kernel, &left, &keys, visible, scores, stride, shape.scale, TargetBase::Zero);
            drop(left);

            let (mut inverses, mut log_sums) = ([0f32; TILE], [0f32; TILE]);
            let causal_from = shape.causal.then_some(first);
            exponentials(path, scores, visible, causal_from, &mut inverses[..rows], &mut log_sums[..rows]);

            let probabilities = Strided { data: scores, row_stride: stride };
            let left = Left::pack(kernel, &Operand { source: &probabilities, across: Across::Rows }, rows, visible);
            let target = Target {
                output: out,
                offset: (start + first) * width + column,
                stride: width,
                scale: 1.0,
                base: TargetBase::Zero,
            };
            // SAFETY: rows of this sequence and columns of this head, which are this job's.
            unsafe { multiply(kernel, &left, &values, dim, target) };
            for (row, (inverse, log_sum)) in inverses.into_iter().zip(log_sums).take(rows).enumerate() {
                let token = start + first + row;
                // SAFETY: as above.
                let (out, to) = unsafe {
                    (out.slice(token * width + column, dim), log_sum_exp.slice(token * shape.heads + head, 1))
                };
                out.iter_mut().for_each(|out| *out *= inverse);
                to[0] = log_sum;
            }
        }
    }
}

multiversion!(fn exponentials(
    scores: &mut [f32],
    visible: usize,
    causal_from: Option<usize>,
    inverses: &mut [f32],
    log_sums: &mut [f32],
) = exponentials_body);

/// Turns each row of scores into the numerators of its softmax, and gives the inverse and the logarithm of its sum. Of
/// the `visible` keys, row `i` sees those up to `causal_from + i`; the others become 0.
#[inline(always)]
fn exponentials_body<const FMA: bool>(
    scores: &mut [f32],
    visible: usize,
    causal_from: Option<usize>,
    inverses: &mut [f32],
    log_sums: &mut [f32],
) {
    let rows = scores.chunks_exact_mut(scores_stride(visible)).zip(inverses.iter_mut().zip(log_sums));
    for (i, (row, (inverse, log_sum))) in rows.enumerate() {
        let seen = causal_from.map_or(visible, |first| first + i + 1);
        let (row, hidden) = row[..visible].split_at_mut(seen);
        let largest = max(row);
        row.iter_mut().for_each(|score| *score = exp::<FMA>(*score - largest));
        hidden.fill(0.0);
        let total = sum(row, |numerator| numerator);
        *inverse = total.recip();
        *log_sum = largest + total.ln();
    }
}
