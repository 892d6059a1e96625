//! All that a run needs to go on.

use crate::{Adapter, Failure, Measured, Plan, Seed, SiloId, SiloProfile, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Version of [`RunState`] in checkpoints.
pub const RUN_STATE_VERSION: u32 = 3;

/// Quality of the federation's model on held-out examples.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of examples whose most probable label is right; none where texts are not labelled.
    pub accuracy: Option<f64>,
    /// F1 of each label, averaged over the labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// Matthews correlation of predicted with right labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matthews: Option<f64>,
    /// Share of questions whose answer is right to the word (SQuAD's exact match), in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<f64>,
    /// F1 over the words of the answers (SQuAD's), in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_f1: Option<f64>,
    /// Mean cross-entropy, in nats: of a label, of where an answer begins and ends, or of a token.
    pub loss: f64,
    /// Number of examples.
    pub examples: u64,
}

impl Metrics {
    /// The figure that people compare, with its name: the accuracy, the F1 of answers, or else the perplexity.
    pub fn headline(&self) -> (&'static str, f64) {
        let accuracy = self.accuracy.map(|accuracy| ("accuracy", accuracy));
        let answers = self.answer_f1.map(|f1| ("answer-f1", f1));
        accuracy.or(answers).unwrap_or(("perplexity", self.loss.exp()))
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = self.headline();
        write!(f, "{name} {value:.4}, loss {:.4}", self.loss)
    }
}

/// One silo's part in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiloRound {
    /// Who.
    pub silo: SiloId,
    /// What it measured.
    pub measured: Measured,
    /// Seconds on the run's clock, transfers included.
    pub seconds: f64,
    /// Bytes from the silo to the server.
    pub bytes_up: u64,
    /// Bytes from the server to the silo.
    pub bytes_down: u64,
}

/// What happened in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Which round, from 1.
    pub round: u32,
    /// Silos whose updates counted.
    pub silos: Vec<SiloRound>,
    /// Silos that did not deliver.
    pub failures: Vec<Failure>,
    /// Whether the updates were merged; not when fewer than the quorum delivered.
    pub merged: bool,
    /// Seconds on the run's clock.
    pub seconds: f64,
    /// Quality after the round, when it was measured.
    pub metrics: Option<Metrics>,
}

/// A run between two rounds. Kept whole in a checkpoint; the adapter's tensors lie beside it in a safetensors file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// [`RUN_STATE_VERSION`] when it was written.
    pub version: u32,
    /// Name of the method.
    pub method: String,
    /// Seed of the run.
    pub seed: Seed,
    /// SHA-256 of what the run learns from, in hexadecimal: model, texts and labels.
    pub inputs: String,
    /// Rounds completed.
    pub round: u32,
    /// Enrolled silos.
    pub profiles: BTreeMap<SiloId, SiloProfile>,
    /// Importance of every candidate weight, summing to 1.
    pub importance: BTreeMap<WeightId, f64>,
    /// The plan in force.
    pub plan: Plan,
    /// AdamW's highest learning rate.
    pub learning_rate: f64,
    /// The federation's adapter.
    #[serde(skip, default = "empty_adapter")]
    pub adapter: Adapter,
    /// Every round so far.
    pub history: Vec<RoundRecord>,
    /// Bytes from silos to the server so far, failures included.
    pub bytes_up: u64,
    /// Bytes from the server to silos so far.
    pub bytes_down: u64,
    /// Seconds on the run's clock so far.
    pub clock_s: f64,
    /// Seconds of real time so far, over all sessions of the run.
    pub wall_s: f64,
}

fn empty_adapter() -> Adapter {
    Adapter { scaling: 0.0, factors: BTreeMap::new(), head: BTreeMap::new() }
}
