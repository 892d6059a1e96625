//! The deadline of a round where nobody gives one: that with which the federation is soonest done.
//!
//! A longer round lets silos train more weights at higher ranks on larger batches, so fewer rounds are needed. What a silo's
//! plan brings forward in a round is taken to be Σ_m I_m·u(r_m) — the part of the importance that it trains — times
//! 1/(1 + B/b): below a critical batch size B, the steps to a target fall as 1 + B/b (McCandlish et al., arXiv 1812.06162).
//! B is not known before training; the largest batch of the menu stands for it. The time to any target is then in
//! proportion to T/Σ_i w_i·progress_i(T), and the deadlines between what the slowest silo needs for its smallest plan and
//! what all need for their best are compared by it.

use super::choose::{Choice, Menu, Shortfall, SiloProblem, best, feasible, format_penalty};
use super::{DEADLINE_SHARE, PlanError, View, refusal};

/// Deadlines that are compared.
const DEADLINES: usize = 9;
/// Silos that stand for all where there are more: every so many-th.
const SILOS: usize = 48;

/// Seconds, and how they came about. `problem` gives that of a silo within a time.
///
/// # Errors
/// When a silo has no plan however long a round lasts.
pub(super) fn soonest<'a>(
    views: &'a [View<'a>],
    problem: impl Fn(&'a View<'a>, f64) -> SiloProblem<'a>,
) -> Result<(f64, String), PlanError> {
    let mut slowest = (0.0, None);
    for view in views {
        let problem = problem(view, 0.0);
        match feasible(&problem) {
            Err(Shortfall::Time { needs }) if needs > slowest.0 => slowest = (needs, Some(&view.profile.silo)),
            Err(Shortfall::Time { .. }) | Ok(()) => {}
            Err(shortfall) => return Err(refusal(&problem, f64::INFINITY, shortfall)),
        }
    }
    // What just fits must not fail by rounding.
    let least_s = slowest.0 * (1.0 + 1e-9);
    let some: Vec<&'a View<'a>> = views.iter().step_by(views.len().div_ceil(SILOS)).collect();
    let within = |seconds: f64| -> Result<Vec<Choice>, PlanError> {
        let of = |view: &&'a View<'a>| {
            let problem = problem(view, seconds);
            best(&view.weights, &problem).map(|found| found.best).map_err(|lack| refusal(&problem, seconds, lack))
        };
        some.iter().map(of).collect()
    };
    let examples = |view: &View<'_>| view.profile.examples.max(1) as f64;
    let all: f64 = some.iter().map(|view| examples(view)).sum();
    let brings = |choices: &[Choice]| -> f64 {
        let of =
            |(choice, view): (&Choice, &&'a View<'a>)| examples(view) / all * progress(choice, problem(view, 0.0).menu);
        choices.iter().zip(&some).map(of).sum()
    };
    let unbound = within(f64::INFINITY)?;
    let most_s = unbound.iter().map(|choice| choice.time.total()).fold(least_s, f64::max);
    let mut soonest: Option<(f64, f64)> = None;
    for step in 0..DEADLINES {
        let seconds = least_s * (most_s / least_s).powf(step as f64 / (DEADLINES - 1) as f64);
        let needed = seconds / brings(&within(seconds)?);
        if needed.is_finite() && soonest.is_none_or(|(_, least)| needed < least) {
            soonest = Some((seconds, needed));
        }
    }
    let margin = format!("{:.0} % is left as a margin", 100.0 * (1.0 - DEADLINE_SHARE));
    let Some((seconds, needed)) = soonest else {
        // Nobody trains a weight, however long.
        return Ok((
            most_s / DEADLINE_SHARE,
            format!("automatic: what the slowest silo needs, {most_s:.1} s; {margin}"),
        ));
    };
    let other = |name: &str, seconds: f64| -> Result<String, PlanError> {
        let longer = seconds / brings(&within(seconds)?) / needed - 1.0;
        Ok(format!("{name} ({seconds:.1} s) would take {:.0} % longer to any target", 100.0 * longer))
    };
    let mut reason =
        format!("automatic: with rounds of {seconds:.1} s the federation is expected to be soonest done; {margin}");
    let whose = slowest.1.map_or_else(String::new, |silo| format!(" that leave silo {silo} its smallest plan"));
    if seconds > least_s {
        reason += &format!("; {}", other(&format!("the shortest{whose}"), least_s)?);
    } else {
        reason += &format!("; they are the shortest{whose}");
    }
    if seconds < most_s {
        reason += &format!("; {}", other("as long as every silo's best plan takes", most_s)?);
    }
    Ok((seconds / DEADLINE_SHARE, reason))
}

/// What a plan brings a silo forward in a round, from 0 to 1/2.
fn progress(choice: &Choice, menu: &Menu) -> f64 {
    let frame = choice.frame;
    let trained = choice.objective - menu.batch_term(frame.batch_size) + format_penalty(frame.base_format);
    let critical = menu.batch_sizes.last().copied().unwrap_or(1) as f64;
    trained / (1.0 + critical / frame.batch_size as f64)
}
