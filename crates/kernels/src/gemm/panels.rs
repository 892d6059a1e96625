//! f32 weights in panels: sixteen columns of all rows, then the next sixteen. Tiles of `dy·W` read them as they lie; for
//! `x·Wᵀ` blocks of sixteen by sixteen are transposed from one stretch of memory.

use std::ops::Range;

use super::pack::LINE_LANES;

/// Columns of a panel of f32 weights, those of a cache line; the last panel of a matrix is filled up with zeros.
pub const PANEL: usize = LINE_LANES;

/// A panel's piece of a row. Aligned: a vector that straddles two cache lines costs two.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; PANEL]);

/// A matrix `[rows, columns]` in panels, the last one filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    /// `[panels, rows]`.
    lines: Vec<Line>,
    rows: usize,
}

impl Panels {
    /// From rows of `columns` values.
    pub(crate) fn new(rows: usize, columns: usize, values: &[f32]) -> Self {
        let mut lines = vec![Line([0.0; PANEL]); rows * columns.div_ceil(PANEL)];
        for (panel, lines) in lines.chunks_exact_mut(rows.max(1)).enumerate() {
            let first = panel * PANEL;
            let count = PANEL.min(columns - first);
            for (Line(line), row) in lines.iter_mut().zip(values.chunks_exact(columns)) {
                line[..count].copy_from_slice(&row[first..first + count]);
            }
        }
        Self { lines, rows }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    pub(crate) fn all(&self) -> PanelRows<'_> {
        PanelRows { lines: &self.lines, rows: self.rows, first: 0 }
    }
}

/// The rows of a matrix in panels, from some row on.
#[derive(Clone, Copy)]
pub(crate) struct PanelRows<'a> {
    lines: &'a [Line],
    /// Rows of the matrix: lines of a panel.
    rows: usize,
    first: usize,
}

impl<'a> PanelRows<'a> {
    pub(super) fn below(self, first: usize) -> Self {
        Self { first: self.first + first, ..self }
    }

    /// Lanes from one panel to the next.
    pub(super) fn panel_len(self) -> usize {
        self.rows * PANEL
    }

    /// All that is stored from a row of the panel that starts with `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> &'a [f32] {
        debug_assert!(column.is_multiple_of(PANEL), "column {column} lies within a panel");
        let lines = &self.lines[column / PANEL * self.rows + self.first + row..];
        // SAFETY: a line is PANEL values and nothing else, and aligned as they are at least.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * PANEL) }
    }

    /// The first `rows` lines of the panel that starts with `column`.
    pub(super) fn panel(self, column: usize, rows: usize) -> &'a [[f32; PANEL]] {
        &self.from(0, column).as_chunks().0[..rows]
    }

    pub(crate) fn read(self, row: usize, columns: Range<usize>, to: &mut [f32]) {
        let mut from = columns.start;
        let mut rest = to;
        while from < columns.end {
            let Line(line) = &self.lines[from / PANEL * self.rows + self.first + row];
            let within = from % PANEL;
            let count = (PANEL - within).min(columns.end - from);
            let piece;
            (piece, rest) = rest.split_at_mut(count);
            piece.copy_from_slice(&line[within..within + count]);
            from += count;
        }
    }
}
