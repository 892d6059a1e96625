//! Line charts as inline SVG.

use maud::{Markup, Render, html};

/// A line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Lines over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What the horizontal axis counts, with its unit.
    pub x: &'static str,
    /// What the vertical axis measures, with its unit.
    pub y: &'static str,
    /// Whether only whole numbers make sense on the horizontal axis.
    pub whole_x: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// Size of the drawing, and of the plot within it.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 506.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 212.0;

/// One axis: round numbers, and where a value lies between them.
struct Scale {
    ticks: Vec<f64>,
    step: f64,
    /// Pixels of the first and the last tick.
    pixels: (f64, f64),
}

impl Scale {
    /// An axis over `values` with about `count` ticks at 1, 2 or 5 times a power of ten.
    fn of(values: impl Iterator<Item = f64> + Clone, count: f64, least_step: f64, pixels: (f64, f64)) -> Self {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
        let range = if high > low { high - low } else { high.abs().max(1.0) / 2.0 };
        let power = 10f64.powf((range / count).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| range / s <= count);
        let step = step.unwrap_or(10.0 * power).max(least_step);
        let first = (low / step + 1e-9).floor() as i64;
        let last = ((high / step - 1e-9).ceil() as i64).max(first + 1);
        Self { ticks: (first..=last).map(|i| i as f64 * step).collect(), step, pixels }
    }

    fn at(&self, value: f64) -> f64 {
        let (first, last) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        self.pixels.0 + (value - first) / (last - first) * (self.pixels.1 - self.pixels.0)
    }

    fn label(&self, tick: f64) -> String {
        let decimals = (-self.step.log10()).ceil().max(0.0) as usize;
        format!("{tick:.decimals$}")
    }
}

impl Render for Chart {
    fn render(&self) -> Markup {
        let finite: Vec<(&str, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|s| {
                let points = s.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
                (s.name.as_str(), points.collect())
            })
            .collect();
        let measured = finite.iter().any(|(_, points)| !points.is_empty());
        html! {
            div class="card" {
                h3 { (self.title) }
                @if finite.len() > 1 { (legend(&finite)) }
                @if measured { (self.plot(&finite)) } @else { p class="muted" { "not measured" } }
            }
        }
    }
}

fn legend(series: &[(&str, Vec<(f64, f64)>)]) -> Markup {
    html! {
        div class="legend" {
            @for (i, (name, _)) in series.iter().enumerate() {
                span { i style=(format!("background:var(--c{})", i % 8)) {} (name) }
            }
        }
    }
}

impl Chart {
    fn plot(&self, series: &[(&str, Vec<(f64, f64)>)]) -> Markup {
        let points = || series.iter().flat_map(|(_, points)| points);
        let least_step = if self.whole_x { 1.0 } else { 0.0 };
        let x = Scale::of(points().map(|p| p.0), 8.0, least_step, (LEFT, RIGHT));
        let y = Scale::of(points().map(|p| p.1), 5.0, 0.0, (BOTTOM, TOP));
        let path = |points: &[(f64, f64)]| {
            let pixels = points.iter().map(|&(px, py)| format!("{:.1},{:.1}", x.at(px), y.at(py)));
            pixels.collect::<Vec<_>>().join(" ")
        };
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title) {
                @for &tick in &y.ticks {
                    line class="grid-line" x1=(LEFT) x2=(RIGHT) y1=(px(y.at(tick))) y2=(px(y.at(tick))) {}
                    text x=(LEFT - 8.0) y=(px(y.at(tick) + 4.0)) text-anchor="end" { (y.label(tick)) }
                }
                line class="axis" x1=(LEFT) x2=(RIGHT) y1=(BOTTOM) y2=(BOTTOM) {}
                @for &tick in &x.ticks {
                    line class="axis" x1=(px(x.at(tick))) x2=(px(x.at(tick))) y1=(BOTTOM) y2=(BOTTOM + 4.0) {}
                    text x=(px(x.at(tick))) y=(BOTTOM + 18.0) text-anchor="middle" { (x.label(tick)) }
                }
                text x=((LEFT + RIGHT) / 2.0) y=(HEIGHT - 8.0) text-anchor="middle" { (self.x) }
                text transform=(format!("translate(13 {}) rotate(-90)", (TOP + BOTTOM) / 2.0)) text-anchor="middle" { (self.y) }
                @for (i, (name, points)) in series.iter().enumerate() {
                    @let colour = format!("var(--c{})", i % 8);
                    polyline class="series" stroke=(colour) points=(path(points)) {}
                    @for &(px_, py) in points {
                        circle cx=(px(x.at(px_))) cy=(px(y.at(py))) r="3.2" fill=(colour) {
                            title { (name) ": " (self.x) " " (x.label(px_)) ", " (format!("{py:.4}")) }
                        }
                    }
                }
            }
        }
    }
}

fn px(pixels: f64) -> String {
    format!("{pixels:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(values: &[f64], count: f64, least_step: f64) -> Vec<String> {
        let scale = Scale::of(values.iter().copied(), count, least_step, (0.0, 100.0));
        scale.ticks.iter().map(|&tick| scale.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        assert_eq!(ticks(&[0.71, 0.95], 5.0, 0.0), ["0.70", "0.75", "0.80", "0.85", "0.90", "0.95"]);
        assert_eq!(ticks(&[1.0, 3.0], 8.0, 1.0), ["1", "2", "3"]);
        assert_eq!(ticks(&[16.0, 135.0], 8.0, 0.0), ["0", "20", "40", "60", "80", "100", "120", "140"]);
        assert_eq!(ticks(&[1e-5, 3e-5], 5.0, 0.0), ["0.000010", "0.000015", "0.000020", "0.000025", "0.000030"]);
    }

    #[test]
    fn one_value_has_an_axis_too() {
        for value in [0.0, 1.0, -3.0, 1e9, 1e-9] {
            let scale = Scale::of([value].into_iter(), 5.0, 0.0, (0.0, 100.0));
            assert!(scale.ticks.len() >= 2 && (0.0..=100.0).contains(&scale.at(value)), "{value}: {:?}", scale.ticks);
        }
    }
}
