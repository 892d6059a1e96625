//! Frozen weights, read from a source into a base format.

use crate::Error;
use crate::io::WeightSource;
use crate::nn::Linear;
use crate::ops::{NormKind, NormWeights};
use crate::quant;
use fedpipe_core::{BaseFormat, WeightId};
use fedpipe_kernels::FrozenMatrix;
use std::sync::Arc;

/// Reads the weights of a base model, whose names in the source may or may not begin with the prefix that they have in a
/// model with a head.
pub(super) struct Weights<'s> {
    source: &'s dyn WeightSource,
    format: BaseFormat,
    /// In front of module paths.
    prefix: &'static str,
    /// In front of names in the source: the prefix, or nothing.
    stored: &'static str,
    bytes: u64,
}

impl<'s> Weights<'s> {
    /// A reader; `first` names a tensor that every such model has, without the prefix.
    pub(super) fn new(source: &'s dyn WeightSource, format: BaseFormat, prefix: &'static str, first: &str) -> Self {
        let stored = if source.has_tensor(&format!("{prefix}{first}")) { prefix } else { "" };
        Self { source, format, prefix, stored, bytes: 0 }
    }

    /// Bytes of all that was read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        Ok(self.source.tensor_f32(&format!("{}{name}", self.stored), shape)?)
    }

    fn freeze(&mut self, module: &str, rows: usize, cols: usize, values: &[f32]) -> Result<FrozenMatrix, Error> {
        let frozen =
            frozen(self.source, self.format, &format!("{}{module}.weight", self.stored), (rows, cols), values)?;
        self.bytes += frozen.bytes() as u64;
        Ok(frozen)
    }

    /// The weight `[rows, cols]` of a module.
    pub(super) fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<FrozenMatrix, Error> {
        let values = self.values(&format!("{module}.weight"), &[rows, cols])?;
        self.freeze(module, rows, cols, &values)
    }

    /// A vector by its whole name.
    pub(super) fn vector(&mut self, name: &str, length: usize) -> Result<Arc<[f32]>, Error> {
        self.bytes += 4 * length as u64;
        Ok(self.values(name, &[length])?.into())
    }

    /// A linear layer whose weight is stored `[outputs, inputs]`.
    pub(super) fn linear(&mut self, module: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear, Error> {
        let weight = self.matrix(module, outputs, inputs)?;
        let bias = bias.then(|| self.vector(&format!("{module}.bias"), outputs)).transpose()?;
        Ok(Linear::new(self.id(module), weight, bias))
    }

    /// A linear layer whose weight is stored `[inputs, outputs]`, as GPT-2's `Conv1D` does.
    pub(super) fn transposed(&mut self, module: &str, inputs: usize, outputs: usize) -> Result<Linear, Error> {
        let stored = self.values(&format!("{module}.weight"), &[inputs, outputs])?;
        let mut values = Vec::with_capacity(stored.len());
        for column in 0..outputs {
            values.extend(stored.iter().skip(column).step_by(outputs));
        }
        let weight = self.freeze(module, outputs, inputs, &values)?;
        let bias = self.vector(&format!("{module}.bias"), outputs)?;
        Ok(Linear::new(self.id(module), weight, Some(bias)))
    }

    /// Scale and shift of a layer norm.
    pub(super) fn layer_norm(&mut self, module: &str, width: usize, epsilon: f32) -> Result<NormWeights, Error> {
        let scale = self.vector(&format!("{module}.weight"), width)?;
        let shift = self.vector(&format!("{module}.bias"), width)?;
        Ok(NormWeights { scale, kind: NormKind::Layer { shift }, epsilon })
    }

    /// Scale of an RMS norm.
    pub(super) fn rms_norm(&mut self, module: &str, width: usize, epsilon: f32) -> Result<NormWeights, Error> {
        let scale = self.vector(&format!("{module}.weight"), width)?;
        Ok(NormWeights { scale, kind: NormKind::Rms, epsilon })
    }

    fn id(&self, module: &str) -> WeightId {
        WeightId::new(format!("{}{module}", self.prefix))
    }
}

/// Values of a tensor in a base format.
pub(super) fn frozen(
    source: &dyn WeightSource,
    format: BaseFormat,
    name: &str,
    (rows, cols): (usize, usize),
    values: &[f32],
) -> Result<FrozenMatrix, Error> {
    quant::frozen(format, rows, cols, values).map_err(|error| Error::Quantization {
        path: source.config_path(),
        tensor: name.to_string(),
        source: error,
    })
}
