//! A plan for every silo: batch size, base format, recomputation and ranks that its memory and the round's deadline allow.

mod again;
mod choose;
mod cost;
mod coverage;
mod dual;
mod exact;
mod explain;
mod importance;
mod table;

pub use again::again;
pub use choose::{BATCH_VALUE, Choice, Found, Menu, ShadowPrices, Shortfall, SiloProblem, choose, format_penalty};
pub use cost::{AdapterLoad, CostModel, Frame, compute_time, memory};
pub use explain::{grouped_ranks, markdown, optimality};
pub use importance::{Importance, Scores};

use choose::{Search, best, feasible};
use table::Weights;

use fedpipe_core::{ModelSpec, Plan, SiloId, SiloPlan, SiloProfile};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Share of the deadline that plans aim at, so that a round of longer texts than usual does not make a silo late.
pub const DEADLINE_SHARE: f64 = 0.9;

/// Share of a silo's memory that plans aim at, so that a batch of longer texts than usual still fits.
pub const MEMORY_SHARE: f64 = 0.95;

/// Silos up to this number are told what came second; a search for that takes as long as the plan itself.
const EXPLAINED_SILOS: usize = 64;

/// Bytes that a plan for the silo may take: [`MEMORY_SHARE`] of its memory.
pub(crate) fn memory_aim(profile: &SiloProfile) -> f64 {
    MEMORY_SHARE * profile.budget_bytes() as f64
}

/// Bytes of the memory that plans may take which this one leaves.
pub(crate) fn spare_bytes(profile: &SiloProfile, plan: &SiloPlan) -> u64 {
    (memory_aim(profile) - plan.memory.total()).max(0.0) as u64
}

/// When a round ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deadline {
    /// The median over the silos of the time that each one's best plan takes when memory is all that limits it, with
    /// the margin of [`DEADLINE_SHARE`]; more when a silo needs more for its smallest plan. Activations count as kept if
    /// the menu has the choice: computing them again is for the time that is there, not to make every round longer.
    Auto,
    /// Seconds on the run's clock.
    Seconds(f64),
}

/// What the planner is told.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSettings {
    /// What to choose from.
    pub menu: Menu,
    /// Largest rank of the merged adapter.
    pub server_rank: usize,
    /// Optimizer steps of a round.
    pub local_steps: usize,
    /// Bytes that a value takes in the codec ([`crate::codec::CODECS`]).
    pub value_bytes: f64,
    /// When a round ends.
    pub deadline: Deadline,
    /// Least number of silos that should train each of the important weights: those that hold half of all importance.
    pub coverage: usize,
}

/// Budgets that cannot be kept, or a menu that offers nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A menu that offers nothing, or holds a number that means nothing.
    #[error("the plan has nothing to choose from: {0}")]
    Menu(String),
    /// Not even a head alone on the smallest batch fits the memory.
    #[error(
        "silo {silo}: the smallest plan (head only, smallest batch, leanest base format) takes {needs_mib:.1} MiB, \
         {short_mib:.1} MiB more than plans may take of its {budget_mib} MiB ({:.0} %); raise its memory_mib, allow a smaller batch or a base \
         format of fewer bits, or shorten max_length",
        100.0 * MEMORY_SHARE
    )]
    Memory {
        /// Which silo.
        silo: SiloId,
        /// MiB of the smallest plan.
        needs_mib: f64,
        /// MiB that are missing.
        short_mib: f64,
        /// MiB that it has.
        budget_mib: u64,
    },
    /// Not even the fastest plan meets the given deadline.
    #[error(
        "silo {silo}: its fastest plan takes {needs_s:.1} s a round, {short_s:.1} s more than the {aim_s:.1} s that plans aim \
         at under the deadline of {deadline_s:.1} s; raise the deadline or set it to auto, lower local_steps, or leave \
         the silo out"
    )]
    Deadline {
        /// Which silo.
        silo: SiloId,
        /// Seconds of the fastest plan.
        needs_s: f64,
        /// Seconds that are missing.
        short_s: f64,
        /// Seconds that plans aim at: [`DEADLINE_SHARE`] of the deadline.
        aim_s: f64,
        /// The deadline.
        deadline_s: f64,
    },
    /// A silo measured none of the formats.
    #[error(
        "silo {silo}: none of the base formats in the menu was measured on it; allow one of those that were: {measured}"
    )]
    Unmeasured {
        /// Which silo.
        silo: SiloId,
        /// Formats in its profile.
        measured: String,
    },
    /// Nobody to plan for.
    #[error("no silo enrolled; there is nothing to plan")]
    NoSilos,
}

/// Plans for every silo in `profiles`, each by its own mixture of `importance`; which weights are important enough to be
/// covered is the federation's.
///
/// # Errors
/// When a budget cannot be kept even by the smallest plan, with how much is missing and what to change.
pub fn plan<'a>(
    model: &ModelSpec,
    profiles: &BTreeMap<SiloId, SiloProfile>,
    importance: impl Into<Importance<'a>>,
    settings: &PlanSettings,
) -> Result<Plan, PlanError> {
    let importance = importance.into();
    check(settings, &importance)?;
    if let Some(beyond) = model.candidates.iter().find(|candidate| candidate.layer >= model.layers) {
        let (id, layer, layers) = (&beyond.id, beyond.layer, model.layers);
        return Err(PlanError::Menu(format!("weight {id} is in layer {layer} of a model of {layers} layers")));
    }
    if profiles.is_empty() {
        return Err(PlanError::NoSilos);
    }
    let shared = profiles.values().next().map(|profile| {
        let problem = problem(model, profile, importance.federation, settings, f64::INFINITY);
        Weights::of(&problem)
    });
    let shared = &shared.ok_or(PlanError::NoSilos)?;
    let views: Vec<View<'_>> = profiles.values().map(|profile| View::of(model, profile, &importance, shared)).collect();
    let problem = |view, time_budget| problem_of(model, view, settings, time_budget);
    let kept = keeping(&settings.menu);
    let deadline = match settings.deadline {
        Deadline::Seconds(seconds) => (seconds, "given in the configuration".to_string()),
        Deadline::Auto => {
            let problem = |view, budget| SiloProblem { menu: &kept, ..problem(view, budget) };
            auto_deadline(&views, problem)?
        }
    };
    let problems: Vec<SiloProblem<'_>> = views.iter().map(|view| problem(view, deadline.0 * DEADLINE_SHARE)).collect();
    let searches: Vec<Search<'_, '_>> =
        problems.iter().zip(&views).map(|(problem, view)| Search::new(problem, &view.weights)).collect();
    let covered = coverage::solve(shared, &searches, settings.coverage)
        .map_err(|(silo, shortfall)| refusal(problems[silo].cost.profile, deadline.0, shortfall))?;
    let with_runners_up = searches.len() <= EXPLAINED_SILOS;
    let mut silos = BTreeMap::new();
    for (search, found) in searches.iter().zip(covered.silos) {
        let reasons = explain::reasons(search, &found, covered.apart, with_runners_up, deadline.0);
        let Choice { frame, ranks, memory, time, objective } = found.best;
        let Frame { batch_size, base_format, recompute } = frame;
        let silo = search.problem.cost.profile.silo.clone();
        let plan = SiloPlan { silo, batch_size, base_format, recompute, ranks, memory, time, objective, reasons };
        silos.insert(plan.silo.clone(), plan);
    }
    let (local_steps, (deadline_s, deadline_reason)) = (settings.local_steps, deadline);
    Ok(Plan { local_steps, chosen: vec![], deadline_s, deadline_reason, optimality: covered.optimality, silos })
}

/// A silo with the weights as they matter to it.
struct View<'a> {
    profile: &'a SiloProfile,
    importance: Cow<'a, Scores>,
    weights: Cow<'a, Weights>,
}

impl<'a> View<'a> {
    fn of(model: &ModelSpec, profile: &'a SiloProfile, importance: &Importance<'a>, shared: &'a Weights) -> Self {
        let importance = importance.of(&profile.silo);
        let weights = match &importance {
            Cow::Borrowed(_) => Cow::Borrowed(shared),
            Cow::Owned(own) => Cow::Owned(shared.weighed(model, own)),
        };
        Self { profile, importance, weights }
    }
}

fn problem_of<'a>(
    model: &'a ModelSpec,
    view: &'a View<'_>,
    settings: &'a PlanSettings,
    time_budget: f64,
) -> SiloProblem<'a> {
    problem(model, view.profile, &view.importance, settings, time_budget)
}

fn problem<'a>(
    model: &'a ModelSpec,
    profile: &'a SiloProfile,
    importance: &'a Scores,
    settings: &'a PlanSettings,
    time_budget: f64,
) -> SiloProblem<'a> {
    let cost = CostModel {
        model,
        profile,
        server_rank: settings.server_rank,
        local_steps: settings.local_steps,
        value_bytes: settings.value_bytes,
    };
    SiloProblem { cost, importance, menu: &settings.menu, memory_budget: memory_aim(profile), time_budget }
}

/// The menu with activations kept, unless it says that they must not be.
fn keeping(menu: &Menu) -> Menu {
    let recompute = if menu.recompute.contains(&false) { vec![false] } else { menu.recompute.clone() };
    Menu { recompute, ..menu.clone() }
}

/// [`Deadline::Auto`] in seconds, and how it came about.
fn auto_deadline<'a>(
    views: &'a [View<'a>],
    problem: impl Fn(&'a View<'a>, f64) -> SiloProblem<'a>,
) -> Result<(f64, String), PlanError> {
    let mut times = Vec::new();
    for view in views {
        let found = best(&view.weights, &problem(view, f64::INFINITY))
            .map_err(|shortfall| refusal(view.profile, f64::INFINITY, shortfall))?;
        times.push(found.best.time.total());
    }
    times.sort_by(f64::total_cmp);
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    let mut aim = median;
    let mut reason = format!(
        "automatic: the median over {} silos of the time that each one's best plan under memory alone takes is {median:.1} s; \
         plans aim at it and {:.0} % is left as a margin",
        views.len(),
        100.0 * (1.0 - DEADLINE_SHARE)
    );
    for view in views {
        if let Err(Shortfall::Time { needs }) = feasible(&problem(view, aim)) {
            let silo = &view.profile.silo;
            aim = needs * (1.0 + 1e-9);
            reason += &format!("; raised to {aim:.1} s, since silo {silo} needs that for its smallest plan");
        }
    }
    Ok((aim / DEADLINE_SHARE, reason))
}

fn refusal(profile: &SiloProfile, deadline_s: f64, shortfall: Shortfall) -> PlanError {
    let silo = profile.silo.clone();
    match shortfall {
        Shortfall::Memory { needs } => {
            let needs_mib = needs / f64::from(1 << 20);
            let short_mib = needs_mib - MEMORY_SHARE * profile.memory_mib as f64;
            PlanError::Memory { silo, needs_mib, short_mib, budget_mib: profile.memory_mib }
        }
        Shortfall::Time { needs: needs_s } => {
            let aim_s = deadline_s * DEADLINE_SHARE;
            PlanError::Deadline { silo, needs_s, short_s: needs_s - aim_s, aim_s, deadline_s }
        }
        Shortfall::Unmeasured => {
            let measured: Vec<&str> = profile.device.time.keys().map(|format| format.name()).collect();
            PlanError::Unmeasured { silo, measured: measured.join(", ") }
        }
    }
}

/// Refuses what the search relies on: something to choose from, and lists in ascending order without 0.
fn check(settings: &PlanSettings, importance: &Importance<'_>) -> Result<(), PlanError> {
    let ascending = |list: &[usize]| list.first().is_none_or(|&least| least > 0) && list.is_sorted_by(|x, y| x < y);
    let menu = &settings.menu;
    let fault = if menu.batch_sizes.is_empty() {
        "batch_sizes is empty"
    } else if menu.formats.is_empty() {
        "formats is empty"
    } else if menu.recompute.is_empty() {
        "recompute is empty"
    } else if !ascending(&menu.batch_sizes) {
        "batch_sizes must be positive and ascending"
    } else if !ascending(&menu.ranks) {
        "ranks must be positive and ascending; rank 0 is always allowed"
    } else if settings.local_steps == 0 {
        "local_steps is 0"
    } else if matches!(settings.deadline, Deadline::Seconds(seconds) if !seconds.is_finite() || seconds <= 0.0) {
        "the deadline must be a positive number of seconds"
    } else if !(0.0..=1.0).contains(&importance.own_share) {
        "own_importance must be from 0 to 1"
    } else {
        return Ok(());
    };
    Err(PlanError::Menu(fault.into()))
}

#[cfg(test)]
mod tests;
