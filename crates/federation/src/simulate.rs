//! Time on hardware that is not there.

use crate::plan::{AdapterLoad, compute_time};
use fedpipe_core::{BaseFormat, Clock, LowRank, ModelSpec, SiloProfile, Task, Update, Work};

/// A clock that charges each silo the time its own hardware and link would take.
///
/// Computing: the cost model's formula ([`crate::plan::compute_time`]) over the ranks, tokens and steps of the work that
/// was really done, at the coefficients of the silo's measured profile and its speed. Transfers: the bytes that really
/// travelled, at its bandwidth. Virtual time is thus modelled from a measured profile, not read from a stopwatch: it does
/// not depend on what else the machine does or on how silos share it, and whether a silo is late is the same in every
/// repetition. Real seconds are reported beside it ([`fedpipe_core::Measured::compute_s`]).
///
/// Work on a format that the profile does not know is charged its real seconds over the speed.
#[derive(Debug, Clone)]
pub struct VirtualClock {
    model: ModelSpec,
}

impl VirtualClock {
    /// A clock for silos that train `model`.
    pub fn new(model: ModelSpec) -> Self {
        Self { model }
    }

    fn load(&self, work: &Work) -> (AdapterLoad, BaseFormat, bool) {
        let rank = |factors: Option<&LowRank>| factors.map_or(0, LowRank::rank);
        match work {
            Work::Probe(probe) => (AdapterLoad::of(&self.model, |_| probe.rank, |_| 0), probe.base_format, false),
            Work::Train(train) => {
                let trained = |c: &fedpipe_core::CandidateWeight| rank(train.adapter.factors.get(&c.id));
                let applied = |c: &fedpipe_core::CandidateWeight| rank(train.fixed.get(&c.id));
                (AdapterLoad::of(&self.model, trained, applied), train.base_format, train.recompute)
            }
        }
    }
}

impl Clock for VirtualClock {
    fn name(&self) -> &'static str {
        "virtual"
    }

    fn charge(&self, profile: &SiloProfile, task: &Task, update: &Update, bytes_down: u64, bytes_up: u64) -> f64 {
        let (load, format, recompute) = self.load(&task.work);
        let (tokens, steps) = (update.measured.tokens as f64, update.measured.steps);
        let modelled = compute_time(&self.model, profile, &load, format, recompute, tokens, steps);
        let compute = modelled.map_or(update.measured.compute_s / profile.speed, |time| time.total());
        compute + profile.transfer_s((bytes_down + bytes_up) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CostModel, Frame};
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
        };
        let measured = Measured { steps: 5, tokens: 100, compute_s: 7.0, ..Measured::default() };
        let outcome = Outcome::Trained(adapter);
        let task = Task { round: 1, silo: "a".into(), seed: Seed(1), work: Work::Train(work) };
        (task, Update { round: 1, silo: "a".into(), examples: 100, outcome, measured })
    }

    /// One formula, two callers: work that turns out as planned takes the time that was predicted.
    #[test]
    fn work_that_goes_as_planned_takes_the_predicted_time() {
        let (model, profile) = (toy_model(), toy_profile("a"));
        let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
        let load = cost.load(&[("layer.1.query".into(), 2)].into());
        for recompute in [false, true] {
            let frame = Frame { batch_size: 2, base_format: BaseFormat::F32, recompute };
            let (_, predicted) = cost.round(&load, frame).unwrap();
            let (task, update) = train(2, [3, 1], BaseFormat::F32, recompute);
            let charged = VirtualClock::new(model.clone()).charge(&profile, &task, &update, 4 * 56, 4 * 24);
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
}
