//! The backward pass of attention.

use super::{AttentionShape, TILE, head_of, scores_stride};
use crate::dispatch::{Path, multiversion};
use crate::gemm::{
    Across, Kernel, Left, Operand, Right, Strided, Target, TargetBase, for_each, multiply, multiply_into,
};
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use crate::vector::{dot, exp};

/// The gradients of [`attention_forward`](crate::attention_forward) by its queries, keys and values.
///
/// `out` and `log_sum_exp` come from the forward pass, `dout` is the gradient of `out`. `dq`, `dk`, `dv` have the shapes of
/// `q`, `k`, `v` and are overwritten.
///
/// # Panics
/// When a slice does not have its length, the offsets fall, or `kv_heads` does not divide `heads`.
#[expect(clippy::too_many_arguments, reason = "the tensors of the formula")]
pub fn attention_backward(
    shape: &AttentionShape,
    offsets: &[usize],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    log_sum_exp: &[f32],
    dout: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let tokens = shape.check(offsets);
    assert_eq!(q.len(), tokens * shape.query_width(), "q is [tokens, heads·head_dim]");
    assert_eq!(k.len(), tokens * shape.key_width(), "k is [tokens, kv_heads·head_dim]");
    assert_eq!(v.len(), k.len(), "v is [tokens, kv_heads·head_dim]");
    assert_eq!(log_sum_exp.len(), tokens * shape.heads, "log_sum_exp is [tokens, heads]");
    for (name, len) in [("out", out.len()), ("dout", dout.len()), ("dq", dq.len())] {
        assert_eq!(len, q.len(), "{name} is [tokens, heads·head_dim]");
    }
    for (name, len) in [("dk", dk.len()), ("dv", dv.len())] {
        assert_eq!(len, k.len(), "{name} is [tokens, kv_heads·head_dim]");
    }
    let inputs = Inputs { shape, path: Path::current(), q, k, v, out, log_sum_exp, dout };
    let (dq, dk, dv) = (SharedSlice::new(dq), SharedSlice::new(dk), SharedSlice::new(dv));
    for_each((offsets.len() - 1) * shape.kv_heads, shape.is_parallel(offsets), |job| {
        let (sequence, kv_head) = (job / shape.kv_heads, job % shape.kv_heads);
        let group = Group { inputs: &inputs, start: offsets[sequence], end: offsets[sequence + 1], kv_head };
        // SAFETY: each job writes the rows of its sequence, and the columns of its key head and of the query heads that
        // attend to it; no other job does.
        unsafe { group.backward(dq, dk, dv) };
    });
}

struct Inputs<'a> {
    shape: &'a AttentionShape,
    path: Path,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    log_sum_exp: &'a [f32],
    dout: &'a [f32],
}

/// One key head of one sequence, with the query heads that attend to it.
struct Group<'a> {
    inputs: &'a Inputs<'a>,
    start: usize,
    end: usize,
    kv_head: usize,
}

/// Keys and values as the products of a group read them.
struct Packed {
    /// `[head_dim, keys]`, for `q·kᵀ`.
    keys_transposed: Right,
    /// `[keys, head_dim]`, for `ds·k`.
    keys: Right,
    /// `[head_dim, keys]`, for `dout·vᵀ`.
    values_transposed: Right,
}

impl Group<'_> {
    /// # Safety
    /// Nobody else touches this sequence and these heads of `dq`, `dk` and `dv`.
    unsafe fn backward(&self, dq: SharedSlice<'_>, dk: SharedSlice<'_>, dv: SharedSlice<'_>) {
        let &Inputs { shape, path, k, v, .. } = self.inputs;
        let (dim, len, kernel) = (shape.head_dim, self.end - self.start, Kernel::f32(path));
        if len == 0 {
            return;
        }
        let (width, column) = (shape.key_width(), self.kv_head * dim);
        let k = head_of(k, width, self.start, column);
        let v = head_of(v, width, self.start, column);
        let packed = Packed {
            keys_transposed: Right::pack(kernel, &Operand { source: &k, across: Across::Rows }, len, dim),
            keys: Right::pack(kernel, &Operand { source: &k, across: Across::Columns }, dim, len),
            values_transposed: Right::pack(kernel, &Operand { source: &v, across: Across::Rows }, len, dim),
        };
        for token in self.start..self.end {
            // SAFETY: the caller's promise.
            unsafe {
                dk.slice(token * width + column, dim).fill(0.0);
                dv.slice(token * width + column, dim).fill(0.0);
            }
        }
        let sum_at = |output| Target {
            output,
            offset: self.start * width + column,
            stride: width,
            scale: 1.0,
            base: TargetBase::Output,
        };
        for head in self.kv_head * shape.group()..(self.kv_head + 1) * shape.group() {
            for first in (0..len).step_by(TILE) {
                // SAFETY: the caller's promise.
                unsafe { self.tile(&packed, head, first, dq, sum_at(dk), sum_at(dv)) };
            }
        }
    }

    /// One tile of query rows: writes its `dq`, adds to `dk` and `dv`.
    ///
    /// # Safety
    /// As [`Group::backward`].
    unsafe fn tile(
        &self,
        packed: &Packed,
        head: usize,
        first: usize,
        dq: SharedSlice<'_>,
        dk: Target<'_>,
        dv: Target<'_>,
    ) {
        let &Inputs { shape, path, q, out, log_sum_exp, dout, .. } = self.inputs;
        let (dim, len, kernel) = (shape.head_dim, self.end - self.start, Kernel::f32(path));
        let last = len.min(first + TILE);
        let (rows, visible) = (last - first, shape.visible(last, len));
        let stride = scores_stride(visible);
        let (width, column, token) = (shape.query_width(), head * dim, self.start + first);
        let queries = head_of(q, width, token, column);
        let dout = head_of(dout, width, token, column);
        let out = head_of(out, width, token, column);

        let mut probabilities = Scratch::<f32>::take(rows * stride);
        let mut slopes = Scratch::<f32>::take(rows * stride);
        let left = |source, across| Left::pack(kernel, &Operand { source, across }, rows, dim);
        let (q_left, dout_left) = (left(&queries, Across::Rows), left(&dout, Across::Rows));
        let (scale, zero) = (shape.scale, TargetBase::Zero);
        multiply_into(kernel, &q_left, &packed.keys_transposed, visible, &mut probabilities, stride, scale, zero);
        multiply_into(kernel, &dout_left, &packed.values_transposed, visible, &mut slopes, stride, 1.0, zero);

        let mut by_row = [Row::default(); TILE];
        for (i, row) in by_row[..rows].iter_mut().enumerate() {
            let at = i * width;
            row.log_sum_exp = log_sum_exp[(token + i) * shape.heads + head];
            row.inner = inner(path, &out.data[at..at + dim], &dout.data[at..at + dim]);
        }
        let causal_from = shape.causal.then_some(first);
        slope(path, &mut probabilities, &mut slopes, visible, causal_from, scale, &by_row[..rows]);

        let probabilities = Strided { data: &probabilities, row_stride: stride };
        let slopes = Strided { data: &slopes, row_stride: stride };
        let right = |source| Right::pack(kernel, &Operand { source, across: Across::Columns }, dim, rows);
        let transposed = |source| Left::pack(kernel, &Operand { source, across: Across::Columns }, visible, rows);
        let slopes_left = Left::pack(kernel, &Operand { source: &slopes, across: Across::Rows }, rows, visible);
        let to_dq = Target { output: dq, offset: token * width + column, stride: width, scale: 1.0, base: zero };
        // SAFETY: the caller's promise.
        unsafe {
            multiply(kernel, &transposed(&probabilities), &right(&dout), dim, dv);
            multiply(kernel, &transposed(&slopes), &right(&queries), dim, dk);
            multiply(kernel, &slopes_left, &packed.keys, dim, to_dq);
        }
    }
}

/// What the softmax's gradient needs of a query row.
#[derive(Clone, Copy, Default)]
struct Row {
    log_sum_exp: f32,
    /// `dout · out`, which equals `Σ p·dp`.
    inner: f32,
}

multiversion!(fn inner(x: &[f32], y: &[f32]) -> f32 = dot);

multiversion!(fn slope(
    probabilities: &mut [f32],
    slopes: &mut [f32],
    visible: usize,
    causal_from: Option<usize>,
    scale: f32,
    rows: &[Row],
) = slope_body);

/// From scores and `dp` to probabilities `p = e^(score - log_sum_exp)` and slopes `scale·p·(dp - inner)`, in place. What
/// a row does not see becomes 0.
#[inline(always)]
fn slope_body<const FMA: bool>(
    probabilities: &mut [f32],
    slopes: &mut [f32],
    visible: usize,
    causal_from: Option<usize>,
    scale: f32,
    rows: &[Row],
) {
    let stride = scores_stride(visible);
    let tiles = probabilities.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride));
    for (i, ((p, ds), row)) in tiles.zip(rows).enumerate() {
        let seen = causal_from.map_or(visible, |first| first + i + 1);
        let (p, p_hidden) = p[..visible].split_at_mut(seen);
        let (ds, ds_hidden) = ds[..visible].split_at_mut(seen);
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp::<FMA>(*p - row.log_sum_exp);
            *ds = scale * *p * (*ds - row.inner);
        }
        p_hidden.fill(0.0);
        ds_hidden.fill(0.0);
    }
}
