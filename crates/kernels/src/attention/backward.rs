//! The backward pass of attention.

use super::{AttentionShape, Job, TILE, head_of, scores_stride};
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::gemm::{
    Across, Kernel, Left, Operand, Right, Strided, Target, TargetBase, for_each, multiply, multiply_into,
};
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use crate::vector::{dot, exp};
use std::ops::Range;

/// The gradients of [`attention_forward`](crate::attention_forward) by its queries, keys and values.
///
/// `out` and `log_sum_exp` come from the forward pass, `dout` is the gradient of `out`. `dq`, `dk`, `dv` have the shapes of
/// `q`, `k`, `v` and are overwritten; keys and values of a sequence without queries get 0.
///
/// # Panics
/// As [`attention_forward`](crate::attention_forward).
#[expect(clippy::too_many_arguments, reason = "the tensors of the formula")]
pub fn attention_backward<E: Element>(
    shape: &AttentionShape,
    queries: &[usize],
    keys: &[usize],
    q: &[E],
    k: &[E],
    v: &[E],
    out: &[E],
    log_sum_exp: &[f32],
    dout: &[E],
    dq: &mut [E],
    dk: &mut [E],
    dv: &mut [E],
) {
    let (tokens, key_tokens) = shape.check(queries, keys);
    assert_eq!(q.len(), tokens * shape.query_width(), "q is [query tokens, heads·head_dim]");
    assert_eq!(k.len(), key_tokens * shape.key_width(), "k is [key tokens, kv_heads·head_dim]");
    assert_eq!(v.len(), k.len(), "v is [key tokens, kv_heads·head_dim]");
    assert_eq!(log_sum_exp.len(), tokens * shape.heads, "log_sum_exp is [query tokens, heads]");
    for (name, len) in [("out", out.len()), ("dout", dout.len()), ("dq", dq.len())] {
        assert_eq!(len, q.len(), "{name} is [query tokens, heads·head_dim]");
    }
    for (name, len) in [("dk", dk.len()), ("dv", dv.len())] {
        assert_eq!(len, k.len(), "{name} is [key tokens, kv_heads·head_dim]");
    }
    let inputs = Inputs { shape, path: Path::current(), q, k, v, out, log_sum_exp, dout };
    let gradients = Gradients { dq: SharedSlice::new(dq), dk: SharedSlice::new(dk), dv: SharedSlice::new(dv) };
    let jobs = shape.jobs(queries, keys);
    for_each(jobs.len(), shape.is_parallel(&jobs), |i| {
        let job = &jobs[i];
        match inputs.path {
            // SAFETY: jobs differ in their sequences or their heads, so no two write the same elements.
            _ if job.queries.is_empty() => unsafe { gradients.unused(shape, job) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the path is a supported one; the rest as above.
            Path::Amx | Path::Avx512Bf16 => unsafe { super::avx512::backward(&inputs, job, &gradients) },
            // SAFETY: as above.
            _ => unsafe { inputs.backward(job, &gradients) },
        }
    });
}

pub(super) struct Inputs<'a, E> {
    pub(super) shape: &'a AttentionShape,
    pub(super) path: Path,
    pub(super) q: &'a [E],
    pub(super) k: &'a [E],
    pub(super) v: &'a [E],
    pub(super) out: &'a [E],
    pub(super) log_sum_exp: &'a [f32],
    pub(super) dout: &'a [E],
}

pub(super) struct Gradients<'a, E> {
    pub(super) dq: SharedSlice<'a, E>,
    pub(super) dk: SharedSlice<'a, E>,
    pub(super) dv: SharedSlice<'a, E>,
}

impl<E: Element> Gradients<'_, E> {
    /// Keys and values that no query sees.
    ///
    /// # Safety
    /// Nobody else touches this sequence and these heads.
    unsafe fn unused(&self, shape: &AttentionShape, job: &Job) {
        let columns = job.kv_heads.start * shape.head_dim..job.kv_heads.end * shape.head_dim;
        for token in job.keys.clone() {
            for gradient in [self.dk, self.dv] {
                // SAFETY: the caller's promise.
                unsafe { gradient.slice(token * shape.key_width() + columns.start, columns.len()) }.fill(E::default());
            }
        }
    }
}

/// Keys and values as the products of a head read them.
struct Packed {
    /// `[head_dim, keys]`, for `q·kᵀ`.
    keys_transposed: Right,
    /// `[keys, head_dim]`, for `ds·k`.
    keys: Right,
    /// `[head_dim, keys]`, for `dout·vᵀ`.
    values_transposed: Right,
}

/// The sums of a key head's gradients, `[keys, head_dim]`.
struct Sums {
    dk: Scratch<f32>,
    dv: Scratch<f32>,
}

impl<E: Element> Inputs<'_, E> {
    /// # Safety
    /// Nobody else touches this sequence and these heads of the gradients.
    unsafe fn backward(&self, job: &Job, gradients: &Gradients<'_, E>) {
        let &Self { shape, path, k, v, .. } = self;
        let (dim, n, kernel) = (shape.head_dim, job.keys.len(), Kernel::f32(path));
        let width = shape.key_width();
        let mut sums = Sums { dk: Scratch::take(n * dim), dv: Scratch::take(n * dim) };
        for kv_head in job.kv_heads.clone() {
            let [k, v] = [k, v].map(|data| head_of(data, width, job.keys.start, kv_head * dim));
            let packed = Packed {
                keys_transposed: Right::pack(kernel, &Operand { source: &k, across: Across::Rows }, n, dim),
                keys: Right::pack(kernel, &Operand { source: &k, across: Across::Columns }, dim, n),
                values_transposed: Right::pack(kernel, &Operand { source: &v, across: Across::Rows }, n, dim),
            };
            sums.dk.fill(0.0);
            sums.dv.fill(0.0);
            for head in Job::heads(shape, kv_head) {
                for first in (0..job.queries.len()).step_by(TILE) {
                    // SAFETY: the caller's promise.
                    unsafe { self.tile(job, &packed, head, first, gradients.dq, &mut sums) };
                }
            }
            for (sums, gradient) in [(&sums.dk, gradients.dk), (&sums.dv, gradients.dv)] {
                for (token, sums) in job.keys.clone().zip(sums.chunks_exact(dim)) {
                    // SAFETY: the caller's promise.
                    let to = unsafe { gradient.slice(token * width + kv_head * dim, dim) };
                    to.iter_mut().zip(sums).for_each(|(to, &sum)| *to = E::from_f32(sum));
                }
            }
        }
    }

    /// One tile of query rows: writes its `dq`, adds to `dk` and `dv`.
    ///
    /// # Safety
    /// As [`Inputs::backward`].
    unsafe fn tile(
        &self,
        job: &Job,
        packed: &Packed,
        head: usize,
        first: usize,
        dq: SharedSlice<'_, E>,
        sums: &mut Sums,
    ) {
        let &Self { shape, path, q, out, log_sum_exp, dout, .. } = self;
        let (dim, kernel) = (shape.head_dim, Kernel::f32(path));
        let (m, n) = (job.queries.len(), job.keys.len());
        let last = m.min(first + TILE);
        let (rows, visible) = (last - first, shape.mask.seen(last - 1, m, n).end);
        let stride = scores_stride(visible);
        let (width, column, token) = (shape.query_width(), head * dim, job.queries.start + first);
        let [queries, dout, out] = [q, dout, out].map(|data| head_of(data, width, token, column));

        let mut probabilities = Scratch::<f32>::take(rows * stride);
        let mut slopes = Scratch::<f32>::take(rows * stride);
        let left = |source, across| Left::pack(kernel, &Operand { source, across }, rows, dim);
        let (q_left, dout_left) = (left(&queries, Across::Rows), left(&dout, Across::Rows));
        let (scale, zero) = (shape.scale, TargetBase::Zero);
        multiply_into(kernel, &q_left, &packed.keys_transposed, visible, &mut probabilities, stride, scale, zero);
        multiply_into(kernel, &dout_left, &packed.values_transposed, visible, &mut slopes, stride, 1.0, zero);

        let mut by_row: [Row; TILE] = std::array::from_fn(|_| Row::default());
        for (i, row) in by_row[..rows].iter_mut().enumerate() {
            let at = i * width;
            row.log_sum_exp = log_sum_exp[(token + i) * shape.heads + head];
            row.seen = shape.mask.seen(first + i, m, n);
            row.inner = inner(path, &out.data[at..at + dim], &dout.data[at..at + dim]);
        }
        slope(path, &mut probabilities, &mut slopes, visible, scale, &by_row[..rows]);

        let probabilities = Strided { data: &probabilities, row_stride: stride };
        let slopes = Strided { data: &slopes, row_stride: stride };
        let right = |source| Right::pack(kernel, &Operand { source, across: Across::Columns }, dim, rows);
        let transposed = |source| Left::pack(kernel, &Operand { source, across: Across::Columns }, visible, rows);
        let slopes_left = Left::pack(kernel, &Operand { source: &slopes, across: Across::Rows }, rows, visible);
        let former = TargetBase::Output;
        multiply_into(kernel, &transposed(&probabilities), &right(&dout), dim, &mut sums.dv, dim, 1.0, former);
        multiply_into(kernel, &transposed(&slopes), &right(&queries), dim, &mut sums.dk, dim, 1.0, former);
        let target = Target { output: dq, offset: token * width + column, stride: width, scale: 1.0, base: zero };
        // SAFETY: the caller's promise.
        unsafe { multiply(kernel, &slopes_left, &packed.keys, dim, target) };
    }
}

/// What the softmax's gradient needs of a query row.
#[derive(Default)]
struct Row {
    /// The keys that it sees.
    seen: Range<usize>,
    log_sum_exp: f32,
    /// `dout · out`, which equals `Σ p·dp`.
    inner: f32,
}

multiversion!(fn inner<E: Element>(x: &[E], y: &[E]) -> f32 = inner_body);

#[inline(always)]
fn inner_body<const FMA: bool, E: Element>(x: &[E], y: &[E]) -> f32 {
    dot::<FMA>(x, y)
}

multiversion!(fn slope(
    probabilities: &mut [f32],
    slopes: &mut [f32],
    visible: usize,
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
    scale: f32,
    rows: &[Row],
) {
    let stride = scores_stride(visible);
    let tiles = probabilities.chunks_exact_mut(stride).zip(slopes.chunks_exact_mut(stride));
    for ((p, ds), row) in tiles.zip(rows) {
        for hidden in [0..row.seen.start, row.seen.end..visible] {
            p[hidden.clone()].fill(0.0);
            ds[hidden].fill(0.0);
        }
        for (p, ds) in p[row.seen.clone()].iter_mut().zip(&mut ds[row.seen.clone()]) {
            *p = exp::<FMA>(*p - row.log_sum_exp);
            *ds = scale * *p * (*ds - row.inner);
        }
    }
}
