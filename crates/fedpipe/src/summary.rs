//! `summary.json`: a run in numbers.

use crate::memory::peak_rss_mib;
use crate::report::format::mib;
use fedpipe_core::{BaseFormat, CacheUse, Failure, Metrics, RunState, SiloId, SiloPlan, SiloRound, Slowness, WeightId};
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
    /// What the planner foresaw of the plan that holds at the end.
    pub predicted: Cost,
    /// What it took under that plan; nothing when the silo never delivered under it.
    pub measured: Option<Cost>,
    /// How many times as slow as its profile foresees the run found it in its last rounds; nothing when no round said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowness: Option<f64>,
    /// How often its plan changed after the first one.
    #[serde(default)]
    pub plan_changes: u32,
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
    /// Optimizer steps in a round.
    pub local_steps: usize,
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
    /// Mean seconds of an optimizer step; nothing when the silo never delivered.
    #[serde(default)]
    pub step_seconds: Option<f64>,
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
    let of_silo = |round: &&SiloRound| round.silo == plan.silo;
    let delivered: Vec<&SiloRound> = state.history.iter().flat_map(|round| &round.silos).filter(of_silo).collect();
    let changes = || state.plan_changes.iter().filter(|change| change.silo.as_ref().is_none_or(|id| id == &plan.silo));
    let since = changes().map(|change| change.round).max().unwrap_or(0);
    let under_plan = state.history.iter().filter(|record| record.round > since).flat_map(|record| &record.silos);
    let under_plan: Vec<&SiloRound> = under_plan.filter(of_silo).collect();
    let compute_s = plan.time.total() - plan.time.download - plan.time.upload;
    let predicted = Cost {
        memory_mib: mib(plan.memory.total()),
        round_seconds: plan.time.total(),
        step_seconds: delivered.last().map(|round| compute_s / round.measured.steps.max(1) as f64),
    };
    let failed = |failure: &&Failure| failure.silo == plan.silo;
    SiloSummary {
        examples: state.profiles.get(&plan.silo).map_or(0, |profile| profile.examples),
        plan: PlanSummary {
            batch_size: plan.batch_size,
            local_steps: plan.local_steps,
            base_format: plan.base_format,
            recompute: plan.recompute,
            ranks: plan.ranks.clone(),
        },
        predicted,
        measured: measured(state, plan, &under_plan),
        slowness: state.slowness.get(&plan.silo).map(Slowness::learned),
        plan_changes: changes().count() as u32,
        cache: cache(&delivered),
        rounds_delivered: delivered.len() as u32,
        failures: state.history.iter().flat_map(|round| &round.failures).filter(failed).count() as u32,
    }
}

fn measured(state: &RunState, plan: &SiloPlan, delivered: &[&SiloRound]) -> Option<Cost> {
    let profile = state.profiles.get(&plan.silo)?;
    let peak_bytes = delivered.iter().map(|round| round.measured.peak_bytes).max()?;
    // Real seconds of a simulated silo know nothing of a silo that slows down; the clock does.
    let compute_s = |round: &SiloRound| round.slowness.unwrap_or(1.0) * round.measured.compute_s / profile.speed;
    let transfer_s = |round: &SiloRound| profile.transfer_s((round.bytes_up + round.bytes_down) as f64);
    let mean =
        |of: &dyn Fn(&SiloRound) -> f64| delivered.iter().map(|round| of(round)).sum::<f64>() / delivered.len() as f64;
    Some(Cost {
        memory_mib: mib(peak_bytes as f64),
        round_seconds: mean(&|round| compute_s(round) + transfer_s(round)),
        step_seconds: Some(mean(&|round| compute_s(round) / round.measured.steps.max(1) as f64)),
    })
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
    use fedpipe_core::PlanChange;

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

    /// The plan of edge changed after round 5 and that of everybody after round 2: what was measured since counts, at the pace
    /// of the clock. By hand: a step of edge is foreseen to take (1.6 + 2.2)/0.25 + 0.4 = 15.6 s by 20 steps.
    #[test]
    fn what_is_measured_is_held_against_the_plan_that_it_was_measured_under() {
        let mut state = fixture::state();
        let change =
            |round, silo: Option<&str>| PlanChange { round, silo: silo.map(SiloId::from), reason: String::new() };
        state.plan_changes = vec![change(2, None), change(5, Some("edge"))];
        let slowness = Slowness { recent: vec![1.3, 1.5], planned: 1.4, ..Slowness::default() };
        state.slowness = [("edge".into(), slowness)].into();
        for record in state.history.iter_mut().filter(|record| record.round > 5) {
            record.silos.iter_mut().for_each(|silo| silo.slowness = Some(1.4));
        }
        let summary = Summary::of(&state, None, "virtual");
        let [bank, edge] = ["bank", "edge"].map(|silo| &summary.silos[&silo.into()]);
        assert_eq!((bank.plan_changes, edge.plan_changes, edge.rounds_delivered), (1, 2, 7));
        assert_eq!((bank.slowness, edge.slowness), (None, Some(1.4)));
        let predicted = edge.predicted.step_seconds.unwrap();
        assert!((predicted - 15.6 / 20.0).abs() < 1e-12, "{predicted}");
        let rounds = state.history[5..].iter().flat_map(|r| &r.silos).filter(|s| s.silo.as_str() == "edge");
        let mean = rounds.map(|s| 1.4 * s.measured.compute_s / 0.25 / 20.0).sum::<f64>() / 3.0;
        let measured = edge.measured.unwrap().step_seconds.unwrap();
        assert!((measured - mean).abs() < 1e-12, "{measured}, {mean}");
        state.history.truncate(5);
        assert_eq!(Summary::of(&state, None, "virtual").silos[&"edge".into()].measured, None);
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
            "plan/local_steps",
            "plan/base_format",
            "plan/recompute",
            "plan/ranks",
            "predicted/memory_mib",
            "measured/round_seconds",
            "measured/step_seconds",
            "plan_changes",
        ] {
            assert!(json.pointer(&format!("/silos/clinic/{path}")).is_some(), "{path}");
        }
        assert_eq!(serde_json::from_value::<Summary>(json).unwrap(), summary);
    }
}
