//! Bounds from prices. With a price on a byte, on a second and on a byte that travels, every weight chooses for itself, and
//! what it gains so is no less than what any plan within the budgets gains (Lagrangian duality). The least such bound is that
//! of the linear relaxation, but for recomputation, whose largest layer is charged as the mean of all; its prices are the
//! shadow prices of the budgets.
//!
//! No more than two budgets need a price. Every budget is a sum of Σ d_m·r_m and Σ r_m with weights of its own, so that the
//! plans within all three are a polygon over these two sums, and the best of them lies at a corner: where two budgets meet at
//! most. (With a rank above `server_rank` the sums bend, and prices on two are a bound that a third might tighten.)

use super::table::{Cost, FrameTable, RESOURCES, Weights};

/// Halvings of an interval of prices: what is left of it is nothing beside its end.
const HALVINGS: usize = 40;
/// Steps of the search for the price of a resource where another has a price, too.
const SECTIONS: usize = 40;

/// Pairs of resources that may bind together, the price of the first being found for every price of the second.
const PAIRS: [[usize; 2]; 3] = [[0, 1], [0, 2], [2, 1]];

/// Objective a byte of memory, a second, and a byte that travels.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Prices(pub(super) Cost);

impl Prices {
    /// With another price for one resource.
    fn with(mut self, resource: usize, price: f64) -> Self {
        self.0[resource] = price;
        self
    }

    /// What these costs come to.
    fn of(self, cost: Cost) -> f64 {
        self.0.iter().zip(cost).map(|(price, cost)| price * cost).sum()
    }

    /// What is left, at these prices. Nothing costs nothing, however much there is of it.
    fn worth(self, left: Cost) -> f64 {
        self.0.iter().zip(left).filter(|(price, _)| **price != 0.0).map(|(price, left)| price * left).sum()
    }
}

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

    /// The choice of most gain at these prices: its gain, and its place in the menu from 1, or 0 where the weight need not
    /// train.
    fn best(&self, weights: &Weights, bonus: Bonus<'_>, index: usize, prices: Prices, spread: f64) -> (f64, usize) {
        let row = &weights.rows[index];
        let mut best = (if row.required { f64::NEG_INFINITY } else { 0.0 }, 0);
        let choices = self.costs(row).iter().zip(weights.values(row)).zip(weights.ranks(row));
        for (place, ((&cost, value), &rank)) in (1..).zip(choices) {
            let worth = row.importance * value + bonus[index];
            let gain = worth - prices.of(charged(cost, spread, rank));
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
            if let Some(room) = self.room[lowest] {
                bounds[lowest] = self.value + gained + prices.worth(room);
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
                let cost = charged(self.costs(row)[place - 1], spread, weights.ranks(row)[place - 1]);
                gained += gain;
                left.iter_mut().zip(cost).for_each(|(left, cost)| *left -= cost);
            }
        }
        Priced { bound: self.value + gained + prices.worth(room), left }
    }

    /// The least bound with the layers from `lowest` upwards, which leave `room`, and its prices.
    pub(super) fn relaxed(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize, room: Cost) -> (f64, Prices) {
        let at = |prices| self.priced(weights, bonus, lowest, room, prices);
        let free = at(Prices::default());
        let lacking: Vec<usize> = (0..RESOURCES).filter(|&resource| free.left[resource] < 0.0).collect();
        let mut least = (free.bound, Prices::default());
        if lacking.is_empty() {
            return least;
        }
        let highest = self.highest_prices(weights, bonus, lowest);
        // The least price of a resource at which it suffices, with the others' given.
        let suffices = |resource: usize, given: Prices| -> Prices {
            let (mut low, mut high) = (0.0, highest[resource]);
            if at(given).left[resource] >= 0.0 {
                return given;
            }
            for _ in 0..HALVINGS {
                let middle = 0.5 * (low + high);
                if at(given.with(resource, middle)).left[resource] >= 0.0 { high = middle } else { low = middle }
            }
            given.with(resource, high)
        };
        let suffice =
            |left: Cost, but: &[usize]| (0..RESOURCES).all(|other| but.contains(&other) || left[other] >= 0.0);
        for &resource in &lacking {
            let prices = suffices(resource, Prices::default());
            let alone = at(prices);
            if suffice(alone.left, &[resource]) {
                return (alone.bound, prices);
            }
        }
        // What there is no end of has no price.
        for pair in PAIRS.iter().filter(|pair| pair.iter().all(|&resource| room[resource].is_finite())) {
            let [inner, outer] = *pair;
            let of = |price: f64| suffices(inner, Prices::default().with(outer, price));
            let prices = of(section(|price| at(of(price)).bound, highest[outer]));
            let both = at(prices);
            if both.bound < least.0 {
                least = (both.bound, prices);
            }
            if suffice(both.left, pair) {
                break;
            }
        }
        least
    }

    /// Prices at which nothing is worth its cost.
    fn highest_prices(&self, weights: &Weights, bonus: Bonus<'_>, lowest: usize) -> Cost {
        let mut highest = [0f64; RESOURCES];
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

/// What a rank is charged: its cost, and its part of what the largest layer takes.
fn charged(mut cost: Cost, spread: f64, rank: usize) -> Cost {
    cost[0] += spread * rank as f64;
    cost
}

/// Where a convex function of a number between 0 and `most` is least (golden section).
fn section(of: impl Fn(f64) -> f64, most: f64) -> f64 {
    let golden = 0.5 * (5f64.sqrt() - 1.0);
    let (mut low, mut high) = (0.0, most);
    let mut inner = [high - golden * (high - low), low + golden * (high - low)];
    let mut values = inner.map(&of);
    for _ in 0..SECTIONS {
        if values[0] <= values[1] {
            high = inner[1];
            (inner[1], values[1]) = (inner[0], values[0]);
            inner[0] = high - golden * (high - low);
            values[0] = of(inner[0]);
        } else {
            low = inner[0];
            (inner[0], values[0]) = (inner[1], values[1]);
            inner[1] = low + golden * (high - low);
            values[1] = of(inner[1]);
        }
    }
    if values[0] <= values[1] { inner[0] } else { inner[1] }
}
