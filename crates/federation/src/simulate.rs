//! Time on hardware that is not there.

use crate::plan::{AdapterLoad, RoundBatches, compute_time};
use fedpipe_core::{BaseFormat, Clock, LowRank, Measured, ModelSpec, SiloId, SiloProfile, Task, Update, Work};
use std::collections::BTreeMap;

/// A clock that charges each silo the time its own hardware and link would take.
///
/// Computing: the cost model's formula ([`crate::plan::compute_time`]) over the ranks, tokens and steps of the work that
/// was really done, at the coefficients of the silo's measured profile and its speed. Transfers: the bytes that really
/// travelled, at its bandwidth. Virtual time is thus modelled from a measured profile, not read from a stopwatch: it does
/// not depend on what else the machine does or on how silos share it, and whether a silo is late is the same in every
/// repetition. Real seconds are reported beside it ([`fedpipe_core::Measured::compute_s`]).
///
/// Work on a format that the profile does not know is charged its real seconds over the speed.
///
/// A rehearsal may let silos become slower than they enrolled ([`SlowsDown`]): the clock knows, the planner does not.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    model: ModelSpec,
    slow_downs: BTreeMap<SiloId, SlowsDown>,
}

/// A silo whose speed changes while the run goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowsDown {
    /// The first round that it is charged at the new speed.
    pub round: u32,
    /// The new speed, on the scale of [`SiloProfile::speed`].
    pub speed: f64,
}

/// Seconds that a silo as `profile` describes it takes for work that was done and `bytes` that travelled, by the cost model;
/// none where it did not measure the work's format.
pub fn modelled_s(
    model: &ModelSpec,
    profile: &SiloProfile,
    work: &Work,
    measured: &Measured,
    bytes: u64,
) -> Option<f64> {
    let (load, format, recompute) = load(model, work);
    let Measured { steps, tokens, repeated_tokens, .. } = *measured;
    let batches = RoundBatches { steps, tokens: tokens as f64, repeated: repeated_tokens as f64 };
    let time = compute_time(model, profile, &load, format, recompute, batches)?;
    Some(time.total() + profile.transfer_s(bytes as f64))
}

fn load(model: &ModelSpec, work: &Work) -> (AdapterLoad, BaseFormat, bool) {
    let rank = |factors: Option<&LowRank>| factors.map_or(0, LowRank::rank);
    match work {
        Work::Probe(probe) => (AdapterLoad::of(model, |_| probe.rank, |_| 0), probe.base_format, false),
        Work::Train(train) => {
            let trained = |c: &fedpipe_core::CandidateWeight| rank(train.adapter.factors.get(&c.id));
            let applied = |c: &fedpipe_core::CandidateWeight| rank(train.fixed.get(&c.id));
            (AdapterLoad::of(model, trained, applied), train.base_format, train.recompute)
        }
    }
}

impl VirtualClock {
    /// A clock for silos that train `model`.
    pub fn new(model: ModelSpec) -> Self {
        Self { model, slow_downs: BTreeMap::new() }
    }

    /// The same with silos that slow down.
    pub fn with_slow_downs(self, slow_downs: BTreeMap<SiloId, SlowsDown>) -> Self {
        Self { slow_downs, ..self }
    }
}

impl Clock for VirtualClock {
    fn name(&self) -> &'static str {
        "virtual"
    }

    fn charge(&self, profile: &SiloProfile, task: &Task, update: &Update, bytes_down: u64, bytes_up: u64) -> f64 {
        let slow = self.slow_downs.get(&profile.silo).filter(|slow| task.round >= slow.round);
        let now = slow.map(|slow| SiloProfile { speed: slow.speed, ..profile.clone() });
        let (profile, bytes) = (now.as_ref().unwrap_or(profile), bytes_down + bytes_up);
        let real = || update.measured.compute_s / profile.speed + profile.transfer_s(bytes as f64);
        modelled_s(&self.model, profile, &task.work, &update.measured, bytes).unwrap_or_else(real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CostModel, Frame, beside_values};
    use fedpipe_core::{Adapter, LearningRate, Measured, Outcome, Seed, TrainWork};
    use fedpipe_testkit::{toy_model, toy_profile};

    fn train(rank: usize, fixed: [usize; 2], base_format: BaseFormat, recompute: bool) -> (Task, Update) {
        let factors = |rank| LowRank::fresh(rank, 4, 4, Seed(1));
        let adapter = Adapter {
            scaling: 1.0,
            factors: [("layer.1.query".into(), factors(rank))].into(),
            head: [("classifier.weight".to_string(), fedpipe_core::Matrix::zeros(2, 4))].into(),
        };
        let work = TrainWork {
            adapter: adapter.clone(),
            fixed: [("layer.0.query".into(), factors(fixed[0])), ("layer.1.query".into(), factors(fixed[1]))].into(),
            base_format,
            recompute,
            batch_size: 2,
            steps: 5,
            learning_rate: LearningRate::constant(1e-3),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dropout: 0.0,
            spare_bytes: 0,
            sensitivity: false,
        };
        let measured = Measured { steps: 5, tokens: 100, compute_s: 7.0, ..Measured::default() };
        let outcome = Outcome::Trained(adapter);
        let task = Task { round: 1, silo: "a".into(), seed: Seed(1), work: Work::Train(work) };
        (task, Update { round: 1, silo: "a".into(), examples: 100, outcome, measured, sensitivity: Default::default() })
    }

    /// One formula, two callers: work that turns out as planned takes the time that was predicted.
    #[test]
    fn work_that_goes_as_planned_takes_the_predicted_time() {
        let model = toy_model();
        // Half the tokens of ten lookups among five texts come again.
        for (recompute, examples, repeated_tokens) in [(false, 100, 0), (true, 100, 0), (false, 5, 50), (true, 5, 50)] {
            let profile = SiloProfile { examples, cache_bytes: 1 << 20, ..toy_profile("a") };
            let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
            let load = cost.load(&[("layer.1.query".into(), 2)].into());
            let frame = Frame { batch_size: 2, step_multiple: 1, base_format: BaseFormat::F32, recompute };
            let (_, predicted) = cost.round(&load, frame).unwrap();
            let (task, mut update) = train(2, [3, 1], BaseFormat::F32, recompute);
            update.measured.repeated_tokens = repeated_tokens;
            let [down, up] = beside_values(&model).map(|names| names as u64);
            let (down, up) = (4 * 56 + down, 4 * 24 + up);
            let charged = VirtualClock::new(model.clone()).charge(&profile, &task, &update, down, up);
            assert!((charged - predicted.total()).abs() < 1e-12, "{charged} is not {}", predicted.total());
        }
    }

    #[test]
    fn real_seconds_do_not_matter_unless_the_format_was_never_measured() {
        let (clock, profile) = (VirtualClock::new(toy_model()), toy_profile("a"));
        let (task, mut update) = train(2, [3, 1], BaseFormat::F32, false);
        let charged = clock.charge(&profile, &task, &update, 0, 0);
        update.measured.compute_s = 1000.0;
        assert_eq!(clock.charge(&profile, &task, &update, 0, 0), charged);
        let (task, update) = train(2, [3, 1], BaseFormat::Nf2, false);
        assert_eq!(clock.charge(&profile, &task, &update, 0, 0), 7.0 / 0.5);
    }
    /// By hand: at a tenth of the speed computing takes ten times as long, and the link stays.
    #[test]
    fn a_silo_slows_down_from_its_round_on() {
        let (task, update) = train(2, [3, 1], BaseFormat::F32, false);
        let profile = toy_profile("a");
        let slow = SlowsDown { round: 2, speed: profile.speed / 10.0 };
        let clock = VirtualClock::new(toy_model()).with_slow_downs([("a".into(), slow)].into());
        let charged = |round: u32, bytes| clock.charge(&profile, &Task { round, ..task.clone() }, &update, bytes, 0);
        let compute = VirtualClock::new(toy_model()).charge(&profile, &task, &update, 0, 0);
        assert_eq!(charged(1, 1000), compute + 8e-3);
        assert!((charged(2, 1000) - (10.0 * compute + 8e-3)).abs() < 1e-12);
        assert!((charged(9, 1000) - charged(2, 1000)).abs() < 1e-12);
        let other = SiloProfile { silo: "b".into(), ..profile.clone() };
        assert_eq!(clock.charge(&other, &Task { round: 2, ..task.clone() }, &update, 0, 0), compute);
    }
}
