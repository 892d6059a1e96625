//! The register tile: the innermost loop of every matrix product.
//!
//! A tile multiplies a packed left panel by a packed right panel. Both are arrays of 32-bit lanes, depth-major: a lane is
//! one f32, or two bf16 neighbours in depth (the lower half is the earlier). A tile may sum several such products. Every
//! output element is one accumulator that runs through the depth in order, so the result does not depend on how the output
//! is cut into tiles, nor on where the depth is cut.

use crate::dispatch::Path;
use crate::element::Element;
#[cfg(target_arch = "x86_64")]
use crate::gemm::Registers;
use crate::gemm::pack::Panel;
use crate::gemm::panels::PANEL;

/// Rows of a tile of tile registers.
pub(super) const TILE_ROWS: usize = 32;
/// Lanes in depth of a tile register: pairs of bf16.
pub(super) const TILE_LANES: usize = 16;

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    /// Nothing: the output is overwritten.
    Zero,
    /// One row, the same for every output row (a bias); points at the tile's first column.
    Row(*const f32),
    /// What the output holds.
    Output,
}

/// One term of the sums of many tiles: a left side by a right one.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// Lanes along the depth.
    pub(crate) depth: usize,
    pub(crate) left: *const u32,
    pub(crate) layout: LeftLayout,
    pub(crate) right: *const u32,
    pub(crate) right_layout: RightLayout,
}

/// How a left side lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeftLayout {
    /// Panels of `[depth, Kernel::left_stride]`, so many lanes apart.
    Panels(usize),
    /// Rows, so many lanes apart, as [`Kernel::reads_rows`] can read.
    Rows(usize),
}

/// How a right side lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RightLayout {
    /// Packed panels of `[depth, vectors · Kernel::lanes]`, so many lanes apart.
    Panels(usize),
    /// Rows of the panels that [`PanelRows`](super::panels::PanelRows) stores, `[depth, PANEL]`, so many lanes apart. Vectors as
    /// wide as such a panel lie in two of them.
    Stored(usize),
}

impl RightLayout {
    /// Lanes from the first vector of a tile to its second, of `lanes` each.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn vectors_apart(self, lanes: usize) -> usize {
        match self {
            RightLayout::Stored(step) if lanes == PANEL => step,
            RightLayout::Panels(_) | RightLayout::Stored(_) => lanes,
        }
    }
}

/// Runs a kernel's loop over the lanes `p` of a part, `$accumulate!(lane, ahead)`, for either layout of the left side: lane
/// `p` of row `i` is `lane(i, p)`, and what the next rows need comes along from `ahead(p)`. Of rows that is a line of one of
/// them for each lane, so that all have come after a line's worth of lanes. Its
/// callers have `LINE_LANES` and `LeftLayout`.
#[cfg(target_arch = "x86_64")]
macro_rules! by_layout {
    ($layout:expr, $rows:expr, $left_stride:expr, $accumulate:ident) => {
        match $layout {
            LeftLayout::Panels(step) => $accumulate!(|i, p| p * $left_stride + i, |p| p * $left_stride + step),
            LeftLayout::Rows(stride) => $accumulate!(|i, p| i * stride + p, |p| {
                ($rows + p % LINE_LANES) * stride + p / LINE_LANES * LINE_LANES
            }),
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use by_layout;

/// Sums that an earlier part of the depth has come to.
#[derive(Clone, Copy)]
pub(crate) struct Initial {
    /// `[rows, ≥ vectors · Kernel::lanes]`.
    pub(crate) sums: *const f32,
    pub(crate) stride: usize,
}

/// One tile's work: `output[i, j] = base[i, j] + scale · (initial[i, j] + Σ_parts Σ_p left[p, i] · right[p, j])`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, E> {
    pub(crate) parts: &'a [Part],
    /// Which left and which right panel of every part.
    pub(crate) panels: (usize, usize),
    /// The tile's first row.
    pub(crate) first_row: usize,
    pub(crate) initial: Option<Initial>,
    pub(crate) output: *mut E,
    pub(crate) output_stride: usize,
    /// Output rows, 1..=`Kernel::rows`.
    pub(crate) rows: usize,
    /// Output columns, 1..=`vectors · Kernel::lanes`.
    pub(crate) columns: usize,
    /// Vectors across the right panels, 1 or 2.
    pub(crate) vectors: usize,
    pub(crate) scale: f32,
    pub(crate) base: Base,
}

impl<E> Tile<'_, E> {
    /// Where the tile's left side and right panel of a part start, and the lanes from one step in depth to the next of the
    /// latter. A full panel is `width` lanes wide.
    #[inline(always)]
    pub(super) fn sides_of(&self, part: &Part, width: usize) -> (*const f32, *const f32, usize) {
        let left = part.left.wrapping_add(match part.layout {
            LeftLayout::Panels(step) => self.panels.0 * step,
            LeftLayout::Rows(stride) => self.first_row * stride,
        });
        let (panel, stride) = match part.right_layout {
            RightLayout::Panels(step) => (self.panels.1 * step, self.vectors * width / 2),
            RightLayout::Stored(step) => (self.panels.1 * (width / PANEL) * step, PANEL),
        };
        (left.cast(), part.right.wrapping_add(panel).cast(), stride)
    }

    /// Moves the tile to the left panel with this index.
    #[inline(always)]
    pub(super) fn move_to(&mut self, index: usize, rows: Panel) {
        let below = rows.start - self.first_row;
        self.panels.0 = index;
        (self.first_row, self.rows) = (rows.start, rows.count);
        self.output = self.output.wrapping_add(below * self.output_stride);
        if let Some(Initial { sums, stride }) = &mut self.initial {
            *sums = sums.wrapping_add(below * *stride);
        }
    }
}

/// Nothing but x86-64 has tile registers.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) struct Registers;

#[cfg(not(target_arch = "x86_64"))]
impl Registers {
    pub(crate) fn new() -> Self {
        Self
    }
}

/// The tile code of one path and one arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    path: Path,
    pairs: bool,
}

impl Kernel {
    /// f32 products, f32 sums.
    pub(crate) fn f32(path: Path) -> Self {
        Self { path, pairs: false }
    }

    /// bf16 products with f32 sums where the path has them, else f32.
    pub(crate) fn bf16(path: Path) -> Self {
        Self { path, pairs: path.multiplies_bf16() }
    }

    pub(crate) fn path(self) -> Path {
        self.path
    }

    /// Whether a lane holds two bf16.
    pub(crate) fn pairs(self) -> bool {
        self.pairs
    }

    /// Whether it multiplies tile registers: [`super::amx`].
    pub(crate) fn tiles(self) -> bool {
        self.pairs && self.path == Path::Amx
    }

    /// Lanes that `depth` elements fill.
    pub(crate) fn filled_lanes(self, depth: usize) -> usize {
        if self.pairs { depth.div_ceil(2) } else { depth }
    }

    /// Lanes that `depth` elements take in a packed side: whole tile registers where it multiplies these, completed with
    /// zeros.
    pub(crate) fn depth_lanes(self, depth: usize) -> usize {
        let filled = self.filled_lanes(depth);
        if self.tiles() { filled.next_multiple_of(TILE_LANES) } else { filled }
    }

    /// Elements that fit into the lanes that `depth` of them take.
    pub(crate) fn depth_elements(self, depth: usize) -> usize {
        self.depth_lanes(depth) * if self.pairs { 2 } else { 1 }
    }

    /// Lanes of one vector.
    pub(crate) fn lanes(self) -> usize {
        match self.path {
            Path::Amx | Path::Avx512Bf16 => 16,
            _ => 8,
        }
    }

    /// Columns of a full tile: two vectors.
    pub(crate) fn columns(self) -> usize {
        2 * self.lanes()
    }

    /// Most rows of a tile: as many as the registers hold accumulators for.
    pub(crate) fn rows(self) -> usize {
        match self.path {
            Path::Amx if self.pairs => TILE_ROWS,
            Path::Amx | Path::Avx512Bf16 => 14,
            Path::Avx2 | Path::Neon => 6,
            _ => 4,
        }
    }

    /// Lanes from one depth step to the next in a left panel: `rows`, rounded up so that panels are packed in eights.
    pub(crate) fn left_stride(self) -> usize {
        self.rows().next_multiple_of(8)
    }

    /// Whether a left side may lie in rows of lanes, instead of panels.
    pub(crate) fn reads_rows(self) -> bool {
        matches!(self.path, Path::Amx | Path::Avx512Bf16 | Path::Avx2)
    }

    /// Whether few rows go down a column panel before the next one: where a full panel of a block fits the first-level cache.
    pub(crate) fn goes_down(self) -> bool {
        self.path == Path::Avx2
    }

    /// Computes one tile.
    ///
    /// # Safety
    /// The tile's pointers are valid for the extents that its fields describe, nobody else touches its output, and
    /// `rows`, `columns` and `vectors` are within the limits of this kernel.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "nothing else has tile registers"))]
    pub(crate) unsafe fn run<E: Element>(self, registers: &Registers, tile: &Tile<'_, E>) {
        debug_assert!((1..=self.rows()).contains(&tile.rows));
        debug_assert!((1..=2).contains(&tile.vectors) && tile.columns <= tile.vectors * self.lanes());
        match self.path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Path::current` hands out supported paths only; sides were packed for tiles; the rest is the caller's promise.
            Path::Amx if self.pairs => unsafe { super::amx::run(registers, tile) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Path::Amx | Path::Avx512Bf16 => unsafe { super::avx512::run(tile, self.pairs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Path::Avx2 => unsafe { super::avx2::run(tile) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Path::Neon => unsafe { super::neon::run(tile) },
            // SAFETY: the caller's promise.
            _ => unsafe { super::portable::run(tile) },
        }
    }
}
