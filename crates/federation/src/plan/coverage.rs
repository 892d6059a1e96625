//! Plans of all silos together: what the federation gains from them, and that important weights are trained by enough silos.
//!
//! maximise  Σ_i w_i·J_i − Σ_m I_m·max(0, κ − n_m)/κ,
//!
//! with w_i the silo's share of the examples, n_m the number of silos that train weight m, over the weights that hold half of
//! all importance, and κ the number of silos that should. A price μ_m between 0 and I_m/κ on being trained takes the silos
//! apart again (Lagrangian relaxation): every silo gains μ_m/w_i where it trains m, and Σ_i w_i·bound_i − Σ_m μ_m·κ is no less
//! than what any plans together gain. Prices rise where a weight lacks silos and fall where it has more than enough.

use super::choose::{Found, Outcome, Search, Shortfall, shortfall};
use super::exact::{self, Choices, Cover, Variant};
use super::table::Weights;
use fedpipe_core::{Optimality, WeightId};
use rayon::prelude::*;

/// Changes of the prices that are tried.
const ROUNDS: usize = 16;
/// A relative gap that ends the search.
const CLOSE_ENOUGH: f64 = 1e-4;
/// Share of a silo without examples.
const LEAST_SHARE: f64 = 1e-9;
/// Objectives nearer than this are equal.
const EXACT: f64 = 1e-9;
/// Most binary variables of a program that is given to the solver: more than these may take it minutes.
const EXACT_SIZE: usize = 400;
/// Most silos of a federation that the solver is asked about.
const EXACT_SILOS: usize = 16;

/// The silos' choices, in their order.
pub(super) struct Covered {
    pub(super) silos: Vec<Found>,
    /// Whether each silo does what it would do alone.
    pub(super) apart: bool,
    pub(super) optimality: Optimality,
}

/// What all silos choose at some prices.
struct Round {
    outcomes: Vec<Outcome>,
    silos: Vec<Found>,
    objective: f64,
    bound: f64,
}

/// Finds the choices; the error names the silo that has none by its place.
pub(super) fn solve(
    weights: &Weights,
    searches: &[Search<'_, '_>],
    least: usize,
) -> Result<Covered, (usize, Shortfall)> {
    let federation = Federation::new(weights, searches, least);
    let Decomposed { best, tightest, apart } = federation.decomposed()?;
    let ((objective, silos), bound) = match tightest.bound - best.0 > EXACT && searches.len() <= EXACT_SILOS {
        true => federation.exact(&tightest, best, apart),
        false => (best, tightest.bound),
    };
    let optimality = Optimality { objective, bound: bound.max(objective), uncovered: federation.uncovered(&silos) };
    Ok(Covered { silos, apart, optimality })
}

/// What prices alone come to.
struct Decomposed {
    /// The choices of most worth, and that.
    best: (f64, Vec<Found>),
    /// The round of the least bound.
    tightest: Round,
    /// Whether each silo does what it would do alone.
    apart: bool,
}

struct Federation<'s, 'p, 'a> {
    weights: &'s Weights,
    searches: &'s [Search<'p, 'a>],
    /// Of the examples.
    shares: Vec<f64>,
    /// κ.
    least: usize,
    /// Rows of the weights, and the objective that each missing silo costs.
    important: Vec<(usize, f64)>,
}

impl<'s, 'p, 'a> Federation<'s, 'p, 'a> {
    fn new(weights: &'s Weights, searches: &'s [Search<'p, 'a>], least: usize) -> Self {
        let examples: Vec<f64> = searches.iter().map(|search| search.problem.cost.profile.examples as f64).collect();
        let shares = shares(&examples);
        let least = least.min(searches.len());
        let costs = |row: usize| (row, weights.rows[row].importance / least.max(1) as f64);
        let important = if least > 0 { important(weights).into_iter().map(costs).collect() } else { vec![] };
        Self { weights, searches, shares, least, important }
    }

    /// Prices on being trained, changed until they bring nothing more.
    fn decomposed(&self) -> Result<Decomposed, (usize, Shortfall)> {
        let mut prices = vec![0.0; self.weights.rows.len()];
        let first = self.round(&prices)?;
        let apart = self.lost(&first.silos) == 0.0;
        let mut last = first.silos.clone();
        let (mut best, mut tightest) = ((first.objective, first.silos.clone()), first);
        for round in 1..ROUNDS {
            if apart || tightest.bound - best.0 <= CLOSE_ENOUGH * tightest.bound.abs() {
                break;
            }
            self.change(&mut prices, &last, round);
            let next = self.round(&prices)?;
            last.clone_from(&next.silos);
            if next.objective > best.0 {
                best = (next.objective, next.silos.clone());
            }
            if next.bound < tightest.bound {
                tightest = next;
            }
        }
        Ok(Decomposed { best, tightest, apart })
    }

    fn round(&self, prices: &[f64]) -> Result<Round, (usize, Shortfall)> {
        let silo = |(search, share): (&Search<'_, '_>, &f64)| {
            let bonus: Vec<f64> = prices.iter().map(|price| price / share).collect();
            let outcome = search.run(&bonus, |_| true)?;
            Some((search.found(&outcome)?, outcome))
        };
        let found: Vec<Option<(Found, Outcome)>> = self.searches.par_iter().zip(&self.shares).map(silo).collect();
        let mut outcomes = Vec::with_capacity(found.len());
        let mut silos = Vec::with_capacity(found.len());
        let mut bound = -prices.iter().sum::<f64>() * self.least as f64;
        for (place, (found, share)) in found.into_iter().zip(&self.shares).enumerate() {
            let (silo, outcome) = found.ok_or_else(|| (place, shortfall(self.searches[place].problem)))?;
            bound += share * outcome.bound;
            silos.push(silo);
            outcomes.push(outcome);
        }
        let objective = self.objective(&silos);
        Ok(Round { outcomes, silos, objective, bound })
    }

    /// What the choices gain together.
    fn objective(&self, silos: &[Found]) -> f64 {
        let gained: f64 = silos.iter().zip(&self.shares).map(|(found, share)| share * found.best.objective).sum();
        gained - self.lost(silos)
    }

    /// What the choices lose by weights that too few silos train.
    fn lost(&self, silos: &[Found]) -> f64 {
        let lost = |&(row, price): &(usize, f64)| price * self.least.saturating_sub(self.training(silos, row)) as f64;
        self.important.iter().map(lost).sum()
    }

    /// How many silos train a row of the weights.
    fn training(&self, silos: &[Found], row: usize) -> usize {
        let id = self.weight(row);
        silos.iter().filter(|found| found.best.ranks.contains_key(id)).count()
    }

    fn weight(&self, row: usize) -> &WeightId {
        &self.searches[0].problem.cost.model.candidates[self.weights.rows[row].candidate].id
    }

    fn uncovered(&self, silos: &[Found]) -> Vec<WeightId> {
        let rows = self.important.iter().map(|(row, _)| *row);
        rows.filter(|&row| self.training(silos, row) < self.least).map(|row| self.weight(row).clone()).collect()
    }

    /// A step against what the choices lack, ever smaller.
    fn change(&self, prices: &mut [f64], silos: &[Found], round: usize) {
        for &(row, most) in &self.important {
            let lacking = (self.least as f64 - self.training(silos, row) as f64) / self.least as f64;
            prices[row] = (prices[row] + most * lacking / (round as f64).sqrt()).clamp(0.0, most);
        }
    }

    /// Better choices by the solver where there is little to choose from, and a bound of what all gain: silo by silo where
    /// nothing ties them together.
    fn exact(&self, round: &Round, best: (f64, Vec<Found>), apart: bool) -> ((f64, Vec<Found>), f64) {
        let solved = |choices: &[Choices<'_>], cover: Option<&Cover>| {
            let small = exact::size(self.weights, choices) <= EXACT_SIZE;
            small.then(|| exact::solve(self.weights, choices, cover)).flatten()
        };
        let (objective, silos) = best;
        if apart {
            let alone = |(place, found): (usize, Found)| {
                if found.bound - found.best.objective <= EXACT {
                    return found;
                }
                let slack = found.bound - found.best.objective;
                let variants = self.searches[place].variants(&round.outcomes[place], slack);
                let weights = self.searches[place].weights;
                let choices = [Choices { share: 1.0, weights, variants: variants.clone() }];
                let better = solved(&choices, None)
                    .and_then(|chosen| self.searches[place].solved(&variants, chosen.first()?, found.prices));
                match better {
                    None => found,
                    Some(better) if better.best.objective > found.best.objective + EXACT => better,
                    // As good as any: what broke the ties stays.
                    Some(_) => Found { bound: found.best.objective, ..found },
                }
            };
            let better: Vec<Found> = silos.iter().cloned().enumerate().map(alone).collect();
            let bound = better.iter().zip(&self.shares).map(|(found, share)| share * found.bound).sum();
            // A silo alone knows nothing of what the others train.
            let gained = self.objective(&better);
            return (if gained >= objective - EXACT { (gained, better) } else { (objective, silos) }, bound);
        }
        // A variant this far under its silo's bound puts that of all under what is reached already.
        let variants: Vec<Vec<Variant<'_>>> = (0..silos.len())
            .map(|place| {
                let slack = (round.bound - objective) / self.shares[place];
                self.searches[place].variants(&round.outcomes[place], slack)
            })
            .collect();
        let choices: Vec<Choices<'_>> = (self.searches.iter().zip(&self.shares).zip(&variants))
            .map(|((search, &share), variants)| Choices { share, weights: search.weights, variants: variants.clone() })
            .collect();
        let cover = Cover { least: self.least, rows: self.important.clone() };
        let better = solved(&choices, Some(&cover)).and_then(|chosen| {
            let found = chosen
                .iter()
                .enumerate()
                .map(|(place, chosen)| self.searches[place].solved(&variants[place], chosen, silos[place].prices));
            found.collect::<Option<Vec<Found>>>()
        });
        match better.map(|silos| (self.objective(&silos), silos)) {
            None => ((objective, silos), round.bound),
            Some((gained, better)) if gained > objective + EXACT => ((gained, better), gained),
            Some(_) => ((objective, silos), objective),
        }
    }
}

/// Each silo's share of the examples; one without any still plans.
pub(super) fn shares(examples: &[f64]) -> Vec<f64> {
    let all: f64 = examples.iter().sum();
    let even = 1.0 / examples.len() as f64;
    let share = |examples: &f64| if all > 0.0 { (examples / all).max(LEAST_SHARE) } else { even };
    examples.iter().map(share).collect()
}

/// The objective and the bound that prices and searches come to without the solver.
#[cfg(test)]
pub(super) fn without_solver(weights: &Weights, searches: &[Search<'_, '_>], least: usize) -> Option<(f64, f64)> {
    let Decomposed { best, tightest, .. } = Federation::new(weights, searches, least).decomposed().ok()?;
    Some((best.0, tightest.bound))
}

/// The rows of the weights of most importance that hold half of it together.
pub(super) fn important(weights: &Weights) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..weights.rows.len()).collect();
    rows.sort_by(|&a, &b| weights.rows[b].importance.total_cmp(&weights.rows[a].importance));
    let half = 0.5 * weights.rows.iter().map(|row| row.importance).sum::<f64>();
    let mut held = 0.0;
    rows.into_iter()
        .take_while(|&row| {
            let before = held;
            held += weights.rows[row].importance;
            before < half
        })
        .collect()
}
