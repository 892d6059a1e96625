//! Softmax attention over packed sequences of unequal length.

use super::fast::Fast;
use super::reference::Reference;
use super::{AttentionShape, Offsets, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{D, Tensor};
use fedpipe_kernels as kernels;
use fedpipe_kernels::{Element, Mask, attention_backward, attention_forward};
use std::rc::Rc;

impl AttentionShape {
    pub(super) fn kernel(self) -> kernels::AttentionShape {
        let Self { heads, kv_heads, head_dim, mask } = self;
        kernels::AttentionShape { heads, kv_heads, head_dim, mask, scale: self.scale() }
    }

    fn check(self, [q, k, v]: [&Value; 3], queries: &Offsets, keys: &Offsets) -> Result<(), Error> {
        let rows = |offsets: &Offsets| offsets.last().copied().unwrap_or(0);
        let expected_q = (rows(queries), self.heads * self.head_dim);
        let expected_k = (rows(keys), self.kv_heads * self.head_dim);
        let shape = |x: &Value| (x.rows(), x.columns());
        let grouped = self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads);
        let ordered =
            queries.is_sorted() && keys.is_sorted() && queries.len() == keys.len() && queries.first() == Some(&0);
        if shape(q) == expected_q && shape(k) == expected_k && shape(v) == expected_k && grouped && ordered {
            return Ok(());
        }
        Err(Error::shape(format!("attention of {self:?} over {q:?}, {k:?}, {v:?}")))
    }
}

pub(super) fn forward<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    qkv: [&Value; 3],
    queries: &Offsets,
    keys: &Offsets,
    shape: AttentionShape,
) -> Result<Value, Error> {
    shape.check(qkv, queries, keys)?;
    let [q, k, v] = [tape.node(qkv[0])?, tape.node(qkv[1])?, tape.node(qkv[2])?];
    let columns = q.columns;
    let mut out = tape.elements(q.values.len());
    let mut log_sum_exp = tape.pools.floats.take(q.rows * shape.heads);
    attention_forward(&shape.kernel(), queries, keys, &q.values, &k.values, &v.values, &mut out, &mut log_sum_exp);
    let slot = tape.slot([&q, &k, &v].iter().any(|node| node.slot.is_some()));
    let value = tape.value(columns, out, slot);
    if let Some(slot) = slot.filter(|_| tape.records()) {
        let out = tape.node(&value)?.values.clone();
        let (queries, keys) = (queries.clone(), keys.clone());
        tape.record(move |back| {
            let Some(dout) = back.take(slot) else { return Ok(()) };
            let mut gradients = [&q, &k, &v].map(|node| back.elements(node.values.len()));
            let [dq, dk, dv] = &mut gradients;
            attention_backward(
                &shape.kernel(),
                &queries,
                &keys,
                &q.values,
                &k.values,
                &v.values,
                &out,
                &log_sum_exp,
                &dout,
                dq,
                dk,
                dv,
            );
            for (node, gradient) in [&q, &k, &v].into_iter().zip(gradients) {
                if let Some(slot) = node.slot {
                    back.add(slot, Rc::new(gradient));
                }
            }
            Ok(())
        });
    }
    Ok(value)
}

pub(super) fn reference(
    ops: &Reference<'_>,
    qkv: [&Value; 3],
    queries: &Offsets,
    keys: &Offsets,
    shape: AttentionShape,
) -> Result<Value, Error> {
    shape.check(qkv, queries, keys)?;
    let [q, k, v] = [ops.tensor(qkv[0])?, ops.tensor(qkv[1])?, ops.tensor(qkv[2])?];
    let mut parts = Vec::with_capacity(queries.len());
    for (queries, keys) in queries.windows(2).zip(keys.windows(2)) {
        let [rows, visible] = [queries, keys].map(|pair| pair[1] - pair[0]);
        if rows == 0 {
            continue;
        }
        let head_major = |t: &Tensor, start: usize, length: usize, heads: usize| {
            let t = t.narrow(0, start, length)?.reshape((length, heads, shape.head_dim))?.transpose(0, 1)?;
            // Each key head once for every query head that reads it.
            let group = shape.heads / heads;
            t.unsqueeze(1)?.repeat((1, group, 1, 1))?.reshape((shape.heads, length, shape.head_dim))?.contiguous()
        };
        let q = head_major(&q, queries[0], rows, shape.heads)?;
        let k = head_major(&k, keys[0], visible, shape.kv_heads)?;
        let v = head_major(&v, keys[0], visible, shape.kv_heads)?;
        let mut scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(shape.scale()))?;
        if shape.mask != Mask::Full {
            let hidden = |i: usize| {
                let (own, key) = (visible - rows + i / visible, i % visible);
                let seen = key <= own && !matches!(shape.mask, Mask::Window(width) if key + width <= own);
                if seen { 0.0 } else { f32::NEG_INFINITY }
            };
            let mask: Vec<f32> = (0..rows * visible).map(hidden).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, rows, visible), scores.device())?)?;
        }
        let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        parts.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((rows, shape.heads * shape.head_dim))?);
    }
    Ok(ops.value(Tensor::cat(&parts, 0)?)?)
}
