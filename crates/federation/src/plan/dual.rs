//! Bounds from prices. With a price on a byte and on a second, every weight chooses for itself, and what it gains so is no
//! less than what any plan within the budgets gains (Lagrangian duality). The least such bound is that of the linear
//! relaxation, but for recomputation, whose largest layer is charged as the mean of all; its prices are the shadow prices of
//! the budgets.

use super::table::{Cost, FrameTable, Weights};

/// Halvings of an interval of prices: what is left of it is nothing beside its end.
const HALVINGS: usize = 40;
/// Steps of the search for the price of a second where memory has a price, too.
const SECTIONS: usize = 40;

/// Objective a byte, and a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Prices(pub(super) Cost);

/// What weights gain beside their ranks' worth when they train at all, by row.
pub(super) type Bonus<'a> = &'a [f64];

/// A choice of every weight for itself.
struct Priced {
    bound: f64,
    /// What is left of the budgets.
    left: Cost,
}

impl FrameTable {
    /// The share of the largest layer's bytes that a bound charges a unit of rank of any layer from `lowest` upwards: the
    /// mean of these layers is no more than the largest.
    fn spread(&self, weights: &Weights, lowest: usize) -> f64 {
        self.bytes_per_largest_rank / (weights.layers() - lowest).max(1) as f64
    }

    /// The choice of most gain at these prices: its gain, and its place in the menu from 1, or 0.
    fn best(&self, weights: &Weights, bonus: Bonus<'_>, index: usize, prices: Prices, spread: f64) -> (f64, usize) {
        let row = &weights.rows[index];
        let Prices([byte, second]) = prices;
        let mut best = (0.0, 0);
        let choices = self.costs(row).iter().zip(weights.values(row)).zip(weights.ranks(row));
        for (place, ((cost, value), &rank)) in (1..).zip(choices) {
            let worth = row.importance * value + bonus[index];
            let gain = worth - byte * (cost[0] + spread * rank as f64) - second * cost[1];
            if gain > best.0 {
                best = (gain, place);
            }
        }
        best
    }

    /// Bounds of the objective by the lowest layer that trains, at these prices; −∞ where not even rank 0 fits.
    pub(super) fn bounds(&self, weights: &Weights, bonus: Bonus<'_>, prices: Prices) -> Vec<f64> {
        // All branches at once: charged as if all layers trained.
        let spread = self.spread(weights, 0);
        let (mut gained, mut next) = (0.0, 0);
        let mut bounds = vec![f64::NEG_INFINITY; self.room.len()];
        for lowest in (0..self.room.len()).rev() {
            for index in next..weights.at_or_above[lowest] {
                gained += self.best(weights, bonus, index, prices, spread).0;
            }
            next = weights.at_or_above[lowest];
            if let Some([bytes, seconds]) = self.room[lowest] {
                bounds[lowest] = self.value + gained + worth(prices.0[0], bytes) + worth(prices.0[1], seconds);
            }
        }
        bounds
    }

    fn priced(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize, room: Cost, prices: Prices) -> Priced {
        let spread = self.spread(weights, lowest);
        let (mut gained, mut left) = (0.0, room);
        for index in 0..weights.at_or_above[lowest] {
            let (gain, place) = self.best(weights, bonus, index, prices, spread);
            if place > 0 {
                let row = &weights.rows[index];
                let cost = self.costs(row)[place - 1];
                gained += gain;
                left[0] -= cost[0] + spread * weights.ranks(row)[place - 1] as f64;
                left[1] -= cost[1];
            }
        }
        Priced { bound: self.value + gained + worth(prices.0[0], room[0]) + worth(prices.0[1], room[1]), left }
    }

    /// The least bound with the layers from `lowest` upwards, and its prices.
    pub(super) fn relaxed(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize) -> Option<(f64, Prices)> {
        let room = self.room[lowest]?;
        let at = |prices| self.priced(weights, bonus, lowest, room, prices);
        let free = at(Prices::default());
        if free.left.iter().all(|&left| left >= 0.0) {
            return Some((free.bound, Prices::default()));
        }
        let highest = self.highest_prices(weights, bonus, lowest);
        let with = |resource: usize, price: f64, other: f64| {
            let mut prices = [other; 2];
            prices[resource] = price;
            Prices(prices)
        };
        // The least price of a resource at which it suffices, with the other's given.
        let suffices = |resource: usize, other: f64| -> Prices {
            let (mut low, mut high) = (0.0, highest[resource]);
            if at(with(resource, 0.0, other)).left[resource] >= 0.0 {
                return with(resource, 0.0, other);
            }
            for _ in 0..HALVINGS {
                let middle = 0.5 * (low + high);
                if at(with(resource, middle, other)).left[resource] >= 0.0 { high = middle } else { low = middle }
            }
            with(resource, high, other)
        };
        for resource in [0, 1] {
            let prices = suffices(resource, 0.0);
            let alone = at(prices);
            if alone.left[1 - resource] >= 0.0 {
                return Some((alone.bound, prices));
            }
        }
        // Both bind. The least bound over the price of a byte is convex in that of a second.
        let golden = 0.5 * (5f64.sqrt() - 1.0);
        let bound = |second: f64| at(suffices(0, second)).bound;
        let (mut low, mut high) = (0.0, highest[1]);
        let mut inner = [high - golden * (high - low), low + golden * (high - low)];
        let mut bounds = inner.map(bound);
        for _ in 0..SECTIONS {
            if bounds[0] <= bounds[1] {
                high = inner[1];
                (inner[1], bounds[1]) = (inner[0], bounds[0]);
                inner[0] = high - golden * (high - low);
                bounds[0] = bound(inner[0]);
            } else {
                low = inner[0];
                (inner[0], bounds[0]) = (inner[1], bounds[1]);
                inner[1] = low + golden * (high - low);
                bounds[1] = bound(inner[1]);
            }
        }
        let second = if bounds[0] <= bounds[1] { inner[0] } else { inner[1] };
        let prices = suffices(0, second);
        Some((at(prices).bound, prices))
    }

    /// Prices at which nothing is worth its cost.
    fn highest_prices(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize) -> Cost {
        let mut highest = [0f64; 2];
        for (row, bonus) in weights.rows[..weights.at_or_above[lowest]].iter().zip(bonus) {
            for (cost, value) in self.costs(row).iter().zip(weights.values(row)) {
                for (highest, cost) in highest.iter_mut().zip(cost).filter(|(_, cost)| **cost > 0.0) {
                    *highest = highest.max((row.importance * value + bonus) / cost);
                }
            }
        }
        highest.map(|price| price * (1.0 + 1e-9))
    }

    /// What every weight at or above `lowest` chooses at these prices: places in its menu from 1, or 0.
    pub(super) fn chosen(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize, prices: Prices) -> Vec<usize> {
        let spread = self.spread(weights, lowest);
        (0..weights.at_or_above[lowest]).map(|index| self.best(weights, bonus, index, prices, spread).1).collect()
    }
}

/// Nothing costs nothing, however much there is of it.
fn worth(price: f64, left: f64) -> f64 {
    if price == 0.0 { 0.0 } else { price * left }
}
