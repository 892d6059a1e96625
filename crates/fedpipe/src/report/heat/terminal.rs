//! Heat maps of blocks, whose heights read without colour.

use super::{Cell, Figure, Map, STEPS};
use console::{Term, colors_enabled, style};
use std::fmt::Write;
use std::ops::Range;

/// A block for every step, and nothing.
const BLOCKS: [char; STEPS + 1] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Colours of the steps among a terminal's 256: from blue over grey to yellow, which all eyes tell apart, and none so dark
/// or bright that it is lost on a black or a white ground.
const COLOURS: [u8; STEPS + 1] = [244, 25, 61, 67, 102, 143, 179, 178, 220];
/// Columns of what is no terminal.
const WIDTH: usize = 100;
/// Columns between two maps.
const GAP: usize = 3;

/// What there is to draw on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub width: usize,
    /// Whether colours may be used.
    pub colour: bool,
}

impl Look {
    /// Standard output: its width, and colours unless `NO_COLOR` or the terminal says otherwise.
    pub fn of_stdout() -> Self {
        let width = Term::stdout().size_checked().map_or(WIDTH, |(_, columns)| usize::from(columns));
        Self { width, colour: colors_enabled() }
    }

    fn block(self, step: usize) -> String {
        style(BLOCKS[step]).color256(COLOURS[step]).force_styling(self.colour).to_string()
    }

    fn cell(self, cell: Option<&Cell>, numbers: Option<usize>) -> String {
        let block = self.block(cell.map_or(0, |cell| cell.step));
        match numbers {
            Some(digits) => format!("{block}{:<digits$} ", cell.map_or("", |cell| &cell.text)),
            None => block,
        }
    }
}

/// A map, or as many of its layers as fit.
struct Panel<'a> {
    map: &'a Map,
    columns: Range<usize>,
}

/// The figure in lines of no more than `look.width` columns where that can be: with its numbers if a whole map then fits,
/// and side by side what fits.
pub fn text(figure: &Figure, look: Look) -> String {
    let mut out = format!("{}\n", figure.title);
    let Figure { grid, maps, .. } = figure;
    if grid.kinds.is_empty() || maps.is_empty() {
        return out + "  no weights\n";
    }
    let head = grid.kinds.iter().map(|kind| kind.chars().count()).max().unwrap_or(0).max("layer".len());
    let room = look.width.saturating_sub(head + 3).max(1);
    let numbers = numbers(figure);
    // A block, its number and a space.
    let numbers = Some(numbers).filter(|digits| (digits + 2) * grid.layers.len() <= room);
    let cell = numbers.map_or(1, |digits| digits + 2);
    let panels = panels(figure, room / cell);
    let width = |panel: &Panel<'_>| (panel.columns.len() * cell).max(panel.map.title.chars().count());
    let widest = panels.iter().map(width).max().unwrap_or(0);
    for band in panels.chunks(((room + GAP) / (widest + GAP)).max(1)) {
        // Pieces of text with their widths: colours have none.
        let mut line = |name: &str, of: &dyn Fn(&Panel<'_>) -> (String, usize)| {
            let piece = |panel| {
                let (text, columns) = of(panel);
                format!("{text}{:1$}", "", (widest + GAP).saturating_sub(columns))
            };
            let pieces: String = band.iter().map(piece).collect();
            let _ = writeln!(out, "{}", format!("  {name:<head$} {pieces}").trim_end());
        };
        let plain = |text: String| (text.clone(), text.chars().count());
        if band.iter().any(|panel| !panel.map.title.is_empty()) {
            line("", &|panel| plain(panel.map.title.clone()));
        }
        line("layer", &|panel| plain(layer_numbers(&grid.layers[panel.columns.clone()], cell)));
        for (row, kind) in grid.kinds.iter().enumerate() {
            line(kind, &|panel| {
                let cells = &panel.map.cells[row][panel.columns.clone()];
                let text = cells.iter().map(|cell| look.cell(cell.as_ref(), numbers)).collect();
                (text, cells.len() * cell)
            });
        }
    }
    legend(&mut out, figure, look);
    if let Some(note) = &figure.note {
        let _ = writeln!(out, "  {note}");
    }
    out
}

/// What the blocks stand for, in as many lines as it takes.
fn legend(out: &mut String, figure: &Figure, look: Look) {
    let mut columns = figure.unit.chars().count() + 3;
    let _ = write!(out, "  {}:", figure.unit);
    let steps = figure.legend.iter().map(|(step, text)| (*step, text.as_str()));
    for (step, text) in steps.chain([(0, figure.nothing)]) {
        let width = text.chars().count() + 4;
        if columns + width > look.width {
            out.push_str("\n  ");
            columns = 2;
        }
        let _ = write!(out, "  {} {text}", look.block(step));
        columns += width;
    }
    out.push('\n');
}

/// Digits of the longest number.
fn numbers(figure: &Figure) -> usize {
    let cells = figure.maps.iter().flat_map(|map| map.cells.iter().flatten().flatten());
    let values = cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0);
    // The number of a layer stands over block and value.
    values.max(figure.grid.layers.last().map_or(0, |layer| layer.to_string().len() - 1))
}

/// Every map, in pieces of at most `most` layers.
fn panels(figure: &Figure, most: usize) -> Vec<Panel<'_>> {
    let (layers, most) = (figure.grid.layers.len(), most.max(1));
    let pieces = |map| {
        let piece = move |start: usize| Panel { map, columns: start..(start + most).min(layers) };
        (0..layers).step_by(most).map(piece)
    };
    figure.maps.iter().flat_map(pieces).collect()
}

/// The numbers of layers over cells of this many columns; where they are too narrow, only some.
fn layer_numbers(layers: &[usize], cell: usize) -> String {
    let longest = layers.last().map_or(0, |layer| layer.to_string().len());
    let every = [1, 2, 5, 10, 20, 50].into_iter().find(|every| every * cell > longest).unwrap_or(100);
    let mut line = String::new();
    for (column, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.is_multiple_of(every)) {
        let _ = write!(line, "{:1$}{layer}", "", (column * cell).saturating_sub(line.len()));
    }
    line
}
