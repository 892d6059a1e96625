//! Layers of the base model: frozen, shared between silos, and unaware of what is attached to them.

use crate::adapter::{Adapters, Attached};
use crate::ops::{NormWeights, Ops};
use candle_core::{Result, Tensor};
use fedpipe_core::WeightId;
use fedpipe_kernels::FrozenMatrix;
use std::sync::Arc;

/// y = x·Wᵀ + bias, and whatever is attached to the weight: x `[tokens, in]`, W `[out, in]`, y `[tokens, out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    id: WeightId,
    weight: Arc<FrozenMatrix>,
    bias: Option<Arc<[f32]>>,
}

impl Linear {
    /// A linear layer whose weight has the module path `id`.
    pub fn new(id: WeightId, weight: FrozenMatrix, bias: Option<Arc<[f32]>>) -> Self {
        Self { id, weight: Arc::new(weight), bias }
    }

    /// The layer with what `adapters` holds for its weight.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn forward(&self, ops: Ops, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        match adapters.get(&self.id) {
            None => ops.linear(x, &self.weight, bias),
            // Dropout belongs to what trains; factors that are only applied stay whole.
            Some(Attached::Lora(factors)) if !factors.a.track_op() => ops.lora_linear(x, &self.weight, bias, factors),
            Some(Attached::Lora(factors)) => match adapters.dropout_mask(&self.id, x)? {
                None => ops.lora_linear(x, &self.weight, bias, factors),
                Some(mask) => {
                    let y = ops.linear(x, &self.weight, bias)?;
                    y + factors.composed(&(x * mask)?, x)?
                }
            },
            Some(Attached::Singular(triplets)) => ops.linear(x, &self.weight, bias)? + triplets.forward(x)?,
        }
    }
}

/// Layer normalisation of a sum.
#[derive(Debug, Clone)]
pub struct LayerNorm(pub NormWeights);

impl LayerNorm {
    /// The norm of x + residual, both `[tokens, hidden]`.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn forward(&self, ops: Ops, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        ops.add_layer_norm(x, residual, &self.0)
    }
}

/// A table of frozen rows.
#[derive(Debug, Clone)]
pub struct Embedding(pub Arc<FrozenMatrix>);

impl Embedding {
    /// Adds row `index` to `to` `[hidden]`, going through `row` `[hidden]`.
    pub fn add_row(&self, index: usize, row: &mut [f32], to: &mut [f32]) {
        self.0.row_into(index, row);
        for (to, value) in to.iter_mut().zip(&*row) {
            *to += value;
        }
    }
}
