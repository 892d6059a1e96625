//! Heat maps of a plan: kinds of weight down, layers across, darker for more. A figure is worked out once and drawn for a
//! terminal, as SVG on its own and within a page.

mod svg;
mod terminal;

pub use svg::{STYLE, inline, stand_alone};
pub use terminal::{Look, text};

use fedpipe_core::{ModelSpec, Plan, SiloPlan, WeightId};
use fedpipe_federation::plan::grouped_ranks;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of the scale, from 1; 0 is nothing.
const STEPS: usize = 8;
/// Silos in one figure.
const SILOS: usize = 12;

/// Where each candidate weight of a model stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grid {
    /// Kinds of weight, from the embeddings upwards; one that a layer has several of takes several rows.
    kinds: Vec<String>,
    /// Numbers of the layers.
    layers: Vec<usize>,
    /// Row and column.
    places: BTreeMap<WeightId, (usize, usize)>,
}

impl Grid {
    fn of(model: &ModelSpec) -> Self {
        let layers: BTreeSet<usize> = model.candidates.iter().map(|candidate| candidate.layer).collect();
        let layers: Vec<usize> = layers.into_iter().collect();
        let mut rows: Vec<(&str, usize)> = Vec::new();
        let mut seen: BTreeMap<(&str, usize), usize> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for candidate in &model.candidates {
            let of_layer = seen.entry((&candidate.kind, candidate.layer)).or_default();
            *of_layer += 1;
            let key = (candidate.kind.as_str(), *of_layer);
            let row = rows.iter().position(|row| *row == key).unwrap_or_else(|| {
                rows.push(key);
                rows.len() - 1
            });
            let column = layers.partition_point(|&layer| layer < candidate.layer);
            places.insert(candidate.id.clone(), (row, column));
        }
        let name = |(kind, nth): (&str, usize)| if nth > 1 { format!("{kind} ({nth})") } else { kind.to_string() };
        Self { kinds: rows.into_iter().map(|row| printable(&name(row))).collect(), layers, places }
    }
}

/// Without what XML forbids or a terminal obeys.
fn printable(text: &str) -> String {
    let harmless = |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

/// What a weight shows.
#[derive(Debug, Clone, PartialEq)]
struct Cell {
    /// How dark, from 1 to [`STEPS`].
    step: usize,
    /// The value.
    text: String,
    /// The weight and its value.
    tip: String,
}

/// All weights of a model, once.
#[derive(Debug, Clone, PartialEq)]
struct Map {
    title: String,
    /// By row and column; none where there is nothing to show.
    cells: Vec<Vec<Option<Cell>>>,
    /// The same in words.
    words: String,
}

impl Map {
    /// `cell` is given a value above 0.
    fn new(
        grid: &Grid,
        title: String,
        words: String,
        values: impl Iterator<Item = (WeightId, f64)>,
        cell: impl Fn(f64) -> (usize, String),
        unit: &str,
    ) -> Self {
        let mut cells = vec![vec![None; grid.layers.len()]; grid.kinds.len()];
        for (weight, value) in values.filter(|(_, value)| *value > 0.0) {
            if let Some(&(row, column)) = grid.places.get(&weight) {
                let (step, text) = cell(value);
                let tip = format!("{}: {text}{unit}", printable(weight.as_str()));
                cells[row][column] = Some(Cell { step: step.clamp(1, STEPS), text, tip });
            }
        }
        Self { title, cells, words }
    }
}

/// Maps on one scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    grid: Grid,
    title: &'static str,
    /// What the legend's numbers are.
    unit: &'static str,
    /// Steps of the scale and what they stand for.
    legend: Vec<(usize, String)>,
    /// What an empty cell is.
    nothing: &'static str,
    maps: Vec<Map>,
    /// Said below it.
    note: Option<String>,
}

/// Each weight's share of the federation's importance.
pub fn importance(model: &ModelSpec, importance: &BTreeMap<WeightId, f64>) -> Figure {
    let grid = Grid::of(model);
    let shares = || importance.iter().filter(|(_, share)| share.is_finite());
    let most = shares().map(|(_, &share)| share).fold(0.0, f64::max);
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let step = |share: f64| ((share / most * STEPS as f64).ceil() as usize, percent(share));
    let values = shares().map(|(weight, &share)| (weight.clone(), share));
    let mut kinds = vec![0.0; grid.kinds.len()];
    for (weight, share) in shares() {
        if let Some(&(row, _)) = grid.places.get(weight) {
            kinds[row] += share;
        }
    }
    let kinds = grid.kinds.iter().zip(kinds).map(|(kind, share)| format!("{kind} {} %", percent(share)));
    let words = format!("By kind: {}.", kinds.collect::<Vec<_>>().join(", "));
    let map = Map::new(&grid, String::new(), words, values, step, " % of importance");
    let legend = (1..=STEPS).filter(|_| most > 0.0);
    let legend = legend.map(|step| (step, percent(most * step as f64 / STEPS as f64))).collect();
    Figure {
        grid,
        title: "Importance by layer and kind of weight",
        unit: "share of importance, %, up to",
        legend,
        nothing: "none",
        maps: vec![map],
        note: None,
    }
}

/// The ranks of the first silos, on the scale of all.
pub fn ranks(model: &ModelSpec, plan: &Plan) -> Figure {
    let left_out = plan.silos.len().saturating_sub(SILOS);
    let note = (left_out > 0).then(|| format!("… and {left_out} more silos."));
    Figure { note, ..of_silos(model, plan, plan.silos.values().take(SILOS)) }
}

/// The ranks of one silo, on the scale of all.
pub fn silo_ranks(model: &ModelSpec, plan: &Plan, silo: &SiloPlan) -> Figure {
    let mut figure = of_silos(model, plan, std::iter::once(silo));
    figure.maps.iter_mut().for_each(|map| map.title.clear());
    Figure { title: "Ranks by layer and kind of weight", ..figure }
}

fn of_silos<'a>(model: &ModelSpec, plan: &Plan, silos: impl Iterator<Item = &'a SiloPlan>) -> Figure {
    let grid = Grid::of(model);
    let menu: BTreeSet<usize> = plan.silos.values().flat_map(|silo| silo.ranks.values().copied()).collect();
    let menu: Vec<usize> = menu.into_iter().collect();
    // Spread over the scale, so that the largest is the darkest.
    let step = |rank: usize| (STEPS * (menu.partition_point(|&other| other < rank) + 1)).div_ceil(menu.len().max(1));
    let mut legend: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for &rank in &menu {
        legend.entry(step(rank)).and_modify(|(_, most)| *most = rank).or_insert((rank, rank));
    }
    let span = |(least, most)| if least == most { format!("{least}") } else { format!("{least}–{most}") };
    let map = |silo: &SiloPlan| {
        let words = format!("Silo {}: {}.", silo.silo, grouped_ranks(model, &silo.ranks).join("; "));
        let values = silo.ranks.iter().map(|(weight, &rank)| (weight.clone(), rank as f64));
        let cell = |rank: f64| (step(rank as usize), format!("{rank}"));
        Map::new(&grid, silo.silo.to_string(), printable(&words), values, cell, " (rank)")
    };
    let maps = silos.map(map).collect();
    Figure {
        title: "Ranks by silo, layer and kind of weight",
        unit: "rank",
        legend: legend.into_iter().map(|(step, ranks)| (step, span(ranks))).collect(),
        nothing: "not trained",
        maps,
        note: None,
        grid,
    }
}

#[cfg(test)]
mod tests;
