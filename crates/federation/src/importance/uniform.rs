//! The baseline without a probe.

use super::{ImportanceMeasure, Probe, ProbeSettings, SiloScores, equal};
use fedpipe_core::{Head, ModelSpec, Seed, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Every candidate weight matters the same: 1/n each. What the other measures have to beat.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uniform;

impl ImportanceMeasure for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn probe(&self, _: &ModelSpec, _: &SiloProfile, _: &Head, _: &ProbeSettings) -> Probe {
        Probe::NotNeeded
    }

    fn combine(&self, model: &ModelSpec, _: &[SiloScores], _: Seed) -> BTreeMap<WeightId, f64> {
        equal(model)
    }
}
