//! Local training of low-rank adapters and a classification head.

use crate::Error;
use crate::adapter::Trainable;
use crate::arch::Encoder;
use crate::data::{Batches, Dataset};
use crate::ops::{Ops, cross_entropy};
use crate::optimizer::AdamW;
use crate::task::ClassificationHead;
use candle_core::{Device, Tensor, Var};
use fedpipe_core::{Adapter, Purpose, Seed, Stop, TrainWork};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One optimizer step, as it is reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, from 1.
    pub step: usize,
    /// Mean cross-entropy of the batch before the step.
    pub loss: f64,
    /// Tokens in the batch.
    pub tokens: u64,
}

/// Trains `work.adapter` on `data` for `work.steps` steps and returns it as it is then. The batches follow from `seed`.
///
/// # Errors
/// [`Error::NotFinite`] when the loss is not a number, [`Error::Stopped`] when `stop` was requested, and tensor errors.
pub fn train(
    encoder: &dyn Encoder,
    head_module: &str,
    data: &Dataset,
    work: &TrainWork,
    seed: Seed,
    stop: &Stop,
    on_step: &mut dyn FnMut(StepReport),
) -> Result<Adapter, Error> {
    let trainable = Trainable::new(&work.adapter)?;
    let mut adapters = trainable.attached(&work.fixed)?;
    let head = ClassificationHead::new(head_module, &tensors(trainable.head()))?;
    let mut optimizer = AdamW::new(trainable.variables(), work.weight_decay);
    let batches = Batches::new(data.len(), work.batch_size, seed.derive(Purpose::Batches, 0, None));
    for (step, indices) in batches.take(work.steps).enumerate() {
        if stop.requested() {
            return Err(Error::Stopped { steps: step });
        }
        adapters.set_dropout(work.dropout, seed.derive(Purpose::Dropout, step as u32, None));
        let batch = Batch::new(data, &indices)?;
        let pooled = encoder.pooled(Ops::Fast, &batch.ids, &batch.offsets, &adapters)?;
        let loss = cross_entropy(&head.logits(&pooled)?, &batch.labels)?;
        let value = finite(&loss, step)?;
        optimizer.step(&[&loss.backward()?], learning_rate(work, step), work.max_grad_norm)?;
        on_step(StepReport { step: step + 1, loss: value, tokens: batch.ids.len() as u64 });
    }
    Ok(trainable.adapter()?)
}

/// Linear from the first rate of the round to the second, which the next round starts with.
fn learning_rate(work: &TrainWork, step: usize) -> f64 {
    let (from, to) = work.learning_rate;
    from + (to - from) * step as f64 / work.steps.max(1) as f64
}

/// The loss as a number.
pub(crate) fn finite(loss: &Tensor, step: usize) -> Result<f64, Error> {
    let loss = f64::from(loss.to_scalar::<f32>()?);
    if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite { step: step + 1, loss }) }
}

/// Variables as the tensors that a forward pass sees.
pub(crate) fn tensors(variables: &BTreeMap<String, Var>) -> BTreeMap<String, Tensor> {
    variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect()
}

/// A ragged batch, packed end to end.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) offsets: Arc<[usize]>,
    pub(crate) labels: Tensor,
}

impl Batch {
    pub(crate) fn new(data: &Dataset, indices: &[usize]) -> Result<Self, Error> {
        let subset = data.subset(indices);
        let labels = Tensor::from_vec(subset.labels, indices.len(), &Device::Cpu)?;
        Ok(Self { ids: subset.ids, offsets: subset.offsets.into(), labels })
    }
}
