//! `report.html`: a run on one page that needs nothing but itself.

mod chart;
mod cost;
mod silo;

use super::format::{bytes, count, seconds};
use super::heat;
use crate::summary::Summary;
use chart::{Chart, Series};
use fedpipe_core::{Failure, ModelSpec, RoundRecord, RunState, SiloId};
use fedpipe_federation::plan::optimality;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Silos that get a card, and lines in the charts that have one for each.
const SILO_CARDS: usize = 48;
/// Lines of one chart.
const SILO_LINES: usize = 8;

/// What the page is made of.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// What the run is called.
    pub title: &'a str,
    /// The run after its last round.
    pub state: &'a RunState,
    /// The base model.
    pub model: &'a ModelSpec,
    /// Its figures.
    pub summary: &'a Summary,
    /// The resolved configuration.
    pub config: &'a str,
}

/// The page.
pub fn page(report: &Report<'_>) -> String {
    let Report { title, state, model, summary, config } = *report;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · FedPipe" }
                style { (PreEscaped(include_str!("style.css"))) (PreEscaped(heat::STYLE)) }
            }
            body {
                main {
                    h1 { (title) }
                    p class="muted" {
                        (count(state.profiles.len() as u64)) " silos · method " (summary.method) " · seed " (summary.seed)
                        " · clock " (summary.clock) " · fedpipe " (env!("CARGO_PKG_VERSION"))
                    }
                    (figures(summary))
                    h2 { "Quality" }
                    (quality(state))
                    h2 { "Silos" }
                    (silos(report))
                    h2 { "Importance" }
                    div class="card scroll" { (heat::inline(&heat::importance(model, &state.importance))) }
                    h2 { "Rounds" }
                    (rounds(state))
                    (failures(state))
                    h2 { "Configuration" }
                    details class="card" {
                        summary { "config.toml, every default written out" }
                        pre { (config) }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn figures(summary: &Summary) -> Markup {
    let quality = |value: Option<f64>| value.map_or_else(|| "—".to_string(), |value| format!("{value:.4}"));
    let memory = summary.peak_rss_mib.map_or_else(|| "—".to_string(), |mib| format!("{mib:.0} MiB"));
    let figures = [
        match (summary.answer_f1, summary.perplexity) {
            (Some(f1), _) => ("test F1 of answers", quality(Some(f1))),
            (None, Some(perplexity)) => ("test perplexity", quality(Some(perplexity))),
            (None, None) => ("test accuracy", quality(summary.accuracy)),
        },
        ("test loss (nats)", quality(summary.loss)),
        ("rounds", summary.rounds.to_string()),
        ("on the run's clock", seconds(summary.virtual_seconds)),
        ("of real time", seconds(summary.wall_seconds)),
        ("from the silos", bytes(summary.bytes_up)),
        ("to the silos", bytes(summary.bytes_down)),
        ("trained values", count(summary.trainable_parameters)),
        ("tokens a second of computing", count(summary.tokens_per_second.max(0.0) as u64)),
        ("most resident memory", memory),
    ];
    html! {
        div class="grid figures" {
            @for (i, (name, value)) in figures.iter().enumerate() {
                div class=(if i == 0 { "card first" } else { "card" }) {
                    div class="value" { (value) }
                    div class="muted small" { (name) }
                }
            }
        }
    }
}

/// What the run's quality is measured in.
fn headline(state: &RunState) -> &'static str {
    state.history.iter().find_map(|record| record.metrics.as_ref()).map_or("accuracy", |metrics| metrics.headline().0)
}

/// A curve by round and one by the run's clock.
fn quality(state: &RunState) -> Markup {
    let mut clock_s = 0.0;
    let records: Vec<(f64, f64, &RoundRecord)> = state
        .history
        .iter()
        .map(|record| {
            clock_s += record.seconds;
            (f64::from(record.round), clock_s, record)
        })
        .collect();
    let points = |by_clock: bool, value: fn(&RoundRecord) -> Option<f64>| {
        let x = |&(round, clock_s, _): &(f64, f64, &RoundRecord)| if by_clock { clock_s } else { round };
        records.iter().filter_map(|record| Some((x(record), value(record.2)?))).collect()
    };
    let (title, axis) = match headline(state) {
        "perplexity" => ("Perplexity", "perplexity of a token"),
        "answer-f1" => ("F1 of answers", "F1 over words (%)"),
        _ => ("Accuracy", "share labelled right"),
    };
    let chart = |by_clock: bool, loss: bool| {
        let series = if loss {
            vec![
                Series {
                    name: "held-out examples".into(),
                    points: points(by_clock, |r| Some(r.metrics.as_ref()?.loss)),
                },
                Series { name: "training, mean of the silos".into(), points: points(by_clock, mean_training_loss) },
            ]
        } else {
            let headline = points(by_clock, |r| Some(r.metrics.as_ref()?.headline().1));
            vec![Series { name: "held-out examples".into(), points: headline }]
        };
        let what = if loss { "Loss" } else { title };
        Chart {
            title: format!("{what} by {}", if by_clock { "the run's clock" } else { "round" }),
            x: if by_clock { "seconds on the run's clock" } else { "round" },
            y: if loss { "cross-entropy (nats)" } else { axis },
            whole_x: !by_clock,
            series,
        }
    };
    html! {
        div class="grid charts" {
            @for (by_clock, loss) in [(false, false), (true, false), (false, true), (true, true)] {
                (chart(by_clock, loss))
            }
        }
    }
}

fn mean_training_loss(record: &RoundRecord) -> Option<f64> {
    let sum: f64 = record.silos.iter().map(|silo| silo.measured.loss).sum();
    (!record.silos.is_empty()).then(|| sum / record.silos.len() as f64)
}

fn silos(report: &Report<'_>) -> Markup {
    let Report { state, summary, .. } = *report;
    let shown: Vec<&SiloId> = state.plan.silos.keys().take(SILO_CARDS).collect();
    let left_out = state.plan.silos.len() - shown.len();
    html! {
        div class="card scroll" { (silo::table(state, summary)) }
        p class="muted small" {
            "A round may last " (seconds(state.plan.deadline_s)) ": " (state.plan.deadline_reason) ". "
            (optimality(&state.plan)) " "
            "Memory is the most of any round, time the mean of all rounds, both as measured; the ratio is measured by predicted."
        }
        @if !state.plan.chosen.is_empty() {
            p class="small" { "Settings left to FedPipe:" }
            ul class="small" { @for chosen in &state.plan.chosen { li { (chosen) } } }
        }
        div class="grid charts section" {
            (by_silo(state, "Training loss by silo", "cross-entropy (nats)", |silo| silo.measured.loss))
            (by_silo(state, "Round time by silo", "seconds on the run's clock", |silo| silo.seconds))
        }
        div class="grid silos section" {
            @for id in shown { (silo::card(report, id)) }
        }
        @if left_out > 0 {
            p class="muted" { "… and " (left_out) " more silos; see summary.json and plan.md." }
        }
    }
}

fn by_silo(state: &RunState, title: &str, y: &'static str, value: fn(&fedpipe_core::SiloRound) -> f64) -> Chart {
    let line = |id: &SiloId| {
        let silo = |record: &RoundRecord| {
            let silo = record.silos.iter().find(|silo| &silo.silo == id)?;
            Some((f64::from(record.round), value(silo)))
        };
        Series { name: id.to_string(), points: state.history.iter().filter_map(silo).collect() }
    };
    let series = state.plan.silos.keys().take(SILO_LINES).map(line).collect();
    Chart { title: title.into(), x: "round", y, whole_x: true, series }
}

fn rounds(state: &RunState) -> Markup {
    let quality = |value: Option<f64>| value.map_or_else(|| "—".into(), |value| format!("{value:.4}"));
    html! {
        div class="card scroll" {
            table {
                thead { tr {
                    th class="n" { "round" } th class="n" { "silos" } th class="n" { "failures" }
                    th class="n" { "seconds" } th class="n" { "up" } th class="n" { "down" }
                    th class="n" { "training loss" } th class="n" { (headline(state)) } th class="n" { "loss" } th { }
                } }
                tbody {
                    @for record in &state.history {
                        tr {
                            td class="n" { (record.round) }
                            td class="n" { (record.silos.len()) }
                            td class="n" { (record.failures.len()) }
                            td class="n" { (format!("{:.1}", record.seconds)) }
                            td class="n" { (bytes(record.silos.iter().map(|silo| silo.bytes_up).sum())) }
                            td class="n" { (bytes(record.silos.iter().map(|silo| silo.bytes_down).sum())) }
                            td class="n" { (quality(mean_training_loss(record))) }
                            td class="n" { (quality(record.metrics.as_ref().map(|m| m.headline().1))) }
                            td class="n" { (quality(record.metrics.as_ref().map(|m| m.loss))) }
                            td { @if !record.merged { span class="tag" { "not merged" } } }
                        }
                    }
                }
            }
        }
    }
}

fn failures(state: &RunState) -> Markup {
    let failures: Vec<&Failure> = state.history.iter().flat_map(|record| &record.failures).collect();
    html! {
        @if !failures.is_empty() {
            h2 { "Failures" }
            div class="card scroll" {
                table {
                    thead { tr { th class="n" { "round" } th { "silo" } th { "kind" } th { "reason" } } }
                    tbody {
                        @for failure in failures {
                            tr {
                                td class="n" { (failure.round) }
                                td { (failure.silo) }
                                td { span class="tag" { (format!("{:?}", failure.kind)) } }
                                td class="wrap" { (failure.reason) }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    /// The hit rate stands in the table and on the card of the silo that has a cache, and nowhere when none has.
    #[test]
    fn the_cache_is_shown_where_it_was_used() {
        let mut state = fixture::state();
        let rate = "31 % of 560 lookups";
        assert_eq!(page_of(&state, "").matches(rate).count(), 2);
        let rounds = state.history.iter_mut().flat_map(|record| &mut record.silos);
        rounds.for_each(|silo| silo.measured.cache = None);
        assert!(!page_of(&state, "").contains("cache"));
    }

    fn page_of(state: &RunState, config: &str) -> String {
        let summary = Summary::of(state, Some(&fixture::metrics()), "virtual");
        page(&Report { title: "r8", state, model: &fixture::model(), summary: &summary, config })
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let page = page_of(&fixture::state(), "seed = 42");
        for outside in ["http:", "https:", "src=", "<link", "@import", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        for expected in [
            "0.9584",
            "clinic",
            "nf4",
            "activations computed again",
            "seed = 42",
            "21.4 s are more",
            "attention.self.query",
            // 0.3 of 93 % of 160 MiB, and 1.6 s at a quarter of the speed.
            "activations 45",
            "forward 6.40",
            "Silo edge: layers 2–3: query 1, value 1, attention.output.dense 1; layers 4–5: ",
        ] {
            assert!(page.contains(expected), "{expected}");
        }
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let mut state = fixture::state();
        let evil = "<script>alert('1')</script> & \"more\"";
        state.history[2].failures[0].reason = evil.into();
        state.plan.deadline_reason = evil.into();
        state.method = evil.into();
        state.profiles.values_mut().for_each(|profile| profile.device.device = evil.into());
        state.plan.silos.values_mut().for_each(|plan| plan.reasons.push(evil.into()));
        let renamed: std::collections::BTreeMap<_, _> =
            state.importance.iter().map(|(id, score)| (format!("{id}{evil}").as_str().into(), *score)).collect();
        state.importance = renamed;
        let page = page_of(&state, evil);
        assert!(!page.contains("<script"), "unescaped");
        assert!(page.matches("&lt;script&gt;").count() >= 6);
    }

    #[test]
    fn a_run_without_rounds_or_measurements_still_has_a_page() {
        let mut state = fixture::state();
        state.history.clear();
        state.importance.clear();
        state.plan.silos.values_mut().for_each(|plan| plan.ranks.clear());
        state.plan.deadline_s = f64::INFINITY;
        let page = page_of(&state, "");
        assert!(!page.contains("NaN") && page.contains("not measured"));
    }

    #[test]
    fn numbers_that_are_not_finite_do_not_reach_the_charts() {
        let mut state = fixture::state();
        state.history[1].silos[0].measured.loss = f64::NAN;
        state.history[1].seconds = 0.0;
        assert!(!page_of(&state, "").contains("points=\"NaN"));
    }
}
