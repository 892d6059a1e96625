//! The measure that trains nothing.

use super::{ImportanceMeasure, Probe, ProbeSettings, fitting};
use fedpipe_core::{Head, ModelSpec, ProbeScore, SiloProfile};

/// The Frobenius norm of the loss's gradient by the weight, over the batches of the probe, normalised: where the first step
/// of training would have the most to change. It takes as long as `svd-sensitivity` a batch and needs fewer of them; the
/// head is the untrained one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradient;

impl ImportanceMeasure for Gradient {
    fn name(&self) -> &'static str {
        "gradient"
    }

    fn probe(&self, model: &ModelSpec, profile: &SiloProfile, head: &Head, settings: &ProbeSettings) -> Probe {
        fitting(model, profile, head, settings, ProbeScore::GradientNorm)
    }
}
