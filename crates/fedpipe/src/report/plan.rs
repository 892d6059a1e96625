//! The plan of a federation as a person reads it: a table, the ranks by layer, and the reasons.

use super::format::mib;
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use fedpipe_core::{Plan, SiloId, SiloPlan, SiloProfile, WeightId};
use fedpipe_federation::plan::optimality;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A line under the header and none elsewhere.
pub const TERMINAL: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// Aligns all columns but the first, which names the rows, as numbers are.
pub fn right_aligned(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Weights laid out by kind (down) and layer (across).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightGrid {
    /// What comes before the layer in every path, when it is the same for all.
    prefix: Option<String>,
    /// Paths with the layer's number left out.
    pub kinds: BTreeSet<(String, String)>,
    /// The layers.
    pub layers: BTreeSet<usize>,
}

impl WeightGrid {
    /// The grid of these weights.
    pub fn of<'a>(weights: impl IntoIterator<Item = &'a WeightId>) -> Self {
        let mut grid = Self { prefix: None, kinds: BTreeSet::new(), layers: BTreeSet::new() };
        for weight in weights {
            let (before, layer, after) = split(weight);
            grid.kinds.insert((before.to_string(), after.to_string()));
            grid.layers.extend(layer);
        }
        let mut prefixes = grid.kinds.iter().map(|(before, _)| before);
        let first = prefixes.next();
        if prefixes.all(|prefix| Some(prefix) == first) {
            grid.prefix = first.cloned();
        }
        grid
    }

    /// The short name of a kind.
    pub fn name<'a>(&self, kind: &'a (String, String)) -> std::borrow::Cow<'a, str> {
        match (&self.prefix, kind.1.as_str()) {
            (_, "") => kind.0.as_str().into(),
            (Some(_), after) => after.into(),
            (None, after) => format!("{}.*.{after}", kind.0).into(),
        }
    }

    /// The columns of a kind: every layer, or a single one for a weight that belongs to none.
    pub fn columns(&self, (_, after): &(String, String)) -> Vec<usize> {
        if after.is_empty() { vec![0] } else { self.layers.iter().copied().collect() }
    }

    /// The weight of a kind in a layer, whether or not there is one.
    pub fn weight(&self, (before, after): &(String, String), layer: usize) -> WeightId {
        if after.is_empty() { WeightId::new(before) } else { WeightId::new(format!("{before}.{layer}.{after}")) }
    }
}

/// A path before, at and after its layer's number: `bert.encoder.layer`, `0`, `attention.self.query`.
fn split(weight: &WeightId) -> (&str, Option<usize>, &str) {
    let path = weight.as_str();
    let mut start = 0;
    for part in path.split('.') {
        let end = start + part.len();
        if let (Ok(layer), true, true) = (part.parse(), start > 0, end < path.len()) {
            return (&path[..start - 1], Some(layer), &path[end + 1..]);
        }
        start = end + 1;
    }
    (path, None, "")
}

/// The plan for a terminal.
pub fn text(plan: &Plan, profiles: &BTreeMap<SiloId, SiloProfile>) -> String {
    let mut out = format!("{}\n{}\n{}\n", table(plan, profiles), deadline(plan), optimality(plan));
    let grid = grid(plan);
    for silo in plan.silos.values() {
        let _ = write!(out, "\n{}: ranks\n{}", silo.silo, ranks(&grid, silo));
        for reason in &silo.reasons {
            let _ = writeln!(out, "  - {reason}");
        }
    }
    out
}

/// What becomes of a plan: the rounds, the objective, and every silo that would do otherwise.
pub fn difference(now: &Plan, then: &Plan) -> String {
    let mut out = format!(
        "Deadline of a round: {:.1} → {:.1} s. Objective of all silos together: {:.4} → {:.4}.\n",
        now.deadline_s, then.deadline_s, now.optimality.objective, then.optimality.objective
    );
    let mut table = Table::new();
    table.load_style(TERMINAL).set_header([
        "silo",
        "objective",
        "batch",
        "base",
        "recompute",
        "weights",
        "ranks",
        "other ranks",
        "memory MiB",
        "round s",
    ]);
    let changed =
        |before: String, after: String| if before == after { before } else { format!("{before} → {after}") };
    let mut same = Vec::new();
    for (before, after) in now.silos.values().filter_map(|silo| Some((silo, then.silos.get(&silo.silo)?))) {
        let cell = |of: &dyn Fn(&SiloPlan) -> String| changed(of(before), of(after));
        let alike = |plan: &SiloPlan| (plan.batch_size, plan.base_format, plan.recompute, plan.ranks.clone());
        if alike(before) == alike(after) {
            same.push(before.silo.as_str());
            continue;
        }
        table.add_row([
            before.silo.to_string(),
            cell(&|plan| format!("{:.4}", plan.objective)),
            cell(&|plan| plan.batch_size.to_string()),
            cell(&|plan| plan.base_format.to_string()),
            cell(&|plan| if plan.recompute { "yes" } else { "no" }.to_string()),
            cell(&|plan| plan.ranks.len().to_string()),
            cell(&|plan| span(plan.ranks.values())),
            other_ranks(before, after).to_string(),
            cell(&|plan| format!("{:.0}", mib(plan.memory.total()))),
            cell(&|plan| format!("{:.1}", plan.time.total())),
        ]);
    }
    right_aligned(&mut table);
    if same.len() < now.silos.len() {
        let _ = writeln!(out, "\n{table}");
    }
    if !same.is_empty() {
        let _ = writeln!(out, "\nAs before: {}.", same.join(", "));
    }
    out
}

/// Weights that train at another rank, or of which only one plan trains.
fn other_ranks(before: &SiloPlan, after: &SiloPlan) -> usize {
    let weights: BTreeSet<&WeightId> = before.ranks.keys().chain(after.ranks.keys()).collect();
    weights.into_iter().filter(|weight| before.ranks.get(*weight) != after.ranks.get(*weight)).count()
}

fn deadline(plan: &Plan) -> String {
    format!("Deadline of a round: {:.1} s ({}).", plan.deadline_s, plan.deadline_reason)
}

/// A row a silo.
fn table(plan: &Plan, profiles: &BTreeMap<SiloId, SiloProfile>) -> Table {
    let mut table = Table::new();
    table.load_style(TERMINAL).set_header([
        "silo",
        "weights",
        "ranks",
        "batch",
        "base",
        "recompute",
        "memory MiB",
        "of MiB",
        "round s",
        "compute s",
        "transfer s",
    ]);
    for silo in plan.silos.values() {
        let budget = profiles.get(&silo.silo).map_or_else(|| "?".into(), |profile| profile.memory_mib.to_string());
        let transfer = silo.time.download + silo.time.upload;
        table.add_row([
            silo.silo.to_string(),
            silo.ranks.len().to_string(),
            span(silo.ranks.values()),
            silo.batch_size.to_string(),
            silo.base_format.to_string(),
            if silo.recompute { "yes" } else { "no" }.to_string(),
            format!("{:.0}", mib(silo.memory.total())),
            budget,
            format!("{:.1}", silo.time.total()),
            format!("{:.1}", silo.time.total() - transfer),
            format!("{transfer:.1}"),
        ]);
    }
    right_aligned(&mut table);
    table
}

/// `4`, or `2-16` when they differ.
fn span<'a>(ranks: impl Iterator<Item = &'a usize> + Clone) -> String {
    match (ranks.clone().min(), ranks.max()) {
        (Some(least), Some(most)) if least == most => least.to_string(),
        (Some(least), Some(most)) => format!("{least}-{most}"),
        _ => "none".into(),
    }
}

/// A line for every kind of weight of the federation, the silo's ranks by layer; a dot where it does not train.
fn ranks(grid: &WeightGrid, silo: &SiloPlan) -> String {
    let width = grid.kinds.iter().map(|kind| grid.name(kind).chars().count()).max().unwrap_or(0).max("layer".len());
    let mut out = format!("  {:<width$}", "layer");
    for layer in &grid.layers {
        let _ = write!(out, "{layer:>4}");
    }
    for kind in &grid.kinds {
        let _ = write!(out, "\n  {:<width$}", grid.name(kind));
        for layer in grid.columns(kind) {
            match silo.ranks.get(&grid.weight(kind, layer)) {
                Some(rank) => out.push_str(&format!("{rank:>4}")),
                None => out.push_str("   ·"),
            }
        }
    }
    out.push('\n');
    out
}

/// The weights that any silo trains.
fn grid(plan: &Plan) -> WeightGrid {
    WeightGrid::of(plan.silos.values().flat_map(|silo| silo.ranks.keys()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_plan_reads_well() {
        let state = fixture::state();
        insta::assert_snapshot!(text(&state.plan, &state.profiles));
    }

    /// One silo with more memory, one that computes again and trains a weight less, the others as before.
    #[test]
    fn what_would_change_reads_well() {
        let now = fixture::state().plan;
        let mut then = now.clone();
        (then.deadline_s, then.optimality.objective) = (24.5, 1.25);
        let mut silos = then.silos.values_mut();
        let (more, less) = (silos.next().unwrap(), silos.next().unwrap());
        (more.batch_size, more.base_format, more.objective) = (64, fedpipe_core::BaseFormat::F32, 0.93);
        more.ranks.values_mut().for_each(|rank| *rank *= 2);
        more.memory.activations *= 2.0;
        (less.recompute, less.time.backward) = (!less.recompute, 2.0 * less.time.backward);
        less.ranks.pop_first();
        insta::assert_snapshot!(difference(&now, &then));
    }

    #[test]
    fn nothing_that_would_change_is_said_in_a_line() {
        let plan = fixture::state().plan;
        let said = difference(&plan, &plan);
        assert!(said.ends_with("\n\nAs before: bank, clinic, edge, factory.\n"), "{said}");
        assert_eq!(said.lines().count(), 3, "{said}");
    }

    #[test]
    fn paths_are_split_at_the_layer() {
        let parts = |path: &str| {
            let id = WeightId::new(path);
            let (before, layer, after) = split(&id);
            (before.to_string(), layer, after.to_string())
        };
        let expected = ("encoder.block".to_string(), Some(3), "layer.0.SelfAttention.q".to_string());
        assert_eq!(parts("encoder.block.3.layer.0.SelfAttention.q"), expected);
        assert_eq!(parts("lm_head"), ("lm_head".to_string(), None, String::new()));
        assert_eq!(parts("0.weight"), ("0.weight".to_string(), None, String::new()));
    }

    #[test]
    fn two_stacks_keep_their_names_apart() {
        let weights = ["encoder.block.0.q", "decoder.block.1.q", "lm_head"].map(WeightId::from);
        let grid = WeightGrid::of(&weights);
        let names: Vec<_> = grid.kinds.iter().map(|kind| grid.name(kind).into_owned()).collect();
        assert_eq!(names, ["decoder.block.*.q", "encoder.block.*.q", "lm_head"]);
        assert_eq!(grid.weight(grid.kinds.first().unwrap(), 1), weights[1]);
    }
}
