//! All silos in one process, each task on a thread of its own.

use fedpipe_core::{
    Event, Failure, FailureKind, Observer, SiloId, SiloProfile, Stop, Task, Trainer, Transport, Update,
};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a silo may go without a sign of progress.
pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// How often a waiting transport looks at the run's stop request.
const STOP_POLL: Duration = Duration::from_millis(20);
/// Messages that silos may be ahead of the observer.
const CHANNEL_BOUND: usize = 256;

/// Runs the trainers of this process.
///
/// Silos work one after the other unless [`LocalTransport::with_parallel`] says otherwise: a silo's measured seconds
/// mean something only while it has the machine to itself. Every wait is bounded by progress: a silo that emits no
/// event for the stall timeout becomes a [`FailureKind::Gone`]. A thread cannot be ended from outside, so it is left
/// behind with a stop request; until it ends, its silo is `Gone` for every later task. At most one thread a silo is
/// left behind.
pub struct LocalTransport {
    trainers: BTreeMap<SiloId, Arc<dyn Trainer>>,
    parallel: usize,
    stall_timeout: Duration,
    left_behind: Mutex<BTreeMap<SiloId, JoinHandle<()>>>,
}

impl LocalTransport {
    /// One silo at a time, [`DEFAULT_STALL_TIMEOUT`].
    pub fn new(trainers: BTreeMap<SiloId, Arc<dyn Trainer>>) -> Self {
        Self { trainers, parallel: 1, stall_timeout: DEFAULT_STALL_TIMEOUT, left_behind: Mutex::default() }
    }

    /// As many silos at once; at least one. What a silo then measures of time and memory includes its neighbours.
    #[must_use]
    pub fn with_parallel(mut self, parallel: usize) -> Self {
        self.parallel = parallel.max(1);
        self
    }

    /// How long a silo may go without an event before it counts as gone. An enrolment emits none, so all of it has to
    /// fit.
    #[must_use]
    pub fn with_stall_timeout(mut self, stall_timeout: Duration) -> Self {
        self.stall_timeout = stall_timeout;
        self
    }

    /// Does the jobs, at most `parallel` at once; a result a job, in the order of the jobs.
    fn run_all<T: Send + 'static>(
        &self,
        jobs: Vec<Job<T>>,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Vec<Result<T, Failure>> {
        let (sender, receiver) = sync_channel(CHANNEL_BOUND);
        let mut results: Vec<Option<Result<T, Failure>>> = jobs.iter().map(|_| None).collect();
        let mut waiting = jobs.into_iter().enumerate();
        let mut running = BTreeMap::new();
        loop {
            while running.len() < self.parallel {
                let Some((index, job)) = waiting.next() else { break };
                match self.start(index, job, &sender, stop) {
                    Ok(worker) => drop(running.insert(index, worker)),
                    Err(failure) => results[index] = Some(Err(failure)),
                }
            }
            if running.is_empty() {
                break;
            }
            self.wait(&receiver, &mut running, &mut results, observer, stop);
        }
        results.into_iter().flatten().collect()
    }

    /// Puts a job on a thread of its own, or says why it cannot be done.
    fn start<T: Send + 'static>(
        &self,
        index: usize,
        job: Job<T>,
        sender: &SyncSender<(usize, Message<T>)>,
        stop: &Stop,
    ) -> Result<Worker, Failure> {
        let Job { silo, round, work } = job;
        let fail = |kind, reason: String| Failure { silo: silo.clone(), round, kind, reason };
        if stop.requested() {
            return Err(fail(FailureKind::Stopped, "the run is stopping".into()));
        }
        if self.is_stuck(&silo) {
            return Err(fail(FailureKind::Gone, "still stuck in an earlier task".into()));
        }
        let Some(trainer) = self.trainers.get(&silo).map(Arc::clone) else {
            return Err(fail(FailureKind::Gone, "no such silo in this process".into()));
        };
        let own_stop = Stop::default();
        let (worker_stop, worker_silo, worker_sender) = (own_stop.clone(), silo.clone(), sender.clone());
        let body = move || {
            let forward = Forward { index, sender: worker_sender };
            let done = catch_unwind(AssertUnwindSafe(|| work(trainer.as_ref(), &forward, &worker_stop)));
            let result = done.unwrap_or_else(|panic| {
                let reason = format!("panicked: {}", panic_message(panic.as_ref()));
                Err(Failure { silo: worker_silo, round, kind: FailureKind::Crashed, reason })
            });
            forward.send(Message::Done(result));
        };
        let spawned = std::thread::Builder::new().name(format!("silo {silo}")).spawn(body);
        let thread = spawned.map_err(|e| fail(FailureKind::Crashed, format!("no thread could be started: {e}")))?;
        Ok(Worker { silo, round, thread, stop: own_stop, progress: Instant::now() })
    }

    /// Takes one message, or notices that there was none for too long.
    fn wait<T>(
        &self,
        receiver: &Receiver<(usize, Message<T>)>,
        running: &mut BTreeMap<usize, Worker>,
        results: &mut [Option<Result<T, Failure>>],
        observer: &dyn Observer,
        stop: &Stop,
    ) {
        match receiver.recv_timeout(STOP_POLL.min(self.stall_timeout)) {
            Ok((index, Message::Event(event))) => {
                // A silo that was given up may still talk; what it says is no longer part of the round.
                if let Some(worker) = running.get_mut(&index) {
                    observer.observe(&event);
                    worker.progress = Instant::now();
                }
            }
            Ok((index, Message::Done(result))) => {
                if let Some(worker) = running.remove(&index) {
                    results[index] = Some(result);
                    // The message was the thread's last act, and panics were caught before it.
                    let _ = worker.thread.join();
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if stop.requested() {
            running.values().for_each(|worker| worker.stop.request());
        }
        let stalled = running.iter().filter(|(_, worker)| worker.progress.elapsed() >= self.stall_timeout);
        for index in stalled.map(|(index, _)| *index).collect::<Vec<_>>() {
            if let Some(worker) = running.remove(&index) {
                results[index] = Some(Err(self.leave_behind(worker)));
            }
        }
    }

    fn leave_behind(&self, worker: Worker) -> Failure {
        worker.stop.request();
        let reason = format!("no sign of progress for {:.1} s", self.stall_timeout.as_secs_f64());
        let failure = Failure { silo: worker.silo.clone(), round: worker.round, kind: FailureKind::Gone, reason };
        self.left_behind.lock().unwrap_or_else(PoisonError::into_inner).insert(worker.silo, worker.thread);
        failure
    }

    fn is_stuck(&self, silo: &SiloId) -> bool {
        let mut left_behind = self.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
        left_behind.retain(|_, thread| !thread.is_finished());
        left_behind.contains_key(silo)
    }
}

impl Transport for LocalTransport {
    fn silos(&self) -> Vec<SiloId> {
        self.trainers.keys().cloned().collect()
    }

    fn enrol(&self) -> Vec<Result<SiloProfile, Failure>> {
        let jobs = self.silos().into_iter().map(|silo| Job {
            silo,
            round: 0,
            work: Box::new(|trainer: &dyn Trainer, _: &dyn Observer, _: &Stop| trainer.enrol()),
        });
        self.run_all(jobs.collect(), &Deaf, &Stop::default())
    }

    fn exchange(&self, tasks: Vec<Task>, observer: &dyn Observer, stop: &Stop) -> Vec<Result<Update, Failure>> {
        let jobs = tasks.into_iter().map(|task| Job {
            silo: task.silo.clone(),
            round: task.round,
            work: Box::new(move |trainer: &dyn Trainer, observer: &dyn Observer, stop: &Stop| {
                trainer.run(&task, observer, stop)
            }),
        });
        self.run_all(jobs.collect(), observer, stop)
    }
}

type JobBody<T> = Box<dyn FnOnce(&dyn Trainer, &dyn Observer, &Stop) -> Result<T, Failure> + Send>;

struct Job<T> {
    silo: SiloId,
    round: u32,
    work: JobBody<T>,
}

struct Worker {
    silo: SiloId,
    round: u32,
    thread: JoinHandle<()>,
    stop: Stop,
    progress: Instant,
}

enum Message<T> {
    Event(Box<Event>),
    Done(Result<T, Failure>),
}

/// Hands a trainer's events to the thread that waits, so that a thread left behind holds on to no observer.
struct Forward<T> {
    index: usize,
    sender: SyncSender<(usize, Message<T>)>,
}

impl<T> Forward<T> {
    /// Nobody listens any more once the exchange is over; then what a silo says is lost on purpose.
    fn send(&self, message: Message<T>) {
        let _ = self.sender.send((self.index, message));
    }
}

impl<T: Send> Observer for Forward<T> {
    fn observe(&self, event: &Event) {
        self.send(Message::Event(Box::new(event.clone())));
    }
}

struct Deaf;

impl Observer for Deaf {
    fn observe(&self, _: &Event) {}
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
