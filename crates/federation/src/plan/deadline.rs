//! The deadline of a round where nobody gives one: that with which the federation is soonest done.
//!
//! A longer round lets silos train more weights at higher ranks on larger batches or for more steps, so fewer rounds are
//! needed. What a silo's plan brings forward in a round is taken to be the part of the importance that it trains, Σ_m
//! I_m·u(r_m), and a tenth for the head, which always trains. Silos' data differ, so what a silo holds is learnt from its own
//! updates above all, in 1/progress_i rounds; where it makes k times the steps of a round, in 1/k^γ of them. The noise of
//! small batches is the merged update's: it averages out over the silos of a round, and below a critical batch size B the
//! steps to a target fall as 1 + B·Σ_i w_i²/b_i (McCandlish et al., arXiv 1812.06162, with the batch that these silos make
//! together). B is not known before training; the largest batch of the menu stands for it. The time to a target over
//! everybody's data is then in proportion to T·(1 + B·Σ_i w_i²/b_i)·Σ_i w_i/(progress_i·k_i^γ), each at its best within T.
//! The deadlines between what the slowest silo needs for its smallest plan and what all need for their best are compared
//! by it.

use super::choose::{Choice, Menu, Shortfall, best, feasible};
use super::{DEADLINE_SHARE, Deadline, Enrolled, PlanError, PlanSettings, View, refusal, smallest_plan};
use crate::round::share_of;
use rayon::prelude::*;

/// What the head alone brings forward, of what all weights together do. The project's own number.
const HEAD: f64 = 0.1;
/// γ: k times the steps of a round bring a silo k^γ times as far. The project's own number, measured (`docs/planner.md`).
const STEP_POWER: f64 = 0.85;
/// Deadlines that are compared at a time.
const DEADLINES: usize = 9;
/// Silos that stand for all where there are more: every so many-th.
const SILOS: usize = 48;

/// Seconds of a round as the settings have it, and how they came about.
///
/// # Errors
/// When a silo has no plan however long a round lasts, or not all rounds can end in time.
pub(super) fn of(
    enrolled: &Enrolled<'_>,
    views: &[View<'_>],
    settings: &PlanSettings,
) -> Result<(f64, String), PlanError> {
    let deadline = match settings.deadline {
        Deadline::Seconds(seconds) => (seconds, "given in the configuration".to_string()),
        Deadline::Auto => {
            let kept = PlanSettings { menu: keeping(&settings.menu), ..settings.clone() };
            let fits = |view: &View<'_>| feasible(&enrolled.problem(view, &kept, f64::INFINITY)).is_ok();
            let offered = |view| (view, if fits(view) { &kept } else { settings });
            soonest(enrolled, &views.iter().map(offered).collect::<Vec<_>>())?
        }
    };
    let Some(finish) = settings.finish else { return Ok(deadline) };
    let slower = |aim_s| {
        let of = |view| match feasible(&enrolled.problem(view, settings, aim_s)) {
            Err(Shortfall::Time { needs }) => Some((view.profile.silo.clone(), needs)),
            // Another shortfall is told where it is planned for.
            _ => None,
        };
        views.iter().filter_map(of).collect()
    };
    finish.cut(deadline, slower, &smallest_plan(enrolled.tuning))
}

/// The time to a target with rounds of so many seconds, up to a factor that is the same for all settings of a federation.
///
/// # Errors
/// When a silo has no plan within them.
pub(super) fn needed(
    enrolled: &Enrolled<'_>,
    views: &[View<'_>],
    settings: &PlanSettings,
    deadline_s: f64,
) -> Result<f64, PlanError> {
    let aim_s = deadline_s * DEADLINE_SHARE;
    for view in views {
        let problem = enrolled.problem(view, settings, aim_s);
        feasible(&problem).map_err(|lack| refusal(&problem, deadline_s, lack))?;
    }
    let offered: Vec<Offered<'_>> = views.iter().map(|view| (view, settings)).collect();
    let sample = Sample::of(enrolled, &offered);
    Ok(deadline_s * sample.rounds(&sample.plans(aim_s)?))
}

/// The menu with activations kept, unless it says that they must not be.
fn keeping(menu: &Menu) -> Menu {
    let recompute = if menu.recompute.contains(&false) { vec![false] } else { menu.recompute.clone() };
    Menu { recompute, ..menu.clone() }
}

/// A silo, and the settings that it is planned for by.
type Offered<'a> = (&'a View<'a>, &'a PlanSettings);

/// Silos that stand for all.
struct Sample<'a> {
    enrolled: &'a Enrolled<'a>,
    some: Vec<Offered<'a>>,
    /// How many of all take part in a round.
    cohort: usize,
}

impl<'a> Sample<'a> {
    fn of(enrolled: &'a Enrolled<'_>, all: &[Offered<'a>]) -> Self {
        let fraction = all.first().map_or(1.0, |(_, settings)| settings.cohort_fraction);
        let some = all.iter().copied().step_by(all.len().div_ceil(SILOS)).collect();
        Self { enrolled, some, cohort: share_of(all.len(), fraction) }
    }

    /// Their best plans within so many seconds.
    fn plans(&self, seconds: f64) -> Result<Vec<Choice>, PlanError> {
        let of = |&(view, settings): &Offered<'_>| {
            let problem = self.enrolled.problem(view, settings, seconds);
            best(&view.weights, &problem).map(|found| found.best).map_err(|lack| refusal(&problem, seconds, lack))
        };
        // Gathered first, so that the same silo's refusal is told however threads take turns.
        self.some.par_iter().map(of).collect::<Vec<_>>().into_iter().collect()
    }

    /// Rounds to a target with these plans, up to a factor: (1 + B·Σ w_i²/b_i)·Σ w_i/(progress_i·k_i^γ). Where some silos stand
    /// for all, or not all take part in a round, the sum of the squares is that of as many silos like these as do.
    fn rounds(&self, plans: &[Choice]) -> f64 {
        let examples = |view: &View<'_>| view.profile.examples.max(1) as f64;
        let all: f64 = self.some.iter().map(|(view, _)| examples(view)).sum();
        let (mut rounds, mut noise) = (0.0, 0.0);
        for (plan, (view, settings)) in plans.iter().zip(&self.some) {
            let weight = examples(view) / all;
            rounds += weight / progress(plan, &settings.menu);
            let critical = settings.menu.batch_sizes.last().copied().unwrap_or(1) as f64;
            noise += weight * weight * critical / plan.frame.batch_size as f64;
        }
        rounds * (1.0 + noise * self.some.len() as f64 / self.cohort as f64)
    }
}

/// Seconds of a round with which the federation is soonest done, and how they came about.
///
/// # Errors
/// When a silo has no plan however long a round lasts.
fn soonest(enrolled: &Enrolled<'_>, silos: &[Offered<'_>]) -> Result<(f64, String), PlanError> {
    let sample = Sample::of(enrolled, silos);
    let mut slowest = (0.0, None);
    for &(view, settings) in silos {
        let problem = enrolled.problem(view, settings, 0.0);
        match feasible(&problem) {
            Err(Shortfall::Time { needs }) if needs > slowest.0 => slowest = (needs, Some(&view.profile.silo)),
            Err(Shortfall::Time { .. }) | Ok(()) => {}
            Err(shortfall) => return Err(refusal(&problem, f64::INFINITY, shortfall)),
        }
    }
    // What just fits must not fail by rounding.
    let least_s = slowest.0 * (1.0 + 1e-9);
    let unbound = sample.plans(f64::INFINITY)?;
    let most_s = unbound.iter().map(|choice| choice.time.total()).fold(least_s, f64::max);
    let longest = most_s * sample.rounds(&unbound);
    let (mut shortest, mut soonest) = (longest, (most_s, longest));
    let mut span = (least_s, most_s);
    // All over the range, and again between the neighbours of the best one.
    for _ in 0..2 {
        let (from, to) = span;
        let ratio = (to / from).powf(1.0 / (DEADLINES - 1) as f64);
        for step in 0..DEADLINES {
            let seconds = from * ratio.powf(step as f64);
            let needed = seconds * sample.rounds(&sample.plans(seconds)?);
            if seconds == least_s {
                shortest = needed;
            }
            if needed < soonest.1 {
                soonest = (seconds, needed);
            }
        }
        span = ((soonest.0 / ratio).max(least_s), (soonest.0 * ratio).min(most_s));
    }
    let (seconds, needed) = soonest;
    let margin = format!("{:.0} % is left as a margin", 100.0 * (1.0 - DEADLINE_SHARE));
    let other = |name: &str, seconds: f64, longer: f64| {
        format!("; {name} ({seconds:.1} s) would take {:.0} % longer to any target", 100.0 * (longer / needed - 1.0))
    };
    let mut reason =
        format!("automatic: with rounds of {seconds:.1} s the federation is expected to be soonest done; {margin}");
    let whose = slowest.1.map_or_else(String::new, |silo| format!(" that leave silo {silo} its smallest plan"));
    if seconds > least_s {
        reason += &other(&format!("the shortest{whose}"), least_s, shortest);
    } else {
        reason += &format!("; they are the shortest{whose}");
    }
    if seconds < most_s {
        reason += &other("as long as every silo's best plan takes", most_s, longest);
    }
    Ok((seconds / DEADLINE_SHARE, reason))
}

/// What a plan brings a silo forward in a round: from [`HEAD`] to 1, times k^γ.
fn progress(choice: &Choice, menu: &Menu) -> f64 {
    let trained = choice.objective - menu.frame_term(choice.frame);
    (HEAD + (1.0 - HEAD) * trained) * (choice.frame.step_multiple as f64).powf(STEP_POWER)
}
