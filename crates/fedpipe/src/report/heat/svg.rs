//! Heat maps as SVG: on their own, or within a page that has [`STYLE`].

use super::{Figure, Map, STEPS};
use maud::{Markup, PreEscaped, html};

/// What a page with figures needs in its style sheet.
pub const STYLE: &str = include_str!("heat.css");

/// Pixels that a character takes at most, on average.
const CHARACTER: usize = 6;
/// Pixels of a line of text.
const LINE: usize = 18;
/// Pixels between maps, and around figures.
const GAP: usize = 20;
/// Maps stand side by side up to so many pixels.
const WIDTH: usize = 1080;

/// Something drawn, with its size in pixels.
struct Drawing {
    width: usize,
    height: usize,
    body: Markup,
}

/// Width and height of a cell in pixels, and whether its number has room.
fn cell(layers: usize) -> (usize, usize, bool) {
    match layers {
        0..=16 => (32, 20, true),
        17..=40 => (13, 14, false),
        _ => (8, 12, false),
    }
}

/// A figure within a page, for a heading above it that says what it is.
pub fn inline(figure: &Figure) -> Markup {
    let Drawing { width, height, body } = drawing(figure);
    html! {
        svg class="heat" viewBox=(format!("0 0 {width} {height}")) style=(format!("width:{width}px")) role="img" {
            title { (figure.title) }
            (words(figure))
            (body)
        }
    }
}

/// Figures below each other in an SVG file.
pub fn stand_alone(figures: &[Figure]) -> String {
    let mut top = GAP;
    let (mut width, mut bodies) = (0, Vec::new());
    for figure in figures {
        let drawing = drawing(figure);
        bodies.push(html! {
            g transform=(format!("translate({GAP} {top})")) {
                text class="title" y="12" { (figure.title) }
                g transform=(format!("translate(0 {LINE})")) { (drawing.body) }
            }
        });
        width = width.max(drawing.width);
        top += LINE + drawing.height + GAP;
    }
    let width = width + 2 * GAP;
    let titles: Vec<&str> = figures.iter().map(|figure| figure.title).collect();
    let file = html! {
        svg xmlns="http://www.w3.org/2000/svg" class="heat" width=(width) height=(top)
            viewBox=(format!("0 0 {width} {top}")) role="img" {
            title { (titles.join("; ")) }
            @for figure in figures { (words(figure)) }
            style { (PreEscaped(STYLE)) }
            rect class="page" width="100%" height="100%" {}
            @for body in bodies { (body) }
        }
    };
    file.into_string() + "\n"
}

/// For those who cannot see it.
fn words(figure: &Figure) -> Markup {
    let words: Vec<&str> = figure.maps.iter().map(|map| map.words.as_str()).chain(figure.note.as_deref()).collect();
    html! { desc { (words.join(" ")) } }
}

fn drawing(figure: &Figure) -> Drawing {
    let Figure { grid, maps, .. } = figure;
    if grid.kinds.is_empty() {
        return Drawing { width: 200, height: LINE, body: html! { text y="12" { "no weights" } } };
    }
    let (cell_width, cell_height, _) = cell(grid.layers.len());
    let label = grid.kinds.iter().map(|kind| kind.chars().count()).max().unwrap_or(0).max(5) * CHARACTER + 8;
    let titles = maps.iter().map(|map| map.title.chars().count() * (CHARACTER + 1)).max().unwrap_or(0);
    let map_width = (grid.layers.len() * cell_width).max(titles);
    let head = if titles > 0 { 2 * LINE } else { LINE };
    let map_height = head + grid.kinds.len() * cell_height;
    let side_by_side = ((WIDTH.saturating_sub(label) + GAP) / (map_width + GAP)).clamp(1, maps.len().max(1));
    let bands = maps.len().div_ceil(side_by_side);
    let top = |band: usize| band * (map_height + GAP);
    let body = html! {
        @for (band, maps) in maps.chunks(side_by_side).enumerate() {
            g transform=(format!("translate(0 {})", top(band))) {
                text x=(label - 6) y=(head - 5) text-anchor="end" { "layer" }
                @for (row, kind) in grid.kinds.iter().enumerate() {
                    text x=(label - 6) y=(head + row * cell_height + cell_height / 2 + 4) text-anchor="end" { (kind) }
                }
                @for (place, map) in maps.iter().enumerate() {
                    g transform=(format!("translate({} 0)", label + place * (map_width + GAP))) {
                        (map_body(figure, map, head))
                    }
                }
            }
        }
        g transform=(format!("translate(0 {})", top(bands).saturating_sub(GAP) + 8)) { (legend(figure, label)) }
    };
    let notes = if figure.note.is_some() { 3 } else { 2 };
    let width = (label + side_by_side * (map_width + GAP) - GAP).max(legend_width(figure, label));
    Drawing { width, height: top(bands).saturating_sub(GAP) + 8 + notes * LINE, body }
}

fn map_body(figure: &Figure, map: &Map, head: usize) -> Markup {
    let layers = &figure.grid.layers;
    let (width, height, numbers) = cell(layers.len());
    let every = if numbers { 1 } else { 5 };
    html! {
        text class="name" y="12" { (map.title) }
        @for (column, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.is_multiple_of(every)) {
            text x=(column * width + width / 2) y=(head - 5) text-anchor="middle" { (layer) }
        }
        @for (row, cells) in map.cells.iter().enumerate() {
            @let y = head + row * height;
            @for (column, cell) in cells.iter().enumerate() {
                @let (x, step) = (column * width, cell.as_ref().map_or(0, |cell| cell.step));
                @if let Some(cell) = cell {
                    g {
                        title { (cell.tip) }
                        rect class=(format!("s{step}")) x=(x) y=(y) width=(width - 1) height=(height - 1) {}
                        @if numbers {
                            text class=(format!("s{step}")) x=(x + width / 2) y=(y + height / 2 + 4) text-anchor="middle" { (cell.text) }
                        }
                    }
                } @else {
                    rect class="s0" x=(format!("{x}.5")) y=(format!("{y}.5")) width=(width - 2) height=(height - 2) {}
                }
            }
        }
    }
}

/// Pixels of an entry of the legend: a swatch and its text.
fn entry_width(text: &str) -> usize {
    18 + text.chars().count() * (CHARACTER + 1) + 8
}

fn legend_entries(figure: &Figure) -> Vec<(usize, &str)> {
    let steps = figure.legend.iter().map(|(step, text)| (*step, text.as_str()));
    steps.chain([(0, figure.nothing)]).collect()
}

fn legend_width(figure: &Figure, label: usize) -> usize {
    label + legend_entries(figure).iter().map(|(_, text)| entry_width(text)).sum::<usize>()
}

/// The unit on a line and the steps on the next, the note below.
fn legend(figure: &Figure, label: usize) -> Markup {
    let mut x = label;
    let entries: Vec<(usize, usize, &str)> = (legend_entries(figure).into_iter())
        .map(|(step, text)| {
            let at = x;
            x += entry_width(text);
            (at, step, text)
        })
        .collect();
    html! {
        text x=(label) y="12" { (figure.unit) }
        @for (x, step, text) in entries {
            rect class=(format!("s{}", step.min(STEPS))) x=(x) y=(LINE) width="12" height="12" {}
            text x=(x + 17) y=(LINE + 10) { (text) }
        }
        @if let Some(note) = &figure.note { text x=(label) y=(2 * LINE + 12) { (note) } }
    }
}
