//! Packing: from rows of any storage to the depth-major panels that the register tiles read.

use std::ops::Range;

use crate::dispatch::{Path, multiversion};
use crate::gemm::micro::Kernel;
use crate::gemm::transpose::{GROUP, transpose};
use crate::scratch::Scratch;

/// Most elements of a row that are read at once while transposing: eight of them stay in the second-level cache.
const STRETCH: usize = 1024;
/// Lanes of a cache line. Rows being transposed lie an odd number of lines apart, lest they all fall in one cache set.
const LINE_LANES: usize = 16;

/// A matrix that can be read by pieces of rows, whatever it is stored as.
pub(crate) trait Rows: Sync {
    /// Reads `columns` of `row` as f32.
    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]);

    /// Reads `columns` of `row` as bf16, rounded to nearest even.
    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]);

    /// The matrix itself where it is stored as rows of f32, to be packed without a copy between.
    fn plain(&self) -> Option<Strided<'_>> {
        None
    }
}

/// Which way a source lies in a product: what runs across the lanes of a panel, the other axis being the depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Across {
    /// The rows of the source; its columns are the depth.
    Rows,
    /// The columns of the source; its rows are the depth.
    Columns,
}

/// One side of a product.
pub(crate) struct Operand<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) across: Across,
}

/// A panel: `count` lanes of the source from `start`, `stride` lanes wide, `offset` lanes into the packed buffer. The
/// lanes beyond `count` hold anything: no output depends on them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    pub(crate) start: usize,
    pub(crate) count: usize,
    pub(crate) stride: usize,
    pub(crate) offset: usize,
}

/// The left panels of `rows` output rows: as few as the kernel's height allows, of even height.
pub(crate) fn left_panels(kernel: Kernel, rows: usize, depth: usize) -> impl ExactSizeIterator<Item = Panel> + Clone {
    let count = rows.div_ceil(kernel.rows());
    let (stride, length) = (kernel.left_stride(), kernel.depth_lanes(depth) * kernel.left_stride());
    (0..count).map(move |i| {
        let (start, end) = (i * rows / count, (i + 1) * rows / count);
        Panel { start, count: end - start, stride, offset: i * length }
    })
}

/// The right panels of `columns` output columns; the last is one vector wide where that is enough.
pub(crate) fn right_panels(kernel: Kernel, columns: usize, depth: usize) -> impl ExactSizeIterator<Item = Panel> {
    let width = kernel.columns();
    let length = kernel.depth_lanes(depth) * width;
    (0..columns.div_ceil(width)).map(move |i| {
        let start = i * width;
        let count = width.min(columns - start);
        let stride = if count <= kernel.lanes() { kernel.lanes() } else { width };
        Panel { start, count, stride, offset: i * length }
    })
}

/// Lanes that the left panels of `rows` rows take.
pub(crate) fn left_len(kernel: Kernel, rows: usize, depth: usize) -> usize {
    rows.div_ceil(kernel.rows()) * kernel.left_stride() * kernel.depth_lanes(depth)
}

/// Lanes that the right panels of `columns` columns take.
pub(crate) fn right_len(kernel: Kernel, columns: usize, depth: usize) -> usize {
    columns.next_multiple_of(kernel.columns()) * kernel.depth_lanes(depth)
}

impl<S: Rows> Operand<'_, S> {
    /// Packs panels, which start at lane `first` of the source, over the elements `depth` of the other axis. The panels'
    /// `start` count from `first`, and their `offset` is into `to`.
    pub(crate) fn pack(
        &self,
        kernel: Kernel,
        first: usize,
        panels: impl Iterator<Item = Panel>,
        depth: Range<usize>,
        to: &mut [u32],
    ) {
        match self.across {
            Across::Rows => panels.for_each(|panel| self.pack_rows(kernel, first, panel, depth.clone(), to)),
            Across::Columns => self.pack_columns(kernel, first, &panels.collect::<Vec<_>>(), depth, to),
        }
    }

    fn pack_rows(&self, kernel: Kernel, first: usize, panel: Panel, depth: Range<usize>, to: &mut [u32]) {
        let path = kernel.path();
        let plain = self.source.plain().filter(|_| !kernel.pairs());
        for from in depth.clone().step_by(STRETCH) {
            let stretch = from..depth.end.min(from + STRETCH);
            let lanes = kernel.depth_lanes(stretch.len());
            let to = &mut to[panel.offset + kernel.depth_lanes(from - depth.start) * panel.stride..];
            for group in (0..panel.count).step_by(GROUP) {
                let row = first + panel.start + group;
                let to = &mut to[group..];
                if let Some(plain) = plain {
                    // Where the panel ends within the group, the rows below it are packed along if they exist.
                    let len = (GROUP - 1) * plain.row_stride + lanes;
                    let rows = plain.lanes(row, from, len);
                    if rows.len() == len {
                        transpose(path, rows, plain.row_stride, lanes, to, panel.stride);
                        continue;
                    }
                }
                let row_stride = lanes.next_multiple_of(2 * LINE_LANES) + LINE_LANES;
                let mut rows = Scratch::<u32>::take(GROUP * row_stride);
                let filled = GROUP.min(panel.count - group);
                for (i, to) in rows.chunks_exact_mut(row_stride).take(filled).enumerate() {
                    self.read_lanes(kernel, row + i, stretch.clone(), &mut to[..lanes]);
                }
                transpose(path, &rows, row_stride, lanes, to, panel.stride);
            }
        }
    }

    /// Reads a piece of a row as lanes; an odd element at its end is paired with 0.
    fn read_lanes(&self, kernel: Kernel, row: usize, columns: Range<usize>, to: &mut [u32]) {
        if kernel.pairs() {
            if let Some(last) = to.last_mut() {
                *last = 0;
            }
            let to = &mut as_bf16(to)[..columns.len()];
            self.source.read_bf16(kernel.path(), row, columns, to);
        } else {
            self.source.read(kernel.path(), row, columns, as_f32(to));
        }
    }

    fn pack_columns(&self, kernel: Kernel, first: usize, panels: &[Panel], depth: Range<usize>, to: &mut [u32]) {
        let (Some(head), Some(tail)) = (panels.first(), panels.last()) else { return };
        let plain = self.source.plain().filter(|_| !kernel.pairs());
        let (start, width) = (head.start, tail.start + tail.count - head.start);
        let columns = first + start..first + start + width;
        // Panels are copied whole: the last one takes what follows the last column, or what the buffer held.
        let whole = tail.start + tail.stride - head.start;
        let mut lanes = Scratch::<u32>::take(whole);
        let mut halves = Scratch::<u16>::take(if kernel.pairs() { 2 * width } else { 0 });
        let step = if kernel.pairs() { 2 } else { 1 };
        for (p, row) in depth.clone().step_by(step).enumerate() {
            let direct = plain.as_ref().map(|plain| plain.lanes(row, columns.start, whole));
            let from = match direct.filter(|direct| direct.len() == whole) {
                Some(direct) => direct,
                None if kernel.pairs() => {
                    let (even, odd) = halves.split_at_mut(width);
                    self.source.read_bf16(kernel.path(), row, columns.clone(), even);
                    if row + 1 < depth.end {
                        self.source.read_bf16(kernel.path(), row + 1, columns.clone(), odd);
                    } else {
                        odd.fill(0);
                    }
                    interleave(kernel.path(), even, odd, &mut lanes[..width]);
                    &lanes
                }
                None => {
                    self.source.read(kernel.path(), row, columns.clone(), as_f32(&mut lanes[..width]));
                    &lanes
                }
            };
            for panel in panels {
                let to = &mut to[panel.offset + p * panel.stride..][..panel.stride];
                let from = &from[panel.start - start..][..panel.stride];
                for (to, from) in to.chunks_exact_mut(GROUP).zip(from.chunks_exact(GROUP)) {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}

fn as_f32(lanes: &mut [u32]) -> &mut [f32] {
    // SAFETY: same size and alignment, every bit pattern is valid in both.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len()) }
}

/// The halves of pairs, the earlier first: x86, the only machine with a kernel of pairs, is little endian.
fn as_bf16(lanes: &mut [u32]) -> &mut [u16] {
    // SAFETY: half the size, a weaker alignment, every bit pattern is valid in both.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), 2 * lanes.len()) }
}

multiversion!(fn interleave(even: &[u16], odd: &[u16], to: &mut [u32]) = interleave_body);

#[inline(always)]
fn interleave_body<const FMA: bool>(even: &[u16], odd: &[u16], to: &mut [u32]) {
    for ((to, &even), &odd) in to.iter_mut().zip(even).zip(odd) {
        *to = u32::from(even) | u32::from(odd) << 16;
    }
}

/// Rows of f32, `row_stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
}

impl Strided<'_> {
    /// `len` elements from `column` of `row`, or fewer where the data ends; as lanes.
    fn lanes(&self, row: usize, column: usize, len: usize) -> &[u32] {
        let start = row * self.row_stride + column;
        let from = &self.data[start..self.data.len().min(start + len)];
        // SAFETY: same size and alignment, every bit pattern is valid in both.
        unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) }
    }
}

impl Rows for Strided<'_> {
    fn plain(&self) -> Option<Strided<'_>> {
        Some(*self)
    }

    fn read(&self, _: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        to.copy_from_slice(&self.data[row * self.row_stride + columns.start..][..columns.len()]);
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        round_to_bf16(path, &self.data[row * self.row_stride + columns.start..][..columns.len()], to);
    }
}

multiversion!(pub(crate) fn round_to_bf16(from: &[f32], to: &mut [u16]) = round_to_bf16_body);

#[inline(always)]
fn round_to_bf16_body<const FMA: bool>(from: &[f32], to: &mut [u16]) {
    for (to, &value) in to.iter_mut().zip(from) {
        let bits = value.to_bits();
        let even = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // Rounding could carry a NaN into infinity: keep it quiet instead.
        *to = if value.is_nan() { (bits >> 16 | 0x40) as u16 } else { even as u16 };
    }
}
