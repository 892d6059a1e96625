//! Softmax attention over packed sequences of unequal length.

use super::{Ops, slices};
use candle_core::{CpuStorage, CustomOp3, D, Error, Layout, Result, Shape, Tensor};
use fedpipe_kernels as kernels;
use std::sync::{Arc, OnceLock};

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn width(self) -> usize {
        self.heads * self.head_dim
    }

    fn kernel(self) -> kernels::AttentionShape {
        kernels::AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            causal: false,
            scale: self.scale(),
        }
    }
}

impl Ops {
    /// softmax(q·kᵀ/√d)·v within every sequence and head; q, k, v `[tokens, heads · head_dim]`, sequence i at
    /// `offsets[i]..offsets[i + 1]`.
    ///
    /// # Errors
    /// When the shapes and the offsets disagree or candle fails.
    pub fn attention(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        offsets: &Arc<[usize]>,
        shape: AttentionShape,
    ) -> Result<Tensor> {
        let expected = (offsets.last().copied().unwrap_or(0), shape.width());
        if q.dims2()? != expected || k.dims2()? != expected || v.dims2()? != expected {
            return Err(Error::Msg(format!("attention over {expected:?}: q is {:?}", q.dims())));
        }
        match self {
            Self::Reference => reference(q, k, v, offsets, shape),
            Self::Fast => {
                q.apply_op3(k, v, Attention { shape, offsets: offsets.clone(), log_sum_exp: OnceLock::new() })
            }
        }
    }
}

fn reference(q: &Tensor, k: &Tensor, v: &Tensor, offsets: &[usize], shape: AttentionShape) -> Result<Tensor> {
    let mut parts = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (start, length) = (pair[0], pair[1] - pair[0]);
        if length == 0 {
            continue;
        }
        let head_major = |t: &Tensor| {
            t.narrow(0, start, length)?.reshape((length, shape.heads, shape.head_dim))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (head_major(q)?, head_major(k)?, head_major(v)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(shape.scale()))?;
        let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        parts.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((length, shape.width()))?);
    }
    Tensor::cat(&parts, 0)
}

struct Attention {
    shape: AttentionShape,
    offsets: Arc<[usize]>,
    /// Per token and head, kept from the forward pass so that backward can rebuild the weights tile by tile.
    log_sum_exp: OnceLock<Vec<f32>>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slices::of(q, lq)?, slices::of(k, lk)?, slices::of(v, lv)?);
        let tokens = self.offsets.last().copied().unwrap_or(0);
        let mut out = vec![0.0; q.len()];
        let mut log_sum_exp = vec![0.0; tokens * self.shape.heads];
        kernels::attention_forward(&self.shape.kernel(), &self.offsets, q, k, v, &mut out, &mut log_sum_exp);
        // A second forward pass of one operation cannot happen: candle runs it once, when the node is made.
        let _ = self.log_sum_exp.set(log_sum_exp);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let log_sum_exp =
            self.log_sum_exp.get().ok_or_else(|| Error::Msg("attention: backward before forward".into()))?;
        let count = q.elem_count();
        let (mut dq, mut dk, mut dv) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
        slices::with(q, |q| {
            slices::with(k, |k| {
                slices::with(v, |v| {
                    slices::with(out, |out| {
                        slices::with(dout, |dout| {
                            kernels::attention_backward(
                                &self.shape.kernel(),
                                &self.offsets,
                                q,
                                k,
                                v,
                                out,
                                log_sum_exp,
                                dout,
                                &mut dq,
                                &mut dk,
                                &mut dv,
                            );
                            Ok(())
                        })
                    })
                })
            })
        })?;
        let gradient = |values: Vec<f32>, of: &Tensor| -> Result<Option<Tensor>> {
            if of.track_op() { slices::tensor(values, of.shape()).map(Some) } else { Ok(None) }
        };
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}
