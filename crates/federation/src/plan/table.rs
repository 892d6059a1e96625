//! What every choice of a silo costs and is worth, worked out once: the program that the planner solves, without models and
//! silos.
//!
//! With batch, format and recomputation (a frame) and the lowest adapted layer given, memory, time and data are sums over the
//! weights, but for one term of recomputation. Costs of a rank hang on the frame and on the shape of the weight alone, so
//! a frame keeps them once for every shape.

use super::choose::{SiloProblem, rank_value};
use super::cost::{AdapterLoad, Frame, capped};
use fedpipe_core::{ModelSpec, WeightId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The candidate weights, from the top layer down. All but their importance is the same for all silos and
/// shared by them.
#[derive(Clone)]
pub(super) struct Weights {
    pub(super) rows: Vec<Row>,
    /// How many rows are at or above a layer, by layer; one more for none.
    pub(super) at_or_above: Vec<usize>,
    shapes: Arc<[Shape]>,
    /// Loads of plans that may train the layers from the index upwards and train nothing yet.
    empty: Arc<[AdapterLoad]>,
    /// Of these, with the weights that have to train at their smallest ranks; none where one of them lies below.
    smallest: Arc<[Option<AdapterLoad>]>,
}

/// A weight.
#[derive(Clone)]
pub(super) struct Row {
    /// Its place among the model's candidates.
    pub(super) candidate: usize,
    pub(super) layer: usize,
    pub(super) shape: usize,
    pub(super) importance: f64,
    /// Whether it has to train.
    pub(super) required: bool,
}

/// Weights that cost alike.
struct Shape {
    extents: (usize, usize),
    /// The ranks that the menu and its extents allow, ascending, and what each is worth where importance is 1.
    ranks: Vec<usize>,
    values: Vec<f64>,
    /// Loads of a plan that trains one such weight at each of these ranks.
    loads: Vec<AdapterLoad>,
}

impl Weights {
    /// The weights of a problem; its profile and budgets do not matter.
    pub(super) fn of(problem: &SiloProblem<'_>) -> Self {
        let (cost, menu) = (&problem.cost, problem.menu);
        let model = cost.model;
        let empty: Vec<AdapterLoad> = (0..=model.layers).map(|lowest| cost.empty_load(lowest)).collect();
        let mut shapes: Vec<Shape> = Vec::new();
        let mut rows = Vec::with_capacity(model.candidates.len());
        let tuning = problem.tuning;
        for (index, candidate) in model.candidates.iter().enumerate() {
            let extents = (candidate.inputs, candidate.outputs);
            let shape = shapes.iter().position(|shape| shape.extents == extents).unwrap_or_else(|| {
                let ranks: Vec<usize> =
                    menu.ranks.iter().copied().filter(|&rank| rank == capped(candidate, rank)).collect();
                shapes.push(Shape {
                    extents,
                    values: ranks.iter().map(|&rank| rank_value(rank)).collect(),
                    loads: ranks.iter().map(|&rank| cost.raised(&empty[0], candidate, 0, rank)).collect(),
                    ranks,
                });
                shapes.len() - 1
            });
            let importance = problem.importance.get(&candidate.id).copied().unwrap_or(0.0);
            let required = tuning.always.contains_key(&candidate.id);
            rows.push(Row { candidate: index, layer: candidate.layer, shape, importance, required });
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.layer));
        let at_or_above =
            (0..=model.layers).map(|lowest| rows.iter().take_while(|row| row.layer >= lowest).count()).collect();
        let smallest = cost.load(&tuning.always);
        let smallest = empty.iter().map(|empty| {
            let reaches = empty.lowest <= smallest.lowest;
            reaches.then(|| cost.load_from(&tuning.always, empty.lowest))
        });
        let smallest = smallest.collect();
        Self { rows, at_or_above, shapes: shapes.into(), smallest, empty: empty.into() }
    }

    /// The same weights of another importance.
    pub(super) fn weighed(&self, model: &ModelSpec, importance: &BTreeMap<WeightId, f64>) -> Self {
        let importance_of = |row: &Row| importance.get(&model.candidates[row.candidate].id).copied().unwrap_or(0.0);
        let rows = self.rows.iter().map(|row| Row { importance: importance_of(row), ..row.clone() }).collect();
        Self { rows, ..self.clone() }
    }

    /// Ranks that a weight may have, ascending.
    pub(super) fn ranks(&self, row: &Row) -> &[usize] {
        &self.shapes[row.shape].ranks
    }

    /// What these are worth where importance is 1.
    pub(super) fn values(&self, row: &Row) -> &[f64] {
        &self.shapes[row.shape].values
    }

    pub(super) fn layers(&self) -> usize {
        self.at_or_above.len() - 1
    }
}

/// How many budgets there are.
pub(super) const RESOURCES: usize = 3;

/// Memory in bytes, time in seconds and data in bytes that travel.
pub(super) type Cost = [f64; RESOURCES];

/// One frame of a silo.
pub(super) struct FrameTable {
    pub(super) frame: Frame,
    /// Objective without any rank.
    pub(super) value: f64,
    /// What is left of the budgets when nothing trains yet, by the lowest layer that may; none where the weights that have to
    /// train lie below it or overdraw a budget at their smallest ranks.
    pub(super) room: Vec<Option<Cost>>,
    /// Bytes a unit of rank in the layer that has most of them. They are in no rank's cost, being no sum over the weights.
    pub(super) bytes_per_largest_rank: f64,
    /// By shape and rank of the menu.
    costs: Vec<Vec<Cost>>,
}

impl FrameTable {
    /// `None` when the silo did not measure the frame's format.
    pub(super) fn new(problem: &SiloProblem<'_>, weights: &Weights, frame: Frame) -> Option<Self> {
        let cost = &problem.cost;
        let of = |load: &AdapterLoad| -> Option<Cost> {
            let (memory, time) = cost.round(load, frame)?;
            Some([memory.total(), time.total(), cost.data(load)])
        };
        let bytes_per_largest_rank = cost.bytes_per_largest_rank(frame)?;
        let budgets = problem.budgets();
        let mut room = Vec::with_capacity(weights.empty.len());
        for (empty, smallest) in weights.empty.iter().zip(weights.smallest.iter()) {
            let used = of(empty)?;
            let least = smallest.as_ref().and_then(of);
            let fits = least.is_some_and(|least| least.iter().zip(budgets).all(|(least, budget)| *least <= budget));
            room.push(fits.then(|| std::array::from_fn(|resource| budgets[resource] - used[resource])));
        }
        let nothing = of(&weights.empty[0])?;
        let mut costs = Vec::with_capacity(weights.shapes.len());
        for shape in weights.shapes.iter() {
            let raised = shape.ranks.iter().zip(&shape.loads).map(|(&rank, load)| {
                let all = of(load)?;
                let mut more: Cost = std::array::from_fn(|resource| all[resource] - nothing[resource]);
                more[0] -= bytes_per_largest_rank * rank as f64;
                Some(more)
            });
            costs.push(raised.collect::<Option<Vec<Cost>>>()?);
        }
        let value = problem.menu.frame_term(frame);
        Some(Self { frame, value, room, bytes_per_largest_rank, costs })
    }

    /// What each rank of a weight costs.
    pub(super) fn costs(&self, row: &Row) -> &[Cost] {
        &self.costs[row.shape]
    }
}

#[cfg(test)]
impl Weights {
    /// Weights of these shapes' ranks.
    pub(super) fn from_parts(rows: Vec<Row>, layers: usize, ranks: &[Vec<usize>]) -> Self {
        let shapes = ranks.iter().enumerate().map(|(place, ranks)| Shape {
            extents: (place, place),
            values: ranks.iter().map(|&rank| rank_value(rank)).collect(),
            ranks: ranks.clone(),
            loads: vec![],
        });
        let at_or_above = (0..=layers).map(|lowest| rows.iter().filter(|row| row.layer >= lowest).count()).collect();
        Self { rows, at_or_above, shapes: shapes.collect(), empty: Arc::new([]), smallest: Arc::new([]) }
    }
}

#[cfg(test)]
impl FrameTable {
    pub(super) fn from_parts(value: f64, bytes_per_largest_rank: f64, costs: Vec<Vec<Cost>>) -> Self {
        let frame =
            Frame { batch_size: 1, step_multiple: 1, base_format: fedpipe_core::BaseFormat::F32, recompute: false };
        Self { frame, value, room: vec![], bytes_per_largest_rank, costs }
    }
}
