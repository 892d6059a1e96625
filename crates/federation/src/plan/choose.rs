//! The choice for one silo: batch size, base format, recomputation and a rank for every candidate weight, under its
//! budgets.
//!
//! maximise  J = Σ_m I_m·u(r_m) − penalty(f) + β·log₂(b/b_min)/log₂(b_max/b_min)
//! subject to memory(b, f, c, r) ≤ memory budget and time(b, f, c, r) ≤ time budget,
//!
//! with I_m the importance of weight m and u(r) = log₂(1 + r)/log₂(1 + r_max): concave, 0 for a frozen weight and 1 for the
//! largest rank of the menu. The objective and its constants are this project's own choice: arXiv 2404.06448 states the
//! program but no closed form. Recomputation (c) has no worth of its own: it is chosen when the memory that it frees buys
//! a larger batch, a finer format or ranks that the time allows.
//!
//! Memory and time jump with batch, format, recomputation and the lowest adapted layer; what is left is a multiple-choice
//! knapsack with two resources, and u is concave and the costs of a rank are convex, so every weight's menu is its own
//! concave hull. [`Search`] looks through the branches by their bounds, [`Knapsack`] makes a plan of one. Tests hold it
//! against brute force.

use super::cost::{CostModel, Frame};
use super::dual::{Bonus, Prices};
use super::exact::{Chosen, Variant};
use super::table::{FrameTable, Row, Weights};
use fedpipe_core::{BaseFormat, MemoryTerms, TimeTerms, WeightId};
use std::collections::BTreeMap;

/// Most passes of exchanges over the weights; few are needed.
const EXCHANGE_PASSES: usize = 8;

/// β when nobody says otherwise: the largest batch is worth about an eighth of the largest ranks.
pub const BATCH_VALUE: f64 = 0.12;

/// What a plan may choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    /// Batch sizes in texts, ascending.
    pub batch_sizes: Vec<usize>,
    /// Base formats.
    pub formats: Vec<BaseFormat>,
    /// Whether the inside of adapted layers may be computed again in the backward pass, or has to be, or both.
    pub recompute: Vec<bool>,
    /// Ranks that a weight may train at, ascending and without 0: not to train a weight is always a choice.
    pub ranks: Vec<usize>,
    /// β: what the largest batch is worth over the smallest, on the scale where the largest rank on every weight is
    /// worth 1. A batch steadies the gradient; it does not add capacity.
    pub batch_value: f64,
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

    /// u(r) = log₂(1 + r)/log₂(1 + r_max).
    pub fn rank_value(&self, rank: usize) -> f64 {
        let largest = self.ranks.last().copied().unwrap_or(1).max(1);
        (1.0 + rank as f64).log2() / (1.0 + largest as f64).log2()
    }
}

/// What a base format costs in objective: a rough order of the accuracy that each loses, negligible at 8 bits and steep
/// below 3. The project's own numbers; only a run can say what a format costs on a task. On the layers of MiniLM the
/// weights' relative error is 0.2 % in bf16, 0.6 % in NF8, 1.0 % in int8 (one scale for a whole row), 9 % in NF4, 21 % in
/// NF3 and 57 % in NF2.
pub fn format_penalty(format: BaseFormat) -> f64 {
    match format {
        BaseFormat::F32 => 0.0,
        BaseFormat::Bf16 => 0.002,
        BaseFormat::Int8 => 0.012,
        BaseFormat::Nf8 => 0.01,
        BaseFormat::Nf4 => 0.03,
        BaseFormat::Nf3 => 0.08,
        BaseFormat::Nf2 => 0.2,
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
    /// Memory in bytes.
    pub memory_budget: f64,
    /// Seconds of a round, transfers included; infinite without a deadline.
    pub time_budget: f64,
}

/// A silo's best choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Batch, format and recomputation.
    pub frame: Frame,
    /// Rank of every weight that trains.
    pub ranks: BTreeMap<WeightId, usize>,
    /// Predicted memory.
    pub memory: MemoryTerms,
    /// Predicted time of a round.
    pub time: TimeTerms,
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
    /// What memory and time are worth at the margin.
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
    /// None of the formats was measured on the silo.
    Unmeasured,
}

impl<'a> SiloProblem<'a> {
    /// J of a choice.
    pub fn objective(&self, frame: Frame, ranks: &BTreeMap<WeightId, usize>) -> f64 {
        let value = ranks.iter().map(|(weight, &rank)| self.importance_of(weight) * self.menu.rank_value(rank));
        value.sum::<f64>() - format_penalty(frame.base_format) + self.menu.batch_term(frame.batch_size)
    }

    /// The choice that these decisions make; `None` when the format was not measured.
    pub fn evaluate(&self, frame: Frame, ranks: BTreeMap<WeightId, usize>) -> Option<Choice> {
        let (memory, time) = self.cost.round(&self.cost.load(&ranks), frame)?;
        let objective = self.objective(frame, &ranks);
        Some(Choice { frame, ranks, memory, time, objective })
    }

    /// Whether a choice keeps both budgets, up to rounding.
    pub fn fits(&self, choice: &Choice) -> bool {
        let [memory, time] = self.budgets();
        choice.memory.total() <= memory && choice.time.total() <= time
    }

    /// Bytes and seconds, up to rounding: a deadline may be just the time that a plan takes.
    pub(super) fn budgets(&self) -> [f64; 2] {
        [self.memory_budget, self.time_budget].map(|budget| budget * (1.0 + 1e-9))
    }

    /// Frames from the largest batch and the finest format down, keeping before computing again: the order in which ties
    /// are broken.
    pub(super) fn frames(&self) -> impl Iterator<Item = Frame> + use<'a> {
        let menu = self.menu;
        let least = menu.batch_sizes.first().copied().unwrap_or(1);
        let examples = usize::try_from(self.cost.profile.examples).unwrap_or(usize::MAX);
        let batches = menu.batch_sizes.iter().rev().filter(move |&&b| b <= examples.max(least));
        batches.flat_map(move |&batch_size| {
            let formats = BaseFormat::ALL.into_iter().filter(move |format| menu.formats.contains(format));
            formats.flat_map(move |base_format| {
                let recompute = [false, true].into_iter().filter(|choice| menu.recompute.contains(choice));
                recompute.map(move |recompute| Frame { batch_size, base_format, recompute })
            })
        })
    }

    fn importance_of(&self, weight: &WeightId) -> f64 {
        self.importance.get(weight).copied().unwrap_or(0.0)
    }
}

/// The best choice of all, ties going to the larger batch, then to more bits, then to keeping the activations, then to the
/// upper layers.
///
/// # Errors
/// When not even a head alone on the smallest batch keeps the budgets, with what it would take.
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
    let fits = |frame| problem.evaluate(frame, BTreeMap::new()).is_some_and(|head_only| problem.fits(&head_only));
    if problem.frames().any(fits) { Ok(()) } else { Err(shortfall(problem)) }
}

/// A gap that is not worth another look where there are many weights; what is left of it is told.
const CLOSE_ENOUGH: f64 = 2e-4;
/// So many weights are few: their plans are improved as long as anything helps.
const FEW_WEIGHTS: usize = 64;
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
            let fitting = bounds.into_iter().enumerate().rev().filter(|(_, bound)| bound.is_finite());
            branches.extend(fitting.map(|(lowest, bound)| Branch { frame, lowest, bound, open: true }));
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
            let Branch { frame, lowest, .. } = branches[index];
            branches[index].open = false;
            let Some((bound, prices)) = self.frames[frame].relaxed(self.weights, bonus, lowest) else { continue };
            branches[index].bound = branches[index].bound.min(bound);
            if beats(index, &branches[index]) {
                let mut knapsack = Knapsack::new(self.weights, &self.frames[frame], bonus, lowest, prices);
                knapsack.improve();
                let objective = self.frames[frame].value + knapsack.value();
                let better = best.as_ref().is_none_or(|best| {
                    objective > best.objective + EQUAL || objective > best.objective - EQUAL && index < best.branch
                });
                if better {
                    best = Some(Leaf { branch: index, level: knapsack.filling.level, objective, prices });
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
        within.map(|branch| Variant { table: &self.frames[branch.frame], lowest: branch.lowest }).collect()
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
        let Prices([byte, second]) = best.prices;
        let prices = ShadowPrices { gib: byte * f64::from(1 << 30), second };
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

/// The smallest plans are a head alone: any adapted weight takes more memory and time.
pub(super) fn shortfall(problem: &SiloProblem<'_>) -> Shortfall {
    let heads: Vec<Choice> = problem.frames().filter_map(|frame| problem.evaluate(frame, BTreeMap::new())).collect();
    let least = |of: &dyn Fn(&Choice) -> f64, among: &dyn Fn(&Choice) -> bool| {
        heads.iter().filter(|c| among(c)).map(of).min_by(f64::total_cmp)
    };
    let memory = |c: &Choice| c.memory.total();
    match least(&|c| c.time.total(), &|c| memory(c) <= problem.budgets()[0]) {
        Some(needs) => Shortfall::Time { needs },
        None => least(&memory, &|_| true).map_or(Shortfall::Unmeasured, |needs| Shortfall::Memory { needs }),
    }
}

/// One step of a weight's rank to the next of the menu.
struct Move {
    /// Ranks that it adds to the weight's layer.
    added: usize,
    value: f64,
    memory: f64,
    time: f64,
}

/// Ranks for the weights at or above one layer, with the frame given.
struct Knapsack {
    /// The layer of every weight and its moves, from the top layer down, so that ties go to the upper layers.
    weights: Vec<(usize, Vec<Move>)>,
    /// Bytes a unit of rank in the layer that has most of them ([`FrameTable::bytes_per_largest_rank`]).
    bytes_per_largest_rank: f64,
    filling: Filling,
}

/// What a knapsack holds.
#[derive(Clone)]
struct Filling {
    /// Moves made on each weight.
    level: Vec<usize>,
    /// Sum of the ranks of each layer.
    layer_ranks: Vec<usize>,
    /// Bytes and seconds that the moves have left.
    memory: f64,
    time: f64,
}

impl Knapsack {
    /// With what the weights choose at these prices, less what does not fit.
    fn new(weights: &Weights, table: &FrameTable, bonus: Bonus<'_>, lowest: usize, prices: Prices) -> Self {
        let rows = &weights.rows[..weights.at_or_above[lowest]];
        let moves = rows.iter().zip(bonus).map(|(row, &bonus)| {
            // A weight gains its bonus with its first rank.
            let (mut from, mut worth, mut spent) = (0, -bonus, [0.0; 2]);
            let choices = weights.ranks(row).iter().zip(weights.values(row)).zip(table.costs(row));
            let moves = choices.map(|((&rank, value), &cost)| {
                let made = Move {
                    added: rank - from,
                    value: row.importance * value - worth,
                    memory: cost[0] - spent[0],
                    time: cost[1] - spent[1],
                };
                (from, worth, spent) = (rank, row.importance * value, cost);
                made
            });
            (row.layer, moves.collect())
        });
        let [memory, time] = table.room[lowest].unwrap_or([f64::NEG_INFINITY; 2]);
        let mut knapsack = Self {
            weights: moves.collect(),
            bytes_per_largest_rank: table.bytes_per_largest_rank,
            filling: Filling { level: vec![0; rows.len()], layer_ranks: vec![0; weights.layers()], memory, time },
        };
        for (index, place) in table.chosen(weights, bonus, lowest, prices).into_iter().enumerate() {
            (0..place).for_each(|_| knapsack.raise(index));
        }
        while knapsack.memory() < 0.0 || knapsack.filling.time < 0.0 {
            let Some(least) = knapsack.least_move(usize::MAX) else { break };
            knapsack.lower(least);
        }
        knapsack
    }

    /// Fills up and, where the weights are few, exchanges.
    fn improve(&mut self) {
        self.fill();
        if self.weights.len() <= FEW_WEIGHTS {
            self.exchange();
        }
    }

    fn largest_ranks(&self) -> usize {
        self.filling.layer_ranks.iter().copied().max().unwrap_or(0)
    }

    /// Bytes that are left.
    fn memory(&self) -> f64 {
        self.filling.memory - self.bytes_per_largest_rank * self.largest_ranks() as f64
    }

    /// Makes the move of most value for the largest share of a remaining budget that it takes, while one fits.
    fn fill(&mut self) {
        while let Some(weight) = self.best_move() {
            self.raise(weight);
        }
    }

    fn best_move(&self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        let (memory_left, time_left, largest) = (self.memory(), self.filling.time, self.largest_ranks());
        for (index, (layer, moves)) in self.weights.iter().enumerate() {
            let Some(next) = moves.get(self.filling.level[index]) else { continue };
            let above_largest = (self.filling.layer_ranks[*layer] + next.added).saturating_sub(largest);
            let memory = next.memory + self.bytes_per_largest_rank * above_largest as f64;
            if next.value <= 0.0 || memory > memory_left || next.time > time_left {
                continue;
            }
            let share = (memory / memory_left).max(next.time / time_left).max(f64::MIN_POSITIVE);
            let gain = next.value / share;
            if best.is_none_or(|(_, most)| gain > most) {
                best = Some((index, gain));
            }
        }
        best.map(|(index, _)| index)
    }

    /// Exchanges while they gain: a greedy fill ends with room that no single move fits into. An exchange either takes
    /// one, two, … moves of a weight back and fills the room without that weight, or makes a weight's next move first
    /// and takes back from the others what they can best do without.
    fn exchange(&mut self) {
        for _ in 0..EXCHANGE_PASSES {
            let mut improved = false;
            for index in 0..self.weights.len() {
                for taken in (1..=self.filling.level[index]).rev() {
                    improved |= self.keep_if_better(|knapsack| knapsack.take_back(index, taken));
                }
                improved |= self.keep_if_better(|knapsack| knapsack.make_first(index));
            }
            if !improved {
                break;
            }
        }
    }

    /// Makes a change and fills up; undoes both unless they gain.
    fn keep_if_better(&mut self, change: impl FnOnce(&mut Self) -> bool) -> bool {
        let (before, value) = (self.filling.clone(), self.value());
        if change(self) {
            self.fill();
            if self.value() > value + 1e-12 {
                return true;
            }
        }
        self.filling = before;
        false
    }

    fn take_back(&mut self, index: usize, moves: usize) -> bool {
        if self.filling.level[index] < moves {
            return false;
        }
        for _ in 0..moves {
            self.lower(index);
        }
        let barred = std::mem::take(&mut self.weights[index].1);
        self.fill();
        self.weights[index].1 = barred;
        true
    }

    fn make_first(&mut self, index: usize) -> bool {
        if self.filling.level[index] == self.weights[index].1.len() {
            return false;
        }
        self.raise(index);
        while self.memory() < 0.0 || self.filling.time < 0.0 {
            let Some(least) = self.least_move(index) else { return false };
            self.lower(least);
        }
        true
    }

    /// The weight other than `spared` whose last move has the least value for what it frees of the budget that is
    /// overdrawn.
    fn least_move(&self, spared: usize) -> Option<usize> {
        let mut least: Option<(usize, f64)> = None;
        let over_memory = self.memory() < 0.0;
        for (index, (_, moves)) in self.weights.iter().enumerate().filter(|(index, _)| *index != spared) {
            let Some(last) = self.filling.level[index].checked_sub(1).map(|level| &moves[level]) else { continue };
            let freed = if over_memory { last.memory } else { last.time };
            let loss = last.value / freed.max(f64::MIN_POSITIVE);
            if least.is_none_or(|(_, lowest)| loss < lowest) {
                least = Some((index, loss));
            }
        }
        least.map(|(index, _)| index)
    }

    fn raise(&mut self, index: usize) {
        let (layer, moves) = &self.weights[index];
        let next = &moves[self.filling.level[index]];
        self.filling.memory -= next.memory;
        self.filling.time -= next.time;
        self.filling.layer_ranks[*layer] += next.added;
        self.filling.level[index] += 1;
    }

    fn lower(&mut self, index: usize) {
        self.filling.level[index] -= 1;
        let (layer, moves) = &self.weights[index];
        let last = &moves[self.filling.level[index]];
        self.filling.memory += last.memory;
        self.filling.time += last.time;
        self.filling.layer_ranks[*layer] -= last.added;
    }

    fn value(&self) -> f64 {
        let made = |(index, (_, moves)): (usize, &(_, Vec<Move>))| -> f64 {
            moves.iter().take(self.filling.level[index]).map(|m: &Move| m.value).sum()
        };
        self.weights.iter().enumerate().map(made).sum()
    }
}
