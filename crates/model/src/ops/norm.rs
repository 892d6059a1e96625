//! Layer normalisation of a sum, as transformer blocks use it: the residual is added inside.

use super::{Ops, slices};
use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor};
use fedpipe_kernels as kernels;
use std::sync::Arc;

/// Frozen scale and shift of a layer norm.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// γ `[hidden]`.
    pub scale: Arc<[f32]>,
    /// β `[hidden]`.
    pub shift: Arc<[f32]>,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Ops {
    /// γ·(s − mean(s))/√(var(s) + ε) + β over the last dimension of s = x + residual; both `[tokens, hidden]`.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn add_layer_norm(self, x: &Tensor, residual: &Tensor, weights: &NormWeights) -> Result<Tensor> {
        match self {
            Self::Reference => {
                let sum = (x + residual)?;
                let centred = sum.broadcast_sub(&sum.mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let normed = centred.broadcast_div(&(variance + f64::from(weights.epsilon))?.sqrt()?)?;
                let scale = Tensor::new(&*weights.scale, x.device())?;
                let shift = Tensor::new(&*weights.shift, x.device())?;
                normed.broadcast_mul(&scale)?.broadcast_add(&shift)
            }
            Self::Fast => x.apply_op2(residual, AddLayerNorm { weights: weights.clone() }),
        }
    }
}

struct AddLayerNorm {
    weights: NormWeights,
}

impl AddLayerNorm {
    fn sum(&self, x: &[f32], residual: &[f32]) -> Result<Vec<f32>> {
        if x.len() != residual.len() || !x.len().is_multiple_of(self.weights.scale.len()) {
            return Err(candle_core::Error::Msg(format!(
                "layer norm of width {} over {} and {} values",
                self.weights.scale.len(),
                x.len(),
                residual.len()
            )));
        }
        Ok(x.iter().zip(residual).map(|(x, r)| x + r).collect())
    }
}

impl CustomOp2 for AddLayerNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, r: &CpuStorage, lr: &Layout) -> Result<(CpuStorage, Shape)> {
        let sum = self.sum(slices::of(x, lx)?, slices::of(r, lr)?)?;
        let NormWeights { scale, shift, epsilon } = &self.weights;
        let rows = sum.len() / scale.len();
        let (mut y, mut mean, mut rstd) = (vec![0.0; sum.len()], vec![0.0; rows], vec![0.0; rows]);
        kernels::layer_norm_forward(&sum, scale.len(), scale, shift, *epsilon, &mut y, &mut mean, &mut rstd);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    /// The statistics are computed again from x + residual: both live until here anyway, and no copy of their sum has
    /// to be kept from the forward pass.
    fn bwd(&self, x: &Tensor, residual: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sum = slices::with(x, |x| slices::with(residual, |r| self.sum(x, r)))?;
        let NormWeights { scale, shift, epsilon } = &self.weights;
        let rows = sum.len() / scale.len();
        let (mut ds, mut mean, mut rstd) = (vec![0.0; sum.len()], vec![0.0; rows], vec![0.0; rows]);
        kernels::layer_norm_forward(&sum, scale.len(), scale, shift, *epsilon, &mut ds, &mut mean, &mut rstd);
        slices::with(dy, |dy| {
            kernels::layer_norm_backward(&sum, scale.len(), scale, &mean, &rstd, dy, &mut ds);
            Ok(())
        })?;
        let ds = slices::tensor(ds, x.shape())?;
        Ok((x.track_op().then(|| ds.clone()), residual.track_op().then_some(ds)))
    }
}
