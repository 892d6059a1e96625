//! Packing: from rows of any storage to the depth-major panels that the register tiles read.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::dispatch::{Path, first_level_ways, multiversion};
use crate::element::{Element, round};
use crate::gemm::micro::{Kernel, LeftLayout};
use crate::gemm::panels::{PANEL, PanelRows};
use crate::gemm::transpose::{GROUP, Group, transpose};
use crate::scratch::Scratch;

/// Most elements of a row that are read at once while transposing: eight of them stay in the second-level cache.
const STRETCH: usize = 1024;
/// Lanes of a cache line. Rows being transposed lie an odd number of lines apart, lest they all fall in one cache set.
pub(super) const LINE_LANES: usize = 16;

/// Bytes of one way of a first-level cache, 64 sets of a line each: rows a multiple of this apart fall into one set.
const WAY_BYTES: usize = 4096;
/// Lines of a set that are left to the right side and the output of a tile.
const OTHER_LINES: usize = 2;

/// Rows that are fetched ahead of the one that is read: pieces of rows lie too far apart for the processor to do it.
const ROWS_AHEAD: usize = 16;
/// Rows of which pieces are read in one call where their columns run across the lanes; even.
const ROWS_TOGETHER: usize = 16;

/// A matrix that can be read by pieces of rows, whatever it is stored as.
pub(crate) trait Rows: Sync {
    /// Reads `columns` of `row` as f32.
    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]);

    /// Reads `columns` of `row` as bf16, rounded to nearest even.
    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]);

    /// Reads `columns` of each of `rows` as [`Rows::read_bf16`] does, one after the other.
    fn read_rows_bf16(&self, path: Path, rows: Range<usize>, columns: Range<usize>, to: &mut [u16]) {
        read_row_by_row(self, path, rows, columns, to);
    }

    /// The matrix itself where its elements are stored as they are, to be packed without a copy between.
    fn plain(&self) -> Option<Plain<'_>> {
        None
    }
}

/// What [`Rows::read_rows_bf16`] does where nothing is gained by reading several rows at once.
pub(crate) fn read_row_by_row<R: Rows + ?Sized>(
    source: &R,
    path: Path,
    rows: Range<usize>,
    columns: Range<usize>,
    to: &mut [u16],
) {
    let width = columns.len();
    for (i, row) in rows.enumerate() {
        source.read_bf16(path, row, columns.clone(), &mut to[i * width..][..width]);
    }
}

/// A matrix whose elements lie in memory as they are.
#[derive(Clone, Copy)]
pub(crate) enum Plain<'a> {
    F32(Strided<'a, f32>),
    Bf16(Strided<'a, bf16>),
    Panels(PanelRows<'a>),
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
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) source: &'a dyn Rows,
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

/// How a packed left side of this depth lies: for tile registers in rows.
pub(crate) fn left_layout(kernel: Kernel, depth: usize) -> LeftLayout {
    let lanes = kernel.depth_lanes(depth);
    if kernel.tiles() {
        LeftLayout::Rows(if crowded(kernel, lanes) { lanes + LINE_LANES } else { lanes })
    } else {
        LeftLayout::Panels(lanes * kernel.left_stride())
    }
}

/// Whether the rows of a tile, so many lanes apart, would push each other out of the first-level cache.
fn crowded(kernel: Kernel, stride: usize) -> bool {
    let bytes = stride * size_of::<u32>();
    if kernel.tiles() {
        // A register takes whole lines at once; what it costs to find them in the next cache was measured at this distance.
        return bytes.is_multiple_of(WAY_BYTES / 2);
    }
    let apart = 1 << bytes.trailing_zeros().min(WAY_BYTES.trailing_zeros());
    let sharing = kernel.rows().div_ceil(WAY_BYTES / apart);
    sharing + OTHER_LINES > first_level_ways()
}

/// The left panels of `rows` output rows: as few as the kernel's height allows, all full but the last. Where that would have
/// less than two thirds of the height, the last two are of even height, since a low tile waits for its own sums; tile registers
/// do not.
pub(crate) fn left_panels(kernel: Kernel, rows: usize, depth: usize) -> impl ExactSizeIterator<Item = Panel> + Clone {
    let (full, layout) = (kernel.rows(), left_layout(kernel, depth));
    let count = rows.div_ceil(full);
    let start_of = move |i: usize| {
        let (start, left) = (i * full, rows.saturating_sub(i * full));
        let low = i > 0 && i + 1 == count && 3 * left < 2 * full;
        (start - if low { (full - left) / 2 } else { 0 }).min(rows)
    };
    (0..count).map(move |i| match layout {
        LeftLayout::Panels(length) => {
            let (start, end) = (start_of(i), start_of(i + 1));
            Panel { start, count: end - start, stride: kernel.left_stride(), offset: i * length }
        }
        LeftLayout::Rows(stride) => {
            let start = i * full;
            Panel { start, count: full.min(rows - start), stride, offset: start * stride }
        }
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
    match left_layout(kernel, depth) {
        LeftLayout::Panels(length) => rows.div_ceil(kernel.rows()) * length,
        LeftLayout::Rows(stride) => rows * stride,
    }
}

/// Packs panels of a left side, which start at lane `first` of the source, over its whole depth. Their `start` counts from
/// `first`, and their `offset` is into `to`.
pub(crate) fn pack_left(
    left: &Operand<'_>,
    kernel: Kernel,
    first: usize,
    panels: impl Iterator<Item = Panel>,
    depth: usize,
    to: &mut [u32],
) {
    if !kernel.tiles() {
        return left.pack(kernel, first, panels, 0..depth, to);
    }
    debug_assert_eq!(left.across, Across::Rows, "left sides of bf16 are never transposed");
    let filled = kernel.filled_lanes(depth);
    for panel in panels {
        let rows = to[panel.offset..][..panel.count * panel.stride].chunks_exact_mut(panel.stride);
        for (i, row) in rows.enumerate() {
            let (values, rest) = row.split_at_mut(filled);
            left.read_lanes(kernel, first + panel.start + i, 0..depth, values);
            rest.fill(0);
        }
    }
}

/// Lanes that the right panels of `columns` columns take.
pub(crate) fn right_len(kernel: Kernel, columns: usize, depth: usize) -> usize {
    columns.next_multiple_of(kernel.columns()) * kernel.depth_lanes(depth)
}

impl Operand<'_> {
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
        let panels: Vec<Panel> = panels.collect();
        match self.across {
            Across::Rows => panels.iter().for_each(|panel| self.pack_rows(kernel, first, *panel, depth.clone(), to)),
            Across::Columns => self.pack_columns(kernel, first, &panels, depth.clone(), to),
        }
        let (filled, whole) = (kernel.filled_lanes(depth.len()), kernel.depth_lanes(depth.len()));
        for panel in &panels {
            to[panel.offset..][filled * panel.stride..whole * panel.stride].fill(0);
        }
    }

    /// The first `rows` rows as lanes of the kernel, and the lanes from one to the next, where tiles can read them as they
    /// lie.
    pub(crate) fn lying(&self, kernel: Kernel, rows: usize, depth: usize) -> Option<(&[u32], usize)> {
        if self.across != Across::Rows || !kernel.reads_rows() {
            return None;
        }
        let (lanes, stride) = self.source.plain()?.lanes(kernel, depth)?;
        let whole = kernel.depth_lanes(depth) == kernel.filled_lanes(depth);
        let len = (rows - 1) * stride + kernel.filled_lanes(depth);
        (whole && !crowded(kernel, stride)).then(|| (&lanes[..len], stride))
    }

    /// The panels from column `first` on of the rows `depth`, and the lanes from one to the next, where tiles can read them
    /// as they lie.
    pub(crate) fn stored_panels(
        &self,
        kernel: Kernel,
        first: usize,
        columns: usize,
        depth: Range<usize>,
    ) -> Option<(&[u32], usize)> {
        let (Across::Columns, false, Some(Plain::Panels(rows))) = (self.across, kernel.pairs(), self.source.plain())
        else {
            return None;
        };
        let panels = columns.div_ceil(PANEL).checked_sub(1)?;
        let len = panels * rows.panel_len() + depth.len() * PANEL;
        Some((&as_lanes(rows.from(depth.start, first))[..len], rows.panel_len()))
    }

    fn pack_rows(&self, kernel: Kernel, first: usize, panel: Panel, depth: Range<usize>, to: &mut [u32]) {
        let path = kernel.path();
        let plain = self.source.plain();
        for from in depth.clone().step_by(STRETCH) {
            let stretch = from..depth.end.min(from + STRETCH);
            let lanes = kernel.filled_lanes(stretch.len());
            let to = &mut to[panel.offset + kernel.filled_lanes(from - depth.start) * panel.stride..];
            for group in (0..panel.count).step_by(GROUP) {
                let row = first + panel.start + group;
                let to = &mut to[group..];
                let direct = plain.and_then(|plain| plain.lanes_of_group(kernel, row, stretch.clone()));
                if let Some(rows) = direct {
                    transpose(path, rows, lanes, to, panel.stride);
                    continue;
                }
                let row_stride = lanes.next_multiple_of(2 * LINE_LANES) + LINE_LANES;
                let mut rows = Scratch::<u32>::take(GROUP * row_stride);
                let filled = GROUP.min(panel.count - group);
                for (i, to) in rows.chunks_exact_mut(row_stride).take(filled).enumerate() {
                    self.read_lanes(kernel, row + i, stretch.clone(), &mut to[..lanes]);
                }
                let rows = Group { lanes: &rows, row_stride, line_stride: PANEL };
                transpose(path, rows, lanes, to, panel.stride);
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
        let (start, width) = (head.start, tail.start + tail.count - head.start);
        let columns = first + start..first + start + width;
        // Panels are copied whole: the last one takes what follows the last column, or what the buffer held.
        let whole = tail.start + tail.stride - head.start;
        let mut lanes = Scratch::<u32>::take(whole);
        let mut copy = |p: usize, from: &[u32]| {
            for panel in panels {
                let to = &mut to[panel.offset + p * panel.stride..][..panel.stride];
                let from = &from[panel.start - start..][..panel.stride];
                for (to, from) in to.as_chunks_mut::<GROUP>().0.iter_mut().zip(from.as_chunks().0) {
                    *to = *from;
                }
            }
        };
        if kernel.pairs() {
            self.each_pair(kernel.path(), columns, depth, |p, even, odd| {
                interleave(kernel.path(), even, odd, &mut lanes[..width]);
                copy(p, &lanes);
            });
            return;
        }
        let plain = self.source.plain();
        if let Some(Plain::F32(plain)) = plain {
            let len = depth.len().saturating_sub(1) * plain.row_stride + whole;
            let from = plain.lanes(depth.start, columns.start, len);
            if from.len() == len {
                for panel in panels {
                    let to = &mut to[panel.offset..][..depth.len() * panel.stride];
                    copy_pieces(kernel.path(), &from[panel.start - start..], plain.row_stride, panel.stride, to);
                }
                return;
            }
        }
        for (p, row) in depth.enumerate() {
            if let Some(plain) = plain {
                plain.fetch_ahead(row + ROWS_AHEAD, columns.clone());
            }
            self.source.read(kernel.path(), row, columns.clone(), as_f32(&mut lanes[..width]));
            copy(p, &lanes);
        }
    }

    /// Calls `each` with the columns of two rows at a time as bf16; zeros follow a last row that is alone.
    fn each_pair(
        &self,
        path: Path,
        columns: Range<usize>,
        depth: Range<usize>,
        mut each: impl FnMut(usize, &[u16], &[u16]),
    ) {
        let (plain, width) = (self.source.plain(), columns.len());
        let mut halves = Scratch::<u16>::take(ROWS_TOGETHER * width);
        for first in depth.clone().step_by(ROWS_TOGETHER) {
            let rows = first..depth.end.min(first + ROWS_TOGETHER);
            if let Some(plain) = plain {
                rows.clone().for_each(|row| plain.fetch_ahead(row + ROWS_AHEAD, columns.clone()));
            }
            let pair = |row: usize| (row - depth.start) / 2;
            if let Some(Plain::Bf16(plain)) = plain.filter(|_| rows.len().is_multiple_of(2)) {
                for row in rows.step_by(2) {
                    each(pair(row), plain.halves(row, columns.clone()), plain.halves(row + 1, columns.clone()));
                }
                continue;
            }
            self.source.read_rows_bf16(path, rows.clone(), columns.clone(), &mut halves[..rows.len() * width]);
            if !rows.len().is_multiple_of(2) {
                halves[rows.len() * width..][..width].fill(0);
            }
            for (row, halves) in rows.step_by(2).zip(halves.chunks_exact(2 * width)) {
                let (even, odd) = halves.split_at(width);
                each(pair(row), even, odd);
            }
        }
    }
}

fn as_f32(lanes: &mut [u32]) -> &mut [f32] {
    // SAFETY: same size and alignment, every bit pattern is valid in both.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), lanes.len()) }
}

fn as_lanes(values: &[f32]) -> &[u32] {
    // SAFETY: same size and alignment, every bit pattern is valid in both.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// The halves of pairs, the earlier first: x86, the only machine with a kernel of pairs, is little endian.
fn as_bf16(lanes: &mut [u32]) -> &mut [u16] {
    // SAFETY: half the size, a weaker alignment, every bit pattern is valid in both.
    unsafe { std::slice::from_raw_parts_mut(lanes.as_mut_ptr().cast(), 2 * lanes.len()) }
}

multiversion!(fn copy_pieces(from: &[u32], row_stride: usize, width: usize, to: &mut [u32]) = copy_pieces_body);

/// Copies the first `width` lanes of rows `row_stride` apart, one behind the other.
#[inline(always)]
fn copy_pieces_body<const FMA: bool>(from: &[u32], row_stride: usize, width: usize, to: &mut [u32]) {
    match width {
        8 => copy_pieces_of::<8>(from, row_stride, to),
        16 => copy_pieces_of::<16>(from, row_stride, to),
        32 => copy_pieces_of::<32>(from, row_stride, to),
        _ => unreachable!("a panel {width} lanes wide"),
    }
}

#[inline(always)]
fn copy_pieces_of<const WIDTH: usize>(from: &[u32], row_stride: usize, to: &mut [u32]) {
    for (row, to) in to.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        let at = row * row_stride;
        for lane in (0..WIDTH).step_by(LINE_LANES) {
            fetch(from.as_ptr().wrapping_add(at + ROWS_AHEAD * row_stride + lane));
        }
        to.copy_from_slice(&from[at..at + WIDTH]);
    }
}

/// Brings the cache line of an address closer, if there is such an address.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no such instruction in stable Rust"))]
pub(super) fn fetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in every x86-64, and any address may be asked for.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
}

multiversion!(fn interleave(even: &[u16], odd: &[u16], to: &mut [u32]) = interleave_body);

#[inline(always)]
fn interleave_body<const FMA: bool>(even: &[u16], odd: &[u16], to: &mut [u32]) {
    for ((to, &even), &odd) in to.iter_mut().zip(even).zip(odd) {
        *to = u32::from(even) | u32::from(odd) << 16;
    }
}

/// Rows of elements, `row_stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strided<'a, E = f32> {
    pub(crate) data: &'a [E],
    pub(crate) row_stride: usize,
}

impl<'a> Plain<'a> {
    /// The rows from `first` on.
    pub(crate) fn below(self, first: usize) -> Self {
        match self {
            Plain::F32(all) => Plain::F32(all.below(first)),
            Plain::Bf16(all) => Plain::Bf16(all.below(first)),
            Plain::Panels(all) => Plain::Panels(all.below(first)),
        }
    }

    /// As [`Rows::read`].
    pub(crate) fn read(self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        match self {
            Plain::F32(all) => to.copy_from_slice(&all.data[row * all.row_stride..][columns]),
            Plain::Bf16(all) => widen(path, all.halves(row, columns), to),
            Plain::Panels(all) => all.read(row, columns, to),
        }
    }

    /// As [`Rows::read_bf16`].
    pub(crate) fn read_bf16(self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        match self {
            Plain::F32(all) => round_to_bf16(path, &all.data[row * all.row_stride..][columns], to),
            Plain::Bf16(all) => to.copy_from_slice(all.halves(row, columns)),
            Plain::Panels(all) => {
                let mut values = Scratch::<f32>::take(to.len());
                all.read(row, columns, &mut values);
                round_to_bf16(path, &values, to);
            }
        }
    }

    /// Brings a piece of a row into the cache, if there is such a row.
    fn fetch_ahead(self, row: usize, columns: Range<usize>) {
        match self {
            Plain::F32(all) => all.fetch_ahead(row, columns),
            Plain::Bf16(all) => all.fetch_ahead(row, columns),
            // Their tiles read them where they lie.
            Plain::Panels(_) => {}
        }
    }

    /// All of it as lanes of the kernel, and the lanes from row to row; if it lies in memory as they do, `depth` elements a
    /// row.
    fn lanes(self, kernel: Kernel, depth: usize) -> Option<(&'a [u32], usize)> {
        match self {
            Plain::F32(plain) if !kernel.pairs() => Some((plain.lanes(0, 0, plain.data.len()), plain.row_stride)),
            Plain::Bf16(plain) if kernel.pairs() => {
                let even = plain.row_stride.is_multiple_of(2) && depth.is_multiple_of(2);
                if !even || !plain.data.as_ptr().cast::<u32>().is_aligned() {
                    return None;
                }
                // SAFETY: aligned as checked; two halves make a lane, every bit pattern is valid in both.
                let lanes = unsafe { std::slice::from_raw_parts(plain.data.as_ptr().cast(), plain.data.len() / 2) };
                Some((lanes, plain.row_stride / 2))
            }
            _ => None,
        }
    }

    /// The columns `stretch` of a group of rows from `row`, if they lie in memory as the kernel's lanes do. Where a panel
    /// ends within the group, what follows comes along if it is there.
    fn lanes_of_group(self, kernel: Kernel, row: usize, stretch: Range<usize>) -> Option<Group<'a>> {
        if let Plain::Panels(all) = self {
            if kernel.pairs() || !stretch.start.is_multiple_of(PANEL) {
                return None;
            }
            let lanes = as_lanes(all.from(row, stretch.start));
            let group = Group { lanes, row_stride: PANEL, line_stride: all.panel_len() };
            return group.holds(stretch.len()).then_some(group);
        }
        let (all, row_stride) = self.lanes(kernel, stretch.len())?;
        let start = row * row_stride + kernel.filled_lanes(stretch.start);
        let group = Group { lanes: all.get(start..)?, row_stride, line_stride: PANEL };
        group.holds(kernel.filled_lanes(stretch.len())).then_some(group)
    }
}

impl<'a> Strided<'a, f32> {
    /// `len` elements from `column` of `row`, or fewer where the data ends; as lanes.
    fn lanes(self, row: usize, column: usize, len: usize) -> &'a [u32] {
        let start = self.data.len().min(row * self.row_stride + column);
        as_lanes(&self.data[start..self.data.len().min(start + len)])
    }
}

impl<'a> Strided<'a, bf16> {
    /// The bits of `columns` of `row`.
    fn halves(self, row: usize, columns: Range<usize>) -> &'a [u16] {
        self.data[row * self.row_stride..][columns].reinterpret_cast()
    }
}

impl<'a, E: Element> Strided<'a, E> {
    fn fetch_ahead(self, row: usize, columns: Range<usize>) {
        for column in columns.step_by(LINE_LANES * size_of::<u32>() / size_of::<E>()) {
            fetch(self.data.as_ptr().wrapping_add(row * self.row_stride + column));
        }
    }

    fn below(self, first: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], ..self }
    }

    fn as_plain(&self) -> Plain<'a> {
        let (start, len, row_stride) = (self.data.as_ptr(), self.data.len(), self.row_stride);
        // SAFETY: an `E` that is no bf16 is an f32: `Element` is sealed.
        unsafe {
            if E::IS_BF16 {
                Plain::Bf16(Strided { data: std::slice::from_raw_parts(start.cast(), len), row_stride })
            } else {
                Plain::F32(Strided { data: std::slice::from_raw_parts(start.cast(), len), row_stride })
            }
        }
    }
}

impl<E: Element> Rows for Strided<'_, E> {
    fn plain(&self) -> Option<Plain<'_>> {
        Some(self.as_plain())
    }

    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        self.as_plain().read(path, row, columns, to);
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        self.as_plain().read_bf16(path, row, columns, to);
    }
}

multiversion!(pub(crate) fn widen(from: &[u16], to: &mut [f32]) = widen_body);

#[inline(always)]
fn widen_body<const FMA: bool>(from: &[u16], to: &mut [f32]) {
    for (to, &bits) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(bits) << 16);
    }
}

multiversion!(pub(crate) fn round_to_bf16(from: &[f32], to: &mut [u16]) = round_to_bf16_body);

#[inline(always)]
fn round_to_bf16_body<const FMA: bool>(from: &[f32], to: &mut [u16]) {
    for (to, &value) in to.iter_mut().zip(from) {
        *to = round(value);
    }
}
