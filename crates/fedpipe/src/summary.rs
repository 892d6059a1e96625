//! `summary.json`: a run in numbers.

use crate::memory::peak_rss_mib;
use crate::report::format::mib;
use fedpipe_core::{BaseFormat, CacheUse, Failure, Metrics, RunState, SiloId, SiloPlan, SiloRound, WeightId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`Summary`].
pub const SUMMARY_VERSION: u32 = 2;

/// A run in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SUMMARY_VERSION`] when it was written.
    pub version: u32,
    /// Name of the method.
    pub method: String,
    /// Seed of the run.
    pub seed: u64,
    /// Rounds completed.
    pub rounds: u32,
    /// Share of all test examples that is labelled right, at the end; none where texts are not labelled.
    pub accuracy: Option<f64>,
    /// F1 of each label, averaged over the labels; none where texts are not labelled.
    #[serde(default)]
    pub macro_f1: Option<f64>,
    /// Matthews correlation of predicted with right labels; none where texts are not labelled.
    #[serde(default)]
    pub matthews: Option<f64>,
    /// Share of all test questions that is answered right to the word, in percent; only for answers in passages.
    #[serde(default)]
    pub exact_match: Option<f64>,
    /// F1 over the words of the answers, in percent; only for answers in passages.
    #[serde(default)]
    pub answer_f1: Option<f64>,
    /// Perplexity of a token of the test examples, at the end; none where texts are not written.
    pub perplexity: Option<f64>,
    /// Mean cross-entropy over all test examples, at the end.
    pub loss: Option<f64>,
    /// Values in the merged adapter and the head.
    pub trainable_parameters: u64,
    /// Bytes from silos to the server.
    pub bytes_up: u64,
    /// Bytes from the server to silos.
    pub bytes_down: u64,
    /// Seconds of real time, over all sessions.
    pub wall_seconds: f64,
    /// Seconds on the run's clock.
    pub virtual_seconds: f64,
    /// Tokens that were trained on in a second of this machine's computing, all silos together.
    pub tokens_per_second: f64,
    /// Most resident memory of this process; of the last session when the run was resumed.
    pub peak_rss_mib: Option<f64>,
    /// Name of the run's clock.
    pub clock: String,
    /// What was planned and measured in every silo.
    pub silos: BTreeMap<SiloId, SiloSummary>,
}

/// What was planned and measured in one silo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiloSummary {
    /// Training examples.
    pub examples: u64,
    /// Its plan.
    pub plan: PlanSummary,
    /// What the planner foresaw.
    pub predicted: Cost,
    /// What it took; nothing when the silo never delivered.
    pub measured: Option<Cost>,
    /// What its cache of activations did over all rounds; nothing when it was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSummary>,
    /// Rounds in which its update counted.
    pub rounds_delivered: u32,
    /// Rounds in which it did not deliver.
    pub failures: u32,
}

/// The choice of the planner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Texts in a batch.
    pub batch_size: usize,
    /// Format of the frozen weights.
    pub base_format: BaseFormat,
    /// Whether the inside of the adapted layers was computed again in the backward pass.
    pub recompute: bool,
    /// Rank of every weight that trains.
    pub ranks: BTreeMap<WeightId, usize>,
}

/// What a round takes in one silo.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Most memory of any round.
    pub memory_mib: f64,
    /// Mean seconds of a round, slow-down and transfers included.
    pub round_seconds: f64,
}

/// What a silo's cache of activations did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CacheSummary {
    /// Texts that were asked for.
    pub lookups: u64,
    /// Those that were there.
    pub hits: u64,
    /// Most memory that it held, beside the silo's measured memory.
    pub ram_mib: f64,
    /// Most that it held on the disk.
    pub disk_mib: f64,
}

impl Summary {
    /// The summary of a run; `metrics` are those of the evaluation at its end, `clock` is [`fedpipe_core::Clock::name`].
    pub fn of(state: &RunState, metrics: Option<&Metrics>, clock: &str) -> Self {
        let rounds = || state.history.iter().flat_map(|round| &round.silos);
        let tokens: u64 = rounds().map(|silo| silo.measured.tokens).sum();
        let compute_s: f64 = rounds().map(|silo| silo.measured.compute_s).sum();
        Self {
            version: SUMMARY_VERSION,
            method: state.method.clone(),
            seed: state.seed.0,
            rounds: state.round,
            accuracy: metrics.and_then(|m| m.accuracy),
            macro_f1: metrics.and_then(|m| m.macro_f1),
            matthews: metrics.and_then(|m| m.matthews),
            exact_match: metrics.and_then(|m| m.exact_match),
            answer_f1: metrics.and_then(|m| m.answer_f1),
            perplexity: metrics.map(Metrics::headline).and_then(|(name, x)| (name == "perplexity").then_some(x)),
            loss: metrics.map(|m| m.loss),
            trainable_parameters: state.adapter.parameters() as u64,
            bytes_up: state.bytes_up,
            bytes_down: state.bytes_down,
            wall_seconds: state.wall_s,
            virtual_seconds: state.clock_s,
            tokens_per_second: if compute_s > 0.0 { tokens as f64 / compute_s } else { 0.0 },
            peak_rss_mib: peak_rss_mib(),
            clock: clock.into(),
            silos: state.plan.silos.values().map(|plan| (plan.silo.clone(), silo(state, plan))).collect(),
        }
    }
}

fn silo(state: &RunState, plan: &SiloPlan) -> SiloSummary {
    let delivered: Vec<&SiloRound> =
        state.history.iter().flat_map(|round| &round.silos).filter(|round| round.silo == plan.silo).collect();
    let failed = |failure: &&Failure| failure.silo == plan.silo;
    SiloSummary {
        examples: state.profiles.get(&plan.silo).map_or(0, |profile| profile.examples),
        plan: PlanSummary {
            batch_size: plan.batch_size,
            base_format: plan.base_format,
            recompute: plan.recompute,
            ranks: plan.ranks.clone(),
        },
        predicted: Cost { memory_mib: mib(plan.memory.total()), round_seconds: plan.time.total() },
        measured: measured(state, plan, &delivered),
        cache: cache(&delivered),
        rounds_delivered: delivered.len() as u32,
        failures: state.history.iter().flat_map(|round| &round.failures).filter(failed).count() as u32,
    }
}

fn measured(state: &RunState, plan: &SiloPlan, delivered: &[&SiloRound]) -> Option<Cost> {
    let profile = state.profiles.get(&plan.silo)?;
    let peak_bytes = delivered.iter().map(|round| round.measured.peak_bytes).max()?;
    let seconds = |round: &&SiloRound| {
        round.measured.compute_s / profile.speed + profile.transfer_s((round.bytes_up + round.bytes_down) as f64)
    };
    let total: f64 = delivered.iter().map(seconds).sum();
    Some(Cost { memory_mib: mib(peak_bytes as f64), round_seconds: total / delivered.len() as f64 })
}

fn cache(delivered: &[&SiloRound]) -> Option<CacheSummary> {
    let total = delivered.iter().filter_map(|round| round.measured.cache).reduce(|sum, round| CacheUse {
        lookups: sum.lookups.saturating_add(round.lookups),
        hits: sum.hits.saturating_add(round.hits),
        ram_bytes: sum.ram_bytes.max(round.ram_bytes),
        disk_bytes: sum.disk_bytes.max(round.disk_bytes),
    })?;
    let CacheUse { lookups, hits, ram_bytes, disk_bytes } = total;
    Some(CacheSummary { lookups, hits, ram_mib: mib(ram_bytes as f64), disk_mib: mib(disk_bytes as f64) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_figures_follow_from_the_state() {
        let state = fixture::state();
        let summary = Summary::of(&state, Some(&fixture::metrics()), "virtual");
        assert_eq!((summary.rounds, summary.seed, summary.accuracy), (8, 42, Some(0.9584)));
        // Two weights of rank 4 over 8 inputs and 6 outputs, and a bias of 3.
        assert_eq!(summary.trainable_parameters, 2 * 4 * (8 + 6) + 3);
        let edge = &summary.silos[&"edge".into()];
        assert_eq!((edge.rounds_delivered, edge.failures, edge.examples), (7, 1, 385));
        let predicted = edge.predicted.memory_mib;
        assert!((predicted - 160.0 * 0.93).abs() < 1e-9, "{predicted}");
        // The largest of the rounds is at 0.88 of the budget; rounded down to whole bytes.
        let measured = edge.measured.unwrap();
        assert!((measured.memory_mib - 160.0 * 0.88).abs() < 1e-5, "{measured:?}");
        // The clock of the fixture charges the same way.
        let rounds = state.history.iter().flat_map(|r| &r.silos).filter(|s| s.silo.as_str() == "edge");
        let mean = rounds.map(|s| s.seconds).sum::<f64>() / 7.0;
        assert!((measured.round_seconds - mean).abs() < 1e-9, "{measured:?}, {mean}");
        // Seven rounds of 80 lookups; 385 examples come for the first time, and round 3 is lost.
        let cache = CacheSummary { lookups: 560, hits: 175, ram_mib: 8.0, disk_mib: 1.5 };
        assert_eq!((edge.cache, summary.silos[&"bank".into()].cache), (Some(cache), None));
    }

    #[test]
    fn a_silo_that_never_delivered_has_no_measurement() {
        let mut state = fixture::state();
        state.history.iter_mut().for_each(|round| round.silos.retain(|silo| silo.silo.as_str() != "bank"));
        let summary = Summary::of(&state, None, "virtual");
        let bank = &summary.silos[&"bank".into()];
        assert_eq!((bank.measured, bank.rounds_delivered), (None, 0));
        assert_eq!(summary.accuracy, None);
    }

    #[test]
    fn it_reads_back_under_the_promised_names() {
        let summary = Summary::of(&fixture::state(), Some(&fixture::metrics()), "virtual");
        let json = serde_json::to_value(&summary).unwrap();
        let promised = "method seed rounds accuracy macro_f1 matthews exact_match answer_f1 perplexity loss trainable_parameters bytes_up bytes_down wall_seconds \
                        virtual_seconds tokens_per_second peak_rss_mib";
        for name in promised.split_whitespace() {
            assert!(json.get(name).is_some(), "{name}");
        }
        for path in [
            "plan/batch_size",
            "plan/base_format",
            "plan/recompute",
            "plan/ranks",
            "predicted/memory_mib",
            "measured/round_seconds",
        ] {
            assert!(json.pointer(&format!("/silos/clinic/{path}")).is_some(), "{path}");
        }
        assert_eq!(serde_json::from_value::<Summary>(json).unwrap(), summary);
    }
}
