//! Stand-ins for what surrounds the engine: a transport without a network, a clock that says what it is told.

use fedpipe_core::{
    Clock, Event, Failure, FailureKind, Observer, SiloId, SiloProfile, Stop, Task, Trainer, Transport, Update,
};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

/// Keeps every event, in order.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// The events so far.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Recorder {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// A clock by silo: every piece of work takes the seconds given for its silo, or 1.
#[derive(Debug, Default)]
pub struct FixedClock(pub BTreeMap<SiloId, f64>);

impl Clock for FixedClock {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn charge(&self, profile: &SiloProfile, _: &Task, _: &Update, _: u64, _: u64) -> f64 {
        self.0.get(&profile.silo).copied().unwrap_or(1.0)
    }
}

/// What goes wrong with one silo in one round.
pub enum Fault {
    /// The transport reports a failure of this kind.
    Fails(FailureKind),
    /// The silo panics.
    Panics,
    /// What the silo hands back is changed on the way.
    Changes(Box<dyn Fn(&mut Update) + Send + Sync>),
    /// A person asks for the end while the silo works.
    Stops,
}

/// Runs trainers one after the other in this thread, with faults by silo and round.
#[derive(Default)]
pub struct FakeTransport {
    trainers: BTreeMap<SiloId, Arc<dyn Trainer>>,
    faults: BTreeMap<(SiloId, u32), Fault>,
}

impl FakeTransport {
    /// A transport to `trainers`.
    pub fn new(trainers: BTreeMap<SiloId, Arc<dyn Trainer>>) -> Self {
        Self { trainers, faults: BTreeMap::new() }
    }

    /// The same with `fault` on `silo` in `round`.
    pub fn with_fault(mut self, silo: &str, round: u32, fault: Fault) -> Self {
        self.faults.insert((silo.into(), round), fault);
        self
    }

    fn run(&self, task: &Task, observer: &dyn Observer, stop: &Stop) -> Result<Update, Failure> {
        let fault = self.faults.get(&(task.silo.clone(), task.round));
        let trainer =
            self.trainers.get(&task.silo).ok_or_else(|| Failure::of(task, FailureKind::Gone, "no such silo"))?;
        let work = || {
            assert!(!matches!(fault, Some(Fault::Panics)), "a fault of the fake transport");
            trainer.run(task, observer, stop)
        };
        match fault {
            Some(Fault::Fails(kind)) => return Err(Failure::of(task, *kind, "a fault of the fake transport")),
            Some(Fault::Stops) => stop.request(),
            _ => {}
        }
        let mut update = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(Failure::of(task, FailureKind::Crashed, "the silo panicked")))?;
        if let Some(Fault::Changes(change)) = fault {
            change(&mut update);
        }
        Ok(update)
    }
}

impl Transport for FakeTransport {
    fn silos(&self) -> Vec<SiloId> {
        self.trainers.keys().cloned().collect()
    }

    fn enrol(&self) -> Vec<Result<SiloProfile, Failure>> {
        let enrol = |silo: &SiloId| match self.faults.get(&(silo.clone(), 0)) {
            Some(Fault::Fails(kind)) => Err(Failure {
                silo: silo.clone(),
                round: 0,
                kind: *kind,
                reason: "a fault of the fake transport".into(),
            }),
            _ => catch_unwind(AssertUnwindSafe(|| self.trainers[silo].enrol())).unwrap_or_else(|_| {
                let reason = "the silo panicked".into();
                Err(Failure { silo: silo.clone(), round: 0, kind: FailureKind::Crashed, reason })
            }),
        };
        self.trainers.keys().map(enrol).collect()
    }

    fn exchange(&self, tasks: Vec<Task>, observer: &dyn Observer, stop: &Stop) -> Vec<Result<Update, Failure>> {
        tasks.iter().map(|task| self.run(task, observer, stop)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fake_keeps_the_contract_of_a_transport() {
        crate::transport_conformance(|trainers| Box::new(FakeTransport::new(trainers)));
    }
}
