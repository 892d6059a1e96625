//! Ranks for the weights of one branch: what they choose at prices, put within the budgets, filled up and exchanged.

use super::choose::FEW_WEIGHTS;
use super::dual::{Bonus, Prices};
use super::table::{Cost, FrameTable, RESOURCES, Weights};

/// Most passes of exchanges over the weights; few are needed.
const EXCHANGE_PASSES: usize = 8;

/// One step of a weight's rank to the next of the menu.
struct Move {
    /// Ranks that it adds to the weight's layer.
    added: usize,
    value: f64,
    cost: Cost,
}

/// A weight with its moves.
struct Item {
    layer: usize,
    moves: Vec<Move>,
    /// Moves that are never taken back: the first of a weight that has to train.
    fixed: usize,
}

/// Ranks for the weights at or above one layer, with the frame given.
pub(super) struct Knapsack {
    /// From the top layer down, so that ties go to the upper layers.
    items: Vec<Item>,
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
    /// What the moves have left of the budgets, but for the bytes of the largest layer.
    left: Cost,
}

impl Knapsack {
    /// With what the weights choose at these prices, less what does not fit in `room`.
    pub(super) fn new(
        weights: &Weights,
        table: &FrameTable,
        bonus: Bonus<'_>,
        (lowest, room): (usize, Cost),
        prices: Prices,
    ) -> Self {
        let rows = &weights.rows[..weights.at_or_above[lowest]];
        let items = rows.iter().zip(bonus).map(|(row, &bonus)| {
            // A weight gains its bonus with its first rank.
            let (mut from, mut worth, mut spent) = (0, -bonus, [0.0; RESOURCES]);
            let choices = weights.ranks(row).iter().zip(weights.values(row)).zip(table.costs(row));
            let moves = choices.map(|((&rank, value), &cost)| {
                let made = Move {
                    added: rank - from,
                    value: row.importance * value - worth,
                    cost: std::array::from_fn(|resource| cost[resource] - spent[resource]),
                };
                (from, worth, spent) = (rank, row.importance * value, cost);
                made
            });
            Item { layer: row.layer, moves: moves.collect(), fixed: usize::from(row.required) }
        });
        let mut knapsack = Self {
            items: items.collect(),
            bytes_per_largest_rank: table.bytes_per_largest_rank,
            filling: Filling { level: vec![0; rows.len()], layer_ranks: vec![0; weights.layers()], left: room },
        };
        for (index, place) in table.chosen(weights, bonus, lowest, prices).into_iter().enumerate() {
            (0..place).for_each(|_| knapsack.raise(index));
        }
        while let Some(least) = knapsack.overdrawn().and_then(|over| knapsack.least_move(over, usize::MAX)) {
            knapsack.lower(least);
        }
        knapsack
    }

    /// Fills up and, where the weights are few, exchanges.
    pub(super) fn improve(&mut self) {
        self.fill();
        if self.items.len() <= FEW_WEIGHTS {
            self.exchange();
        }
    }

    /// Moves made on each weight: the place of its rank in its menu from 1, or 0; and what they are worth together.
    pub(super) fn into_parts(self) -> (Vec<usize>, f64) {
        let value = self.value();
        (self.filling.level, value)
    }

    fn largest_ranks(&self) -> usize {
        self.filling.layer_ranks.iter().copied().max().unwrap_or(0)
    }

    /// What is left of the budgets.
    fn left(&self) -> Cost {
        let mut left = self.filling.left;
        left[0] -= self.bytes_per_largest_rank * self.largest_ranks() as f64;
        left
    }

    /// The first budget of which more is taken than there is.
    fn overdrawn(&self) -> Option<usize> {
        self.left().iter().position(|&left| left < 0.0)
    }

    /// Makes the move of most value for the largest share of a remaining budget that it takes, while one fits.
    fn fill(&mut self) {
        while let Some(weight) = self.best_move() {
            self.raise(weight);
        }
    }

    fn best_move(&self) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        let (left, largest) = (self.left(), self.largest_ranks());
        for (index, item) in self.items.iter().enumerate() {
            let Some(next) = item.moves.get(self.filling.level[index]) else { continue };
            let above_largest = (self.filling.layer_ranks[item.layer] + next.added).saturating_sub(largest);
            let mut cost = next.cost;
            cost[0] += self.bytes_per_largest_rank * above_largest as f64;
            if next.value <= 0.0 || cost.iter().zip(left).any(|(cost, left)| *cost > left) {
                continue;
            }
            let shares = cost.iter().zip(left).map(|(cost, left)| cost / left);
            let gain = next.value / shares.fold(f64::MIN_POSITIVE, f64::max);
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
            for index in 0..self.items.len() {
                for taken in (1..=self.free_moves(index)).rev() {
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

    /// Moves of a weight that may be taken back.
    fn free_moves(&self, index: usize) -> usize {
        self.filling.level[index].saturating_sub(self.items[index].fixed)
    }

    fn take_back(&mut self, index: usize, moves: usize) -> bool {
        if self.free_moves(index) < moves {
            return false;
        }
        for _ in 0..moves {
            self.lower(index);
        }
        let barred = std::mem::take(&mut self.items[index].moves);
        self.fill();
        self.items[index].moves = barred;
        true
    }

    fn make_first(&mut self, index: usize) -> bool {
        if self.filling.level[index] == self.items[index].moves.len() {
            return false;
        }
        self.raise(index);
        while let Some(over) = self.overdrawn() {
            let Some(least) = self.least_move(over, index) else { return false };
            self.lower(least);
        }
        true
    }

    /// The weight other than `spared` whose last move has the least value for what it frees of the budget `over`.
    fn least_move(&self, over: usize, spared: usize) -> Option<usize> {
        let mut least: Option<(usize, f64)> = None;
        for (index, item) in self.items.iter().enumerate() {
            if index == spared || self.free_moves(index) == 0 {
                continue;
            }
            let last = &item.moves[self.filling.level[index] - 1];
            let loss = last.value / last.cost[over].max(f64::MIN_POSITIVE);
            if least.is_none_or(|(_, lowest)| loss < lowest) {
                least = Some((index, loss));
            }
        }
        least.map(|(index, _)| index)
    }

    fn raise(&mut self, index: usize) {
        let item = &self.items[index];
        let next = &item.moves[self.filling.level[index]];
        self.filling.left.iter_mut().zip(next.cost).for_each(|(left, cost)| *left -= cost);
        self.filling.layer_ranks[item.layer] += next.added;
        self.filling.level[index] += 1;
    }

    fn lower(&mut self, index: usize) {
        self.filling.level[index] -= 1;
        let item = &self.items[index];
        let last = &item.moves[self.filling.level[index]];
        self.filling.left.iter_mut().zip(last.cost).for_each(|(left, cost)| *left += cost);
        self.filling.layer_ranks[item.layer] -= last.added;
    }

    fn value(&self) -> f64 {
        let made = |(item, &level): (&Item, &usize)| item.moves[..level].iter().map(|made| made.value).sum::<f64>();
        self.items.iter().zip(&self.filling.level).map(made).sum()
    }
}
