//! The control of every measure.

use super::{ImportanceMeasure, Probe, ProbeSettings, SiloScores};
use fedpipe_core::{Head, ModelSpec, Seed, SiloProfile, WeightId};
use rand_distr::{Distribution, Exp1};
use std::collections::BTreeMap;

/// Scores drawn evenly from all that sum to 1 (a flat Dirichlet distribution): a measure that plans no better than this has
/// measured nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl ImportanceMeasure for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn probe(&self, _: &ModelSpec, _: &SiloProfile, _: &Head, _: &ProbeSettings) -> Probe {
        Probe::NotNeeded
    }

    fn combine(&self, model: &ModelSpec, _: &[SiloScores], seed: Seed) -> BTreeMap<WeightId, f64> {
        // Exponential draws, normalised, are a flat Dirichlet distribution's.
        let draw = |weight: &WeightId| -> f64 { Exp1.sample(&mut seed.named(weight.as_str()).stream()) };
        let draws: Vec<(WeightId, f64)> = model.candidates.iter().map(|c| (c.id.clone(), draw(&c.id))).collect();
        let total = draws.iter().map(|(_, draw)| draw).sum::<f64>().max(f64::MIN_POSITIVE);
        draws.into_iter().map(|(weight, draw)| (weight, draw / total)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_testkit::toy_model;

    #[test]
    fn the_same_seed_draws_the_same_scores_and_another_draws_others() {
        let of = |seed| Random.combine(&toy_model(), &[], Seed(seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).values().all(|&score| score > 0.0 && score < 1.0));
    }
}
