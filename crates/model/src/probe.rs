//! The importance probe: a few batches with something small attached to every candidate weight.

use crate::Error;
use crate::adapter::{Adapters, Attached, Normal, Sensitivity, Trainable, Trained, Triplets, normalised};
use crate::arch::Backbone;
use crate::data::{Batches, Dataset};
use crate::ops::{Offsets, OpsKind, Pass, Workspace};
use crate::optimizer::AdamW;
use crate::parameters::{Gradients, Parameters};
use crate::pool::on_pool;
use crate::task::Objective;
use crate::train::{StepReport, finite};
use fedpipe_core::{Adapter, CandidateWeight, Matrix, ProbeScore, ProbeWork, Purpose, Seed, Stop, WeightId};
use std::collections::BTreeMap;

/// Gradients of a probe are scaled down to this global norm.
const MAX_GRAD_NORM: f64 = 1.0;

/// Scores every candidate as `work` asks; the scores sum to 1.
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
        let mut scored = Scored::attach(work, candidates, seed, parameters, &mut adapters);
        let mut gradients = Gradients::new(parameters);
        let workspace = Workspace::new(OpsKind::Fast, work.base_format, false);
        let batches = Batches::new(data.len(), work.batch_size, seed.derive(Purpose::Batches, 0, None));
        for (step, indices) in batches.take(work.steps).enumerate() {
            if stop.requested() {
                return Err(Error::Stopped { steps: step });
            }
            scored.before(parameters);
            let batch = data.subset(&indices);
            let offsets: Offsets = batch.offsets.as_slice().into();
            gradients.clear();
            let mut ops = workspace.ops(parameters, &adapters, Pass::Training)?;
            let start = (0, encoder.embed(&mut *ops, &batch.ids, &offsets)?);
            let loss = finite(loss.of(&mut *ops, encoder, start, &batch)?.mean, step)?;
            ops.backward(&mut gradients)?;
            drop(ops);
            scored.after(parameters, &mut gradients);
            on_step(StepReport { step: step + 1, loss, tokens: batch.ids.len() as u64, repeated: 0 });
        }
        Ok(scored.scores())
    })
}

/// What is attached to the candidate weights, and what it showed so far.
enum Scored {
    Sensitivity {
        triplets: Vec<(WeightId, Triplets)>,
        sensitivity: Sensitivity,
        optimizer: AdamW,
        learning_rate: f64,
        orthogonality: f64,
    },
    /// B = 0 and A random with E[AᵀA] = 1: the gradient of B is G·Aᵀ, G being that of the weight, and E‖G·Aᵀ‖² = ‖G‖². The
    /// sums over the steps are of these.
    GradientNorm(Vec<(WeightId, Trained, Vec<f64>)>),
}

impl Scored {
    fn attach(
        work: &ProbeWork,
        candidates: &[CandidateWeight],
        seed: Seed,
        parameters: &mut Parameters,
        adapters: &mut Adapters,
    ) -> Self {
        let seed_of = |weight: &CandidateWeight| seed.derive(Purpose::Probe, 0, None).named(weight.id.as_str());
        let mut attach = |weight: &CandidateWeight, trained| {
            adapters.insert(weight.id.clone(), Attached { trained: Some(trained), fixed: None, scaling: 1.0 });
        };
        match work.score {
            ProbeScore::Sensitivity { learning_rate, betas, orthogonality } => {
                let triplets = candidates.iter().map(|weight| {
                    let seed = seed_of(weight);
                    let triplets = Triplets::fresh(parameters, work.rank, weight.inputs, weight.outputs, seed);
                    attach(weight, triplets.factors());
                    (weight.id.clone(), triplets)
                });
                let triplets = triplets.collect();
                let (sensitivity, optimizer) = (Sensitivity::new(betas), AdamW::new(parameters, 0.0));
                Self::Sensitivity { triplets, sensitivity, optimizer, learning_rate, orthogonality }
            }
            ProbeScore::GradientNorm => {
                let deviation = (work.rank as f64).sqrt().recip();
                let projected = candidates.iter().map(|weight| {
                    let mut normal = Normal::new(seed_of(weight));
                    let a = Matrix::from_fn(work.rank, weight.inputs, |_, _| (deviation * normal.next()) as f32);
                    let b = Matrix::zeros(weight.outputs, work.rank);
                    let trained = Trained { a: parameters.add(a), b: parameters.add(b) };
                    attach(weight, trained);
                    (weight.id.clone(), trained, vec![0.0; weight.outputs * work.rank])
                });
                Self::GradientNorm(projected.collect())
            }
        }
    }

    /// Makes the factors of a step.
    fn before(&self, parameters: &mut Parameters) {
        if let Self::Sensitivity { triplets, .. } = self {
            triplets.iter().for_each(|(_, triplets)| triplets.compose(parameters));
        }
    }

    /// Takes in the gradients of a step, and trains where the score is of what trains.
    fn after(&mut self, parameters: &mut Parameters, gradients: &mut Gradients) {
        match self {
            Self::Sensitivity { triplets, sensitivity, optimizer, learning_rate, orthogonality } => {
                for (id, triplets) in triplets.iter() {
                    triplets.hand_on(parameters, gradients);
                    // Sensitivity is that of the task's loss. The regulariser pulls at every weight alike and would drown
                    // it.
                    sensitivity.observe(id, triplets, parameters, gradients);
                    triplets.add_orthogonality(*orthogonality, parameters, gradients);
                }
                optimizer.step(parameters, gradients, *learning_rate, MAX_GRAD_NORM);
            }
            Self::GradientNorm(projected) => {
                for (_, trained, sums) in projected {
                    let gradient = gradients.get(trained.b).unwrap_or_default();
                    sums.iter_mut().zip(gradient).for_each(|(sum, &g)| *sum += f64::from(g));
                }
            }
        }
    }

    fn scores(&self) -> BTreeMap<WeightId, f64> {
        match self {
            Self::Sensitivity { sensitivity, .. } => sensitivity.scores(),
            Self::GradientNorm(projected) => {
                let norm = |sums: &[f64]| sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
                normalised(projected.iter().map(|(id, _, sums)| (id.clone(), norm(sums))).collect())
            }
        }
    }
}
