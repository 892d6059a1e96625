//! When a whole run has to be over.

use super::{DEADLINE_SHARE, PlanError};
use fedpipe_core::SiloId;

/// A time by which all rounds must have ended. The rule is a limit for every round alike: hours · 3600 / rounds seconds on the
/// run's clock are the most that its deadline may be. The importance probe before the first round is not counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finish {
    /// Hours on the run's clock.
    pub within_h: f64,
    /// Rounds of the run.
    pub rounds: u32,
}

impl Finish {
    /// Seconds that a round may last.
    pub fn round_s(self) -> f64 {
        self.within_h * 3600.0 / f64::from(self.rounds.max(1))
    }

    /// A deadline in seconds and its reason, cut to what a round may last; `slower` gives the silos whose smallest plan takes
    /// longer than the seconds that plans aim at, and how long.
    pub(super) fn cut(
        self,
        (deadline_s, reason): (f64, String),
        slower: impl Fn(f64) -> Vec<(SiloId, f64)>,
        smallest: &str,
    ) -> Result<(f64, String), PlanError> {
        let Self { within_h, rounds } = self;
        let round_s = self.round_s();
        if deadline_s <= round_s {
            let all_h = deadline_s * f64::from(rounds) / 3600.0;
            return Ok((
                deadline_s,
                format!("{reason}; {rounds} rounds of it take {all_h:.2} of {within_h} h at most"),
            ));
        }
        let aim_s = round_s * DEADLINE_SHARE;
        // What the slowest needs does for all.
        if let Some((silo, needs_s)) = slower(aim_s).into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
            let smallest = smallest.to_string();
            return Err(PlanError::Finish {
                silo,
                smallest,
                needs_s,
                aim_s,
                finish: self,
                enough: self.enough(needs_s),
            });
        }
        Ok((
            round_s,
            format!("{reason}; cut to {round_s:.1} s, which {rounds} rounds within {within_h} h leave for each"),
        ))
    }

    /// What would do for a silo whose smallest plan takes `needs_s` seconds.
    fn enough(self, needs_s: f64) -> String {
        let round_s = needs_s / DEADLINE_SHARE;
        let hours = (round_s * f64::from(self.rounds) / 36.0).ceil() / 100.0;
        let rounds = (self.within_h * 3600.0 / round_s).floor();
        let fewer = if rounds >= 1.0 { format!(", lower rounds to {rounds}") } else { String::new() };
        format!("raise finish_within_h to at least {hours}{fewer}")
    }
}
