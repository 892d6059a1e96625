//! All that a run needs to go on.

use crate::{Adapter, Failure, Measured, Plan, Seed, SiloId, SiloProfile, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Version of [`RunState`] in checkpoints.
pub const RUN_STATE_VERSION: u32 = 5;

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
    /// `seconds` over what its enrolled profile foresees for the work that was done and the bytes that travelled; none
    /// where the profile has no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowness: Option<f64>,
}

/// How slow a run has found a silo, against its enrolled profile: 1 is as foreseen, 2 takes twice as long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slowness {
    /// Of its last rounds that are remembered, oldest first; late ones count.
    pub recent: Vec<f64>,
    /// What its plan in force reckons with.
    pub planned: f64,
    /// Rounds in a row that were off the plan: above 0 slower, below 0 faster.
    pub off: i32,
    /// The round after which it was last planned again on its own, or would have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replanned: Option<u32>,
    /// Whether a person was told that no plan of it keeps the deadline any more.
    #[serde(default)]
    pub warned: bool,
}

impl Default for Slowness {
    /// As foreseen.
    fn default() -> Self {
        Self { recent: Vec::new(), planned: 1.0, off: 0, replanned: None, warned: false }
    }
}

impl Slowness {
    /// The mean of what is remembered; 1 when that is nothing.
    pub fn learned(&self) -> f64 {
        match self.recent.len() {
            0 => 1.0,
            rounds => self.recent.iter().sum::<f64>() / rounds as f64,
        }
    }
}

/// A change of plans while rounds went on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanChange {
    /// The round after which it holds.
    pub round: u32,
    /// Whose plan; none when all were planned anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silo: Option<SiloId>,
    /// Why, for a person.
    pub reason: String,
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
    /// The same as each silo has it on its own data, for those that scored their weights.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_importance: BTreeMap<SiloId, BTreeMap<WeightId, f64>>,
    /// The plan in force.
    pub plan: Plan,
    /// Kinds of weight that nobody trains, where that was left to FedPipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub never_tune: Vec<String>,
    /// AdamW's highest learning rate.
    pub learning_rate: f64,
    /// How the plan in force came from the first one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan_changes: Vec<PlanChange>,
    /// What the rounds said of the silos' speed. Profiles stay as they were enrolled.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slowness: BTreeMap<SiloId, Slowness>,
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
