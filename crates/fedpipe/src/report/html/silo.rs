//! What was planned, predicted and measured in every silo.

use super::{Report, cost};
use crate::report::format::{bytes, count, hits};
use crate::report::heat;
use crate::summary::{Cost, SiloSummary, Summary};
use fedpipe_core::{RunState, SiloId, SiloRound};
use maud::{Markup, html};

/// A measurement further above its prediction than this is marked.
const TOLERATED_RATIO: f64 = 1.15;

/// A row a silo.
pub fn table(state: &RunState, summary: &Summary) -> Markup {
    let paced = summary.silos.values().any(|silo| silo.slowness.is_some());
    let cached = summary.silos.values().any(|silo| silo.cache.is_some());
    html! {
        table {
            thead {
                tr {
                    th colspan="7" {}
                    th class="group" colspan="4" { "memory, MiB" }
                    th class="group" colspan="3" { "step, s" }
                    th class="group" colspan="3" { "round, s" }
                    @if paced { th {} }
                    th class="group" colspan="2" { "rounds" }
                    @if cached { th {} }
                }
                tr {
                    th { "silo" } th class="n" { "examples" } th class="n" { "batch" } th class="n" { "steps" } th { "base" } th { "recompute" } th class="n" { "weights" }
                    th class="n" { "allowed" }
                    @for _ in 0..3 { th class="n" { "predicted" } th class="n" { "measured" } th class="n" { "ratio" } }
                    @if paced { th class="n" { "slowness" } }
                    th class="n" { "delivered" } th class="n" { "failed" }
                    @if cached { th class="n" { "cache" } }
                }
            }
            tbody {
                @for (id, silo) in &summary.silos {
                    @let budget = state.profiles.get(id).map_or(0, |profile| profile.memory_mib);
                    tr {
                        td { b { (id) } }
                        td class="n" { (count(silo.examples)) }
                        td class="n" { (silo.plan.batch_size) }
                        td class="n" { (silo.plan.local_steps) }
                        td { (silo.plan.base_format) }
                        td { (if silo.plan.recompute { "yes" } else { "no" }) }
                        td class="n" { (silo.plan.ranks.len()) }
                        td class="n" { (budget) }
                        (compared(silo, |cost| Some(cost.memory_mib), 0))
                        (compared(silo, |cost| cost.step_seconds, 3))
                        (compared(silo, |cost| Some(cost.round_seconds), 1))
                        @if paced { td class="n" { (number(silo.slowness, 2)) } }
                        td class="n" { (silo.rounds_delivered) }
                        td class="n" { (silo.failures) }
                        @if cached { td class="n" { (silo.cache.map_or_else(|| "—".into(), |c| hits(c.hits, c.lookups))) } }
                    }
                }
            }
        }
    }
}

/// Predicted, measured and their ratio as three cells.
fn compared(silo: &SiloSummary, of: fn(&Cost) -> Option<f64>, decimals: usize) -> Markup {
    let predicted = of(&silo.predicted);
    let measured = silo.measured.as_ref().and_then(of);
    let ratio =
        measured.zip(predicted).map(|(measured, predicted)| measured / predicted).filter(|ratio| ratio.is_finite());
    let class = if ratio.is_some_and(|ratio| ratio > TOLERATED_RATIO) { "n over" } else { "n" };
    html! {
        td class="n" { (number(predicted, decimals)) }
        td class="n" { (number(measured, decimals)) }
        td class=(class) { (number(ratio, 2)) }
    }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "—".into(), |value| format!("{value:.decimals$}"))
}

/// A silo's own card: hardware, plan, traffic, costs, reasons.
pub fn card(report: &Report<'_>, id: &SiloId) -> Markup {
    let Report { state, model, summary, .. } = *report;
    let (Some(plan), Some(silo)) = (state.plan.silos.get(id), summary.silos.get(id)) else { return html! {} };
    let rounds = || state.history.iter().flat_map(|round| &round.silos).filter(|silo| &silo.silo == id);
    let sum = |of: fn(&SiloRound) -> u64| rounds().map(of).sum::<u64>();
    html! {
        div class="card" {
            div class="head" {
                h3 { (id) }
                @if silo.failures > 0 { span class="tag" { (silo.failures) " failed" } }
            }
            @if let Some(profile) = state.profiles.get(id) {
                div class="facts small muted" {
                    span { (count(profile.examples)) " examples" }
                    span { (profile.memory_mib) " MiB" }
                    span { "speed " (profile.speed) }
                    span { (profile.bandwidth_mbps) " Mbit/s" }
                    span { (profile.device.device) }
                }
                div class="facts" {
                    span { "batch " b { (plan.batch_size) } }
                    span { "steps of a round " b { (plan.local_steps) } }
                    span { "base " b { (plan.base_format) } }
                    @if plan.recompute { span { "activations computed again" } }
                    span { "sent " b { (bytes(sum(|silo| silo.bytes_up))) } }
                    span { "received " b { (bytes(sum(|silo| silo.bytes_down))) } }
                    @if let Some(cache) = silo.cache {
                        span { "cache " b { (hits(cache.hits, cache.lookups)) } " in "
                            (format!("{:.0} MiB of memory, {:.0} of disk", cache.ram_mib, cache.disk_mib)) }
                    }
                }
                (cost::memory(plan, silo.measured.map(|cost| cost.memory_mib), profile.memory_mib as f64))
                (cost::round(plan, silo.measured.map(|cost| cost.round_seconds), state.plan.deadline_s))
            }
            div class="scroll" { (heat::inline(&heat::silo_ranks(model, &state.plan, plan))) }
            @if !plan.reasons.is_empty() {
                ul class="small" { @for reason in &plan.reasons { li { (reason) } } }
            }
        }
    }
}
