//! What the planner decides for a silo, and what it says about the decision.

use crate::{SiloId, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How a silo stores the frozen base weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFormat {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
    /// Symmetric 8-bit integers, and an `f32` a row.
    Int8,
    /// NormalFloat, 8 bits a value and an `f32` a block of 64.
    Nf8,
    /// NormalFloat, 4 bits (bit-compatible with bitsandbytes).
    Nf4,
    /// NormalFloat, 3 bits.
    Nf3,
    /// NormalFloat, 2 bits.
    Nf2,
}

impl BaseFormat {
    /// Every format: plain numbers, then NormalFloat, each from the most to the fewest bits.
    pub const ALL: [Self; 7] = [Self::F32, Self::Bf16, Self::Int8, Self::Nf8, Self::Nf4, Self::Nf3, Self::Nf2];

    /// The name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Nf8 => "nf8",
            Self::Nf4 => "nf4",
            Self::Nf3 => "nf3",
            Self::Nf2 => "nf2",
        }
    }

    /// Bits of a NormalFloat code; `None` for plain numbers.
    pub fn code_bits(self) -> Option<u32> {
        match self {
            Self::F32 | Self::Bf16 | Self::Int8 => None,
            Self::Nf8 => Some(8),
            Self::Nf4 => Some(4),
            Self::Nf3 => Some(3),
            Self::Nf2 => Some(2),
        }
    }
}

impl BaseFormat {
    /// How the activations of a model in this format are stored.
    pub fn activations(self) -> ActivationFormat {
        match self {
            Self::F32 => ActivationFormat::F32,
            Self::Bf16 | Self::Int8 | Self::Nf8 | Self::Nf4 | Self::Nf3 | Self::Nf2 => ActivationFormat::Bf16,
        }
    }
}

/// How activations are stored between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationFormat {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}

impl ActivationFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes of a value.
    pub fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// By the name; the error lists all of them.
impl FromStr for BaseFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|f| f.name() == name)
            .ok_or_else(|| format!("no format {name}; there are {}", known()))
    }
}

impl fmt::Display for BaseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Memory of a training step in bytes, a field for every term of the cost model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryTerms {
    /// Frozen base weights at rest.
    pub base: f64,
    /// Adapters and head, those that train and those that are only applied.
    pub adapters: f64,
    /// Gradients of what trains.
    pub gradients: f64,
    /// AdamW's two moments of what trains.
    pub optimizer: f64,
    /// Kept from forward to backward, from the lowest adapted layer upwards; with recomputation the input of each of these
    /// layers and the inside of one.
    pub activations: f64,
    /// Temporary tensors at the peak.
    pub workspace: f64,
}

impl MemoryTerms {
    /// The sum of all terms, in bytes.
    pub fn total(&self) -> f64 {
        self.base + self.adapters + self.gradients + self.optimizer + self.activations + self.workspace
    }
}

/// Time of a round in seconds on the silo's own clock, a field for every term of the cost model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeTerms {
    /// Forward passes.
    pub forward: f64,
    /// Backward passes through the base, with what they compute again.
    pub backward: f64,
    /// Adapters, both ways.
    pub adapter: f64,
    /// Overhead of the steps.
    pub fixed: f64,
    /// From the server to the silo.
    pub download: f64,
    /// From the silo to the server.
    pub upload: f64,
}

impl TimeTerms {
    /// The sum of all terms, in seconds.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.adapter + self.fixed + self.download + self.upload
    }
}

/// The plan of one silo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiloPlan {
    /// Which silo.
    pub silo: SiloId,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Optimizer steps in a round.
    pub local_steps: usize,
    /// Format of the frozen weights.
    pub base_format: BaseFormat,
    /// Whether the backward pass computes the inside of the adapted layers again instead of keeping it.
    pub recompute: bool,
    /// Rank of every weight that trains; a weight that is not here does not train.
    pub ranks: BTreeMap<WeightId, usize>,
    /// Predicted memory.
    pub memory: MemoryTerms,
    /// Predicted time of a round.
    pub time: TimeTerms,
    /// Value of the objective.
    pub objective: f64,
    /// Why this plan, in sentences for the person who pays for the hardware.
    pub reasons: Vec<String>,
}

/// What a federation's plans gain together, beside the most that any plans could.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Optimality {
    /// The silos' objectives, each by its share of the examples, less what uncovered weights cost.
    pub objective: f64,
    /// No plans gain more.
    pub bound: f64,
    /// Important weights that fewer silos train than should.
    pub uncovered: Vec<WeightId>,
}

impl Optimality {
    /// The share of the bound that is not reached, at most.
    pub fn gap(&self) -> f64 {
        (self.bound - self.objective).max(0.0) / self.bound.abs().max(f64::MIN_POSITIVE)
    }
}

/// A setting that nobody gave, with what it was set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Its key in the configuration.
    pub key: String,
    /// What it was set to, as it would be written there.
    pub value: String,
    /// Why, in a sentence.
    pub reason: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.reason)
    }
}

/// The plan of a federation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Optimizer steps of a round; a silo that has the time makes a multiple of them.
    pub local_steps: usize,
    /// Largest rank of the merged adapter; no silo trains a weight at a higher one.
    pub server_rank: usize,
    /// Settings that were left to FedPipe.
    #[serde(default)]
    pub chosen: Vec<Chosen>,
    /// Seconds within which every silo should finish a round.
    pub deadline_s: f64,
    /// Whether the planner chose the deadline, and how.
    pub deadline_reason: String,
    /// How good the plans are together.
    #[serde(default)]
    pub optimality: Optimality,
    /// A plan for every silo.
    pub silos: BTreeMap<SiloId, SiloPlan>,
}
