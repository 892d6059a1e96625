//! What a run says: reporters fold its events, each for itself, and none of them can break it.

mod events;
pub(crate) mod format;
pub mod heat;
pub mod html;
mod lines;
mod loading;
pub mod plan;
mod progress;
mod tensorboard;

pub use loading::Loading;

use crate::run_dir::RunDir;
use fedpipe_core::{Event, Observer};
use std::any::Any;
use std::io::{self, IsTerminal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// A fold over the events of a run.
pub trait Reporter: Send {
    /// Takes one event in.
    ///
    /// # Errors
    /// When it cannot report; it is not asked again.
    fn report(&mut self, event: &Event) -> io::Result<()>;
}

/// What reporters are opened with.
#[derive(Debug)]
pub struct ReportContext<'a> {
    /// Where the run's files go.
    pub run: &'a RunDir,
    /// Say nothing but warnings and failures.
    pub quiet: bool,
}

/// How a reporter is opened.
type Open = fn(&ReportContext<'_>) -> io::Result<Box<dyn Reporter>>;

/// Every reporter by its name, in the order in which they hear of an event.
const REPORTERS: &[(&str, Open)] =
    &[("terminal", terminal), ("events.jsonl", events::open), ("tensorboard", tensorboard::open)];

fn terminal(context: &ReportContext<'_>) -> io::Result<Box<dyn Reporter>> {
    Ok(match (context.quiet, io::stderr().is_terminal()) {
        (true, _) => Box::new(lines::Quiet::new(Box::new(io::stderr()))),
        (false, true) => Box::new(progress::Progress::new()),
        (false, false) => Box::new(lines::Lines::new(Box::new(io::stderr()))),
    })
}

/// Hands every event to every reporter. One that fails or panics is dropped with a warning to the others.
pub struct Fanout(Mutex<Vec<(&'static str, Box<dyn Reporter>)>>);

impl Fanout {
    /// All reporters of a run; one that cannot be opened is left out with a warning to the others.
    pub fn open(context: &ReportContext<'_>) -> Self {
        let mut reporters = Vec::new();
        let mut warnings = Vec::new();
        for &(name, open) in REPORTERS {
            match open(context) {
                Ok(reporter) => reporters.push((name, reporter)),
                Err(error) => warnings.push(dropped(name, &error.to_string())),
            }
        }
        let fanout = Self::new(reporters);
        warnings.iter().for_each(|warning| fanout.observe(warning));
        fanout
    }

    /// These reporters by name.
    pub fn new(reporters: Vec<(&'static str, Box<dyn Reporter>)>) -> Self {
        Self(Mutex::new(reporters))
    }
}

impl Observer for Fanout {
    fn observe(&self, event: &Event) {
        let mut reporters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = vec![event.clone()];
        // Each warning comes from a reporter that is gone by then, so this ends.
        while let Some(event) = pending.pop() {
            reporters.retain_mut(|(name, reporter)| match tell(reporter.as_mut(), &event) {
                Ok(()) => true,
                Err(reason) => {
                    pending.push(dropped(name, &reason));
                    false
                }
            });
        }
    }
}

fn tell(reporter: &mut dyn Reporter, event: &Event) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| reporter.report(event))) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("it panicked: {}", panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn dropped(name: &str, reason: &str) -> Event {
    Event::Warning { message: format!("the reporter `{name}` is left out from here on: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it hears, and fails or panics at its n-th event.
    struct Flaky {
        heard: Arc<AtomicUsize>,
        fails_at: usize,
        panics: bool,
    }

    impl Reporter for Flaky {
        fn report(&mut self, _: &Event) -> io::Result<()> {
            let heard = self.heard.fetch_add(1, Ordering::SeqCst) + 1;
            match heard == self.fails_at {
                true if self.panics => panic!("a bug"),
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    #[derive(Clone, Default)]
    struct Keeper(Arc<Mutex<Vec<Event>>>);

    impl Reporter for Keeper {
        fn report(&mut self, event: &Event) -> io::Result<()> {
            self.0.lock().unwrap().push(event.clone());
            Ok(())
        }
    }

    fn warning(text: &str) -> Event {
        Event::Warning { message: text.into() }
    }

    #[test]
    fn a_reporter_that_fails_is_dropped_once_and_the_others_hear_of_it() {
        let keeper = Keeper::default();
        let (failing, panicking) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let fanout = Fanout::new(vec![
            ("full", Box::new(Flaky { heard: failing.clone(), fails_at: 2, panics: false })),
            ("buggy", Box::new(Flaky { heard: panicking.clone(), fails_at: 1, panics: true })),
            ("keeper", Box::new(keeper.clone())),
        ]);
        for text in ["a", "b", "c"] {
            fanout.observe(&warning(text));
        }
        let heard = keeper.0.lock().unwrap();
        let texts: Vec<&str> = heard
            .iter()
            .map(|event| match event {
                Event::Warning { message } => message.as_str(),
                _ => "something else",
            })
            .collect();
        assert_eq!(
            texts,
            [
                "a",
                "the reporter `buggy` is left out from here on: it panicked: a bug",
                "the reporter `full` is left out from here on: no storage space",
                "b",
                "c",
            ]
        );
        assert_eq!((failing.load(Ordering::SeqCst), panicking.load(Ordering::SeqCst)), (2, 1));
    }

    #[test]
    fn every_reporter_opens_and_takes_every_kind_of_event() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), "").unwrap();
        let run = RunDir::open(folder.path()).unwrap();
        let fanout = Fanout::open(&ReportContext { run: &run, quiet: true });
        crate::fixture::events().iter().for_each(|event| fanout.observe(event));
        assert_eq!(fanout.0.lock().unwrap().len(), REPORTERS.len());
    }
}
