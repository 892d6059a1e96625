//! The importance probe: a few steps with singular-value adapters on every candidate weight.

use crate::Error;
use crate::adapter::{Adapters, Attached, Sensitivity, Trainable, Triplets};
use crate::arch::Encoder;
use crate::data::{Batches, Dataset};
use crate::ops::{Ops, cross_entropy};
use crate::optimizer::AdamW;
use crate::task::ClassificationHead;
use crate::train::{Batch, StepReport, finite, tensors};
use fedpipe_core::{Adapter, CandidateWeight, ProbeWork, Purpose, Seed, Stop, WeightId};
use std::collections::BTreeMap;

/// Gradients of a probe are scaled down to this global norm.
const MAX_GRAD_NORM: f64 = 1.0;

/// Scores every candidate by the sensitivity of its triplets; the scores sum to 1.
///
/// # Errors
/// As [`crate::train`].
#[expect(clippy::too_many_arguments, reason = "the same as train, and the candidates")]
pub(crate) fn probe(
    encoder: &dyn Encoder,
    head_module: &str,
    candidates: &[CandidateWeight],
    data: &Dataset,
    work: &ProbeWork,
    seed: Seed,
    stop: &Stop,
    on_step: &mut dyn FnMut(StepReport),
) -> Result<BTreeMap<WeightId, f64>, Error> {
    let head_only = Adapter { scaling: 1.0, factors: BTreeMap::new(), head: work.head.clone() };
    let trainable = Trainable::new(&head_only)?;
    let head = ClassificationHead::new(head_module, &tensors(trainable.head()))?;
    let mut variables = trainable.variables();
    let mut adapters = Adapters::none();
    let mut attached = Vec::with_capacity(candidates.len());
    for weight in candidates {
        let seed = seed.derive(Purpose::Probe, 0, None).named(weight.id.as_str());
        let triplets = Triplets::fresh(work.rank, weight.inputs, weight.outputs, seed)?;
        variables.extend(triplets.variables());
        adapters.insert(weight.id.clone(), Attached::Singular(triplets.clone()));
        attached.push((&weight.id, triplets));
    }
    let mut optimizer = AdamW::new(variables, 0.0);
    let mut sensitivity = Sensitivity::new(work.betas);
    let batches = Batches::new(data.len(), work.batch_size, seed.derive(Purpose::Batches, 0, None));
    for (step, indices) in batches.take(work.steps).enumerate() {
        if stop.requested() {
            return Err(Error::Stopped { steps: step });
        }
        let batch = Batch::new(data, &indices)?;
        let pooled = encoder.pooled(Ops::Fast, &batch.ids, &batch.offsets, &adapters)?;
        let loss = cross_entropy(&head.logits(&pooled)?, &batch.labels)?;
        let value = finite(&loss, step)?;
        // Sensitivity is that of the task's loss. The regulariser pulls at every weight alike and would drown it.
        let gradients = loss.backward()?;
        let mut penalty = loss.zeros_like()?;
        for (id, triplets) in &attached {
            sensitivity.observe(id, triplets, &gradients)?;
            penalty = (penalty + (triplets.orthogonality_penalty()? * work.orthogonality)?)?;
        }
        optimizer.step(&[&gradients, &penalty.backward()?], work.learning_rate, MAX_GRAD_NORM)?;
        on_step(StepReport { step: step + 1, loss: value, tokens: batch.ids.len() as u64 });
    }
    Ok(sensitivity.scores())
}
