//! Bars on a terminal: one for the rounds, one for the steps of every silo at work.

use super::Reporter;
use super::lines::Narrator;
use fedpipe_core::{Event, SiloId};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io;

/// Bars below, lines above.
pub struct Progress {
    narrator: Narrator,
    bars: MultiProgress,
    rounds: ProgressBar,
    silos: BTreeMap<SiloId, ProgressBar>,
}

impl Progress {
    /// Bars on standard error.
    pub fn new() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    fn on(target: ProgressDrawTarget) -> Self {
        Self {
            narrator: Narrator::default(),
            bars: MultiProgress::with_draw_target(target),
            rounds: ProgressBar::hidden(),
            silos: BTreeMap::new(),
        }
    }

    fn start_round(&mut self, round: u32, cohort: &[(SiloId, usize)]) {
        self.end_round();
        self.rounds.set_message(if round == 0 { "before the first round".into() } else { format!("round {round}") });
        let width = cohort.iter().map(|(silo, _)| silo.as_str().len()).max().unwrap_or(0);
        for (silo, steps) in cohort {
            let bar = self.bars.add(ProgressBar::new(*steps as u64));
            bar.set_style(style("  {prefix} [{bar:24}] {pos:>4}/{len:4} {msg}"));
            bar.set_prefix(format!("{silo:<width$}"));
            bar.set_message("waiting");
            bar.tick();
            self.silos.insert(silo.clone(), bar);
        }
    }

    fn end_round(&mut self) {
        for (_, bar) in std::mem::take(&mut self.silos) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }

    fn draw(&mut self, event: &Event) {
        match event {
            Event::Started { rounds, completed, .. } => {
                self.rounds = self.bars.insert(0, ProgressBar::new(u64::from(*rounds)));
                self.rounds.set_style(style("[{bar:28}] {pos}/{len} rounds  {elapsed}  {msg}"));
                self.rounds.set_position(u64::from(*completed));
                self.rounds.tick();
            }
            Event::RoundStarted { round, cohort } => self.start_round(*round, cohort),
            Event::Step { silo, step, steps, loss, .. } => {
                if let Some(bar) = self.silos.get(silo) {
                    bar.set_length(*steps as u64);
                    bar.set_position(*step as u64);
                    bar.set_message(format!("loss {loss:.3}"));
                }
            }
            Event::SiloFailed(failure) => {
                if let Some(bar) = self.silos.get(&failure.silo) {
                    bar.abandon_with_message("failed");
                }
            }
            Event::Identified { .. } => self.end_round(),
            Event::RoundFinished(record) => {
                self.end_round();
                self.rounds.set_position(u64::from(record.round));
                let quality = record.metrics.as_ref().map(ToString::to_string);
                self.rounds.set_message(quality.unwrap_or_default());
            }
            Event::Finished { .. } => {
                self.end_round();
                self.rounds.finish_and_clear();
            }
            _ => {}
        }
    }
}

/// The template is a constant of this file, and a test draws each; a plain bar stands in for a broken one.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Reporter for Progress {
    fn report(&mut self, event: &Event) -> io::Result<()> {
        self.draw(event);
        match self.narrator.tell(event).as_str() {
            "" => Ok(()),
            lines => self.bars.println(lines),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use indicatif::InMemoryTerm;

    fn screen_after(stop: impl Fn(&Event) -> bool) -> String {
        let term = InMemoryTerm::new(80, 100);
        let mut progress = Progress::on(ProgressDrawTarget::term_like(Box::new(term.clone())));
        for event in fixture::events() {
            progress.report(&event).unwrap();
            if stop(&event) {
                break;
            }
        }
        // Bars are drawn a few times a second only; the last state has to be asked for.
        progress.silos.values().chain([&progress.rounds]).for_each(ProgressBar::tick);
        term.contents()
    }

    #[test]
    fn a_round_in_progress_shows_a_bar_for_every_silo() {
        let screen = screen_after(
            |event| matches!(event, Event::Step { round: 2, silo, step: 1, .. } if silo.as_str() == "clinic"),
        );
        let bars: Vec<&str> = screen.lines().rev().take(5).collect();
        assert!(bars[4].contains("1/8 rounds") && bars[4].contains("round 2"), "{screen}");
        assert!(bars[3].contains("bank") && bars[3].contains("2/2") && bars[3].contains("loss 1.500"), "{screen}");
        assert!(bars[2].contains("clinic") && bars[2].contains("1/2"), "{screen}");
        assert!(bars[1].contains("edge") && bars[1].contains("waiting"), "{screen}");
        assert!(screen.contains("round 1/8: accuracy"), "{screen}");
    }

    #[test]
    fn the_end_leaves_lines_and_no_bars() {
        let screen = screen_after(|event| matches!(event, Event::Finished { .. }));
        assert!(screen.contains("finished 8 rounds") && !screen.contains("["), "{screen}");
    }
}
