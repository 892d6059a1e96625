//! How much each candidate weight matters: the scores that plans weigh ranks by. A new measure is a file here and a row in
//! [`MEASURES`].

mod refresh;
mod svd_sensitivity;
mod uniform;

pub use refresh::{Sensed, refreshed};
pub use svd_sensitivity::SvdSensitivity;
pub use uniform::Uniform;

use crate::UnknownName;
use crate::plan::Menu;
use fedpipe_core::{CandidateWeight, Head, ModelSpec, ProbeWork, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Every measure of importance.
pub const MEASURES: &[&dyn ImportanceMeasure] = &[&SvdSensitivity, &Uniform];

/// The measure of that name.
///
/// # Errors
/// When no row of [`MEASURES`] has the name.
pub fn by_name(name: &str) -> Result<&'static dyn ImportanceMeasure, UnknownName> {
    MEASURES
        .iter()
        .copied()
        .find(|measure| measure.name() == name)
        .ok_or_else(|| UnknownName::new("importance measure", name, MEASURES.iter().map(|measure| measure.name())))
}

/// A way to score candidate weights.
pub trait ImportanceMeasure: Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// What the silo of `profile` has to do to score its weights, starting from `head`.
    fn probe(&self, model: &ModelSpec, profile: &SiloProfile, head: &Head, settings: &ProbeSettings) -> Probe;

    /// The federation's scores by candidate weight, summing to 1, from those that silos returned.
    fn combine(&self, model: &ModelSpec, scores: &[SiloScores]) -> BTreeMap<WeightId, f64> {
        weighted_mean(model, scores)
    }
}

/// What a measure asks of one silo.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// To run this.
    Run(ProbeWork),
    /// Nothing: the measure needs no data.
    NotNeeded,
    /// Nothing, because no probe fits; the other silos decide.
    DoesNotFit {
        /// What was missing, for a person.
        reason: String,
    },
}

/// How to probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeSettings {
    /// Triplets on every candidate weight.
    pub rank: usize,
    /// Training steps.
    pub steps: usize,
    /// Constant learning rate of AdamW.
    pub learning_rate: f64,
    /// Batch sizes and formats to choose from; the rest of it plays no part.
    pub menu: Menu,
}

/// One silo's scores.
#[derive(Debug, Clone, PartialEq)]
pub struct SiloScores {
    /// Its examples, the weight of its word.
    pub examples: u64,
    /// Score by weight, summing to 1.
    pub scores: BTreeMap<WeightId, f64>,
}

/// A silo's scores of the candidate weights, summing to 1; `None` when all are zero.
pub fn normalised(model: &ModelSpec, scores: &BTreeMap<WeightId, f64>) -> Option<BTreeMap<WeightId, f64>> {
    let of = |weight: &WeightId| scores.get(weight).copied().unwrap_or(0.0);
    let total: f64 = model.candidates.iter().map(|candidate| of(&candidate.id)).sum();
    let share = |candidate: &CandidateWeight| (candidate.id.clone(), of(&candidate.id) / total);
    (total > 0.0).then(|| model.candidates.iter().map(share).collect())
}

/// Every candidate the same, summing to 1.
fn equal(model: &ModelSpec) -> BTreeMap<WeightId, f64> {
    let share = 1.0 / model.candidates.len().max(1) as f64;
    model.candidates.iter().map(|candidate| (candidate.id.clone(), share)).collect()
}

/// The mean of the silos' normalised scores, weighted by examples; all the same when there is none or all are zero.
fn weighted_mean(model: &ModelSpec, silos: &[SiloScores]) -> BTreeMap<WeightId, f64> {
    let mut mean: BTreeMap<WeightId, f64> = model.candidates.iter().map(|c| (c.id.clone(), 0.0)).collect();
    for silo in silos {
        let Some(scores) = normalised(model, &silo.scores) else { continue };
        for (weight, value) in &mut mean {
            *value += silo.examples as f64 * scores.get(weight).copied().unwrap_or(0.0);
        }
    }
    let total: f64 = mean.values().sum();
    if total <= 0.0 {
        return equal(model);
    }
    mean.values_mut().for_each(|value| *value /= total);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_testkit::toy_model;

    #[test]
    fn every_row_of_the_table_is_found_by_its_name_and_sums_to_one() {
        let model = toy_model();
        for measure in MEASURES {
            assert_eq!(by_name(measure.name()).unwrap().name(), measure.name());
            let scores = measure.combine(&model, &[]);
            assert_eq!(scores.len(), model.candidates.len());
            assert!((scores.values().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    /// By hand: silo 1 with 300 examples says (1, 0), silo 2 with 100 says (2, 6) before normalising, that is (¼, ¾).
    #[test]
    fn scores_are_normalised_by_silo_and_averaged_by_examples() {
        let scores = |x: f64, y: f64| [("layer.0.query".into(), x), ("layer.1.query".into(), y)].into();
        let silos = [
            SiloScores { examples: 300, scores: scores(1.0, 0.0) },
            SiloScores { examples: 100, scores: scores(2.0, 6.0) },
        ];
        let mean = SvdSensitivity.combine(&toy_model(), &silos);
        assert_eq!(mean.into_values().collect::<Vec<_>>(), [0.75 + 0.25 * 0.25, 0.25 * 0.75]);
    }
}
