//! A round as data: enrolment, identification, and the step from one [`RunState`] to the next.
//!
//! The engine holds no state of its own. Whatever happens in a silo is a [`Failure`] in the record; what stops a run is an
//! error here.

mod adapt;
mod message;
mod rates;
mod slowness;
mod validate;

pub use adapt::Adaptation;

use crate::importance::{ImportanceMeasure, Probe, ProbeSettings, SiloScores, normalised};
use fedpipe_core::{
    Adapter, Clock, Codec, Event, Failure, FailureKind, FoldError, Head, Method, Metrics, ModelSpec, Observer, Outcome,
    Plan, Purpose, RUN_STATE_VERSION, RoundRecord, RunState, Seed, SiloId, SiloProfile, SiloRound, Stop, Task,
    Transport, Update, WeightId, Work,
};
use rand::seq::SliceRandom;
use std::collections::BTreeMap;

/// Rounds below the quorum, one after the other, that end a run.
pub const MAX_FAILED_ROUNDS: usize = 3;

/// How rounds go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundSettings {
    /// Share of the silos that take part in a round, above 0 and up to 1; at least one does.
    pub cohort_fraction: f64,
    /// Share of the cohort whose updates it takes to merge, from 0 to 1; at least one.
    pub quorum_fraction: f64,
    /// Whether an update after the plan's deadline is refused.
    pub deadline_enforced: bool,
    /// Largest Frobenius norm, over all tensors, of the change that a silo may hand back.
    pub max_update_norm: f64,
}

impl Default for RoundSettings {
    /// Everybody takes part, half is enough, the deadline holds, and a change may have norm 10,000: far above what
    /// AdamW can do (steps · learning rate · √parameters), far below what has run away.
    fn default() -> Self {
        Self { cohort_fraction: 1.0, quorum_fraction: 0.5, deadline_enforced: true, max_update_norm: 1e4 }
    }
}

/// What ends a run.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// Nobody enrolled.
    #[error("no silo enrolled, and a run needs at least one: {reasons}")]
    NobodyEnrolled {
        /// The failures of all silos.
        reasons: String,
    },
    /// Too many rounds in a row without a merge.
    #[error(
        "{rounds} rounds in a row had fewer updates than the quorum of {quorum}, so nothing is being learnt; the last \
         failures: {reasons}; mend those silos or lower federation.quorum in the config.toml of the run's folder, and go \
         on with --resume; another deadline takes a new run, since this one's plans are made for its own"
    )]
    NoQuorum {
        /// How many.
        rounds: usize,
        /// Updates that it takes.
        quorum: usize,
        /// The failures of the last round.
        reasons: String,
    },
    /// A run's rounds are over, and none had a merge.
    #[error(
        "none of the {rounds} rounds had enough updates to be merged, so there is no result and no adapter is written; the \
         last failures: {reasons}; mend those silos, lower the quorum or raise the deadline, and start a new run"
    )]
    NothingLearnt {
        /// How many.
        rounds: u32,
        /// The failures of the last round.
        reasons: String,
    },
    /// The server's own message does not survive its codec.
    #[error("a task for silo {silo} does not survive the codec: {reason}; this is a defect of the codec")]
    Message {
        /// For whom.
        silo: SiloId,
        /// What is wrong.
        reason: String,
    },
    /// Valid updates that cannot be merged.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

/// Work that came to its end, or was ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress<T> {
    /// It is done.
    Done(T),
    /// The end of the run was asked for meanwhile; nothing of the work is kept.
    Stopped,
}

/// The importance of the candidate weights and what it took to find out.
#[derive(Debug, Clone, PartialEq)]
pub struct Identification {
    /// Score by weight, summing to 1.
    pub importance: BTreeMap<WeightId, f64>,
    /// The same of every silo that probed.
    pub own: BTreeMap<SiloId, BTreeMap<WeightId, f64>>,
    /// Bytes from silos to the server.
    pub bytes_up: u64,
    /// Bytes from the server to silos.
    pub bytes_down: u64,
    /// Seconds on the run's clock.
    pub seconds: f64,
}

/// A run before its first round. The adapter is the head alone: nothing is adapted until the first merge. `inputs` is
/// [`RunState::inputs`], `scaling` is PEFT's alpha / r.
pub fn start(
    method: &dyn Method,
    (seed, inputs): (Seed, String),
    profiles: BTreeMap<SiloId, SiloProfile>,
    identification: Identification,
    plan: Plan,
    learning_rate: f64,
    (scaling, head): (f32, Head),
) -> RunState {
    RunState {
        version: RUN_STATE_VERSION,
        method: method.name().into(),
        seed,
        inputs,
        round: 0,
        profiles,
        importance: identification.importance,
        own_importance: identification.own,
        plan,
        never_tune: Vec::new(),
        learning_rate,
        plan_changes: Vec::new(),
        slowness: BTreeMap::new(),
        adapter: Adapter { scaling, factors: BTreeMap::new(), head },
        history: Vec::new(),
        bytes_up: identification.bytes_up,
        bytes_down: identification.bytes_down,
        clock_s: identification.seconds,
        wall_s: 0.0,
    }
}

/// The silos of the next round: the same for the same seed and round, whatever happened before. In ascending order.
pub fn cohort(state: &RunState, fraction: f64) -> Vec<SiloId> {
    let mut silos: Vec<SiloId> = state.profiles.keys().cloned().collect();
    let size = share_of(silos.len(), fraction);
    silos.shuffle(&mut state.seed.derive(Purpose::Cohort, state.round + 1, None).stream());
    silos.truncate(size);
    silos.sort();
    silos
}

/// How many silos a fraction of so many is: rounded up, and one at least.
pub(crate) fn share_of(silos: usize, fraction: f64) -> usize {
    // A product may be above the whole number that it stands for, as 0.28 · 25 = 7.000000000000001 is.
    let exact = silos as f64 * fraction * (1.0 - 1e-12);
    (exact.ceil() as usize).clamp(1, silos.max(1))
}

/// A task out and its result back.
struct Delivery {
    task: Task,
    bytes_down: u64,
    bytes_up: u64,
    /// Seconds on the run's clock; 0 when nothing came back.
    seconds: f64,
    /// Against what its profile foresees, where that is looked at.
    slowness: Option<f64>,
    result: Result<Update, Failure>,
}

/// Drives a federation over contracts alone.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// Moves tasks and updates.
    pub transport: &'a dyn Transport,
    /// The method.
    pub method: &'a dyn Method,
    /// How tensors travel.
    pub codec: &'a dyn Codec,
    /// How long things take.
    pub clock: &'a dyn Clock,
    /// Told what happens.
    pub observer: &'a dyn Observer,
    /// Asked for the end.
    pub stop: &'a Stop,
    /// How rounds go.
    pub settings: RoundSettings,
    /// How plans follow what rounds say; without, they stay as they are.
    pub adaptation: Option<&'a Adaptation>,
}

impl Engine<'_> {
    /// Enrols every silo; one that cannot, or whose profile makes no sense, is an event and left out.
    ///
    /// # Errors
    /// When nobody is left.
    pub fn enrol(&self) -> Result<BTreeMap<SiloId, SiloProfile>, RoundError> {
        let mut profiles = BTreeMap::new();
        let mut failures = Vec::new();
        for (silo, answer) in self.transport.silos().into_iter().zip(self.transport.enrol()) {
            match answer.and_then(|profile| validate::profile(&silo, profile)) {
                Ok(profile) => {
                    self.observer.observe(&Event::Enrolled(profile.clone()));
                    profiles.insert(silo, profile);
                }
                Err(failure) => {
                    self.observer.observe(&Event::SiloFailed(failure.clone()));
                    failures.push(failure);
                }
            }
        }
        if profiles.is_empty() {
            return Err(RoundError::NobodyEnrolled { reasons: sentences(&failures) });
        }
        Ok(profiles)
    }

    /// Scores the candidate weights: probes where the measure asks for them, and combines what comes back. Silos that
    /// cannot probe or fail are left out; when none is left, all weights count the same and a warning says so.
    ///
    /// # Errors
    /// When a task does not survive the codec.
    pub fn identify(
        &self,
        measure: &dyn ImportanceMeasure,
        model: &ModelSpec,
        profiles: &BTreeMap<SiloId, SiloProfile>,
        head: &Head,
        seed: Seed,
        settings: &ProbeSettings,
    ) -> Result<Progress<Identification>, RoundError> {
        let (mut tasks, mut probing) = (Vec::new(), false);
        for (silo, profile) in profiles {
            let probe = measure.probe(model, profile, head, settings);
            probing |= probe != Probe::NotNeeded;
            match probe {
                Probe::Run(work) => {
                    let seed = seed.derive(Purpose::Probe, 0, Some(silo));
                    tasks.push(Task { round: 0, silo: silo.clone(), seed, work: Work::Probe(work) });
                }
                Probe::NotNeeded => {}
                Probe::DoesNotFit { reason } => {
                    self.warn(format!("silo {silo} takes no part in the importance probe: {reason}"))
                }
            }
        }
        let deliveries = self.exchange(tasks, profiles, |task, update| validate::scores(model, task, update))?;
        if self.stop.requested() {
            return Ok(Progress::Stopped);
        }
        let (mut scores, mut own) = (Vec::new(), BTreeMap::new());
        let (mut bytes_up, mut bytes_down, mut seconds) = (0, 0, 0f64);
        for delivery in &deliveries {
            bytes_up += delivery.bytes_up;
            bytes_down += delivery.bytes_down;
            seconds = seconds.max(delivery.seconds);
            match &delivery.result {
                Ok(Update { silo, examples, outcome: Outcome::Scores(of), .. }) => {
                    own.extend(normalised(model, of).map(|own| (silo.clone(), own)));
                    scores.push(SiloScores { examples: *examples, scores: of.clone() })
                }
                Ok(_) => {}
                Err(failure) => self.observer.observe(&Event::SiloFailed(failure.clone())),
            }
        }
        if probing && scores.is_empty() {
            self.warn("no silo scored the weights, so all of them count the same".into());
        }
        let importance = measure.combine(model, &scores, seed.derive(Purpose::Probe, 0, None));
        self.observer.observe(&Event::Identified { importance: importance.clone() });
        Ok(Progress::Done(Identification { importance, own, bytes_up, bytes_down, seconds }))
    }

    /// One round: the state after it, or [`Progress::Stopped`] when the end was asked for before its updates were in; the
    /// round then starts anew when the run goes on. `evaluate` measures the merged adapter, or not. `wall_s` is left to
    /// the caller, who has a stopwatch.
    ///
    /// A round below the quorum keeps the adapter, is recorded, and counts.
    ///
    /// # Errors
    /// When [`MAX_FAILED_ROUNDS`] in a row stay below the quorum, or the server itself fails.
    pub fn round(
        &self,
        state: &RunState,
        evaluate: impl FnOnce(&Adapter) -> Option<Metrics>,
    ) -> Result<Progress<RunState>, RoundError> {
        let cohort = cohort(state, self.settings.cohort_fraction);
        let tasks = self.tasks(state, &cohort);
        let quorum = share_of(tasks.len(), self.settings.quorum_fraction);
        let limit = self.settings.max_update_norm;
        let deliveries = self.exchange(tasks, &state.profiles, |task, update| validate::update(task, update, limit))?;
        if self.stop.requested() {
            return Ok(Progress::Stopped);
        }
        let mut next = state.clone();
        next.round += 1;
        let (mut updates, mut silos, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in deliveries {
            next.bytes_up += delivery.bytes_up;
            next.bytes_down += delivery.bytes_down;
            let Delivery { task, bytes_down, bytes_up, seconds, slowness, result } = delivery;
            let result = result.and_then(|update| self.in_time(&task, update, seconds, state.plan.deadline_s));
            if let Some(slowness) = slowness {
                let late = seconds > state.plan.deadline_s;
                slowness::observe(next.slowness.entry(task.silo.clone()).or_default(), slowness, late);
            }
            match result {
                Ok(update) => {
                    let (silo, measured) = (update.silo.clone(), update.measured.clone());
                    silos.push(SiloRound { silo, measured, seconds, bytes_up, bytes_down, slowness });
                    updates.push(update);
                }
                Err(failure) => {
                    self.observer.observe(&Event::SiloFailed(failure.clone()));
                    failures.push(failure);
                }
            }
        }
        let merged = updates.len() >= quorum;
        if merged {
            next.adapter = self.method.fold(state, &updates)?;
        }
        let seconds = self.duration(&silos, &failures, state.plan.deadline_s);
        next.clock_s += seconds;
        let metrics = if merged { evaluate(&next.adapter) } else { None };
        let reasons = sentences(&failures);
        let record = RoundRecord { round: next.round, silos, failures, merged, seconds, metrics };
        self.observer.observe(&Event::RoundFinished(record.clone()));
        next.history.push(record);
        let failed = next.history.iter().rev().take_while(|record| !record.merged).count();
        if failed >= MAX_FAILED_ROUNDS {
            return Err(RoundError::NoQuorum { rounds: failed, quorum, reasons });
        }
        if let Some(adaptation) = self.adaptation {
            self.adapt(adaptation, &mut next, &updates);
        }
        Ok(Progress::Done(next))
    }

    /// The method's tasks, with what importance is to be estimated from where that is due.
    fn tasks(&self, state: &RunState, cohort: &[SiloId]) -> Vec<Task> {
        let mut tasks = self.method.tasks(state, cohort);
        let due = self.adaptation.is_some_and(|adaptation| adaptation.refreshes_after(state.round + 1));
        for task in &mut tasks {
            if let Work::Train(work) = &mut task.work {
                work.sensitivity = due;
            }
        }
        tasks
    }

    /// Sends the tasks and takes in what comes back, both through the codec: the decoded tensors are the ones that count.
    fn exchange(
        &self,
        tasks: Vec<Task>,
        profiles: &BTreeMap<SiloId, SiloProfile>,
        check: impl Fn(&Task, &Update) -> Result<(), String>,
    ) -> Result<Vec<Delivery>, RoundError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut sent = Vec::new();
        for task in tasks {
            let silo = task.silo.clone();
            sent.push(message::send(self.codec, task).map_err(|reason| RoundError::Message { silo, reason })?);
        }
        let round = sent.first().map_or(0, |(task, _)| task.round);
        let cohort = sent.iter().map(|(task, _)| (task.silo.clone(), task.work.steps())).collect();
        self.observer.observe(&Event::RoundStarted { round, cohort });
        let tasks = sent.iter().map(|(task, _)| task.clone()).collect();
        let mut answers = self.transport.exchange(tasks, self.observer, self.stop).into_iter();
        let mut deliveries = Vec::new();
        for (task, bytes_down) in sent {
            let silent = || Err(Failure::of(&task, FailureKind::Gone, "the transport has no answer from it"));
            let answer = answers.next().unwrap_or_else(silent);
            let profile = profiles.get(&task.silo);
            deliveries.push(self.receive(task, profile, bytes_down, answer, &check));
        }
        Ok(deliveries)
    }

    fn receive(
        &self,
        task: Task,
        profile: Option<&SiloProfile>,
        bytes_down: u64,
        answer: Result<Update, Failure>,
        check: impl Fn(&Task, &Update) -> Result<(), String>,
    ) -> Delivery {
        let invalid = |reason: String| Failure::of(&task, FailureKind::Invalid, reason);
        let (mut bytes_up, mut seconds, mut slowness) = (0, 0.0, None);
        // A failure is the task's own, whatever it says about itself.
        let own = |failure: Failure| Failure::of(&task, failure.kind, failure.reason);
        let result = answer.map_err(own).and_then(|update| {
            let profile = profile.ok_or_else(|| invalid("it never enrolled".into()))?;
            let (update, bytes) = message::receive(self.codec, update).map_err(invalid)?;
            bytes_up = bytes;
            validate::data(&task, profile, bytes_down + bytes_up)?;
            validate::header(&task, profile, &update).and_then(|()| check(&task, &update)).map_err(invalid)?;
            seconds = self.clock.charge(profile, &task, &update, bytes_down, bytes_up);
            let model = self.adaptation.map(|adaptation| &adaptation.model);
            let all = (bytes_down + bytes_up, seconds);
            slowness = model.and_then(|model| slowness::of(model, profile, &task, &update, all));
            Ok(update)
        });
        Delivery { task, bytes_down, bytes_up, seconds, slowness, result }
    }

    fn in_time(&self, task: &Task, update: Update, seconds: f64, deadline_s: f64) -> Result<Update, Failure> {
        if self.settings.deadline_enforced && seconds > deadline_s {
            let reason = format!("it took {seconds:.1} s, and the round ended after {deadline_s:.1} s");
            return Err(Failure::of(task, FailureKind::Late, reason));
        }
        Ok(update)
    }

    /// A round lasts as long as its slowest member. When somebody is missing, the server has waited until the deadline,
    /// if it keeps one or if there is nothing else to go by.
    fn duration(&self, silos: &[SiloRound], failures: &[Failure], deadline_s: f64) -> f64 {
        let slowest = silos.iter().map(|silo| silo.seconds).fold(0.0, f64::max);
        let waited = !failures.is_empty() && (self.settings.deadline_enforced || silos.is_empty());
        if waited { slowest.max(deadline_s) } else { slowest }
    }

    fn warn(&self, message: String) {
        self.observer.observe(&Event::Warning { message });
    }
}

/// Refuses a run whose rounds are over and brought nothing.
///
/// # Errors
/// When no round was merged.
pub fn check_learnt(state: &RunState) -> Result<(), RoundError> {
    if state.history.iter().any(|record| record.merged) {
        return Ok(());
    }
    let reasons = sentences(state.history.last().map_or(&[], |record| &record.failures));
    Err(RoundError::NothingLearnt { rounds: state.round, reasons })
}

fn sentences(failures: &[Failure]) -> String {
    match failures {
        [] => "none was reported".into(),
        failures => failures.iter().map(Failure::to_string).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests;
