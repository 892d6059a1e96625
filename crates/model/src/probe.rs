//! The importance probe: a few steps with singular-value adapters on every candidate weight.

use crate::Error;
use crate::adapter::{Attached, Sensitivity, Trainable, Triplets};
use crate::arch::Backbone;
use crate::data::{Batches, Dataset};
use crate::ops::{Offsets, OpsKind, Pass, Workspace};
use crate::optimizer::AdamW;
use crate::parameters::Gradients;
use crate::pool::on_pool;
use crate::task::Objective;
use crate::train::{StepReport, finite};
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
    encoder: &dyn Backbone,
    objective: &Objective,
    candidates: &[CandidateWeight],
    data: &Dataset,
    work: &ProbeWork,
    seed: Seed,
    stop: &Stop,
    on_step: &mut (dyn FnMut(StepReport) + Send),
) -> Result<BTreeMap<WeightId, f64>, Error> {
    on_pool(|| {
        let head_only = Adapter { scaling: 1.0, factors: BTreeMap::new(), head: work.head.clone() };
        let mut trainable = Trainable::new(&head_only);
        let loss = objective.loss(trainable.head())?;
        let mut adapters = trainable.attached(&BTreeMap::new());
        let parameters = &mut trainable.parameters;
        let mut attached = Vec::with_capacity(candidates.len());
        for weight in candidates {
            let seed = seed.derive(Purpose::Probe, 0, None).named(weight.id.as_str());
            let triplets = Triplets::fresh(parameters, work.rank, weight.inputs, weight.outputs, seed);
            let lora = Attached { trained: Some(triplets.factors()), fixed: None, scaling: 1.0 };
            adapters.insert(weight.id.clone(), lora);
            attached.push((&weight.id, triplets));
        }
        let mut optimizer = AdamW::new(parameters, 0.0);
        let mut gradients = Gradients::new(parameters);
        let mut sensitivity = Sensitivity::new(work.betas);
        let workspace = Workspace::new(OpsKind::Fast, work.base_format, false);
        let batches = Batches::new(data.len(), work.batch_size, seed.derive(Purpose::Batches, 0, None));
        for (step, indices) in batches.take(work.steps).enumerate() {
            if stop.requested() {
                return Err(Error::Stopped { steps: step });
            }
            attached.iter().for_each(|(_, triplets)| triplets.compose(parameters));
            let batch = data.subset(&indices);
            let offsets: Offsets = batch.offsets.as_slice().into();
            gradients.clear();
            let mut ops = workspace.ops(parameters, &adapters, Pass::Training)?;
            let start = (0, encoder.embed(&mut *ops, &batch.ids, &offsets)?);
            let loss = finite(loss.of(&mut *ops, encoder, start, &batch)?.mean, step)?;
            ops.backward(&mut gradients)?;
            drop(ops);
            for (id, triplets) in &attached {
                triplets.hand_on(parameters, &mut gradients);
                // Sensitivity is that of the task's loss. The regulariser pulls at every weight alike and would drown it.
                sensitivity.observe(id, triplets, parameters, &gradients);
                triplets.add_orthogonality(work.orthogonality, parameters, &mut gradients);
            }
            optimizer.step(parameters, &mut gradients, work.learning_rate, MAX_GRAD_NORM);
            on_step(StepReport { step: step + 1, loss, tokens: batch.ids.len() as u64 });
        }
        Ok(sensitivity.scores())
    })
}
