//! What the planner and the server need to know of a base model; no tensor among it.

use crate::{BaseFormat, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A linear weight `[outputs, inputs]` that may be adapted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateWeight {
    /// Its module path.
    pub id: WeightId,
    /// The layer that it belongs to, counted from the embeddings upwards.
    pub layer: usize,
    /// The last part of the path that tells its kind, for example `query`.
    pub kind: String,
    /// Columns of the weight.
    pub inputs: usize,
    /// Rows of the weight.
    pub outputs: usize,
}

impl CandidateWeight {
    /// Trained values at a rank: r · (in + out).
    pub fn parameters(&self, rank: usize) -> u64 {
        rank as u64 * (self.inputs + self.outputs) as u64
    }
}

/// A base model as the federation sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// The architecture's name in its `config.json`, for example `bert`.
    pub architecture: String,
    /// SHA-256 of the weights and the configuration, in hexadecimal.
    pub fingerprint: String,
    /// All parameters of the base model.
    pub parameters: u64,
    /// Number of layers.
    pub layers: usize,
    /// Width of a token's state.
    pub hidden: usize,
    /// The weights that may be adapted, from the embeddings upwards.
    pub candidates: Vec<CandidateWeight>,
    /// Rows and columns of each tensor of the head.
    pub head: BTreeMap<String, (usize, usize)>,
    /// Bytes that the frozen weights take at rest in each format.
    pub base_bytes: BTreeMap<BaseFormat, u64>,
}

impl ModelSpec {
    /// Trained values of the head.
    pub fn head_parameters(&self) -> u64 {
        self.head.values().map(|(rows, cols)| (rows * cols) as u64).sum()
    }

    /// The candidate of that name.
    pub fn candidate(&self, id: &WeightId) -> Option<&CandidateWeight> {
        self.candidates.iter().find(|c| &c.id == id)
    }
}
