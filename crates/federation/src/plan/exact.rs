//! The planner's program as an integer program, for a solver library: exact, and slow where there is much to choose from.

use super::table::{Cost, FrameTable, RESOURCES, Weights};
use good_lp::{Expression, ProblemVariables, SolverModel, Variable, VariableDefinition, constraint, microlp, variable};
use microlp::{SolutionStatus, SolveOptions};
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Nodes of the search tree after which the solver is given up. Not seconds: what else a machine does must not change a plan.
const NODES: u64 = 5_000;

/// A frame with the lowest layer that may train.
#[derive(Clone, Copy)]
pub(super) struct Variant<'s> {
    pub(super) table: &'s FrameTable,
    pub(super) lowest: usize,
    /// What it leaves of the budgets when nothing trains yet.
    pub(super) room: Cost,
}

/// What a silo may choose.
pub(super) struct Choices<'s> {
    /// Its part of the objective.
    pub(super) share: f64,
    /// The weights at the silo's own importance.
    pub(super) weights: &'s Weights,
    pub(super) variants: Vec<Variant<'s>>,
}

/// Weights that a number of silos should train.
pub(super) struct Cover {
    pub(super) least: usize,
    /// Rows of the weights, and the objective that each missing silo costs.
    pub(super) rows: Vec<(usize, f64)>,
}

/// Whether a variant is chosen, and by weight and place whether that is; none where it is too costly.
type OfVariant = (Variable, Vec<Vec<Option<Variable>>>);

/// A silo's choice: a variant, and the place in the menu of every weight at or above its lowest layer, from 1, or 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) variant: usize,
    pub(super) places: Vec<usize>,
}

/// Binary variables of a program; those of a solver that is to end soon are few.
pub(super) fn size(weights: &Weights, silos: &[Choices<'_>]) -> usize {
    let of = |variant: &Variant<'_>| -> usize {
        weights.rows[..weights.at_or_above[variant.lowest]].iter().map(|row| weights.ranks(row).len()).sum::<usize>()
            + 1
    };
    silos.iter().flat_map(|silo| &silo.variants).map(of).sum()
}

/// The best choices of all silos. None where there are none, or the solver gives up.
pub(super) fn solve(weights: &Weights, silos: &[Choices<'_>], cover: Option<&Cover>) -> Option<Vec<Chosen>> {
    let mut variables = ProblemVariables::new();
    // In the solver's own order.
    let mut order: Vec<Variable> = Vec::new();
    let mut add = |definition: VariableDefinition| {
        order.push(variables.add(definition));
        order[order.len() - 1]
    };
    let mut objective = Expression::from(0.0);
    let mut constraints = Vec::new();
    let mut all: Vec<Vec<OfVariant>> = Vec::new();
    for silo in silos {
        let mut of_silo = Vec::new();
        for &Variant { table, lowest, room } in &silo.variants {
            let chosen = add(variable().binary());
            objective += silo.share * table.value * chosen;
            let rows = &silo.weights.rows[..weights.at_or_above[lowest]];
            // In shares of the room: solvers work with numbers around 1.
            let scale = room.map(|room| if room > 0.0 { room.recip() } else { 0.0 });
            let mut used = [(); RESOURCES].map(|()| Expression::from(0.0));
            let mut of_layers: Vec<Expression> = vec![Expression::from(0.0); weights.layers()];
            let mut places = Vec::with_capacity(rows.len());
            for row in rows {
                let mut of_row = Vec::new();
                let mut any = Expression::from(0.0);
                let choices = table.costs(row).iter().zip(weights.values(row)).zip(weights.ranks(row));
                for ((cost, value), &rank) in choices {
                    let mut alone = *cost;
                    alone[0] += table.bytes_per_largest_rank * rank as f64;
                    if alone.iter().zip(room).any(|(cost, room)| *cost > room) {
                        of_row.push(None);
                        continue;
                    }
                    let place = add(variable().binary());
                    objective += silo.share * row.importance * value * place;
                    for (used, (cost, scale)) in used.iter_mut().zip(cost.iter().zip(scale)) {
                        *used += cost * scale * place;
                    }
                    of_layers[row.layer] += rank as f64 * place;
                    any += place;
                    of_row.push(Some(place));
                }
                constraints.push(if row.required { constraint!(any == chosen) } else { constraint!(any <= chosen) });
                places.push(of_row);
            }
            if table.bytes_per_largest_rank > 0.0 {
                let largest = add(variable().min(0.0));
                constraints.extend(of_layers.into_iter().map(|layer| constraint!(layer <= largest)));
                used[0] += table.bytes_per_largest_rank * scale[0] * largest;
            }
            // Infinite room bounds nothing; without any, what costs is ruled out already.
            let binding = used.into_iter().zip(room).filter(|(_, room)| room.is_finite() && *room > 0.0);
            constraints.extend(binding.map(|(used, _)| constraint!(used <= chosen)));
            of_silo.push((chosen, places));
        }
        let one: Expression = of_silo.iter().map(|(chosen, _)| *chosen).sum();
        constraints.push(constraint!(one == 1.0));
        all.push(of_silo);
    }
    if let Some(Cover { least, rows }) = cover {
        for &(row, price) in rows {
            let missing = add(variable().min(0.0));
            let trained: Expression =
                all.iter().flatten().filter_map(|(_, places)| places.get(row)).flatten().flatten().copied().sum();
            constraints.push(constraint!(trained + missing >= *least as f64));
            objective -= price * missing;
        }
    }
    let model = variables.maximise(&objective).using(microlp);
    let model = constraints.into_iter().fold(model, |model, constraint| model.with(constraint));
    // By the solver's own front: the library's has no limit but of time.
    let mut options = SolveOptions::default();
    options.node_limit = Some(NODES);
    let solution = guarded(|| model.as_inner().solve_with(options))?.ok()?.into_solution().ok()?;
    if solution.status() != SolutionStatus::Optimal {
        return None;
    }
    let values: HashMap<Variable, f64> = order.into_iter().zip(solution.iter().map(|(_, value)| value)).collect();
    let is = |variable: &Variable| values.get(variable).is_some_and(|&value| value > 0.5);
    let chosen = all.iter().map(|of_silo| {
        let variant = of_silo.iter().position(|(chosen, _)| is(chosen))?;
        let places = of_silo[variant]
            .1
            .iter()
            .map(|row| row.iter().position(|place| place.as_ref().is_some_and(is)).map_or(0, |place| place + 1));
        Some(Chosen { variant, places: places.collect() })
    });
    chosen.collect()
}

thread_local! {
    static IN_SOLVER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in the solver, whose panics are caught: what a process says of panics need not mention them.
pub fn in_solver() -> bool {
    IN_SOLVER.get()
}

/// What the solver comes to; none where it panics. A plan that is good enough is there already, and a solver that asserts what
/// it should not is no reason to lose it.
fn guarded<R>(solve: impl FnOnce() -> R) -> Option<R> {
    IN_SOLVER.set(true);
    let solved = catch_unwind(AssertUnwindSafe(solve)).ok();
    IN_SOLVER.set(false);
    solved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::numbers::Numbers;
    use crate::plan::table::Row;

    /// The optimum of instance `seed`; none where nothing fits.
    fn optimum(seed: u64) -> Option<f64> {
        let mut numbers = Numbers(seed);
        let layers = 1 + numbers.below(3) as usize;
        let ranks = [1, 2, 4][..1 + numbers.below(3) as usize].to_vec();
        let count = 2 + numbers.below(4) as usize;
        let rows = (0..count).map(|j| Row {
            candidate: j,
            layer: layers - 1 - j * layers / count,
            shape: j % 2,
            importance: (1.0 + numbers.share(99, 1)) / 100.0,
            required: numbers.below(8) == 0,
        });
        let weights = Weights::from_parts(rows.collect(), layers, &[ranks.clone(), ranks.clone()]);
        let highest = weights.rows.iter().filter(|row| row.required).map(|row| row.layer).min().unwrap_or(layers);
        let mut tables: Vec<Vec<(FrameTable, usize, Cost)>> = Vec::new();
        let mut shares = Vec::new();
        for _ in 0..1 + numbers.below(3) {
            shares.push((1.0 + numbers.share(9, 1)) / 10.0);
            let variants = (0..1 + numbers.below(3)).map(|_| {
                let (value, lowest) = (numbers.share(50, 100), numbers.below(layers as u64 + 1) as usize);
                let room = [numbers.share(100, 10), numbers.share(100, 10), numbers.share(100, 10)];
                let bytes_per_largest_rank = numbers.share(10, 10) * numbers.below(2) as f64;
                let mut costs = Vec::new();
                for _ in 0..2 {
                    let unit = [(); RESOURCES].map(|()| (1.0 + numbers.share(30, 1)) / 10.0);
                    costs.push(ranks.iter().map(|&rank| unit.map(|unit| unit * rank as f64)).collect());
                }
                (FrameTable::from_parts(value, bytes_per_largest_rank, costs), lowest, room)
            });
            let variants: Vec<_> = variants.collect();
            tables.push(variants.into_iter().filter(|(_, lowest, _)| *lowest <= highest).collect());
        }
        let cover = Cover {
            least: numbers.below(3) as usize,
            rows: (0..count).map(|row| (row, numbers.share(40, 100))).collect(),
        };
        let choices: Vec<Choices<'_>> = tables
            .iter()
            .zip(shares)
            .map(|(variants, share)| Choices {
                share,
                weights: &weights,
                variants: variants.iter().map(|&(ref table, lowest, room)| Variant { table, lowest, room }).collect(),
            })
            .collect();
        if choices.iter().any(|silo| silo.variants.is_empty()) {
            return None;
        }
        let chosen = solve(&weights, &choices, Some(&cover))?;
        Some(worth(&weights, &choices, &cover, &chosen))
    }

    /// The objective of choices that keep the budgets.
    fn worth(weights: &Weights, silos: &[Choices<'_>], cover: &Cover, chosen: &[Chosen]) -> f64 {
        let mut objective = 0.0;
        let mut trained = vec![0; weights.rows.len()];
        for (silo, chosen) in silos.iter().zip(chosen) {
            let Variant { table, room, .. } = silo.variants[chosen.variant];
            let (mut value, mut used, mut layers) = (table.value, [0.0; RESOURCES], vec![0; weights.layers()]);
            let places = weights.rows.iter().zip(chosen.places.iter().copied().chain(std::iter::repeat(0)));
            assert!(places.filter(|(row, _)| row.required).all(|(_, place)| place > 0), "{chosen:?}");
            for (index, &place) in chosen.places.iter().enumerate().filter(|(_, place)| **place > 0) {
                let row = &weights.rows[index];
                value += row.importance * weights.values(row)[place - 1];
                layers[row.layer] += weights.ranks(row)[place - 1];
                used.iter_mut().zip(table.costs(row)[place - 1]).for_each(|(used, cost)| *used += cost);
                trained[index] += 1;
            }
            used[0] += table.bytes_per_largest_rank * layers.into_iter().max().unwrap_or(0) as f64;
            assert!(used.iter().zip(room).all(|(used, room)| *used <= room + 1e-7), "{used:?} of {room:?}");
            objective += silo.share * value;
        }
        let missing = |&(row, price): &(usize, f64)| price * cover.least.saturating_sub(trained[row]) as f64;
        objective - cover.rows.iter().map(missing).sum::<f64>()
    }

    #[test]
    fn a_solver_that_panics_is_caught_and_known_to_the_hook() {
        assert_eq!(guarded(in_solver), Some(true));
        assert_eq!(guarded(|| std::panic::resume_unwind(Box::new(()))), None::<()>);
        assert!(!in_solver());
    }

    /// 200 random instances of up to three silos with the optimum that HiGHS found, if there is one.
    #[test]
    fn the_optimum_is_that_of_highs() {
        let golden: Vec<Option<f64>> = include_str!("golden/highs.txt").lines().map(|line| line.parse().ok()).collect();
        assert_eq!(golden.len(), 200);
        assert!(golden.iter().flatten().count() > 100);
        for (seed, expected) in golden.into_iter().enumerate() {
            let found = optimum(seed as u64);
            let apart = found.zip(expected).map_or(f64::from(u8::from(found != expected)), |(x, y)| (x - y).abs());
            assert!(apart < 1e-6, "instance {seed}: {found:?}, HiGHS has {expected:?}");
        }
    }
}
