//! How much each candidate weight matters: the scores that plans weigh ranks by. A new measure is a file here and a row in
//! [`MEASURES`].

mod gradient;
mod random;
mod svd_sensitivity;
mod uniform;

pub use gradient::Gradient;
pub use random::Random;
pub use svd_sensitivity::SvdSensitivity;
pub use uniform::Uniform;

use crate::UnknownName;
use crate::plan::{AdapterLoad, Menu, format_penalty, memory, memory_aim};
use fedpipe_core::{BaseFormat, Head, ModelSpec, ProbeScore, ProbeWork, Seed, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Bytes of what a probe sums up over its steps, beside each value that has a gradient: a sensitivity and its uncertainty.
const SUM_BYTES: f64 = 8.0;

/// Every measure of importance.
pub const MEASURES: &[&dyn ImportanceMeasure] = &[&SvdSensitivity, &Gradient, &Uniform, &Random];

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

    /// The federation's scores by candidate weight, summing to 1, from those that silos returned. `_seed` is that
    /// of the run's probe.
    fn combine(&self, model: &ModelSpec, scores: &[SiloScores], _seed: Seed) -> BTreeMap<WeightId, f64> {
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

/// The probe that fits the silo, or what is missing: among the batch sizes and formats whose predicted memory fits, that of
/// best worth in the plan's own objective, the batch term minus the format's penalty.
fn fitting(
    model: &ModelSpec,
    profile: &SiloProfile,
    head: &Head,
    settings: &ProbeSettings,
    score: ProbeScore,
) -> Probe {
    let menu = &settings.menu;
    let (mut best, mut least): (Option<(f64, usize, BaseFormat)>, f64) = (None, f64::INFINITY);
    for &batch in menu.batch_sizes.iter().rev() {
        for &format in menu.formats.iter().filter(|format| profile.device.time.contains_key(format)) {
            let Some(needs) = probe_bytes(model, profile, settings.rank, batch, format) else { continue };
            least = least.min(needs);
            let worth = menu.batch_term(batch) - format_penalty(format);
            if needs <= memory_aim(profile) && best.is_none_or(|(most, ..)| worth > most) {
                best = Some((worth, batch, format));
            }
        }
    }
    let Some((_, batch_size, base_format)) = best else {
        let (needs, has) = (least / f64::from(1 << 20), profile.memory_mib);
        return Probe::DoesNotFit { reason: format!("the smallest probe takes {needs:.1} MiB of its {has} MiB") };
    };
    let (rank, steps) = (settings.rank, settings.steps);
    Probe::Run(ProbeWork { score, rank, steps, batch_size, base_format, head: head.clone() })
}

/// Predicted memory of a probe: the cost model with `rank` on every candidate weight, all activations kept, and what is
/// summed up over the steps.
fn probe_bytes(model: &ModelSpec, profile: &SiloProfile, rank: usize, batch: usize, format: BaseFormat) -> Option<f64> {
    let load = AdapterLoad::of(model, |_| rank, |_| 0);
    let step = memory(model, &profile.device, &load, format, false, profile.lengths.large_batch(batch))?;
    Some(step.total() + SUM_BYTES * load.trained_values)
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
        let total: f64 = mean.keys().filter_map(|weight| silo.scores.get(weight)).sum();
        if total <= 0.0 {
            continue;
        }
        for (weight, value) in &mut mean {
            *value += silo.examples as f64 * silo.scores.get(weight).copied().unwrap_or(0.0) / total;
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
            let scores = measure.combine(&model, &[], Seed(1));
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
        let mean = SvdSensitivity.combine(&toy_model(), &silos, Seed(1));
        assert_eq!(mean.into_values().collect::<Vec<_>>(), [0.75 + 0.25 * 0.25, 0.25 * 0.75]);
    }
}
