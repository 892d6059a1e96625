//! The matrix product that everything in this crate is made of, in the manner of BLIS: left sides are packed once, tiles of
//! the right sides are expanded into a small buffer per thread, register tiles multiply them. [`sum_of_products`] is the
//! threaded driver; [`Left`], [`Right`] and [`multiply`] are for products within one thread.
//!
//! An output element is one accumulator that one thread runs through the depth in order, so results are bit-identical for
//! every number of threads, and a row's result does not depend on the other rows. For a handful of rows there is a way
//! without packing ([`few`]), whose sums run in another order.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod driver;
mod few;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod panels;
mod portable;
mod transpose;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Registers, tile_product};
pub(crate) use driver::{Factor, Input, Output, Side, Term, sum_of_products};
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use micro::Registers;
pub(crate) use micro::{Base, Kernel};
pub(crate) use pack::{Across, Operand, Plain, Rows, Strided, read_row_by_row, round_to_bf16, widen};
pub use panels::PANEL;
pub(crate) use panels::Panels;

use crate::element::Element;
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use micro::{Part, RightLayout, Tile};
use pack::{Panel, left_layout, left_len, left_panels, pack_left, right_len, right_panels};

/// Extents of a product: `[rows, depth] · [depth, columns]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
}

/// Where a product goes: rows `stride` apart, `output = base + scale · product`.
pub(crate) struct Target<'a, E = f32> {
    pub(crate) output: SharedSlice<'a, E>,
    /// Element of `output` that is row 0, column 0.
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) scale: f32,
    pub(crate) base: TargetBase<'a>,
}

// Not derived: a copy needs no copy of the elements.
impl<E> Clone for Target<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Target<'_, E> {}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum TargetBase<'a> {
    Zero,
    Bias(&'a [f32]),
    Output,
}

/// Runs `body` for every number below `count`, on several threads if the work is worth it.
pub(crate) fn for_each(count: usize, parallel: bool, body: impl Fn(usize) + Sync + Send) {
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(body);
    } else {
        (0..count).for_each(body);
    }
}

/// Multiplies two operands on all threads of the current pool.
pub(crate) fn product<E: Element>(
    kernel: Kernel,
    left: Operand<'_>,
    right: Operand<'_>,
    extents: Extents,
    target: Target<'_, E>,
) {
    let Extents { rows, columns, depth } = extents;
    let input = Input { left, depth, factors: vec![] };
    let output = Output { terms: vec![Term { side: Side::Input(0), right }], columns, target };
    sum_of_products(kernel, rows, &[input], &[output]);
}

fn check<E>(extents: Extents, target: &Target<'_, E>) {
    // Panics if the last element lies outside.
    let _end = target.output.at(target.offset + (extents.rows - 1) * target.stride + extents.columns);
    if let TargetBase::Bias(bias) = target.base {
        assert_eq!(bias.len(), extents.columns, "one bias for each output column");
    }
}

impl<'a, E: Element> Target<'a, E> {
    /// The tile of left panel `rows` and right panel `columns`, where this target's row 0 and column 0 are those of
    /// output column `first_column` (which a bias counts from).
    fn tile<'p>(
        &self,
        kernel: Kernel,
        (rows, columns): (Panel, Panel),
        panels: (usize, usize),
        first_column: usize,
        parts: &'p [Part],
    ) -> Tile<'p, E> {
        Tile {
            parts,
            panels,
            first_row: rows.start,
            initial: None,
            output: self.output.at(self.offset + rows.start * self.stride + columns.start),
            output_stride: self.stride,
            rows: rows.count,
            columns: columns.count,
            vectors: columns.stride / kernel.lanes(),
            scale: self.scale,
            base: match self.base {
                TargetBase::Zero => Base::Zero,
                TargetBase::Bias(bias) => Base::Row(bias[first_column + columns.start..].as_ptr()),
                TargetBase::Output => Base::Output,
            },
        }
    }
}

/// A left side, packed whole, for products within one thread.
pub(crate) struct Left {
    lanes: Scratch<u32>,
    rows: usize,
    depth: usize,
}

/// A right side, packed whole, for products within one thread.
pub(crate) struct Right {
    lanes: Scratch<u32>,
    columns: usize,
    depth: usize,
}

impl Left {
    /// Packs `[rows, depth]`; lane and depth indices of the operand start at 0.
    pub(crate) fn pack(kernel: Kernel, operand: &Operand<'_>, rows: usize, depth: usize) -> Self {
        let mut lanes = Scratch::<u32>::take(left_len(kernel, rows, depth));
        pack_left(operand, kernel, 0, left_panels(kernel, rows, depth), depth, &mut lanes);
        Self { lanes, rows, depth }
    }
}

impl Right {
    /// Packs `[depth, columns]`; lane and depth indices of the operand start at 0.
    pub(crate) fn pack(kernel: Kernel, operand: &Operand<'_>, columns: usize, depth: usize) -> Self {
        let mut lanes = Scratch::<u32>::take(right_len(kernel, columns, depth));
        operand.pack(kernel, 0, right_panels(kernel, columns, depth), 0..depth, &mut lanes);
        Self { lanes, columns, depth }
    }

    /// The panels of the first `columns` columns. A panel's stride and offset follow from the whole side, as it was packed.
    fn panels(&self, kernel: Kernel, columns: usize) -> impl Iterator<Item = Panel> {
        let count = columns.div_ceil(kernel.columns());
        right_panels(kernel, self.columns, self.depth)
            .take(count)
            .map(move |panel| Panel { count: panel.count.min(columns - panel.start), ..panel })
    }
}

/// Multiplies packed sides on this thread, over the first `columns` columns and the depth of the left side.
///
/// # Safety
/// Nobody else touches these elements of the target.
pub(crate) unsafe fn multiply<E: Element>(
    kernel: Kernel,
    left: &Left,
    right: &Right,
    columns: usize,
    target: Target<'_, E>,
) {
    let depth = left.depth;
    assert!(columns <= right.columns && depth <= right.depth, "sides that do not fit");
    if left.rows == 0 || columns == 0 {
        return;
    }
    check(Extents { rows: left.rows, columns, depth }, &target);
    let lanes = kernel.depth_lanes(depth);
    let part = Part {
        depth: lanes,
        left: left.lanes.as_ptr(),
        layout: left_layout(kernel, depth),
        right: right.lanes.as_ptr(),
        right_layout: RightLayout::Panels(kernel.depth_lanes(right.depth) * kernel.columns()),
    };
    let registers = Registers::new();
    for (i, rows) in left_panels(kernel, left.rows, depth).enumerate() {
        for (j, columns) in right.panels(kernel, columns).enumerate() {
            // SAFETY: the sides hold the panels, as they were packed; `check` bounds the target, which the caller keeps to
            // itself.
            unsafe { kernel.run(&registers, &target.tile(kernel, (rows, columns), (i, j), 0, &[part])) };
        }
    }
}

/// [`multiply`] into a slice of one's own, rows `stride` apart: `output = base + scale · product`.
#[expect(clippy::too_many_arguments, reason = "two sides, and the fields of a target")]
pub(crate) fn multiply_into<E: Element>(
    kernel: Kernel,
    left: &Left,
    right: &Right,
    columns: usize,
    output: &mut [E],
    stride: usize,
    scale: f32,
    base: TargetBase<'_>,
) {
    let target = Target { output: SharedSlice::new(output), offset: 0, stride, scale, base };
    // SAFETY: the slice is borrowed for this call alone.
    unsafe { multiply(kernel, left, right, columns, target) };
}
