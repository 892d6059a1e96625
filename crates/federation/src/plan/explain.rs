//! Plans in words and tables. Pure functions: who prints them decides where.

use super::choose::{Choice, Found, Search, SiloProblem, best, format_penalty};
use super::{CostModel, DEADLINE_SHARE, Frame, MEMORY_SHARE, MIB};
use fedpipe_core::{ModelSpec, Optimality, Plan, SiloId, SiloPlan, SiloProfile, WeightId};
use std::collections::{BTreeMap, BTreeSet};

/// Objectives nearer than this are equal.
const SAME: f64 = 1e-9;

/// What the Markdown says of one silo at a glance.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlanRow {
    /// Which silo.
    pub silo: SiloId,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Optimizer steps in a round.
    pub local_steps: usize,
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
        local_steps: silo.local_steps,
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
pub fn grouped_ranks(model: &ModelSpec, ranks: &BTreeMap<WeightId, usize>) -> Vec<String> {
    let mut by_layer: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for candidate in &model.candidates {
        if let Some(rank) = ranks.get(&candidate.id) {
            by_layer.entry(candidate.layer).or_default().push(format!("{} {rank}", candidate.kind));
        }
    }
    let name = |(layers, kinds): (String, Vec<String>)| format!("{layers}: {}", kinds.join(", "));
    let groups: Vec<String> = runs(by_layer).into_iter().map(name).collect();
    if groups.is_empty() { vec!["head only".into()] } else { groups }
}

/// Neighbouring layers with the same, as `layer 3` or `layers 3–5`.
fn runs<T: PartialEq>(by_layer: BTreeMap<usize, T>) -> Vec<(String, T)> {
    let mut runs: Vec<(usize, usize, T)> = Vec::new();
    for (layer, what) in by_layer {
        match runs.last_mut() {
            Some((_, last, same)) if *last + 1 == layer && *same == what => *last = layer,
            _ => runs.push((layer, layer, what)),
        }
    }
    let name = |first, last| if first == last { format!("layer {first}") } else { format!("layers {first}–{last}") };
    runs.into_iter().map(|(first, last, what)| (name(first, last), what)).collect()
}

/// Why a silo's plan was chosen: what it is, what binds, what more of it would bring and, where that is asked for, what it
/// was chosen against. `apart` says that it is what the silo would do alone.
pub(super) fn reasons(
    search: &Search<'_, '_>,
    found: &Found,
    apart: bool,
    thorough: bool,
    deadline_s: f64,
) -> Vec<String> {
    let (problem, chosen) = (search.problem, &found.best);
    let (framed, weights) = (framed(&problem.cost, chosen), chosen.ranks.len());
    let mut reasons = vec![format!("{framed}, {weights} weights adapted: objective {:.4}", chosen.objective)];
    let alone = if apart { None } else { search.best(&search.no_bonus(), |_| true) };
    let alone = alone.filter(|alone| alone.best.objective > chosen.objective + SAME);
    reasons.push(Binding::of(problem, chosen).told(problem, chosen, deadline_s));
    reasons.extend(decided(problem));
    if let Some(Found { best: alone, .. }) = &alone {
        reasons.push(format!(
            "coverage binds: {} of what it would reach alone, so that important weights are trained by enough silos: {}",
            gained(chosen.objective, alone.objective),
            changes(problem.cost.model, alone, chosen)
        ));
    }
    reasons.extend(worth(search, alone.as_ref().unwrap_or(found), thorough, deadline_s));
    if thorough {
        reasons.extend(runners_up(search, chosen));
    }
    reasons
}

/// What a person has decided about weights.
fn decided(problem: &SiloProblem<'_>) -> Option<String> {
    let weights = |count: usize| if count == 1 { "1 weight".to_string() } else { format!("{count} weights") };
    let of = [("always_tune", problem.tuning.always.len()), ("never_tune", problem.tuning.never.len())];
    let said = of.iter().filter(|(_, count)| *count > 0).map(|(key, count)| format!("plan.{key}: {}", weights(*count)));
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| format!("decided beforehand by {}", said.join(" and ")))
}

/// `20 steps of 16 texts over nf8`.
fn framed(cost: &CostModel<'_>, choice: &Choice) -> String {
    let Frame { batch_size, step_multiple: _, base_format, recompute } = choice.frame;
    let steps = cost.steps(choice.frame);
    format!("{steps} steps of {batch_size} texts over {base_format}{}", again(recompute))
}

/// `+6.0 % objective (+0.0601)`.
fn gained(objective: f64, before: f64) -> String {
    let more = objective - before;
    // A share of next to nothing says nothing.
    if before > 0.01 {
        format!("{:+.1} % objective ({more:+.4})", 100.0 * more / before)
    } else {
        format!("{more:+.4} objective")
    }
}

/// The best choices with another format, another batch, other steps and the other way with activations: the two of most
/// worth, and where they lose.
fn runners_up(search: &Search<'_, '_>, chosen: &Choice) -> Vec<String> {
    let frame = chosen.frame;
    let differs: [(String, &dyn Fn(Frame) -> bool); 4] = [
        ("another base format".into(), &|other| other.base_format != frame.base_format),
        ("another batch".into(), &|other| other.batch_size != frame.batch_size),
        ("other steps".into(), &|other| other.step_multiple != frame.step_multiple),
        (format!("activations {}", activations(!frame.recompute)), &|other| other.recompute != frame.recompute),
    ];
    let mut others: Vec<(String, Choice)> = Vec::new();
    for (what, differs) in differs {
        let Some(Found { best, .. }) = search.best(&search.no_bonus(), differs) else { continue };
        match others.iter_mut().find(|(_, other)| other.frame == best.frame) {
            Some((known, _)) => *known += &format!(" and with {what}"),
            None => others.push((what, best)),
        }
    }
    others.sort_by(|a, b| b.1.objective.total_cmp(&a.1.objective));
    let told = |(place, (what, other)): (&str, (String, Choice))| {
        format!(
            "{place}: {}, the best with {what}: objective {:.4}, {}",
            framed(&search.problem.cost, &other),
            other.objective,
            parts(search.problem, &other, chosen)
        )
    };
    ["runner-up", "second runner-up"].into_iter().zip(others).map(told).collect()
}

/// Where an objective is above another, and where below.
fn parts(problem: &SiloProblem<'_>, choice: &Choice, other: &Choice) -> String {
    let of = |choice: &Choice| {
        let Frame { batch_size, step_multiple, base_format, recompute: _ } = choice.frame;
        let (batch, steps) = (problem.menu.batch_term(batch_size), problem.menu.step_term(step_multiple));
        let ranks = choice.objective - problem.menu.frame_term(choice.frame);
        [("ranks", ranks), ("batch", batch), ("steps", steps), ("base format", -format_penalty(base_format))]
    };
    let differences = of(choice).into_iter().zip(of(other)).map(|((name, here), (_, there))| (name, here - there));
    let seen = differences.filter(|(_, difference)| difference.abs() >= 5e-5);
    let told: Vec<String> = seen.map(|(name, difference)| format!("{name} {difference:+.4}")).collect();
    if told.is_empty() { "as good".into() } else { told.join(", ") }
}

/// How many changes of ranks are told, those of the most weights.
const CHANGES: usize = 4;

/// What becomes of a choice: `batch 16 → 32, r 8 → 16 on layers 20–29`.
fn changes(model: &ModelSpec, before: &Choice, after: &Choice) -> String {
    let mut told = Vec::new();
    let (was, is) = (before.frame, after.frame);
    if was.batch_size != is.batch_size {
        told.push(format!("batch {} → {}", was.batch_size, is.batch_size));
    }
    if was.step_multiple != is.step_multiple {
        told.push(format!("{} → {} times the steps", was.step_multiple, is.step_multiple));
    }
    if was.base_format != is.base_format {
        told.push(format!("{} → {}", was.base_format, is.base_format));
    }
    if was.recompute != is.recompute {
        told.push(format!("activations {}", activations(is.recompute)));
    }
    let mut moved: BTreeMap<(usize, usize), BTreeMap<usize, Vec<&str>>> = BTreeMap::new();
    for candidate in &model.candidates {
        let [was, is] = [before, after].map(|choice| choice.ranks.get(&candidate.id).copied().unwrap_or(0));
        if was != is {
            moved.entry((was, is)).or_default().entry(candidate.layer).or_default().push(&candidate.kind);
        }
    }
    let whole = model.candidates.iter().map(|candidate| candidate.kind.as_str()).collect::<BTreeSet<_>>().len();
    let mut ranks: Vec<(usize, String)> = Vec::new();
    for ((was, is), by_layer) in moved {
        let weights = by_layer.values().map(Vec::len).sum();
        let (Some(first), Some(last)) = (by_layer.keys().next(), by_layer.keys().next_back()) else { continue };
        let all = format!("{weights} weights of layers {first}–{last}");
        let on = match &runs(by_layer)[..] {
            [(layers, kinds)] if kinds.len() == whole => layers.clone(),
            [(layers, kinds)] => format!("{} of {layers}", kinds.join(", ")),
            _ => all,
        };
        ranks.push((weights, format!("r {was} → {is} on {on}")));
    }
    ranks.sort_by_key(|(weights, _)| std::cmp::Reverse(*weights));
    let left_out: usize = ranks.iter().skip(CHANGES).map(|(weights, _)| weights).sum();
    told.extend(ranks.into_iter().take(CHANGES).map(|(_, told)| told));
    if left_out > 0 {
        told.push(format!("and others on {left_out} weights"));
    }
    told.join(", ")
}

/// More of a silo's memory, of the deadline, of its cap on data, or of several.
#[derive(Clone, Copy, Default)]
struct More {
    mib: f64,
    seconds: f64,
    data_mib: f64,
}

impl More {
    /// A round part of each that binds, about a tenth.
    fn of(problem: &SiloProblem<'_>, deadline_s: f64, binding: Binding) -> Self {
        let eighth = |bytes: f64| (bytes / MIB / 8.0).log2().floor().exp2();
        let power = 10f64.powf((deadline_s / 10.0).log10().floor());
        let seconds = [5.0, 2.0, 1.0].map(|m| m * power).into_iter().find(|s| *s <= deadline_s / 10.0);
        Self {
            mib: if binding.memory { eighth(problem.memory_budget / MEMORY_SHARE).max(1.0) } else { 0.0 },
            seconds: if binding.time { seconds.unwrap_or(power) } else { 0.0 },
            data_mib: if binding.data { eighth(problem.data_budget) } else { 0.0 },
        }
    }

    /// Each alone.
    fn apart(self) -> impl Iterator<Item = Self> {
        let none = Self::default();
        let Self { mib, seconds, data_mib } = self;
        let each = [Self { mib, ..none }, Self { seconds, ..none }, Self { data_mib, ..none }];
        each.into_iter().filter(|more| more.mib + more.seconds + more.data_mib > 0.0)
    }

    fn times(self, times: f64) -> Self {
        Self { mib: times * self.mib, seconds: times * self.seconds, data_mib: times * self.data_mib }
    }

    fn told(self) -> String {
        let memory = (self.mib > 0.0).then(|| match self.mib {
            mib if mib >= 1024.0 => format!("+{} GiB", mib / 1024.0),
            mib => format!("+{mib} MiB"),
        });
        let time = (self.seconds > 0.0).then(|| format!("+{} s a round", self.seconds));
        let data = (self.data_mib > 0.0).then(|| format!("+{} MiB of data a round", self.data_mib));
        [memory, time, data].into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

/// What more of each budget that binds would bring a silo alone, which does `now`: solved again, not extrapolated. Where it
/// is thorough, what brings nothing is tried twice and four times over, then with the other budgets.
fn worth(search: &Search<'_, '_>, now: &Found, thorough: bool, deadline_s: f64) -> Vec<String> {
    let problem = search.problem;
    let seen = if thorough { Binding::of(problem, &now.best) } else { Binding::default() };
    let binding = Binding {
        memory: now.prices.gib > 0.0 || seen.memory,
        time: now.prices.second > 0.0 || seen.time,
        data: now.prices.mib > 0.0 || seen.data,
    };
    let step = More::of(problem, deadline_s, binding);
    let tries: &[f64] = if thorough { &[1.0, 2.0, 4.0] } else { &[1.0] };
    let brings = |more: More| {
        tries.iter().find_map(|&times| {
            let more = more.times(times);
            let raised = SiloProblem {
                memory_budget: problem.memory_budget + MEMORY_SHARE * more.mib * MIB,
                time_budget: problem.time_budget + DEADLINE_SHARE * more.seconds,
                data_budget: problem.data_budget + more.data_mib * MIB,
                ..*problem
            };
            let then = best(search.weights, &raised).ok()?.best;
            let before = now.best.objective;
            (then.objective > before + SAME).then(|| {
                let changes = changes(problem.cost.model, &now.best, &then);
                format!("{}: {}, {changes}", more.told(), gained(then.objective, before))
            })
        })
    };
    let nothing = |more: More| format!("no gain up to {}", more.times(tries.last().copied().unwrap_or(1.0)).told());
    let alone: Vec<(More, Option<String>)> = step.apart().map(|more| (more, brings(more))).collect();
    if alone.len() > 1 && alone.iter().all(|(_, gain)| gain.is_none()) {
        return vec![brings(step).unwrap_or_else(|| nothing(step))];
    }
    alone.into_iter().map(|(more, gain)| gain.unwrap_or_else(|| nothing(more))).collect()
}

fn again(recompute: bool) -> &'static str {
    if recompute { " with activations computed again" } else { "" }
}

/// Which budgets stand in the way of the next larger rank, batch or number of steps.
#[derive(Debug, Clone, Copy, Default)]
struct Binding {
    memory: bool,
    time: bool,
    data: bool,
}

impl Binding {
    fn of(problem: &SiloProblem<'_>, best: &Choice) -> Self {
        let next = next_larger(problem, best);
        Self {
            memory: next.iter().any(|choice| choice.memory.total() > problem.memory_budget),
            time: next.iter().any(|choice| choice.time.total() > problem.time_budget),
            data: next.iter().any(|choice| choice.data > problem.data_budget),
        }
    }

    /// With how much of each budget is left; of data where it has a cap.
    fn told(self, problem: &SiloProblem<'_>, best: &Choice, deadline_s: f64) -> String {
        let left = |used: f64, budget: f64| 100.0 * (1.0 - used / budget);
        let memory = format!(
            "{:.1} of {:.1} MiB used, {:.1} % left ({:.0} % of its memory)",
            best.memory.total() / MIB,
            problem.memory_budget / MIB,
            left(best.memory.total(), problem.memory_budget),
            100.0 * MEMORY_SHARE
        );
        let time = format!(
            "{:.1} of {:.1} s used, {:.1} % left ({:.0} % of the deadline of {:.1} s)",
            best.time.total(),
            problem.time_budget,
            left(best.time.total(), problem.time_budget),
            100.0 * DEADLINE_SHARE,
            deadline_s
        );
        let data = format!(
            "{:.2} of {:.2} MiB sent and received, {:.1} % left",
            best.data / MIB,
            problem.data_budget / MIB,
            left(best.data, problem.data_budget)
        );
        let mut budgets = vec![("memory", self.memory, memory), ("time", self.time, time)];
        if problem.data_budget.is_finite() {
            budgets.push(("data", self.data, data));
        }
        let (binding, roomy): (Vec<_>, Vec<_>) = budgets.into_iter().partition(|(_, binds, _)| *binds);
        let texts =
            |of: &[(&str, bool, String)]| of.iter().map(|(.., text)| text.as_str()).collect::<Vec<_>>().join("; ");
        let names: Vec<&str> = binding.iter().map(|(name, ..)| *name).collect();
        let mut text = match names.as_slice() {
            [] => return format!("no budget binds, there is nothing larger to choose: {}", texts(&roomy)),
            [one] => format!("{one} binds: "),
            several => format!("{} bind: ", several.join(" and ")),
        };
        text += &texts(&binding);
        roomy.iter().for_each(|(name, _, of)| text += &format!("; {name} has room: {of}"));
        text
    }
}

/// The choices one step up from `best`: the next rank on one weight of some importance; when all are at the top, the next
/// batch size, and the next number of steps.
fn next_larger(problem: &SiloProblem<'_>, best: &Choice) -> Vec<Choice> {
    let menu = problem.menu;
    let mut larger = Vec::new();
    for candidate in &problem.cost.model.candidates {
        let now = best.ranks.get(&candidate.id).copied().unwrap_or(0);
        let next = menu.ranks.iter().find(|&&r| r > now && r <= candidate.inputs.min(candidate.outputs));
        let gains = problem.importance.get(&candidate.id).is_some_and(|&importance| importance > 0.0);
        let Some(&next) = next.filter(|_| gains) else { continue };
        let mut ranks = best.ranks.clone();
        ranks.insert(candidate.id.clone(), next);
        larger.extend(problem.evaluate(best.frame, ranks));
    }
    if larger.is_empty() {
        let now = best.frame;
        // Of the frames that may be chosen: more steps than the fewest are of the smallest batch.
        let larger_batch = |f: &Frame| f.batch_size > now.batch_size && *f == Frame { batch_size: f.batch_size, ..now };
        let more_steps =
            |f: &Frame| f.step_multiple > now.step_multiple && *f == Frame { step_multiple: f.step_multiple, ..now };
        let batch = problem.frames().filter(larger_batch).min_by_key(|frame| frame.batch_size);
        let steps = problem.frames().filter(more_steps).min_by_key(|frame| frame.step_multiple);
        let frames = batch.into_iter().chain(steps);
        larger.extend(frames.filter_map(|frame| problem.evaluate(frame, best.ranks.clone())));
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
    if !plan.chosen.is_empty() {
        text += "\nSettings left to FedPipe:\n\n";
        plan.chosen.iter().for_each(|chosen| text += &format!("- {chosen}\n"));
    }
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
            ("steps of a round", row.local_steps.to_string()),
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

#[cfg(test)]
mod tests;
