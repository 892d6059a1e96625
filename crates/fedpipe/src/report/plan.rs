//! The plan of a federation as a person reads it: tables of choices and costs, heat maps, and the reasons.

use super::format::mib;
use super::heat::{self, Look};
use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use fedpipe_core::{MemoryTerms, ModelSpec, Plan, RunState, SiloId, SiloPlan, SiloProfile, TimeTerms, WeightId};
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

/// The plan for a terminal.
pub fn text(state: &RunState, model: &ModelSpec, look: Look) -> String {
    let mut out = tables(&state.plan, &state.profiles);
    for figure in [heat::importance(model, &state.importance), heat::ranks(model, &state.plan)] {
        let _ = write!(out, "\n{}", heat::text(&figure, look));
    }
    out + &reasons(&state.plan)
}

/// The plan for the log of a run, whose folder has the ranks of every weight.
pub fn brief(plan: &Plan, profiles: &BTreeMap<SiloId, SiloProfile>) -> String {
    tables(plan, profiles) + &reasons(plan)
}

fn tables(plan: &Plan, profiles: &BTreeMap<SiloId, SiloProfile>) -> String {
    format!(
        "{}\n{}\n{}\n{}\nPredicted memory, MiB\n{}\n\nPredicted round, s\n{}\n",
        choices(plan),
        deadline(plan),
        optimality(plan),
        settings(plan),
        memory_table(plan, profiles),
        time_table(plan)
    )
}

/// What was left to FedPipe, a line each.
fn settings(plan: &Plan) -> String {
    let title = if plan.chosen.is_empty() { "" } else { "Settings left to FedPipe:\n" };
    plan.chosen.iter().fold(title.into(), |out, chosen| format!("{out}  - {chosen}\n"))
}

fn reasons(plan: &Plan) -> String {
    let mut out = String::new();
    for silo in plan.silos.values() {
        let _ = writeln!(out, "\n{}", silo.silo);
        for reason in &silo.reasons {
            let _ = writeln!(out, "  - {reason}");
        }
    }
    out
}

/// What becomes of a plan: the rounds, the objective, and every silo that would do otherwise.
pub fn difference(now: &Plan, then: &Plan) -> String {
    let mut out = format!(
        "Deadline of a round: {:.1} → {:.1} s. Objective of all silos together: {:.4} → {:.4}. Largest rank of the merged \
         adapter: {} → {}. training.local_steps: {} → {}.\n",
        now.deadline_s,
        then.deadline_s,
        now.optimality.objective,
        then.optimality.objective,
        now.server_rank,
        then.server_rank,
        now.local_steps,
        then.local_steps
    );
    let mut table = Table::new();
    table.load_style(TERMINAL).set_header([
        "silo",
        "objective",
        "batch",
        "steps",
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
        let alike =
            |plan: &SiloPlan| (plan.batch_size, plan.local_steps, plan.base_format, plan.recompute, plan.ranks.clone());
        if alike(before) == alike(after) {
            same.push(before.silo.as_str());
            continue;
        }
        table.add_row([
            before.silo.to_string(),
            cell(&|plan| format!("{:.4}", plan.objective)),
            cell(&|plan| plan.batch_size.to_string()),
            cell(&|plan| plan.local_steps.to_string()),
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

/// What each silo was given, a row a silo.
fn choices(plan: &Plan) -> Table {
    let mut table = Table::new();
    table.load_style(TERMINAL).set_header(["silo", "weights", "ranks", "batch", "steps", "base", "recompute"]);
    for silo in plan.silos.values() {
        table.add_row([
            silo.silo.to_string(),
            silo.ranks.len().to_string(),
            span(silo.ranks.values()),
            silo.batch_size.to_string(),
            silo.local_steps.to_string(),
            silo.base_format.to_string(),
            if silo.recompute { "yes" } else { "no" }.to_string(),
        ]);
    }
    right_aligned(&mut table);
    table
}

/// The cost model's terms of memory in MiB, by name.
pub fn memory_terms(memory: &MemoryTerms) -> [(&'static str, f64); 6] {
    let MemoryTerms { base, adapters, gradients, optimizer, activations, workspace } = *memory;
    [
        ("base", mib(base)),
        ("adapters", mib(adapters)),
        ("gradients", mib(gradients)),
        ("optimizer", mib(optimizer)),
        ("activations", mib(activations)),
        ("workspace", mib(workspace)),
    ]
}

/// The cost model's terms of a round in seconds, by name.
pub fn time_terms(time: &TimeTerms) -> [(&'static str, f64); 6] {
    let TimeTerms { forward, backward, adapter, fixed, download, upload } = *time;
    [
        ("forward", forward),
        ("backward", backward),
        ("adapters", adapter),
        ("steps", fixed),
        ("download", download),
        ("upload", upload),
    ]
}

fn memory_table(plan: &Plan, profiles: &BTreeMap<SiloId, SiloProfile>) -> Table {
    let budget =
        |silo: &SiloPlan| profiles.get(&silo.silo).map_or_else(|| "?".into(), |profile| profile.memory_mib.to_string());
    terms(plan, &["of"], |silo| (memory_terms(&silo.memory), vec![budget(silo)]))
}

fn time_table(plan: &Plan) -> Table {
    terms(plan, &[], |silo| (time_terms(&silo.time), vec![]))
}

/// A row a silo, a column a term, then their sum and what else is said.
fn terms(plan: &Plan, more: &[&str], of: impl Fn(&SiloPlan) -> ([(&'static str, f64); 6], Vec<String>)) -> Table {
    let mut table = Table::new();
    table.load_style(TERMINAL);
    for silo in plan.silos.values() {
        let (terms, beside) = of(silo);
        let names = terms.iter().map(|(name, _)| *name);
        table.set_header(std::iter::once("silo").chain(names).chain(["in all"]).chain(more.iter().copied()));
        let all: f64 = terms.iter().map(|(_, value)| value).sum();
        let values = terms.iter().map(|(_, value)| *value).chain([all]).map(|value| format!("{value:.1}"));
        table.add_row(std::iter::once(silo.silo.to_string()).chain(values).chain(beside));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_plan_reads_well() {
        let look = Look { width: 100, colour: false };
        insta::assert_snapshot!(text(&fixture::state(), &fixture::model(), look));
    }

    /// One silo with more memory, one that computes again and trains a weight less, the others as before.
    #[test]
    fn what_would_change_reads_well() {
        let now = fixture::state().plan;
        let mut then = now.clone();
        (then.deadline_s, then.optimality.objective, then.server_rank) = (24.5, 1.25, 8);
        let mut silos = then.silos.values_mut();
        let (more, less) = (silos.next().unwrap(), silos.next().unwrap());
        (more.batch_size, more.base_format, more.objective) = (64, fedpipe_core::BaseFormat::F32, 0.93);
        more.ranks.values_mut().for_each(|rank| *rank *= 2);
        more.memory.activations *= 2.0;
        less.local_steps = 40;
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
}
