//! Plans in words and tables. Pure functions: who prints them decides where.

use super::choose::{Choice, Found, Search, SiloProblem, best};
use super::{DEADLINE_SHARE, Frame, MEMORY_SHARE, MIB};
use fedpipe_core::{ModelSpec, Optimality, Plan, SiloId, SiloPlan, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Objectives nearer than this are equal.
const SAME: f64 = 1e-9;

/// What the Markdown says of one silo at a glance.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlanRow {
    /// Which silo.
    pub silo: SiloId,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Name of the base format.
    pub base_format: &'static str,
    /// What becomes of activations until the backward pass.
    pub activations: &'static str,
    /// What trains, by [`grouped_ranks`].
    pub adapted: Vec<String>,
    /// Values that train, head included.
    pub trainable_parameters: u64,
    /// Predicted memory in MiB.
    pub memory_mib: f64,
    /// Budget in MiB.
    pub memory_budget_mib: u64,
    /// Predicted seconds of a round.
    pub round_s: f64,
}

/// A row for every silo of the plan.
pub(super) fn rows(plan: &Plan, model: &ModelSpec, profiles: &BTreeMap<SiloId, SiloProfile>) -> Vec<PlanRow> {
    let row = |silo: &SiloPlan| PlanRow {
        silo: silo.silo.clone(),
        batch_size: silo.batch_size,
        base_format: silo.base_format.name(),
        activations: activations(silo.recompute),
        adapted: grouped_ranks(model, &silo.ranks),
        trainable_parameters: trainable_parameters(model, &silo.ranks),
        memory_mib: silo.memory.total() / MIB,
        memory_budget_mib: profiles.get(&silo.silo).map_or(0, |profile| profile.memory_mib),
        round_s: silo.time.total(),
    };
    plan.silos.values().map(row).collect()
}

fn activations(recompute: bool) -> &'static str {
    if recompute { "computed again" } else { "kept" }
}

fn trainable_parameters(model: &ModelSpec, ranks: &BTreeMap<WeightId, usize>) -> u64 {
    let of = |(weight, &rank): (&WeightId, &usize)| model.candidate(weight).map_or(0, |c| c.parameters(rank));
    model.head_parameters() + ranks.iter().map(of).sum::<u64>()
}

/// Ranks by runs of layers that have the same, from the embeddings upwards: `layers 3–5: query 8, value 8`. Layers are
/// counted from 0, as in the names of the weights.
pub(super) fn grouped_ranks(model: &ModelSpec, ranks: &BTreeMap<WeightId, usize>) -> Vec<String> {
    let mut by_layer: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for candidate in &model.candidates {
        if let Some(rank) = ranks.get(&candidate.id) {
            by_layer.entry(candidate.layer).or_default().push(format!("{} {rank}", candidate.kind));
        }
    }
    let mut groups: Vec<(usize, usize, String)> = Vec::new();
    for (layer, kinds) in by_layer {
        let kinds = kinds.join(", ");
        match groups.last_mut() {
            Some((_, last, same)) if *last + 1 == layer && *same == kinds => *last = layer,
            _ => groups.push((layer, layer, kinds)),
        }
    }
    let name = |(first, last, kinds): (usize, usize, String)| match first == last {
        true => format!("layer {first}: {kinds}"),
        false => format!("layers {first}–{last}: {kinds}"),
    };
    if groups.is_empty() { vec!["head only".into()] } else { groups.into_iter().map(name).collect() }
}

/// Why a silo's plan was chosen: what it is, what binds, what more of it would be worth and, where that is asked for, what
/// came second. `apart` says that it is what the silo would do alone.
pub(super) fn reasons(
    search: &Search<'_, '_>,
    found: &Found,
    apart: bool,
    runners_up: bool,
    deadline_s: f64,
) -> Vec<String> {
    let (problem, chosen) = (search.problem, &found.best);
    let Frame { batch_size, base_format, recompute } = chosen.frame;
    let mut reasons = vec![format!(
        "batch {batch_size} over {base_format}{}, {} weights adapted: objective {:.4}",
        again(recompute),
        chosen.ranks.len(),
        chosen.objective
    )];
    reasons.push(binding(problem, chosen, deadline_s));
    reasons.extend(decided(problem));
    let alone = if apart { None } else { search.best(&search.no_bonus(), |_| true) };
    let alone = alone.map_or(chosen.objective, |alone| alone.best.objective);
    if alone > chosen.objective + SAME {
        let given_up = alone - chosen.objective;
        reasons.push(format!(
            "alone it would do otherwise: it gives up {given_up:.4} so that important weights are trained by enough silos"
        ));
    }
    reasons.extend(worth(search, found, alone.max(chosen.objective)));
    if !runners_up {
        return reasons;
    }
    let second = |differs: &dyn Fn(Frame) -> bool| search.best(&search.no_bonus(), differs).map(|found| found.best);
    if let Some(choice) = second(&|other| other.base_format != base_format) {
        let Frame { batch_size, base_format, recompute } = choice.frame;
        reasons.push(format!(
            "the best plan with another base format is {base_format} at batch {batch_size}{}: objective {:.4}",
            again(recompute),
            choice.objective
        ));
    }
    if let Some(choice) = second(&|other| other.batch_size != batch_size) {
        let Frame { batch_size, base_format, recompute } = choice.frame;
        reasons.push(format!(
            "the best plan with another batch is {batch_size} over {base_format}{}: objective {:.4}",
            again(recompute),
            choice.objective
        ));
    }
    if let Some(choice) = second(&|other| other.recompute != recompute) {
        let Frame { batch_size, base_format, recompute } = choice.frame;
        reasons.push(format!(
            "the best plan with activations {} is batch {batch_size} over {base_format}: objective {:.4}",
            activations(recompute),
            choice.objective
        ));
    }
    reasons
}

/// What a person has decided about weights.
fn decided(problem: &SiloProblem<'_>) -> Option<String> {
    let weights = |count: usize| if count == 1 { "1 weight".to_string() } else { format!("{count} weights") };
    let always = problem.tuning.always.len();
    let never = problem.tuning.never.len();
    let mut said = Vec::new();
    if always > 0 {
        said.push(format!("always_tune: {}", weights(always)));
    }
    if never > 0 {
        said.push(format!("never_tune: {}", weights(never)));
    }
    (!said.is_empty()).then(|| format!("decided beforehand by plan.{}", said.join(" and plan.")))
}

/// What a tenth more of each budget that binds would bring a silo alone, whose objective is now `alone`: solved again.
fn worth(search: &Search<'_, '_>, found: &Found, alone: f64) -> Option<String> {
    const MORE: f64 = 0.1;
    let problem = search.problem;
    let gain = |problem| best(search.weights, &problem).map_or(0.0, |more| more.best.objective - alone);
    let (bytes, seconds) = (MORE * problem.memory_budget, MORE * problem.time_budget);
    let mut gains = Vec::new();
    if found.prices.gib > 0.0 {
        let gain = gain(SiloProblem { memory_budget: problem.memory_budget + bytes, ..*problem });
        gains.push(format!("{:.0} MiB more memory {gain:+.4}", bytes / MIB));
    }
    if found.prices.second > 0.0 {
        let gain = gain(SiloProblem { time_budget: problem.time_budget + seconds, ..*problem });
        gains.push(format!("{seconds:.1} s more time {gain:+.4}"));
    }
    if found.prices.mib > 0.0 {
        let moved = MORE * problem.data_budget;
        let gain = gain(SiloProblem { data_budget: problem.data_budget + moved, ..*problem });
        gains.push(format!("{:.2} MiB more data {gain:+.4}", moved / MIB));
    }
    (!gains.is_empty()).then(|| format!("worth in objective: {}", gains.join(", ")))
}

fn again(recompute: bool) -> &'static str {
    if recompute { " with activations computed again" } else { "" }
}

/// Which budgets stand in the way of the next larger rank or batch, and how much of each is left. Data is told of where it
/// has a cap.
fn binding(problem: &SiloProblem<'_>, best: &Choice, deadline_s: f64) -> String {
    let next = next_larger(problem, best);
    let left = |used: f64, budget: f64| 100.0 * (1.0 - used / budget);
    let over = |used: &dyn Fn(&Choice) -> f64, budget: f64| next.iter().any(|choice| used(choice) > budget);
    let mut budgets = vec![
        (
            "memory",
            over(&|choice| choice.memory.total(), problem.memory_budget),
            format!(
                "{:.1} of {:.1} MiB used, {:.1} % left ({:.0} % of its memory)",
                best.memory.total() / MIB,
                problem.memory_budget / MIB,
                left(best.memory.total(), problem.memory_budget),
                100.0 * MEMORY_SHARE
            ),
        ),
        (
            "time",
            over(&|choice| choice.time.total(), problem.time_budget),
            format!(
                "{:.1} of {:.1} s used, {:.1} % left ({:.0} % of the deadline of {:.1} s)",
                best.time.total(),
                problem.time_budget,
                left(best.time.total(), problem.time_budget),
                100.0 * DEADLINE_SHARE,
                deadline_s
            ),
        ),
    ];
    if problem.data_budget.is_finite() {
        let of = format!(
            "{:.2} of {:.2} MiB sent and received, {:.1} % left (its cap less the names and shapes of tensors)",
            best.data / MIB,
            problem.data_budget / MIB,
            left(best.data, problem.data_budget)
        );
        budgets.push(("data", over(&|choice| choice.data, problem.data_budget), of));
    }
    let (binding, roomy): (Vec<_>, Vec<_>) = budgets.into_iter().partition(|(_, binds, _)| *binds);
    let texts = |of: &[(&str, bool, String)]| of.iter().map(|(.., text)| text.as_str()).collect::<Vec<_>>().join("; ");
    let names: Vec<&str> = binding.iter().map(|(name, ..)| *name).collect();
    let mut text = match names.as_slice() {
        [] => return format!("no budget binds, the menu offers nothing larger: {}", texts(&roomy)),
        [one] => format!("{one} binds: "),
        several => format!("{} bind: ", several.join(" and ")),
    };
    text += &texts(&binding);
    roomy.iter().for_each(|(name, _, of)| text += &format!("; {name} has room: {of}"));
    text
}

/// The choices one step up from `best`: the next rank on one weight of some importance; when all are at the top, the next
/// batch size.
fn next_larger(problem: &SiloProblem<'_>, best: &Choice) -> Vec<Choice> {
    let menu = problem.menu;
    let mut larger = Vec::new();
    for candidate in &problem.cost.model.candidates {
        let now = best.ranks.get(&candidate.id).copied().unwrap_or(0);
        let next = menu.ranks.iter().find(|&&r| r > now && r <= candidate.inputs.min(candidate.outputs));
        let gains = problem.importance.get(&candidate.id).is_some_and(|&importance| importance > 0.0);
        let Some(&next) = next.filter(|_| gains && !problem.tuning.never.contains(&candidate.id)) else { continue };
        let mut ranks = best.ranks.clone();
        ranks.insert(candidate.id.clone(), next);
        larger.extend(problem.evaluate(best.frame, ranks));
    }
    if larger.is_empty() {
        let batches = problem.frames().map(|frame| frame.batch_size).filter(|&batch| batch > best.frame.batch_size);
        let frame = batches.min().map(|batch_size| Frame { batch_size, ..best.frame });
        larger.extend(frame.and_then(|frame| problem.evaluate(frame, best.ranks.clone())));
    }
    larger
}

/// `plan.md`: the deadline, and for every silo what was chosen, predicted memory and time by term, and the reasons.
pub fn markdown(plan: &Plan, model: &ModelSpec, profiles: &BTreeMap<SiloId, SiloProfile>) -> String {
    let mut text = format!(
        "# Plan\n\nBase model: {} with {} layers and {} parameters. A round ends after {:.1} s: {}.\n",
        model.architecture, model.layers, model.parameters, plan.deadline_s, plan.deadline_reason
    );
    text += &format!("\n{}\n", optimality(plan));
    for row in rows(plan, model, profiles) {
        let Some(silo) = plan.silos.get(&row.silo) else { continue };
        section(&mut text, &row, silo);
    }
    text
}

/// How good the plans are together.
pub fn optimality(plan: &Plan) -> String {
    let Optimality { objective, uncovered, .. } = &plan.optimality;
    let gap = 100.0 * plan.optimality.gap();
    let mut text =
        format!("Objective of all silos together {objective:.4}, at most {gap:.2} % below the best there can be.");
    if !uncovered.is_empty() {
        let names: Vec<&str> = uncovered.iter().map(WeightId::as_str).collect();
        text += &format!(" Trained by fewer silos than they should be: {}.", names.join(", "));
    }
    text
}

fn section(text: &mut String, row: &PlanRow, silo: &SiloPlan) {
    let (memory, time) = (&silo.memory, &silo.time);
    let mib = |name: &'static str, bytes: f64| (name, format!("{:.2}", bytes / MIB));
    let seconds = |name: &'static str, seconds: f64| (name, format!("{seconds:.2}"));
    *text += &format!("\n## Silo {}\n", row.silo);
    *text += &table(
        ("choice", ""),
        &[
            ("batch", row.batch_size.to_string()),
            ("base format", row.base_format.to_string()),
            ("activations", row.activations.to_string()),
            ("adapted, kind and rank", row.adapted.join("; ")),
            ("trainable parameters", row.trainable_parameters.to_string()),
        ],
    );
    *text += &table(
        ("memory", "MiB"),
        &[
            mib("base", memory.base),
            mib("adapters", memory.adapters),
            mib("gradients", memory.gradients),
            mib("optimizer", memory.optimizer),
            mib("activations", memory.activations),
            mib("workspace", memory.workspace),
            mib("**predicted in all**", memory.total()),
            ("budget", row.memory_budget_mib.to_string()),
        ],
    );
    *text += &table(
        ("round", "s"),
        &[
            seconds("forward", time.forward),
            seconds("backward", time.backward),
            seconds("adapters", time.adapter),
            seconds("overhead of the steps", time.fixed),
            seconds("download", time.download),
            seconds("upload", time.upload),
            seconds("**predicted in all**", time.total()),
        ],
    );
    *text += "\n";
    for reason in &silo.reasons {
        *text += &format!("- {reason}\n");
    }
}

fn table(head: (&str, &str), lines: &[(&str, String)]) -> String {
    let lines: String = lines.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
    format!("\n| {} | {} |\n|---|---:|\n{lines}", head.0, head.1)
}
