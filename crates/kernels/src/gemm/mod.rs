//! The one matrix product that everything in this crate is made of, in the manner of BLIS: the left side is packed once,
//! tiles of the right side are expanded into a small buffer per thread, register tiles multiply them.
//!
//! The depth is cut into blocks of a fixed length and an output element is summed by one thread in order of depth, so
//! results are bit-identical for every number of threads, and a row's result does not depend on the other rows.

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod micro;
mod pack;
mod portable;
mod transpose;

pub(crate) use micro::{Base, Kernel};
pub(crate) use pack::{Across, Operand, Rows, Strided, round_to_bf16};

use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use micro::Tile;
use pack::{Panel, left_len, left_panels, right_len, right_panels};

/// Output columns of one job; a multiple of every kernel's width and of the 64 codes that are decoded at once.
const JOB_COLUMNS: usize = 64;
/// Depth of one expanded right tile: 64 columns of it stay in the second-level cache.
const DEPTH_BLOCK: usize = 512;
/// Most output rows that are packed at once, which bounds the working memory of a large batch.
const ROWS_AT_ONCE: usize = 1024;
/// Working memory for the packed left side, in bytes, that a deep product trades rows for.
const LEFT_BYTES: usize = 16 << 20;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL_WORK: usize = 1 << 17;

/// Extents of a product: `[rows, depth] · [depth, columns]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
}

/// Where a product goes: rows `stride` apart, `output = base + scale · product`.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) output: SharedSlice<'a>,
    /// Element of `output` that is row 0, column 0.
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) scale: f32,
    pub(crate) base: TargetBase<'a>,
}

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
pub(crate) fn product<L: Rows, R: Rows>(
    kernel: Kernel,
    left: &Operand<'_, L>,
    right: &Operand<'_, R>,
    extents: Extents,
    target: Target<'_>,
) {
    let Extents { rows, columns, depth } = extents;
    if rows == 0 || columns == 0 {
        return;
    }
    check(extents, &target);
    let parallel = rows * columns * depth >= SERIAL_WORK && rayon::current_num_threads() > 1;
    let row_bytes = kernel.depth_lanes(depth).max(1) * size_of::<u32>();
    let most = (LEFT_BYTES / row_bytes).clamp(8 * kernel.rows(), ROWS_AT_ONCE);
    let chunks = rows.div_ceil(most);
    for chunk in 0..chunks {
        let (start, end) = (chunk * rows / chunks, (chunk + 1) * rows / chunks);
        let panels = left_panels(kernel, end - start, depth);
        let mut packed = Scratch::<u32>::take(left_len(kernel, end - start, depth));
        pack_left(kernel, left, start, panels.clone(), depth, parallel, &mut packed);

        let column_jobs = columns.div_ceil(JOB_COLUMNS);
        let wanted = if parallel { 3 * rayon::current_num_threads() } else { 1 };
        let row_jobs = wanted.div_ceil(column_jobs).clamp(1, panels.len());
        for_each(column_jobs * row_jobs, parallel, |job| {
            let first = job / row_jobs * JOB_COLUMNS;
            let last = columns.min(first + JOB_COLUMNS);
            let (from, to) = (job % row_jobs * panels.len() / row_jobs, (job % row_jobs + 1) * panels.len() / row_jobs);
            let panels = panels.clone().skip(from).take(to - from);
            // SAFETY: jobs differ in their columns or in their rows, so no two write the same element.
            unsafe { column_job(kernel, &packed, panels, right, (first, last), depth, start, target) };
        });
    }
}

fn check(extents: Extents, target: &Target<'_>) {
    // Panics if the last element lies outside.
    let _end = target.output.at(target.offset + (extents.rows - 1) * target.stride + extents.columns);
    if let TargetBase::Bias(bias) = target.base {
        assert_eq!(bias.len(), extents.columns, "one bias for each output column");
    }
}

fn pack_left<L: Rows>(
    kernel: Kernel,
    left: &Operand<'_, L>,
    start: usize,
    panels: impl ExactSizeIterator<Item = Panel> + Clone + Sync + Send,
    depth: usize,
    parallel: bool,
    packed: &mut [u32],
) {
    let length = kernel.left_stride() * kernel.depth_lanes(depth);
    if length == 0 {
        return;
    }
    let group = if parallel { panels.len().div_ceil(4 * rayon::current_num_threads()) } else { panels.len() };
    let pack = |(i, to): (usize, &mut [u32])| {
        let panels = panels.clone().skip(i * group).take(group);
        let panels = panels.map(|panel| Panel { offset: panel.offset - i * group * length, ..panel });
        left.pack(kernel, start, panels, 0..depth, to);
    };
    if parallel {
        packed.par_chunks_mut(group * length).enumerate().for_each(pack);
    } else {
        packed.chunks_mut(group * length).enumerate().for_each(pack);
    }
}

/// Multiplies some left panels with the columns `first..last` of the right side.
///
/// # Safety
/// Nobody else touches these elements of the target.
#[expect(clippy::too_many_arguments, reason = "the state of the two loops around it, used once")]
unsafe fn column_job<R: Rows>(
    kernel: Kernel,
    packed: &[u32],
    panels: impl Iterator<Item = Panel> + Clone,
    right: &Operand<'_, R>,
    (first, last): (usize, usize),
    depth: usize,
    start: usize,
    target: Target<'_>,
) {
    let block = DEPTH_BLOCK.min(depth);
    let mut expanded = Scratch::<u32>::take(right_len(kernel, last - first, block));
    let mut from = 0;
    loop {
        let to = depth.min(from + block);
        right.pack(kernel, first, right_panels(kernel, last - first, to - from), from..to, &mut expanded);
        let base = if from == 0 { target.base } else { TargetBase::Output };
        let target = Target { offset: target.offset + start * target.stride + first, base, ..target };
        let skipped = kernel.depth_lanes(from);
        let panels = panels.clone().map(|panel| Panel { offset: panel.offset + skipped * panel.stride, ..panel });
        let rights = || right_panels(kernel, last - first, to - from);
        // SAFETY: the panels lie in the packed buffers; the caller's promise covers the target.
        unsafe { tiles(kernel, packed, panels, &expanded, rights, to - from, first, target) };
        from = to;
        if from >= depth {
            break;
        }
    }
}

/// # Safety
/// Nobody else touches these elements of the target, and all of them lie within it.
#[expect(clippy::too_many_arguments, reason = "the innermost loop over tiles, shared by the two drivers")]
unsafe fn tiles<I: Iterator<Item = Panel>>(
    kernel: Kernel,
    left: &[u32],
    left_panels: impl Iterator<Item = Panel>,
    right: &[u32],
    right_panels: impl Fn() -> I,
    depth: usize,
    first_column: usize,
    target: Target<'_>,
) {
    let depth = kernel.depth_lanes(depth);
    for rows in left_panels {
        let left = &left[rows.offset..][..depth * rows.stride];
        for columns in right_panels() {
            let right = &right[columns.offset..][..depth * columns.stride];
            let base = match target.base {
                TargetBase::Zero => Base::Zero,
                TargetBase::Bias(bias) => Base::Row(bias[first_column + columns.start..].as_ptr()),
                TargetBase::Output => Base::Output,
            };
            let tile = Tile {
                depth,
                left: left.as_ptr(),
                right: right.as_ptr(),
                output: target.output.at(target.offset + rows.start * target.stride + columns.start),
                output_stride: target.stride,
                rows: rows.count,
                columns: columns.count,
                vectors: columns.stride / kernel.lanes(),
                scale: target.scale,
                base,
            };
            // SAFETY: the slices above hold the panels; the caller's promise covers the target.
            unsafe { kernel.run(&tile) };
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
    pub(crate) fn pack<S: Rows>(kernel: Kernel, operand: &Operand<'_, S>, rows: usize, depth: usize) -> Self {
        let mut lanes = Scratch::<u32>::take(left_len(kernel, rows, depth));
        operand.pack(kernel, 0, left_panels(kernel, rows, depth), 0..depth, &mut lanes);
        Self { lanes, rows, depth }
    }
}

impl Right {
    /// Packs `[depth, columns]`; lane and depth indices of the operand start at 0.
    pub(crate) fn pack<S: Rows>(kernel: Kernel, operand: &Operand<'_, S>, columns: usize, depth: usize) -> Self {
        let mut lanes = Scratch::<u32>::take(right_len(kernel, columns, depth));
        operand.pack(kernel, 0, right_panels(kernel, columns, depth), 0..depth, &mut lanes);
        Self { lanes, columns, depth }
    }
}

/// Multiplies packed sides on this thread, over the first `columns` columns and the depth of the left side.
///
/// # Safety
/// Nobody else touches these elements of the target.
pub(crate) unsafe fn multiply(kernel: Kernel, left: &Left, right: &Right, columns: usize, target: Target<'_>) {
    let depth = left.depth;
    assert!(columns <= right.columns && depth <= right.depth, "sides that do not fit");
    if left.rows == 0 || columns == 0 {
        return;
    }
    check(Extents { rows: left.rows, columns, depth }, &target);
    let panels = left_panels(kernel, left.rows, depth);
    let length = kernel.depth_lanes(right.depth) * kernel.columns();
    let rights = || {
        let width = right.columns;
        right_panels(kernel, columns, depth).enumerate().map(move |(i, panel)| {
            // The panel as it was packed: its stride and offset follow from the whole right side.
            let packed = kernel.columns().min(width - panel.start);
            let stride = if packed <= kernel.lanes() { kernel.lanes() } else { kernel.columns() };
            Panel { offset: i * length, stride, ..panel }
        })
    };
    // SAFETY: the caller's promise; `check` bounds the target.
    unsafe { tiles(kernel, &left.lanes, panels, &right.lanes, rights, depth, 0, target) };
}

/// [`multiply`] into a slice of one's own, rows `stride` apart: `output = base + scale · product`.
#[expect(clippy::too_many_arguments, reason = "two sides, and the fields of a target")]
pub(crate) fn multiply_into(
    kernel: Kernel,
    left: &Left,
    right: &Right,
    columns: usize,
    output: &mut [f32],
    stride: usize,
    scale: f32,
    base: TargetBase<'_>,
) {
    let target = Target { output: SharedSlice::new(output), offset: 0, stride, scale, base };
    // SAFETY: the slice is borrowed for this call alone.
    unsafe { multiply(kernel, left, right, columns, target) };
}
