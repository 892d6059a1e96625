//! What a transport owes to the round: a result for every task, in order, whatever the silos do.

use fedpipe_core::{
    Adapter, BaseFormat, Event, Failure, FailureKind, LearningRate, Measured, Observer, Outcome, Seed, SiloId,
    SiloProfile, Stop, Task, TrainWork, Trainer, Transport, Update, Work,
};
use fedpipe_testkit::{Recorder, toy_profile, transport_conformance};
use fedpipe_transport::LocalTransport;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn the_contract_of_every_transport_holds() {
    transport_conformance(|trainers| Box::new(LocalTransport::new(trainers)));
    transport_conformance(|trainers| Box::new(LocalTransport::new(trainers).with_parallel(3)));
}

/// What a silo of these tests does with a task.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    /// Makes a step every so often, then delivers.
    Work {
        steps: usize,
        pause: Duration,
    },
    Err,
    Panic,
    /// Says nothing, but would deliver in the end, or earlier when it is asked to stop.
    Hang {
        at_most: Duration,
    },
}

struct Silo {
    id: SiloId,
    habit: Habit,
    at_work: Arc<AtomicUsize>,
    most_at_work: Arc<AtomicUsize>,
}

impl Trainer for Silo {
    fn enrol(&self) -> Result<SiloProfile, Failure> {
        match self.habit {
            Habit::Panic => panic!("no device"),
            _ => Ok(toy_profile(self.id.as_str())),
        }
    }

    fn run(&self, task: &Task, observer: &dyn Observer, stop: &Stop) -> Result<Update, Failure> {
        let at_work = self.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_work.fetch_max(at_work, Ordering::SeqCst);
        let result = match self.habit {
            Habit::Work { steps, pause } => {
                let mut done = 0;
                while done < steps && !stop.requested() {
                    std::thread::sleep(pause);
                    done += 1;
                    observer.observe(&step(task, done, steps));
                }
                Ok(update(task, done))
            }
            Habit::Err => Err(Failure::of(task, FailureKind::OutOfMemory, "3 MiB short")),
            Habit::Panic => panic!("index {} out of range", 7),
            Habit::Hang { at_most } => {
                let begun = Instant::now();
                while begun.elapsed() < at_most && !stop.requested() {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(update(task, 0))
            }
        };
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

fn steps_of(recorder: &Recorder, name: &str) -> Vec<usize> {
    let steps = recorder.events().into_iter().filter_map(|event| match event {
        Event::Step { silo, step, .. } if silo.as_str() == name => Some(step),
        _ => None,
    });
    steps.collect()
}

fn step(task: &Task, step: usize, steps: usize) -> Event {
    Event::Step { round: task.round, silo: task.silo.clone(), step, steps, loss: 1.0, tokens: 8 }
}

fn update(task: &Task, steps: usize) -> Update {
    let adapter = Adapter { scaling: 2.0, factors: BTreeMap::new(), head: BTreeMap::new() };
    let measured = Measured { steps, ..Measured::default() };
    Update { round: task.round, silo: task.silo.clone(), examples: 10, outcome: Outcome::Trained(adapter), measured }
}

fn task(name: &str) -> Task {
    let work = TrainWork {
        adapter: Adapter { scaling: 2.0, factors: BTreeMap::new(), head: BTreeMap::new() },
        fixed: BTreeMap::new(),
        base_format: BaseFormat::F32,
        recompute: false,
        batch_size: 4,
        steps: 3,
        learning_rate: LearningRate::constant(1e-3),
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        dropout: 0.0,
        spare_bytes: 0,
    };
    Task { round: 3, silo: name.into(), seed: Seed(1), work: Work::Train(work) }
}

/// A transport over silos of these habits, and the most that were at work at once.
fn transport(habits: &[(&str, Habit)]) -> (LocalTransport, Arc<AtomicUsize>) {
    let (at_work, most_at_work) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let trainers = habits.iter().map(|&(name, habit)| {
        let (at_work, most_at_work) = (at_work.clone(), most_at_work.clone());
        let silo = Silo { id: name.into(), habit, at_work, most_at_work };
        (SiloId::from(name), Arc::new(silo) as Arc<dyn Trainer>)
    });
    (LocalTransport::new(trainers.collect()), most_at_work)
}

const QUICK: Habit = Habit::Work { steps: 3, pause: Duration::from_millis(1) };

/// `ok <silo>` or `<kind>: <message>` for every result.
fn outline(results: &[Result<Update, Failure>]) -> Vec<String> {
    let line = |result: &Result<Update, Failure>| match result {
        Ok(update) => format!("ok {}", update.silo),
        Err(failure) => format!("{:?}: {failure}", failure.kind),
    };
    results.iter().map(line).collect()
}

#[test]
fn a_silo_that_errs_or_panics_is_a_failure_in_its_place() {
    let (transport, _) = transport(&[("a", QUICK), ("b", Habit::Panic), ("c", Habit::Err), ("d", QUICK)]);
    let tasks = ["d", "c", "nobody", "b", "a"].map(task).to_vec();
    let recorder = Recorder::default();
    let results = transport.exchange(tasks, &recorder, &Stop::default());
    assert_eq!(
        outline(&results),
        [
            "ok d",
            "OutOfMemory: silo c in round 3: 3 MiB short",
            "Gone: silo nobody in round 3: no such silo in this process",
            "Crashed: silo b in round 3: panicked: index 7 out of range",
            "ok a",
        ]
    );
    assert_eq!(steps_of(&recorder, "a"), [1, 2, 3]);
    assert_eq!(steps_of(&recorder, "d"), [1, 2, 3]);
}

#[test]
fn silos_work_alone_unless_parallel_is_asked_for() {
    let habits = ["a", "b", "c", "d"].map(|name| (name, QUICK));
    let (alone, most) = transport(&habits);
    alone.exchange(["a", "b", "c", "d"].map(task).to_vec(), &Recorder::default(), &Stop::default());
    assert_eq!(most.load(Ordering::SeqCst), 1);

    let (transport, most) = transport(&habits);
    let together = transport.with_parallel(3);
    together.exchange(["a", "b", "c", "d"].map(task).to_vec(), &Recorder::default(), &Stop::default());
    assert!(most.load(Ordering::SeqCst) <= 3);
}

#[test]
fn results_keep_the_order_of_the_tasks_whoever_finishes_first() {
    let pace = |ms| Habit::Work { steps: 2, pause: Duration::from_millis(ms) };
    let (transport, most) = transport(&[("a", pace(1)), ("b", pace(40)), ("c", pace(15)), ("d", pace(1))]);
    let transport = transport.with_parallel(3);
    for _ in 0..3 {
        let tasks = ["b", "a", "d", "c"].map(task).to_vec();
        let results = transport.exchange(tasks, &Recorder::default(), &Stop::default());
        assert_eq!(outline(&results), ["ok b", "ok a", "ok d", "ok c"]);
    }
    assert!(most.load(Ordering::SeqCst) > 1, "nothing ran side by side");
}

#[test]
fn a_silo_that_goes_silent_is_given_up_and_the_others_deliver() {
    let hang = Habit::Hang { at_most: Duration::from_secs(60) };
    let (transport, _) = transport(&[("a", QUICK), ("b", hang), ("c", QUICK)]);
    let transport = transport.with_stall_timeout(Duration::from_millis(150));
    let begun = Instant::now();
    let results = transport.exchange(["a", "b", "c"].map(task).to_vec(), &Recorder::default(), &Stop::default());
    assert_eq!(outline(&results), ["ok a", "Gone: silo b in round 3: no sign of progress for 0.1 s", "ok c"],);
    assert!(begun.elapsed() < Duration::from_secs(30), "the wait was not bounded");
}

#[test]
fn slow_progress_is_progress() {
    // Every step takes less than the timeout, all of them together take longer.
    let slow = Habit::Work { steps: 6, pause: Duration::from_millis(60) };
    let (transport, _) = transport(&[("a", slow)]);
    let transport = transport.with_stall_timeout(Duration::from_millis(250));
    let results = transport.exchange(vec![task("a")], &Recorder::default(), &Stop::default());
    assert_eq!(outline(&results), ["ok a"]);
}

/// Ignores every stop request for a while, like a kernel that does not return.
struct Deadlocked;

impl Trainer for Deadlocked {
    fn enrol(&self) -> Result<SiloProfile, Failure> {
        Ok(toy_profile("a"))
    }

    fn run(&self, task: &Task, observer: &dyn Observer, _: &Stop) -> Result<Update, Failure> {
        std::thread::sleep(Duration::from_millis(400));
        observer.observe(&step(task, 1, 1));
        Ok(update(task, 1))
    }
}

#[test]
fn a_stuck_silo_gets_no_second_thread_and_may_come_back() {
    let transport = LocalTransport::new([("a".into(), Arc::new(Deadlocked) as Arc<dyn Trainer>)].into())
        .with_stall_timeout(Duration::from_millis(50));
    let recorder = Recorder::default();
    let exchange = || outline(&transport.exchange(vec![task("a")], &recorder, &Stop::default()));
    assert_eq!(exchange(), ["Gone: silo a in round 3: no sign of progress for 0.1 s"]);
    assert_eq!(exchange(), ["Gone: silo a in round 3: still stuck in an earlier task"]);
    std::thread::sleep(Duration::from_millis(600));
    let transport = transport.with_stall_timeout(Duration::from_secs(30));
    let back = transport.exchange(vec![task("a")], &recorder, &Stop::default());
    assert_eq!(outline(&back), ["ok a"]);
    assert_eq!(steps_of(&recorder, "a"), [1], "the thread left behind still reached the observer");
}

#[test]
fn a_stop_ends_the_silo_at_work_and_starts_no_other() {
    let long = Habit::Work { steps: 100_000, pause: Duration::from_millis(1) };
    let (transport, _) = transport(&[("a", long), ("b", QUICK)]);
    let stop = Stop::default();
    struct StopAtFirstStep(Stop);
    impl Observer for StopAtFirstStep {
        fn observe(&self, _: &Event) {
            self.0.request();
        }
    }
    let results = transport.exchange(["a", "b"].map(task).to_vec(), &StopAtFirstStep(stop.clone()), &stop);
    assert_eq!(outline(&results), ["ok a", "Stopped: silo b in round 3: the run is stopping"]);
    assert!(results[0].as_ref().is_ok_and(|update| update.measured.steps < 100_000));
}

#[test]
fn enrolment_answers_for_every_silo_in_the_order_of_the_names() {
    let (transport, _) = transport(&[("c", QUICK), ("a", QUICK), ("b", Habit::Panic)]);
    let silos: Vec<String> = transport.silos().iter().map(ToString::to_string).collect();
    assert_eq!(silos, ["a", "b", "c"]);
    let answers = transport.enrol();
    assert_eq!(answers[0].as_ref().unwrap().silo, "a".into());
    assert_eq!(answers[1].as_ref().unwrap_err().to_string(), "silo b in round 0: panicked: no device");
    assert_eq!(answers[2].as_ref().unwrap().silo, "c".into());
}
