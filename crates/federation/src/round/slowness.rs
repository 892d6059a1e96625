//! What rounds say of a silo's speed, and when that is reason to plan it again.
//!
//! A round's seconds are held against what the cost model says of the work that was really done: its tokens, its ranks, its
//! bytes ([`modelled_s`]). Long texts and small downloads are thus no news. One number stands for the whole silo, processor
//! and link alike: the clock does not tell them apart, and a plan made for both at this pace takes as long as the last one did.

use crate::simulate::modelled_s;
use fedpipe_core::{ModelSpec, SiloProfile, Slowness, Task, Update, Work};

/// A round whose slowness is further than this from the plan's, as a ratio, is off the plan.
const TOLERATED: f64 = 1.25;
/// Rounds that are remembered, and rounds in a row off the plan, to the same side, that make a new one.
const ROUNDS: usize = 2;
/// Rounds from one new plan of a silo to the next.
const PAUSE: u32 = 3;
/// Rounding.
const EQUAL: f64 = 1.0 + 1e-6;
/// No measurement moves a plan further than this.
const LIMITS: (f64, f64) = (1e-3, 1e3);

/// Seconds on the clock over those that the profile foresees; `None` where it foresees none.
pub(super) fn of(
    model: &ModelSpec,
    profile: &SiloProfile,
    task: &Task,
    update: &Update,
    (bytes, seconds): (u64, f64),
) -> Option<f64> {
    let Work::Train(_) = &task.work else { return None };
    let foreseen = modelled_s(model, profile, &task.work, &update.measured, bytes)?;
    let slowness = seconds / foreseen;
    (slowness.is_finite() && slowness > 0.0).then(|| slowness.clamp(LIMITS.0, LIMITS.1))
}

/// Takes a round in. A silo that is late and slower than planned is off the plan however little that is: the deadline leaves
/// plans a margin that is smaller than what is tolerated.
pub(super) fn observe(slowness: &mut Slowness, round: f64, late: bool) {
    slowness.recent.push(round);
    let forgotten = slowness.recent.len().saturating_sub(ROUNDS);
    slowness.recent.drain(..forgotten);
    let planned = slowness.planned;
    slowness.off = if round > planned * TOLERATED || late && round > planned * EQUAL {
        slowness.off.max(0) + 1
    } else if round < planned / TOLERATED {
        slowness.off.min(0) - 1
    } else {
        0
    };
}

/// Whether the silo is to be planned again after `round`.
pub(super) fn is_due(slowness: &Slowness, round: u32) -> bool {
    let rested = slowness.replanned.is_none_or(|last| round >= last.saturating_add(PAUSE));
    slowness.off.unsigned_abs() as usize >= ROUNDS && rested
}

/// The profile at a pace that is so many times as slow.
pub(super) fn reckoned(profile: &SiloProfile, slowness: f64) -> SiloProfile {
    SiloProfile {
        speed: profile.speed / slowness,
        bandwidth_mbps: profile.bandwidth_mbps / slowness,
        ..profile.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A silo of so many rounds, then whether it is due after each.
    fn story(slowness: &mut Slowness, from: u32, rounds: &[(f64, bool)]) -> Vec<bool> {
        let mut due = Vec::new();
        for (round, &(factor, late)) in (from..).zip(rounds) {
            observe(slowness, factor, late);
            due.push(is_due(slowness, round));
        }
        due
    }

    #[test]
    fn two_rounds_in_a_row_to_the_same_side_make_a_new_plan() {
        let due = |rounds: &[(f64, bool)]| story(&mut Slowness::default(), 1, rounds);
        assert_eq!(due(&[(1.0, false), (5.0, true), (5.0, true)]), [false, false, true]);
        assert_eq!(due(&[(1.3, false), (1.0, false), (1.3, false), (1.3, false)]), [false, false, false, true]);
        assert_eq!(due(&[(1.3, false), (0.7, false), (0.7, false)]), [false, false, true], "sides are counted apart");
        assert_eq!(due(&[(1.2, false), (1.2, false), (0.85, false), (0.85, false)]), [false; 4], "that is tolerated");
    }

    /// Plans aim at 90 % of the deadline: what is 15 % slower than planned may be late for ever.
    #[test]
    fn lateness_counts_however_little_slower_a_silo_is_but_not_alone() {
        let due = |factor| story(&mut Slowness::default(), 1, &[(factor, true), (factor, true)]);
        assert_eq!(due(1.15), [false, true]);
        assert_eq!(due(1.0), [false, false], "longer texts than usual make nobody slower");
    }

    #[test]
    fn a_silo_is_planned_again_every_third_round_at_most_and_may_come_back() {
        let mut slowness = Slowness { replanned: Some(5), planned: 5.0, ..Slowness::default() };
        let due = story(&mut slowness, 6, &[(1.0, false), (1.0, false), (1.0, false)]);
        assert_eq!(due, [false, false, true], "after rounds 6, 7 and 8");
        assert_eq!((slowness.learned(), slowness.off), (1.0, -3));
    }

    #[test]
    fn the_mean_of_the_last_two_rounds_is_what_is_learned() {
        let mut slowness = Slowness::default();
        assert_eq!(slowness.learned(), 1.0);
        story(&mut slowness, 1, &[(9.0, true), (2.0, true), (3.0, true)]);
        assert_eq!((slowness.learned(), slowness.recent.len()), (2.5, 2));
    }
}
