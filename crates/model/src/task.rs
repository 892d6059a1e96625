//! Tasks: what stands on top of an encoder.

use candle_core::{Error, Result, Tensor};
use std::collections::BTreeMap;

/// Classification of single texts: a linear layer over the pooled state.
#[derive(Debug, Clone)]
pub struct ClassificationHead {
    weight: Tensor,
    bias: Tensor,
}

impl ClassificationHead {
    /// The head in `tensors`: `<module>.weight` `[classes, hidden]` and `<module>.bias` `[1, classes]`.
    ///
    /// # Errors
    /// When one is missing.
    pub fn new(module: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let get = |name: &str| {
            let name = format!("{module}.{name}");
            tensors.get(&name).cloned().ok_or_else(|| Error::Msg(format!("the head lacks {name}")))
        };
        Ok(Self { weight: get("weight")?, bias: get("bias")? })
    }

    /// Logits `[sequences, classes]` of pooled states `[sequences, hidden]`.
    ///
    /// # Errors
    /// When the shapes disagree.
    pub fn logits(&self, pooled: &Tensor) -> Result<Tensor> {
        pooled.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}
