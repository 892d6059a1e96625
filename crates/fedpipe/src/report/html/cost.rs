//! What a silo's plan takes by term, as a bar of its terms beside what was measured and what it may take.

use crate::report::plan::{memory_terms, time_terms};
use fedpipe_core::SiloPlan;
use maud::{Markup, html};

/// Pixels of the bar.
const WIDTH: f64 = 400.0;

/// Predicted memory by term, measured memory and the budget, in MiB.
pub fn memory(plan: &SiloPlan, measured: Option<f64>, budget: f64) -> Markup {
    bar("memory, MiB", &memory_terms(&plan.memory), measured, "allowed", budget)
}

/// Predicted seconds of a round by term, the measured ones and the deadline.
pub fn round(plan: &SiloPlan, measured: Option<f64>, deadline_s: f64) -> Markup {
    bar("round, s", &time_terms(&plan.time), measured, "deadline", deadline_s)
}

/// The terms end to end, a mark where the measurement is, a frame up to the limit; below, the terms in figures. Sums stand
/// in the table of all silos.
fn bar(what: &str, terms: &[(&str, f64)], measured: Option<f64>, limit: &str, most: f64) -> Markup {
    let predicted: f64 = terms.iter().map(|(_, value)| value).sum();
    let (measured, most) = (measured.filter(|m| m.is_finite()), Some(most).filter(|most| most.is_finite()));
    let whole = [Some(predicted), measured, most].into_iter().flatten().fold(f64::MIN_POSITIVE, f64::max);
    let at = |value: f64| value / whole * (WIDTH - 2.0) + 1.0;
    let px = |pixels: f64| format!("{pixels:.1}");
    let figure = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    let signs = [measured.map(|_| "mark: measured".to_string()), most.map(|_| format!("frame: {limit}"))];
    let signs: Vec<String> = signs.into_iter().flatten().collect();
    let mut from = 0.0;
    let parts: Vec<(usize, &str, f64, f64)> = (terms.iter().enumerate())
        .map(|(index, &(name, value))| {
            let start = from;
            from += value;
            (index, name, value, start)
        })
        .collect();
    html! {
        div class="cost small" {
            p class="muted" { "Predicted " (what) @if !signs.is_empty() { "; " (signs.join(", ")) } }
            svg class="bar" viewBox=(format!("0 0 {WIDTH} 16")) role="img" aria-label=(what) {
                @for &(index, name, value, start) in &parts {
                    rect class="term" x=(px(at(start))) y="3" height="10" width=(px(at(start + value) - at(start))) fill=(format!("var(--c{index})")) {
                        title { (name) ": " (figure(value)) }
                    }
                }
                @if let Some(most) = most { rect class="budget" x="0.5" y="0.5" height="15" width=(px(at(most))) {} }
                @if let Some(measured) = measured { line class="mark" x1=(px(at(measured))) x2=(px(at(measured))) y1="0" y2="16" {} }
            }
            div class="legend" {
                @for (index, name, value, _) in &parts {
                    span { i style=(format!("background:var(--c{index})")) {} (name) " " (figure(*value)) }
                }
            }
        }
    }
}
