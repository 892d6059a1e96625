//! Plain lines without colours or times, for a file, a pipe or a log.

use super::{Reporter, format, plan};
use fedpipe_core::{Event, Failure, RoundRecord, SiloId, SiloPlan, SiloProfile};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Turns events into lines; keeps what later lines need.
#[derive(Debug, Default)]
pub struct Narrator {
    profiles: BTreeMap<SiloId, SiloProfile>,
    /// Whether the importance probe is over.
    identified: bool,
    rounds: u32,
    clock_s: f64,
}

impl Narrator {
    /// What there is to say about an event; empty for most.
    pub fn tell(&mut self, event: &Event) -> String {
        match event {
            Event::Started { method, seed, rounds, completed, clock_s } => {
                (self.rounds, self.clock_s) = (*rounds, *clock_s);
                match completed {
                    0 => format!("{method}: {rounds} rounds, seed {seed}"),
                    _ => format!("{method}: going on after round {completed} of {rounds}, seed {seed}"),
                }
            }
            Event::Profiled { device, measured_in_s: Some(seconds) } => {
                format!("{device}: profiled in {}", format::seconds(*seconds))
            }
            Event::Profiled { device, measured_in_s: None } => format!("{device}: profiled before"),
            Event::Enrolled(profile) => {
                self.profiles.insert(profile.silo.clone(), profile.clone());
                enrolled(profile)
            }
            // What comes after the probe is told when it is over.
            Event::RoundStarted { round: 0, cohort } if !self.identified => {
                format!("importance probe on {} silos", cohort.len())
            }
            Event::LearningRateTried { learning_rate, steps, loss } => {
                let loss = loss.map_or("nothing to merge".into(), |loss| format!("loss {loss:.3}"));
                format!("learning rate {learning_rate} tried for {steps} steps: {loss}")
            }
            Event::Identified { importance } => {
                self.identified = true;
                let most = importance.iter().max_by(|a, b| a.1.total_cmp(b.1));
                let most = most.map_or(String::new(), |(weight, score)| {
                    format!("; most important: {weight} with {:.1} %", 100.0 * score)
                });
                format!("importance of {} weights is known{most}", importance.len())
            }
            Event::Planned(plan) => plan::brief(plan, &self.profiles).trim_end().to_string(),
            Event::Replanned { round, silo, reason, plan, .. } => replanned(*round, silo, reason, plan),
            Event::RoundFinished(record) => self.round(record),
            Event::SiloFailed(failure) => failed(failure),
            Event::Warning { message } => format!("warning: {message}"),
            Event::Evaluated(metrics) => {
                format!("final: {metrics} on {} examples", format::count(metrics.examples))
            }
            Event::Finished { rounds, stopped: true } => format!("stopped after {rounds} of {} rounds", self.rounds),
            Event::Finished { rounds, stopped: false } => format!("finished {rounds} rounds"),
            Event::RoundStarted { .. } | Event::Step { .. } | Event::Checkpointed { .. } => String::new(),
        }
    }

    fn round(&mut self, record: &RoundRecord) -> String {
        self.clock_s += record.seconds;
        let quality = record.metrics.as_ref().map_or(String::new(), |metrics| format!("{metrics}; "));
        let losses: Vec<String> =
            record.silos.iter().map(|silo| format!("{} {:.3}", silo.silo, silo.measured.loss)).collect();
        let losses = if losses.is_empty() { "no silo delivered".to_string() } else { losses.join(", ") };
        let merged = if record.merged { "" } else { "; not merged: too few silos delivered" };
        format!(
            "round {}/{}: {quality}training loss {losses}; {} on the clock, {} in all{merged}",
            record.round,
            self.rounds,
            format::seconds(record.seconds),
            format::seconds(self.clock_s),
        )
    }
}

fn enrolled(profile: &SiloProfile) -> String {
    format!(
        "silo {}: {} examples, {} MiB, speed {}, {} Mbit/s",
        profile.silo,
        format::count(profile.examples),
        profile.memory_mib,
        profile.speed,
        profile.bandwidth_mbps
    )
}

fn replanned(round: u32, silo: &SiloId, reason: &str, plan: &SiloPlan) -> String {
    format!(
        "silo {silo} is planned again after round {round}: {reason}; now {} steps of {} texts over {}, {} weights adapted, {} a \
         round",
        plan.local_steps,
        plan.batch_size,
        plan.base_format,
        plan.ranks.len(),
        format::seconds(plan.time.total())
    )
}

fn failed(failure: &Failure) -> String {
    format!("warning: {failure}")
}

/// Writes every line.
pub struct Lines {
    narrator: Narrator,
    out: Box<dyn Write + Send>,
}

impl Lines {
    /// Lines on `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { narrator: Narrator::default(), out }
    }
}

impl Reporter for Lines {
    fn report(&mut self, event: &Event) -> io::Result<()> {
        match self.narrator.tell(event).as_str() {
            "" => Ok(()),
            line => writeln!(self.out, "{line}"),
        }
    }
}

/// Writes nothing but warnings and failures.
pub struct Quiet {
    out: Box<dyn Write + Send>,
}

impl Quiet {
    /// Warnings on `out`.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out }
    }
}

impl Reporter for Quiet {
    fn report(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::SiloFailed(failure) => writeln!(self.out, "{}", failed(failure)),
            Event::Warning { message } => writeln!(self.out, "warning: {message}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn output(reporter: impl FnOnce(Box<dyn Write + Send>) -> Box<dyn Reporter>) -> String {
        let out = Shared::default();
        let mut reporter = reporter(Box::new(out.clone()));
        fixture::events().iter().for_each(|event| reporter.report(event).unwrap());
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_run_in_lines_reads_well() {
        insta::assert_snapshot!(output(|out| Box::new(Lines::new(out))));
    }

    #[test]
    fn quiet_leaves_warnings_and_failures() {
        let text = output(|out| Box::new(Quiet::new(out)));
        assert_eq!(
            text,
            "warning: silo edge in round 3: 21.4 s are more than the deadline of 18.0 s\n\
             warning: the disk is nearly full\n"
        );
    }
}
