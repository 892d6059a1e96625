//! The deadline of a round where nobody gives one: that with which the federation is soonest done.
//!
//! A longer round lets silos train more weights at higher ranks on larger batches, so fewer rounds are needed. What a silo's
//! plan brings forward in a round is taken to be the part of the importance that it trains, Σ_m I_m·u(r_m), and a tenth for
//! the head, which always trains, times 1/(1 + B/b): below a critical batch size B, the steps to a target fall as 1 + B/b
//! (McCandlish et al., arXiv 1812.06162). B is not known before training; the largest batch of the menu stands for it.
//! Silos' data differ, so what a silo holds is learnt from its own updates above all, in 1/progress_i rounds; the time to a
//! target over everybody's data is then in proportion to T·Σ_i w_i/progress_i(T). The deadlines between what the slowest silo
//! needs for its smallest plan and what all need for their best are compared by it.

use super::choose::{Choice, Menu, Shortfall, SiloProblem, best, feasible, format_penalty};
use super::{DEADLINE_SHARE, PlanError, View, refusal};

/// What the head alone brings forward, of what all weights together do. The project's own number.
const HEAD: f64 = 0.1;
/// Deadlines that are compared at a time.
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
    let rounds = |choices: &[Choice]| -> f64 {
        let of =
            |(choice, view): (&Choice, &&'a View<'a>)| examples(view) / all / progress(choice, problem(view, 0.0).menu);
        choices.iter().zip(&some).map(of).sum()
    };
    let unbound = within(f64::INFINITY)?;
    let most_s = unbound.iter().map(|choice| choice.time.total()).fold(least_s, f64::max);
    let mut soonest = (most_s, f64::INFINITY);
    let mut span = (least_s, most_s);
    // All over the range, and again between the neighbours of the best one.
    for _ in 0..2 {
        let (from, to) = span;
        let ratio = (to / from).powf(1.0 / (DEADLINES - 1) as f64);
        for step in 0..DEADLINES {
            let seconds = from * ratio.powf(step as f64);
            let needed = seconds * rounds(&within(seconds)?);
            if needed < soonest.1 {
                soonest = (seconds, needed);
            }
        }
        span = ((soonest.0 / ratio).max(least_s), (soonest.0 * ratio).min(most_s));
    }
    let (seconds, needed) = soonest;
    let margin = format!("{:.0} % is left as a margin", 100.0 * (1.0 - DEADLINE_SHARE));
    let other = |name: &str, seconds: f64| -> Result<String, PlanError> {
        let longer = seconds * rounds(&within(seconds)?) / needed - 1.0;
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

/// What a plan brings a silo forward in a round, from [`HEAD`] over a large number to 1/2.
fn progress(choice: &Choice, menu: &Menu) -> f64 {
    let frame = choice.frame;
    let trained = choice.objective - menu.batch_term(frame.batch_size) + format_penalty(frame.base_format);
    let critical = menu.batch_sizes.last().copied().unwrap_or(1) as f64;
    (HEAD + (1.0 - HEAD) * trained) / (1.0 + critical / frame.batch_size as f64)
}
