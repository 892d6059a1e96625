//! Layers of the base model: frozen, shared between silos, and unaware of what is attached to them.

use crate::Error;
use crate::ops::{Ops, Value};
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

    /// The weight's module path.
    pub fn id(&self) -> &WeightId {
        &self.id
    }

    /// W.
    pub fn weight(&self) -> &FrozenMatrix {
        &self.weight
    }

    /// The bias `[out]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The layer alone over x.
    ///
    /// # Errors
    /// When the widths disagree or an operation fails.
    pub fn forward<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value) -> Result<Value, Error> {
        let [y] = together(ops, x, [self])?;
        Ok(y)
    }
}

/// Several layers over one x, which is read once.
///
/// # Errors
/// As [`Linear::forward`].
pub fn together<'a, const N: usize>(
    ops: &mut dyn Ops<'a>,
    x: &Value,
    layers: [&'a Linear; N],
) -> Result<[Value; N], Error> {
    let values = ops.linears(x, &layers)?;
    values.try_into().map_err(|_| Error::shape("one value for each layer".into()))
}
