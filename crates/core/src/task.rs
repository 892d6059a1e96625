//! What the server asks of a silo, and what comes back.

use crate::{Adapter, BaseFormat, LearningRate, LowRank, Seed, SiloId, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One piece of work for one silo in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The round; 0 is before training.
    pub round: u32,
    /// Who does it.
    pub silo: SiloId,
    /// Where the silo's random streams start.
    pub seed: Seed,
    /// What to do.
    pub work: Work,
}

/// The kinds of work. A method's local half is data here, not code in the silo.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Score how much each candidate weight matters to the silo's data.
    Probe(ProbeWork),
    /// Train adapters.
    Train(TrainWork),
}

impl Work {
    /// Optimizer steps that it takes.
    pub fn steps(&self) -> usize {
        match self {
            Self::Probe(work) => work.steps,
            Self::Train(work) => work.steps,
        }
    }

    /// Format of the frozen weights that it runs over.
    pub fn base_format(&self) -> BaseFormat {
        match self {
            Self::Probe(work) => work.base_format,
            Self::Train(work) => work.base_format,
        }
    }
}

/// Importance of the candidate weights to a silo's own texts.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeWork {
    /// What is looked at.
    pub score: ProbeScore,
    /// Rank of what is attached to every candidate weight.
    pub rank: usize,
    /// Batches that are looked at.
    pub steps: usize,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Format of the frozen weights.
    pub base_format: BaseFormat,
    /// The head to start from.
    pub head: crate::Head,
}

/// What a probe takes for importance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ProbeScore {
    /// The sensitivity of adapters in singular-value form ΔW = P·diag(λ)·Q (AdaLoRA, arXiv 2303.10512) that train for the
    /// steps of the probe, and the head with them.
    Sensitivity {
        /// Constant learning rate of AdamW.
        learning_rate: f64,
        /// Smoothing of the sensitivity (β1) and of its uncertainty (β2).
        betas: (f64, f64),
        /// γ of the regulariser γ·(‖PᵀP − I‖² + ‖QQᵀ − I‖²).
        orthogonality: f64,
    },
    /// The Frobenius norm of the loss's gradient by the weight, the mean over all batches; nothing trains. Estimated from
    /// random projections onto `rank` directions, so that no gradient of the weight's own size is ever held.
    GradientNorm,
}

/// Local training of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainWork {
    /// What trains: factors at the silo's own ranks, and the head.
    pub adapter: Adapter,
    /// The rest of the merged adapter at the same scaling: applied in every forward pass and left as it is, so that a
    /// silo that trains little still trains against the federation's model.
    pub fixed: BTreeMap<WeightId, LowRank>,
    /// Format of the frozen weights.
    pub base_format: BaseFormat,
    /// Whether the backward pass computes the inside of the adapted layers again instead of keeping it.
    pub recompute: bool,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// AdamW's learning rate.
    pub learning_rate: LearningRate,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Dropout on the input of every trained factor A.
    pub dropout: f64,
    /// Bytes of the silo's memory that its plan leaves: what a cache of activations may take.
    pub spare_bytes: u64,
    /// Whether [`Update::sensitivity`] is asked for.
    pub sensitivity: bool,
}

/// What a silo measured while it worked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Optimizer steps done.
    pub steps: usize,
    /// Tokens in all batches.
    pub tokens: u64,
    /// Those of texts that an earlier batch of the same task had, as far as what frozen layers make of them could be kept on
    /// the disk. What earlier tasks left in a cache does not count: a run that was resumed has lost it.
    #[serde(default)]
    pub repeated_tokens: u64,
    /// Mean loss over the steps.
    pub loss: f64,
    /// Seconds of computing on this machine, before any slow-down.
    pub compute_s: f64,
    /// Most memory that the work took at once, the base weights included and cached activations left out.
    pub peak_bytes: u64,
    /// What a cache of activations did, when one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheUse>,
}

/// What a cache of activations did. It is empty when a process begins: a run that was resumed has fewer hits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheUse {
    /// Texts that were asked for.
    pub lookups: u64,
    /// Those that were there.
    pub hits: u64,
    /// Bytes that it holds in memory.
    pub ram_bytes: u64,
    /// Bytes that it holds on the disk.
    pub disk_bytes: u64,
}

/// What a silo hands back.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The round of the task.
    pub round: u32,
    /// Who did it.
    pub silo: SiloId,
    /// Examples that it stands for.
    pub examples: u64,
    /// The result.
    pub outcome: Outcome,
    /// What it took.
    pub measured: Measured,
    /// How much the loss hangs on the factors of each weight that trained: Σ |p·∂L/∂p| over the entries p of A and B, the
    /// mean of the steps. Empty unless it was asked for.
    pub sensitivity: BTreeMap<WeightId, f64>,
}

/// The result of a piece of work.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of a probe: a score for every candidate weight, summing to 1.
    Scores(BTreeMap<WeightId, f64>),
    /// Of training: the trained factors and the head.
    Trained(Adapter),
}

/// Why a silo's work did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It finished after the deadline.
    Late,
    /// It cannot be reached.
    Gone,
    /// It ran out of memory.
    OutOfMemory,
    /// Its task and its update together are more than it may send and receive in a round.
    TooMuchData,
    /// It reported an error or panicked.
    Crashed,
    /// It handed back something that is not a valid update.
    Invalid,
    /// The run is stopping.
    Stopped,
}

/// A silo that did not deliver, as data; a round goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("silo {silo} in round {round}: {reason}")]
pub struct Failure {
    /// Who.
    pub silo: SiloId,
    /// The round of the task.
    pub round: u32,
    /// What kind.
    pub kind: FailureKind,
    /// The details, for a person.
    pub reason: String,
}

impl Failure {
    /// A failure of the silo of `task`.
    pub fn of(task: &Task, kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { silo: task.silo.clone(), round: task.round, kind, reason: reason.into() }
    }
}
