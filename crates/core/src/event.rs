//! What the engine says while it runs. Progress bars, logs and reports are folds over these.

use crate::{Failure, Metrics, Plan, RoundRecord, SiloId, SiloPlan, SiloProfile, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`Event`] in `events.jsonl`.
pub const EVENT_VERSION: u32 = 3;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run begins, or goes on from a checkpoint.
    Started {
        /// Name of the method.
        method: String,
        /// Seed of the run.
        seed: u64,
        /// Rounds in all.
        rounds: u32,
        /// Rounds that a checkpoint already holds.
        completed: u32,
        /// Seconds on the run's clock by then.
        clock_s: f64,
    },
    /// The profile of this machine is known.
    Profiled {
        /// Processor, threads and kernel path.
        device: String,
        /// Seconds that measuring took; none when an earlier profile was used again.
        measured_in_s: Option<f64>,
    },
    /// A silo enrolled.
    Enrolled(SiloProfile),
    /// The importance of the candidate weights is known, or known better.
    Identified {
        /// Score by weight, summing to 1.
        importance: BTreeMap<WeightId, f64>,
    },
    /// Every silo trained at a learning rate that may become the run's, and their adapters were merged.
    LearningRateTried {
        /// The rate.
        learning_rate: f64,
        /// Steps of the silos that make the fewest.
        steps: usize,
        /// Mean loss of the silos by examples; none when nobody delivered or the updates do not merge.
        loss: Option<f64>,
    },
    /// Every silo has a plan, or a new one.
    Planned(Plan),
    /// A silo has a new plan on its own.
    Replanned {
        /// The round after which it holds.
        round: u32,
        /// Who.
        silo: SiloId,
        /// How slow it is reckoned to be, against its profile ([`crate::Slowness`]).
        slowness: f64,
        /// Why, for a person.
        reason: String,
        /// The plan.
        plan: SiloPlan,
    },
    /// A round begins.
    RoundStarted {
        /// Which, from 1; 0 is the importance probe.
        round: u32,
        /// Silos that take part, with the steps that each will make.
        cohort: Vec<(SiloId, usize)>,
    },
    /// A silo made a step.
    Step {
        /// The round.
        round: u32,
        /// Who.
        silo: SiloId,
        /// Steps done, from 1.
        step: usize,
        /// Steps in all.
        steps: usize,
        /// Loss of the step.
        loss: f64,
        /// Tokens of the step.
        tokens: u64,
    },
    /// A silo did not deliver.
    SiloFailed(Failure),
    /// A round is over.
    RoundFinished(RoundRecord),
    /// The model was measured on held-out examples at the end of the run.
    Evaluated(Metrics),
    /// A checkpoint is on disk.
    Checkpointed {
        /// Rounds completed.
        round: u32,
        /// Where, relative to the run's folder.
        path: String,
    },
    /// Something that a person should know and that stops nothing.
    Warning {
        /// What, where and what to do.
        message: String,
    },
    /// The run is over.
    Finished {
        /// Rounds completed.
        rounds: u32,
        /// Whether a person or a signal ended it early.
        stopped: bool,
    },
}
