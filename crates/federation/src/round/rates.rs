//! Which learning rate a federation trains at, found out by training at several.

use super::{Engine, Progress, RoundError, cohort, validate};
use crate::tune::{self, LEARNING_RATES};
use fedpipe_core::{LearningRate, RunState, SiloId, Work};

/// Steps of a rung as a share of the run's: all that four rates take, 4 + 2 rungs, is an eighth of a run.
const RUNG_SHARE: f64 = 1.0 / 48.0;
/// Fewest and most steps of a rung. The loss of fewer is noise; more tell no more.
const RUNG_STEPS: (usize, usize) = (4, 16);

/// A federation that trains at one of the rates.
struct Rival {
    state: RunState,
    /// Silos that handed nothing back in the last rung, and the mean loss of the others by examples.
    standing: (usize, f64),
}

impl Engine<'_> {
    /// The state with the learning rate that the run of `rounds` rounds should train at, by successive halving (Jamieson and
    /// Talwalkar, arXiv 1502.07943): from the run's beginning all rates train a few steps in every silo of the cohort and are
    /// merged; the half of less loss goes on from there, until one is left. The loss of a rung is that of batches before the
    /// step on each, so from the second rung on it tells how the merged adapter does, too: a rate at which silos learn fast
    /// and cannot be merged falls behind. What the rivals learn is not kept. Silos that fail are counted against the rate;
    /// time and bytes against the run.
    ///
    /// # Errors
    /// When a task does not survive the codec.
    pub fn learning_rate(&self, mut state: RunState, rounds: u32) -> Result<Progress<RunState>, RoundError> {
        let silos = cohort(&state, self.settings.cohort_fraction);
        let run = (state.plan.local_steps * rounds as usize) as f64;
        let steps = ((RUNG_SHARE * run) as usize).clamp(RUNG_STEPS.0, RUNG_STEPS.1);
        let mut rivals: Vec<Rival> = LEARNING_RATES
            .into_iter()
            .map(|learning_rate| {
                let mut state = RunState { learning_rate, ..state.clone() };
                state.plan.local_steps = steps;
                Rival { state, standing: (0, f64::INFINITY) }
            })
            .collect();
        let mut rungs = 0;
        while rivals.len() > 1 {
            for rival in &mut rivals {
                self.rung(rival, &silos, &mut state)?;
                if self.stop.requested() {
                    return Ok(Progress::Stopped);
                }
            }
            rungs += 1;
            // Equal ones stay in their order: the smaller rate first.
            rivals.sort_by(|a, b| a.standing.0.cmp(&b.standing.0).then(a.standing.1.total_cmp(&b.standing.1)));
            if rivals.len() <= 2 || rivals[1].standing.1.is_infinite() {
                break;
            }
            rivals.truncate(rivals.len().div_ceil(2));
        }
        let tried: Vec<(f64, f64)> = rivals.iter().map(|rival| (rival.state.learning_rate, rival.standing.1)).collect();
        if tried.first().is_none_or(|(_, loss)| !loss.is_finite()) {
            self.warn(format!("no silo trained at any learning rate that was tried; it stays {}", state.learning_rate));
            return Ok(Progress::Done(state));
        }
        if let Some((rate, chosen)) = tune::learning_rate(&tried, rungs * steps) {
            state.learning_rate = rate;
            state.plan.chosen.push(chosen);
        }
        Ok(Progress::Done(state))
    }

    /// Trains a rival for its steps in every silo, merges, and notes how it did; what it took goes to the run.
    fn rung(&self, rival: &mut Rival, silos: &[SiloId], run: &mut RunState) -> Result<(), RoundError> {
        let mut tasks = self.method.tasks(&rival.state, silos);
        for task in &mut tasks {
            task.round = 0;
            if let Work::Train(work) = &mut task.work {
                work.learning_rate = LearningRate::constant(rival.state.learning_rate);
            }
        }
        let limit = self.settings.max_update_norm;
        let deliveries = self.exchange(tasks, &run.profiles, |task, update| validate::update(task, update, limit))?;
        let (mut updates, mut failed, mut seconds) = (Vec::new(), 0, 0f64);
        for delivery in deliveries {
            run.bytes_up += delivery.bytes_up;
            run.bytes_down += delivery.bytes_down;
            seconds = seconds.max(delivery.seconds);
            match delivery.result {
                Ok(update) => updates.push(update),
                Err(_) => failed += 1,
            }
        }
        run.clock_s += seconds;
        let examples: u64 = updates.iter().map(|update| update.examples).sum();
        let loss = updates.iter().map(|update| update.examples as f64 * update.measured.loss).sum::<f64>();
        rival.standing = (failed, f64::INFINITY);
        match self.method.fold(&rival.state, &updates) {
            Ok(adapter) if examples > 0 => {
                rival.state.adapter = adapter;
                rival.standing.1 = loss / examples as f64;
            }
            _ => {}
        }
        rival.state.round += 1;
        Ok(())
    }
}
