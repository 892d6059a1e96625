//! Which learning rate a federation trains at, found out by training at several.

use super::{Engine, Progress, RoundError, cohort, sentences, validate};
use crate::tune::{self, LEARNING_RATES};
use fedpipe_core::{Event, Failure, LearningRate, RunState, SiloId, Work};

/// A federation that trains at one of the rates.
struct Rival {
    state: RunState,
    /// Silos that handed nothing back in the last rung, and the mean loss of the others by examples.
    standing: (usize, f64),
    /// What went wrong in the last rung, for a person.
    reasons: String,
}

impl Rival {
    /// Before one that stands worse; equal ones keep their order, the smaller rate first.
    fn before(&self, other: &Self) -> std::cmp::Ordering {
        let (a, b) = (self.standing, other.standing);
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    }
}

impl Engine<'_> {
    /// The state with the learning rate that the run should train at, by successive halving (Jamieson and Talwalkar,
    /// arXiv 1502.07943): all rates train half a round in every silo of the cohort and are merged, the better two go on from
    /// there for a whole round, and the run is given the better of these where the other one is higher, else the rate below it
    /// (`tune::learning_rate`). The loss of a rung is that of batches before the step on each. The second one decides, since it
    /// tells how the merged adapter does and goes on over as many steps as silos make on their own: a rate at which a few steps
    /// learn most may be one at which whole rounds cannot be merged. The rate below, because the one at which most is learnt at
    /// first is often one at which a whole run diverges. What the best one learnt stays. Silos that fail are counted against the
    /// rate; time and bytes against the run.
    ///
    /// # Errors
    /// When a task does not survive the codec.
    pub fn learning_rate(&self, mut state: RunState) -> Result<Progress<RunState>, RoundError> {
        let silos = cohort(&state, self.settings.cohort_fraction);
        let steps = silos.iter().filter_map(|silo| state.plan.silos.get(silo)).map(|silo| silo.local_steps);
        let fewest = steps.min().unwrap_or(state.plan.local_steps);
        let rival = |learning_rate| Rival {
            state: RunState { learning_rate, ..state.clone() },
            standing: (0, f64::INFINITY),
            reasons: String::new(),
        };
        let mut rivals: Vec<Rival> = LEARNING_RATES.into_iter().map(rival).collect();
        for part in [2, 1] {
            for rival in &mut rivals {
                self.rung(rival, &silos, (part, fewest), &mut state)?;
                if self.stop.requested() {
                    return Ok(Progress::Stopped);
                }
            }
            rivals.sort_by(Rival::before);
            rivals.truncate(2);
        }
        let tried: Vec<(f64, f64)> = rivals.iter().map(|rival| (rival.state.learning_rate, rival.standing.1)).collect();
        match (rivals.into_iter().next(), tune::learning_rate(&tried, fewest)) {
            (Some(best), Some((rate, chosen))) => {
                (state.learning_rate, state.adapter) = (rate, best.state.adapter);
                state.plan.chosen.push(chosen);
            }
            (best, _) => self.warn(format!(
                "no silo trained at any learning rate that was tried; it stays {}; the last failures: {}",
                state.learning_rate,
                best.map_or_else(|| sentences(&[]), |best| best.reasons)
            )),
        }
        Ok(Progress::Done(state))
    }

    /// Trains a rival for a round's steps over `part` in every silo, `fewest` being those of the silos that make the fewest in a
    /// round; merges, and notes how it did. What it took goes to the run.
    fn rung(
        &self,
        rival: &mut Rival,
        silos: &[SiloId],
        (part, fewest): (usize, usize),
        run: &mut RunState,
    ) -> Result<(), RoundError> {
        let learning_rate = rival.state.learning_rate;
        let mut tasks = self.method.tasks(&rival.state, silos);
        for task in &mut tasks {
            task.round = 0;
            if let Work::Train(work) = &mut task.work {
                work.learning_rate = LearningRate::constant(learning_rate);
                work.steps = work.steps.div_ceil(part);
            }
        }
        let limit = self.settings.max_update_norm;
        let deliveries = self.exchange(tasks, &run.profiles, |task, update| validate::update(task, update, limit))?;
        if self.stop.requested() {
            return Ok(());
        }
        let (mut updates, mut failures, mut seconds) = (Vec::new(), Vec::new(), 0f64);
        for delivery in deliveries {
            run.bytes_up += delivery.bytes_up;
            run.bytes_down += delivery.bytes_down;
            seconds = seconds.max(delivery.seconds);
            match delivery.result {
                Ok(update) => updates.push(update),
                Err(failure) => {
                    // The round says nothing: it is 0 for every rate, and for the probe.
                    let reason = format!("at the learning rate {learning_rate}: {}", failure.reason);
                    let failure = Failure { reason, ..failure };
                    self.observer.observe(&Event::SiloFailed(failure.clone()));
                    failures.push(failure);
                }
            }
        }
        run.clock_s += seconds;
        let examples: u64 = updates.iter().map(|update| update.examples).sum();
        let loss = updates.iter().map(|update| update.examples as f64 * update.measured.loss).sum::<f64>();
        rival.standing = (failures.len(), f64::INFINITY);
        rival.reasons = sentences(&failures);
        if examples > 0 {
            match self.method.fold(&rival.state, &updates) {
                Ok(adapter) => {
                    rival.state.adapter = adapter;
                    rival.standing.1 = loss / examples as f64;
                }
                Err(error) => {
                    rival.reasons =
                        format!("the updates at the learning rate {learning_rate} cannot be merged: {}", error.reason);
                    self.warn(rival.reasons.clone());
                }
            }
        }
        rival.state.round += 1;
        let loss = Some(rival.standing.1).filter(|loss| loss.is_finite());
        let steps = fewest.div_ceil(part);
        self.observer.observe(&Event::LearningRateTried { learning_rate, steps, loss });
        Ok(())
    }
}
