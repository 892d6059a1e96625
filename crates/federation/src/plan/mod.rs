//! A plan for every silo: batch size, steps, base format, recomputation and ranks that its memory and the round's deadline allow.

mod again;
mod choose;
mod cost;
mod coverage;
mod deadline;
mod dual;
mod exact;
mod explain;
mod finish;
mod importance;
mod knapsack;
mod server_rank;
mod table;
mod tuning;

pub use again::again;
pub use choose::{
    BATCH_VALUE, Choice, Found, Menu, STEP_VALUE, ShadowPrices, Shortfall, SiloProblem, choose, format_penalty,
    rank_value,
};
pub use cost::{AdapterLoad, CostModel, Frame, RoundBatches, compute_time, memory};
pub use exact::in_solver;
pub use explain::{grouped_ranks, markdown, optimality};
pub use finish::Finish;
pub use importance::{Importance, Scores};
pub use server_rank::SERVER_RANK;
pub use tuning::{Tuning, TuningPatterns};

use choose::Search;
#[cfg(test)]
pub(crate) use cost::beside_values;
use table::Weights;

use fedpipe_core::{ModelSpec, Plan, SiloId, SiloPlan, SiloProfile, WeightId};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Share of the deadline that plans aim at, so that a round of longer texts than usual does not make a silo late.
pub const DEADLINE_SHARE: f64 = 0.9;

/// Share of a silo's memory that plans aim at, so that a batch of longer texts than usual still fits.
pub const MEMORY_SHARE: f64 = 0.95;

const MIB: f64 = 1_048_576.0;

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
    /// With which the federation is expected to be soonest done, and the margin of [`DEADLINE_SHARE`]. Activations count as
    /// kept where the menu has the choice and the silo the memory: computing them again is for the time that is there, not to
    /// make every round longer.
    Auto,
    /// Seconds on the run's clock.
    Seconds(f64),
}

/// What the planner is told.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSettings {
    /// What to choose from.
    pub menu: Menu,
    /// Largest rank of the merged adapter; none for that of the menu's with which the federation is expected to be soonest
    /// done, and no silo is then given a larger one.
    pub server_rank: Option<usize>,
    /// Optimizer steps of a round, of which the menu has multiples.
    pub local_steps: usize,
    /// Share of the silos that takes part in a round.
    pub cohort_fraction: f64,
    /// Bytes that a value takes in the codec ([`crate::codec::CODECS`]).
    pub value_bytes: f64,
    /// When a round ends.
    pub deadline: Deadline,
    /// When all rounds must have ended, if at all: a limit for the deadline, given or not.
    pub finish: Option<Finish>,
    /// Least number of silos that should train each of the important weights: those that hold half of the importance of all
    /// that may train.
    pub coverage: usize,
    /// Weights that every silo trains, and such that none does.
    pub tuning: TuningPatterns,
}

impl PlanSettings {
    /// With the merged adapter's largest rank given, and no rank of the menu above it.
    pub(crate) fn up_to(&self, server_rank: usize) -> Self {
        let mut settings = Self { server_rank: Some(server_rank), ..self.clone() };
        settings.menu.ranks.retain(|&rank| rank <= server_rank);
        settings
    }

    /// The merged adapter's largest rank as it is given, or the menu's.
    fn merged_rank(&self) -> usize {
        self.server_rank.or(self.menu.ranks.last().copied()).unwrap_or(1)
    }
}

/// Budgets that cannot be kept, or a menu that offers nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A menu that offers nothing, or holds a number that means nothing.
    #[error("the plan has nothing to choose from: {0}")]
    Menu(String),
    /// A pattern that matches no weight.
    #[error("plan.{key}: no weight that may be adapted matches `{pattern}`; {available}")]
    NoMatch {
        /// `always_tune` or `never_tune`.
        key: &'static str,
        /// The pattern.
        pattern: String,
        /// What could be matched.
        available: String,
    },
    /// Weights that have to train and must not.
    #[error("plan.always_tune `{always}` and plan.never_tune `{never}` both match {weights}; narrow one of them")]
    Contradiction {
        /// The pattern of those that have to.
        always: String,
        /// The pattern of those that must not.
        never: String,
        /// What both match.
        weights: String,
    },
    /// A weight that has to train is smaller than the menu's smallest rank.
    #[error(
        "plan.always_tune `{pattern}`: {weight} takes no rank above {most}, and adapter.ranks are {ranks}; add a rank that it \
         takes, or name other weights"
    )]
    NoRank {
        /// The pattern.
        pattern: String,
        /// What it matches.
        weight: WeightId,
        /// The largest rank that the weight takes.
        most: usize,
        /// The menu's.
        ranks: String,
    },
    /// Not even the smallest plan fits the memory.
    #[error(
        "silo {silo}: the smallest plan ({smallest}, smallest batch, leanest base format) takes {needs_mib:.1} MiB, \
         {short_mib:.1} MiB more than plans may take of its {budget_mib} MiB ({:.0} %); raise its memory_mib to at least {:.0}, \
         allow a smaller batch or a base format of fewer bits, or shorten max_length{}",
        100.0 * MEMORY_SHARE, (needs_mib / MEMORY_SHARE).ceil(), or_fewer(smallest)
    )]
    Memory {
        /// Which silo.
        silo: SiloId,
        /// What the smallest plan trains.
        smallest: String,
        /// MiB of the smallest plan.
        needs_mib: f64,
        /// MiB that are missing.
        short_mib: f64,
        /// MiB that it has.
        budget_mib: u64,
    },
    /// Not even the fastest plan meets the given deadline.
    #[error(
        "silo {silo}: its fastest plan ({smallest}) takes {needs_s:.1} s a round, {short_s:.1} s more than the {aim_s:.1} s that \
         plans aim at under the deadline of {deadline_s:.1} s; raise the deadline to at least {:.1} s or set it to auto, lower \
         local_steps, or leave the silo out{}",
        (10.0 * needs_s / DEADLINE_SHARE).ceil() / 10.0, or_fewer(smallest)
    )]
    Deadline {
        /// Which silo.
        silo: SiloId,
        /// What the smallest plan trains.
        smallest: String,
        /// Seconds of the fastest plan.
        needs_s: f64,
        /// Seconds that are missing.
        short_s: f64,
        /// Seconds that plans aim at: [`DEADLINE_SHARE`] of the deadline.
        aim_s: f64,
        /// The deadline.
        deadline_s: f64,
    },
    /// Not even the fastest plan lets all rounds end in time.
    #[error(
        "silo {silo}: its fastest plan ({smallest}) takes {needs_s:.1} s a round, {:.1} s more than the {aim_s:.1} s that plans \
         aim at: {} rounds within {} h leave each {:.1} s; {enough}, lower local_steps, or leave the silo out{}",
        needs_s - aim_s, finish.rounds, finish.within_h, finish.round_s(), or_fewer(smallest)
    )]
    Finish {
        /// Which silo: the slowest.
        silo: SiloId,
        /// What the smallest plan trains.
        smallest: String,
        /// Seconds of the fastest plan.
        needs_s: f64,
        /// Seconds that plans aim at.
        aim_s: f64,
        /// When the run has to be over.
        finish: Finish,
        /// Hours or rounds that would do.
        enough: String,
    },
    /// Not even the smallest plan keeps the cap on data.
    #[error(
        "silo {silo}: the smallest plan ({smallest}) moves up to {needs_mib:.2} MiB a round, {:.2} MiB more than its data_cap_mib of \
         {cap_mib}; raise it to at least {:.2}, let the merged adapter have a lower rank (adapter.ranks, federation.server_rank), or \
         choose a codec of fewer bytes a value{}",
        needs_mib - cap_mib, (100.0 * needs_mib).ceil() / 100.0, or_fewer(smallest)
    )]
    Data {
        /// Which silo.
        silo: SiloId,
        /// What the smallest plan trains.
        smallest: String,
        /// MiB that the smallest plan moves at most.
        needs_mib: f64,
        /// MiB that may travel.
        cap_mib: f64,
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

/// What the smallest plan trains.
fn smallest_plan(tuning: &Tuning) -> String {
    match tuning.always.len() {
        0 => HEAD_ONLY.into(),
        1 => "head and 1 weight of always_tune at its smallest rank".into(),
        weights => format!("head and {weights} weights of always_tune at their smallest ranks"),
    }
}

const HEAD_ONLY: &str = "head only";

/// A plan can be made smaller still where weights have to train.
fn or_fewer(smallest: &str) -> &'static str {
    if smallest == HEAD_ONLY { "" } else { ", or name fewer weights in plan.always_tune" }
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
    let tuning = &Tuning::of(&settings.tuning, &model.candidates, &settings.menu.ranks)?;
    let enrolled = Enrolled { model: &tuning.model(model), profiles, importance, tuning };
    if settings.server_rank.is_none() {
        let (settings, deadline, chosen) = server_rank::soonest(&enrolled, settings)?;
        let shared = enrolled.weights(&settings)?;
        let plan = enrolled.plan(&shared, &enrolled.views(&shared), &settings, deadline)?;
        return Ok(Plan { chosen: vec![chosen], ..plan });
    }
    let shared = enrolled.weights(settings)?;
    let views = enrolled.views(&shared);
    enrolled.plan(&shared, &views, settings, deadline::of(&enrolled, &views, settings)?)
}

/// Who is planned for, and by what.
struct Enrolled<'a> {
    /// Without the weights that nobody trains.
    model: &'a ModelSpec,
    profiles: &'a BTreeMap<SiloId, SiloProfile>,
    importance: Importance<'a>,
    tuning: &'a Tuning,
}

impl<'a> Enrolled<'a> {
    /// The weights by the federation's importance.
    fn weights(&self, settings: &PlanSettings) -> Result<Weights, PlanError> {
        let any = self.profiles.values().next().ok_or(PlanError::NoSilos)?;
        let federation = self.importance.federation;
        Ok(Weights::of(&problem(self.model, any, federation, settings, self.tuning, f64::INFINITY)))
    }

    fn views<'v>(&self, shared: &'v Weights) -> Vec<View<'v>>
    where
        'a: 'v,
    {
        self.profiles.values().map(|profile| View::of(self.model, profile, &self.importance, shared)).collect()
    }

    fn problem<'p>(&'p self, view: &'p View<'_>, settings: &'p PlanSettings, time_budget: f64) -> SiloProblem<'p> {
        problem(self.model, view.profile, &view.importance, settings, self.tuning, time_budget)
    }

    /// Plans under a deadline, with the reason for that.
    fn plan(
        &self,
        shared: &Weights,
        views: &[View<'_>],
        settings: &PlanSettings,
        (deadline_s, deadline_reason): (f64, String),
    ) -> Result<Plan, PlanError> {
        let problem = |view| self.problem(view, settings, deadline_s * DEADLINE_SHARE);
        let problems: Vec<SiloProblem<'_>> = views.iter().map(problem).collect();
        let searches: Vec<Search<'_, '_>> =
            problems.par_iter().zip(views).map(|(problem, view)| Search::new(problem, &view.weights)).collect();
        let covered = coverage::solve(shared, &searches, settings.coverage)
            .map_err(|(silo, shortfall)| refusal(&problems[silo], deadline_s, shortfall))?;
        let with_runners_up = searches.len() <= EXPLAINED_SILOS;
        let silo = |(search, found)| {
            let plan = silo_plan(search, found, covered.apart, with_runners_up, deadline_s);
            (plan.silo.clone(), plan)
        };
        let silos = searches.par_iter().zip(covered.silos).map(silo).collect();
        let (local_steps, server_rank) = (settings.local_steps, settings.merged_rank());
        let optimality = covered.optimality;
        Ok(Plan { local_steps, server_rank, chosen: vec![], deadline_s, deadline_reason, optimality, silos })
    }
}

/// What was found for a silo, with its reasons; `apart` says that it does what it would do alone.
fn silo_plan(search: &Search<'_, '_>, found: Found, apart: bool, thorough: bool, deadline_s: f64) -> SiloPlan {
    let reasons = explain::reasons(search, &found, apart, thorough, deadline_s);
    let Choice { frame, ranks, memory, time, objective, data: _ } = found.best;
    let Frame { batch_size, step_multiple: _, base_format, recompute } = frame;
    let cost = &search.problem.cost;
    let (silo, local_steps) = (cost.profile.silo.clone(), cost.steps(frame));
    SiloPlan { silo, batch_size, local_steps, base_format, recompute, ranks, memory, time, objective, reasons }
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

fn problem<'a>(
    model: &'a ModelSpec,
    profile: &'a SiloProfile,
    importance: &'a Scores,
    settings: &'a PlanSettings,
    tuning: &'a Tuning,
    time_budget: f64,
) -> SiloProblem<'a> {
    let cost = CostModel {
        model,
        profile,
        server_rank: settings.merged_rank(),
        local_steps: settings.local_steps,
        value_bytes: settings.value_bytes,
    };
    let (memory_budget, data_budget) = (memory_aim(profile), profile.data_cap_bytes());
    SiloProblem { cost, importance, menu: &settings.menu, tuning, memory_budget, time_budget, data_budget }
}

fn refusal(problem: &SiloProblem<'_>, deadline_s: f64, shortfall: Shortfall) -> PlanError {
    let (profile, smallest) = (problem.cost.profile, smallest_plan(problem.tuning));
    let silo = profile.silo.clone();
    match shortfall {
        Shortfall::Memory { needs } => {
            let needs_mib = needs / MIB;
            let short_mib = needs_mib - MEMORY_SHARE * profile.memory_mib as f64;
            PlanError::Memory { silo, smallest, needs_mib, short_mib, budget_mib: profile.memory_mib }
        }
        Shortfall::Time { needs: needs_s } => {
            let aim_s = deadline_s * DEADLINE_SHARE;
            PlanError::Deadline { silo, smallest, needs_s, short_s: needs_s - aim_s, aim_s, deadline_s }
        }
        Shortfall::Data { needs } => {
            PlanError::Data { silo, smallest, needs_mib: needs / MIB, cap_mib: profile.data_cap_bytes() / MIB }
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
    } else if menu.step_multiples.is_empty() {
        "step_multiples is empty"
    } else if menu.formats.is_empty() {
        "formats is empty"
    } else if menu.recompute.is_empty() {
        "recompute is empty"
    } else if !ascending(&menu.batch_sizes) {
        "batch_sizes must be positive and ascending"
    } else if !ascending(&menu.step_multiples) {
        "step_multiples must be positive and ascending"
    } else if !ascending(&menu.ranks) {
        "ranks must be positive and ascending; rank 0 is always allowed"
    } else if settings.local_steps == 0 {
        "local_steps is 0"
    } else if matches!(settings.deadline, Deadline::Seconds(seconds) if !seconds.is_finite() || seconds <= 0.0) {
        "the deadline must be a positive number of seconds"
    } else if !(0.0..=1.0).contains(&importance.own_share) {
        "own_importance must be from 0 to 1"
    } else if settings.finish.is_some_and(|finish| !finish.round_s().is_finite() || finish.round_s() <= 0.0) {
        "finish_within_h must be a positive number of hours"
    } else {
        return Ok(());
    };
    Err(PlanError::Menu(fault.into()))
}

#[cfg(test)]
mod numbers;
#[cfg(test)]
mod tests;
