//! What a silo tells the server when it enrols: its hardware, its link and the outline of its data.

use crate::{ActivationFormat, BaseFormat, SiloId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Lengths of a silo's texts, in tokens after truncation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthStats {
    /// Mean tokens of a text.
    pub mean: f64,
    /// Standard deviation of the tokens of a text.
    pub deviation: f64,
    /// Tokens of the longest text.
    pub longest: usize,
}

impl LengthStats {
    /// Statistics of `lengths`; all zero when there are none.
    pub fn of(lengths: impl IntoIterator<Item = usize> + Clone) -> Self {
        let n = lengths.clone().into_iter().count().max(1) as f64;
        let mean = lengths.clone().into_iter().sum::<usize>() as f64 / n;
        let variance = lengths.clone().into_iter().map(|l| (l as f64 - mean).powi(2)).sum::<f64>() / n;
        Self { mean, deviation: variance.sqrt(), longest: lengths.into_iter().max().unwrap_or(0) }
    }

    /// Tokens of a large batch of `examples` texts: the mean and 2.5 standard deviations, never more than all of them
    /// at the longest. Memory is planned for this many.
    pub fn large_batch(&self, examples: usize) -> f64 {
        let n = examples as f64;
        (self.mean * n + 2.5 * self.deviation * n.sqrt()).min((self.longest * examples) as f64)
    }
}

/// Measured memory of a training step, apart from the base weights and what adapters store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryCoefficients {
    /// Bytes a token that stay live from forward to backward, for each layer from the lowest adapted one upwards.
    pub layer_bytes_per_token: f64,
    /// Bytes a token of the input of a layer: all of the layer that stays live when its inside is computed again.
    pub layer_input_bytes_per_token: f64,
    /// Bytes a token of temporary tensors at the moment of the peak, whatever the depth.
    pub workspace_bytes_per_token: f64,
    /// The same where the layers are computed again: the peak then lies within the backward pass of one.
    pub recompute_workspace_bytes_per_token: f64,
    /// Bytes a token and unit of rank that one adapted weight keeps for backward.
    pub adapter_bytes_per_token_rank: f64,
    /// Bytes that a step takes whatever its batch.
    pub fixed_bytes: f64,
}

/// Measured speed of a training step on one base format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimeCoefficients {
    /// Seconds a token for the forward pass through one layer.
    pub forward_s_per_token_layer: f64,
    /// Seconds a token for the backward pass through one layer at or above the lowest adapted one.
    pub backward_s_per_token_layer: f64,
}

/// A short measured profile of one machine with one model; `speed` scales its times, never its memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Processor, threads and kernel path.
    pub device: String,
    /// Memory of a step by format of the activations.
    pub memory: BTreeMap<ActivationFormat, MemoryCoefficients>,
    /// Time of a step by base format.
    pub time: BTreeMap<BaseFormat, TimeCoefficients>,
    /// Seconds a token and unit of rank for one adapted weight, forward and backward.
    pub adapter_s_per_token_rank: f64,
    /// Seconds that a step takes whatever its batch.
    pub step_overhead_s: f64,
}

/// A silo at enrolment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiloProfile {
    /// Which silo.
    pub silo: SiloId,
    /// Number of training examples.
    pub examples: u64,
    /// Lengths of its texts.
    pub lengths: LengthStats,
    /// Memory that training may take, in MiB.
    pub memory_mib: u64,
    /// Speed relative to the machine that was profiled: 0.5 takes twice as long.
    pub speed: f64,
    /// Bandwidth of its link, the same both ways.
    pub bandwidth_mbps: f64,
    /// MiB that it may send and receive in a round together; none where nobody counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_cap_mib: Option<f64>,
    /// Bytes on its disk for what frozen layers make of its texts; 0 where that is not kept.
    #[serde(default)]
    pub cache_bytes: u64,
    /// The measured profile of the machine.
    pub device: DeviceProfile,
}

impl SiloProfile {
    /// Seconds to move `bytes` over the silo's link.
    pub fn transfer_s(&self, bytes: f64) -> f64 {
        bytes * 8.0 / (self.bandwidth_mbps * 1e6)
    }

    /// Bytes that it may send and receive in a round together, infinite without a cap.
    pub fn data_cap_bytes(&self) -> f64 {
        self.data_cap_mib.map_or(f64::INFINITY, |mib| mib * f64::from(1 << 20))
    }

    /// The memory budget in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}
