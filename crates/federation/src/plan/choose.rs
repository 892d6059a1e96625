//! The choice for one silo: batch size, steps of a round, base format, recomputation and a rank for every candidate weight,
//! under its budgets.
//!
//! maximise  J = Σ_m I_m·u(r_m) − penalty(f) + β·log₂(b/b_min)/log₂(b_max/b_min) + σ·log₂(k/k_min)
//! subject to memory(b, f, c, r) ≤ memory budget, time(b, k, f, c, r) ≤ time budget and data(r) ≤ data budget,
//!
//! with I_m the importance of weight m and u(r) = r/(r + r₀) of [`rank_value`]: concave, 0 for a frozen weight and below 1 for
//! any rank. The objective and its constants are this project's own choice: arXiv 2404.06448 states the
//! program but no closed form. Recomputation (c) has no worth of its own: it is chosen when the memory that it frees buys
//! a larger batch, a finer format or ranks that the time allows.
//!
//! Memory and time jump with batch, format, recomputation and the lowest adapted layer; what is left is a multiple-choice
//! knapsack with three resources, and u is concave and the costs of a rank are convex, so every weight's menu is its own
//! concave hull. [`Search`] looks through the branches by their bounds, [`Knapsack`] makes a plan of one. Tests hold it
//! against brute force.

use super::cost::{CostModel, Frame};
use super::dual::{Bonus, Prices};
use super::exact::{Chosen, Variant};
use super::knapsack::Knapsack;
use super::table::{Cost, FrameTable, Row, Weights};
use super::tuning::Tuning;
use fedpipe_core::{BaseFormat, MemoryTerms, TimeTerms, WeightId};
use std::collections::BTreeMap;

/// β when nobody says otherwise: the largest batch is worth about a third of the largest ranks. The project's own number; in
/// rounds a batch was measured to be worth more than that (`docs/planner.md`), which the penalties of formats do not allow for.
pub const BATCH_VALUE: f64 = 0.3;

/// σ when nobody says otherwise. The project's own number, from what rounds of more steps were measured to be worth
/// (`docs/planner.md`), on β's scale.
pub const STEP_VALUE: f64 = 0.2;

/// What a plan may choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    /// Batch sizes in texts, ascending.
    pub batch_sizes: Vec<usize>,
    /// How many times the federation's local steps a silo may make of the smallest batch in a round, ascending. Larger batches
    /// are for the first of them.
    pub step_multiples: Vec<usize>,
    /// Base formats.
    pub formats: Vec<BaseFormat>,
    /// Whether the inside of adapted layers may be computed again in the backward pass, or has to be, or both.
    pub recompute: Vec<bool>,
    /// Ranks that a weight may train at, ascending and without 0: not to train a weight is always a choice.
    pub ranks: Vec<usize>,
    /// β: what the largest batch is worth over the smallest, on the scale where a rank without end on every weight is
    /// worth 1. A batch steadies the gradient; it does not add capacity.
    pub batch_value: f64,
    /// σ: what twice the steps are worth, on the same scale.
    pub step_value: f64,
}

impl Menu {
    /// The value of a batch size: β·log₂(b/b_min)/log₂(b_max/b_min), 0 when there is but one.
    pub fn batch_term(&self, batch_size: usize) -> f64 {
        let (Some(&least), Some(&most)) = (self.batch_sizes.first(), self.batch_sizes.last()) else { return 0.0 };
        if most <= least {
            return 0.0;
        }
        self.batch_value * (batch_size as f64 / least as f64).log2() / (most as f64 / least as f64).log2()
    }

    /// The value of more steps: σ·log₂(k/k_min).
    pub fn step_term(&self, step_multiple: usize) -> f64 {
        let least = self.step_multiples.first().copied().unwrap_or(1);
        self.step_value * (step_multiple as f64 / least as f64).log2()
    }

    /// The value of a frame, before any rank.
    pub(super) fn frame_term(&self, frame: Frame) -> f64 {
        self.batch_term(frame.batch_size) + self.step_term(frame.step_multiple) - format_penalty(frame.base_format)
    }
}

/// r₀: the rank at which a weight gains half of what it can. The project's own number, from what ranks 2 to 16 on every weight
/// were measured to be worth in rounds (`docs/planner.md`).
const HALF_RANK: f64 = 1.0;

/// u(r) = r/(r + r₀): what training a weight at a rank is worth where its importance is 1.
pub fn rank_value(rank: usize) -> f64 {
    rank as f64 / (rank as f64 + HALF_RANK)
}

/// What a base format costs in objective, on the scale of the batch's worth: NF3 and NF2 what they were measured to cost in
/// rounds (`docs/planner.md`), the others, which cost nothing there, a little in the order of their errors. Only a run can
/// say what a format costs on a task. On the layers of MiniLM the weights' relative error is 0.2 % in bf16, 0.6 % in NF8,
/// 1.0 % in int8 (one scale for a whole row), 9 % in NF4, 21 % in NF3 and 57 % in NF2.
pub fn format_penalty(format: BaseFormat) -> f64 {
    match format {
        BaseFormat::F32 => 0.0,
        BaseFormat::Bf16 => 0.002,
        BaseFormat::Int8 => 0.012,
        BaseFormat::Nf8 => 0.01,
        BaseFormat::Nf4 => 0.03,
        BaseFormat::Nf3 => 0.08,
        BaseFormat::Nf2 => 0.6,
    }
}

/// The choice that one silo's plan has to make.
#[derive(Debug, Clone, Copy)]
pub struct SiloProblem<'a> {
    /// Costs of a choice, with the model and the silo.
    pub cost: CostModel<'a>,
    /// Importance by candidate weight; a weight that is missing counts as 0.
    pub importance: &'a BTreeMap<WeightId, f64>,
    /// What to choose from.
    pub menu: &'a Menu,
    /// Weights that have to train, and such that must not.
    pub tuning: &'a Tuning,
    /// Memory in bytes.
    pub memory_budget: f64,
    /// Seconds of a round, transfers included; infinite without a deadline.
    pub time_budget: f64,
    /// Bytes that may travel in a round, both ways together; infinite without a cap.
    pub data_budget: f64,
}

/// A silo's best choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Batch, steps, format and recomputation.
    pub frame: Frame,
    /// Rank of every weight that trains.
    pub ranks: BTreeMap<WeightId, usize>,
    /// Predicted memory.
    pub memory: MemoryTerms,
    /// Predicted time of a round.
    pub time: TimeTerms,
    /// Predicted bytes that travel in a round, both ways together, names and shapes at their most.
    pub data: f64,
    /// J.
    pub objective: f64,
}

/// A silo's best choice that was found, and how far from the best of all it can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The choice.
    pub best: Choice,
    /// No choice has a higher objective.
    pub bound: f64,
    /// What memory, time and data are worth at the margin.
    pub prices: ShadowPrices,
}

/// How much the objective would gain from more of a budget, by the linear relaxation of the chosen frame; 0 for one that
/// does not bind.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ShadowPrices {
    /// Objective a GiB of memory.
    pub gib: f64,
    /// Objective a second of the round.
    pub second: f64,
    /// Objective a MiB that travels.
    pub mib: f64,
}

/// Why a silo has no choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shortfall {
    /// The smallest plan takes this many bytes, more than the budget.
    Memory {
        /// Bytes of the smallest plan.
        needs: f64,
    },
    /// The fastest plan that fits the memory takes this many seconds, more than the budget.
    Time {
        /// Seconds of the fastest plan.
        needs: f64,
    },
    /// The smallest plan moves this many bytes, more than the budget.
    Data {
        /// Bytes that the smallest plan moves.
        needs: f64,
    },
    /// None of the formats was measured on the silo.
    Unmeasured,
}

impl<'a> SiloProblem<'a> {
    /// J of a choice.
    pub fn objective(&self, frame: Frame, ranks: &BTreeMap<WeightId, usize>) -> f64 {
        let value = ranks.iter().map(|(weight, &rank)| self.importance_of(weight) * rank_value(rank));
        value.sum::<f64>() + self.menu.frame_term(frame)
    }

    /// The choice that these decisions make; `None` when the format was not measured.
    pub fn evaluate(&self, frame: Frame, ranks: BTreeMap<WeightId, usize>) -> Option<Choice> {
        let load = self.cost.load(&ranks);
        let (memory, time) = self.cost.round(&load, frame)?;
        let objective = self.objective(frame, &ranks);
        Some(Choice { frame, ranks, memory, time, data: self.cost.data(&load), objective })
    }

    /// Whether a choice keeps all budgets, up to rounding.
    pub fn fits(&self, choice: &Choice) -> bool {
        let used = [choice.memory.total(), choice.time.total(), choice.data];
        used.iter().zip(self.budgets()).all(|(used, budget)| *used <= budget)
    }

    /// Bytes, seconds and bytes that travel, up to rounding: a deadline may be just the time that a plan takes.
    pub(super) fn budgets(&self) -> Cost {
        [self.memory_budget, self.time_budget, self.data_budget].map(|budget| budget * (1.0 + 1e-9))
    }

    /// The smallest plan over a frame: what has to train at its smallest rank. Any other takes more of everything.
    fn smallest(&self, frame: Frame) -> Option<Choice> {
        self.evaluate(frame, self.tuning.always.clone())
    }

    /// Frames from the largest batch, the most steps and the finest format down, keeping before computing again: the order in
    /// which ties are broken. More than the fewest steps are of the smallest batch, and go through the silo's texts once at most.
    pub(super) fn frames(&self) -> impl Iterator<Item = Frame> + use<'a> {
        let menu = self.menu;
        let least = menu.batch_sizes.first().copied().unwrap_or(1);
        let examples = usize::try_from(self.cost.profile.examples).unwrap_or(usize::MAX);
        let batches = menu.batch_sizes.iter().rev().filter(move |&&b| b <= examples.max(least));
        let fewest = menu.step_multiples.first().copied().unwrap_or(1);
        let once_through = examples / self.cost.local_steps.saturating_mul(least).max(1);
        let pairs = batches.flat_map(move |&batch_size| {
            let most = if batch_size == least { once_through.max(fewest) } else { fewest };
            let multiples = menu.step_multiples.iter().rev().filter(move |&&multiple| multiple <= most);
            multiples.map(move |&multiple| (batch_size, multiple))
        });
        pairs.flat_map(move |(batch_size, step_multiple)| {
            let formats = BaseFormat::ALL.into_iter().filter(move |format| menu.formats.contains(format));
            formats.flat_map(move |base_format| {
                let recompute = [false, true].into_iter().filter(|choice| menu.recompute.contains(choice));
                recompute.map(move |recompute| Frame { batch_size, step_multiple, base_format, recompute })
            })
        })
    }

    fn importance_of(&self, weight: &WeightId) -> f64 {
        self.importance.get(weight).copied().unwrap_or(0.0)
    }
}

/// The best choice of all, ties going to the larger batch, then to more steps, then to more bits, then to keeping the
/// activations, then to the upper layers.
///
/// # Errors
/// When not even the smallest plan keeps the budgets, with what it would take: a head alone, or with the weights that have to
/// train at their smallest ranks.
pub fn choose(problem: &SiloProblem<'_>) -> Result<Found, Shortfall> {
    best(&Weights::of(problem), problem)
}

/// [`choose`] with the weights that all silos share.
pub(super) fn best(weights: &Weights, problem: &SiloProblem<'_>) -> Result<Found, Shortfall> {
    let search = Search::new(problem, weights);
    search.best(&search.no_bonus(), |_| true).ok_or_else(|| shortfall(problem))
}

/// Whether there is any choice at all.
pub(super) fn feasible(problem: &SiloProblem<'_>) -> Result<(), Shortfall> {
    let fits = |frame| problem.smallest(frame).is_some_and(|smallest| problem.fits(&smallest));
    if problem.frames().any(fits) { Ok(()) } else { Err(shortfall(problem)) }
}

/// A gap that is not worth another look where there are many weights; what is left of it is told.
const CLOSE_ENOUGH: f64 = 2e-4;
/// So many weights are few: their plans are improved as long as anything helps.
pub(super) const FEW_WEIGHTS: usize = 64;
/// Objectives nearer than this are equal.
const EQUAL: f64 = 1e-12;

/// The search for a silo's best choice.
///
/// Every frame with every lowest layer has a bound from prices. The one with the highest is looked into: its own prices
/// tighten the bounds of all others, and its weights' choices at them, put within the budgets, are a plan. When no bound is
/// above the best plan, that is the best of all but for what the relaxation leaves open.
pub(super) struct Search<'p, 'a> {
    pub(super) problem: &'p SiloProblem<'a>,
    pub(super) weights: &'p Weights,
    frames: Vec<FrameTable>,
}

/// A frame with the lowest layer that may train, and the most that it can be worth.
struct Branch {
    frame: usize,
    lowest: usize,
    room: Cost,
    bound: f64,
    open: bool,
}

/// A plan of the search.
struct Leaf {
    branch: usize,
    /// Moves made on each row of the weights.
    level: Vec<usize>,
    /// With what weights gain by training at all.
    objective: f64,
    prices: Prices,
}

/// What a search came to.
pub(super) struct Outcome {
    branches: Vec<Branch>,
    best: Leaf,
    /// No choice has a higher objective, counted as that of the best plan is.
    pub(super) bound: f64,
}

impl<'p, 'a> Search<'p, 'a> {
    pub(super) fn new(problem: &'p SiloProblem<'a>, weights: &'p Weights) -> Self {
        let frames = problem.frames().filter_map(|frame| FrameTable::new(problem, weights, frame)).collect();
        Self { problem, weights, frames }
    }

    /// Weights that gain nothing beside their ranks' worth.
    pub(super) fn no_bonus(&self) -> Vec<f64> {
        vec![0.0; self.weights.rows.len()]
    }

    /// The best choice among the frames that `allowed` says, where a weight that trains gains its `bonus`; the objective is
    /// without it, the bound is not. None where nothing keeps the budgets.
    pub(super) fn best(&self, bonus: Bonus<'_>, allowed: impl Fn(Frame) -> bool) -> Option<Found> {
        self.found(&self.run(bonus, allowed)?)
    }

    /// The search itself.
    pub(super) fn run(&self, bonus: Bonus<'_>, allowed: impl Fn(Frame) -> bool) -> Option<Outcome> {
        let mut branches = Vec::new();
        for (frame, table) in self.frames.iter().enumerate().filter(|(_, table)| allowed(table.frame)) {
            let bounds = table.bounds(self.weights, bonus, Prices::default());
            let fitting = bounds.into_iter().zip(&table.room).enumerate().rev();
            let fitting = fitting.filter_map(|(lowest, (bound, room))| Some((lowest, bound, (*room)?)));
            branches.extend(fitting.map(|(lowest, bound, room)| Branch { frame, lowest, room, bound, open: true }));
        }
        let close_enough = if self.weights.rows.len() <= FEW_WEIGHTS { EQUAL } else { CLOSE_ENOUGH };
        let mut best: Option<Leaf> = None;
        loop {
            let beats = |index: usize, branch: &Branch| match &best {
                None => true,
                Some(best) => {
                    branch.bound > best.objective + close_enough
                        || branch.bound > best.objective - EQUAL && index < best.branch
                }
            };
            let open = branches.iter().enumerate().filter(|(index, branch)| branch.open && beats(*index, branch));
            // The first of the highest.
            let next = open.reduce(|most, other| if other.1.bound > most.1.bound { other } else { most });
            let Some((index, _)) = next else { break };
            let Branch { frame, lowest, room, .. } = branches[index];
            branches[index].open = false;
            let (bound, prices) = self.frames[frame].relaxed(self.weights, bonus, lowest, room);
            branches[index].bound = branches[index].bound.min(bound);
            if beats(index, &branches[index]) {
                let mut knapsack = Knapsack::new(self.weights, &self.frames[frame], bonus, (lowest, room), prices);
                knapsack.improve();
                let (level, value) = knapsack.into_parts();
                let objective = self.frames[frame].value + value;
                let better = best.as_ref().is_none_or(|best| {
                    objective > best.objective + EQUAL || objective > best.objective - EQUAL && index < best.branch
                });
                if better {
                    best = Some(Leaf { branch: index, level, objective, prices });
                }
            }
            self.tighten(&mut branches, bonus, prices);
        }
        let best = best?;
        let bound = branches.iter().map(|branch| branch.bound).fold(f64::NEG_INFINITY, f64::max);
        // What is closed and worse than the best plan does not count.
        let bound = bound.max(best.objective);
        Some(Outcome { branches, best, bound })
    }

    /// The variants that may be better than an outcome's plan by `slack` less than its bound is, for a solver.
    pub(super) fn variants(&self, outcome: &Outcome, slack: f64) -> Vec<Variant<'_>> {
        let within = outcome.branches.iter().filter(|branch| branch.bound >= outcome.bound - slack - EQUAL);
        let variant =
            |branch: &Branch| Variant { table: &self.frames[branch.frame], lowest: branch.lowest, room: branch.room };
        within.map(variant).collect()
    }

    /// The choice that a solver made among variants.
    pub(super) fn solved(&self, variants: &[Variant<'_>], chosen: &Chosen, prices: ShadowPrices) -> Option<Found> {
        let frame = variants[chosen.variant].table.frame;
        // Solvers keep constraints to a tolerance.
        let best = self.choice(frame, &chosen.places).filter(|best| self.problem.fits(best))?;
        Some(Found { bound: best.objective, best, prices })
    }

    /// Prices of one branch bound all others, too.
    fn tighten(&self, branches: &mut [Branch], bonus: Bonus<'_>, prices: Prices) {
        let mut bounds: Vec<Option<Vec<f64>>> = self.frames.iter().map(|_| None).collect();
        for branch in branches.iter_mut().filter(|branch| branch.open) {
            let of_frame = bounds[branch.frame]
                .get_or_insert_with(|| self.frames[branch.frame].bounds(self.weights, bonus, prices));
            branch.bound = branch.bound.min(of_frame[branch.lowest]);
        }
    }

    /// An outcome's plan.
    pub(super) fn found(&self, outcome: &Outcome) -> Option<Found> {
        let Outcome { branches, best, bound } = outcome;
        let Prices([byte, second, moved]) = best.prices;
        let prices = ShadowPrices { gib: byte * f64::from(1 << 30), second, mib: moved * f64::from(1 << 20) };
        let best = self.choice(self.frames[branches[best.branch].frame].frame, &best.level)?;
        Some(Found { best, bound: *bound, prices })
    }

    /// The choice of a frame and of places in the menus of the first rows of the weights, from 1, or 0.
    fn choice(&self, frame: Frame, places: &[usize]) -> Option<Choice> {
        let candidates = &self.problem.cost.model.candidates;
        let trained = self.weights.rows.iter().zip(places).filter(|(_, place)| **place > 0);
        let rank =
            |(row, &place): (&Row, &usize)| (candidates[row.candidate].id.clone(), self.weights.ranks(row)[place - 1]);
        self.problem.evaluate(frame, trained.map(rank).collect())
    }
}

/// What the smallest plans lack; data first, which no frame changes.
pub(super) fn shortfall(problem: &SiloProblem<'_>) -> Shortfall {
    let smallest: Vec<Choice> = problem.frames().filter_map(|frame| problem.smallest(frame)).collect();
    let least = |of: &dyn Fn(&Choice) -> f64, among: &dyn Fn(&Choice) -> bool| {
        smallest.iter().filter(|c| among(c)).map(of).min_by(f64::total_cmp)
    };
    let memory = |c: &Choice| c.memory.total();
    let [bytes, _, moved] = problem.budgets();
    match (least(&|c| c.data, &|_| true), least(&|c| c.time.total(), &|c| memory(c) <= bytes)) {
        (Some(needs), _) if needs > moved => Shortfall::Data { needs },
        (_, Some(needs)) => Shortfall::Time { needs },
        _ => least(&memory, &|_| true).map_or(Shortfall::Unmeasured, |needs| Shortfall::Memory { needs }),
    }
}
