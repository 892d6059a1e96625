//! Sums of products for a handful of rows, as when text is decoded token by token: what counts is that the right sides are
//! read once, at the speed of memory. Nothing is packed; a stored row is multiplied where it lies, or decoded into the
//! first-level cache; panels are multiplied line by line, as they follow one another in memory. Threads share the output's
//! columns.
//!
//! An output element is summed in partial sums whose number hangs on the path alone, so its bits do not depend on the
//! other rows nor on the threads. They are not those of [`super::driver`]'s tiles, which sum in order.

use half::slice::HalfFloatSliceExt;

use super::driver::{Input, Output, Side, Term};
use super::pack::{Across, LINE_LANES, Plain, Rows, Strided, fetch};
use super::panels::{PANEL, PanelRows};
use super::{Kernel, TargetBase, for_each};
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::scratch::{LINE, Pooled, Scratch};
use crate::vector::multiply_add;

/// Most rows of any path.
const MOST_ROWS: usize = 8;
/// Rows of either side that are multiplied by each other while they are in registers.
const TOGETHER: usize = 4;
/// Parts that a thread's share of an output is cut into, so that a thread held up does not hold up the others.
const CUTS_A_THREAD: usize = 4;
/// Columns whose results are written together: rows of an output may lie so that one cache set holds them all. Of panels it is
/// the stretch that is read at once: a page.
const RUN: usize = 64;
/// Partial sums of an element in f32.
const LANES: usize = LINE_LANES;

/// Most rows for which packing the right side does not pay, measured.
fn most_rows(path: Path) -> usize {
    if path.multiplies_bf16() { MOST_ROWS } else { 3 }
}

/// Whether [`sum_of_few`] takes these: few rows, and every side stored along its depth.
pub(super) fn are_few<E>(kernel: Kernel, rows: usize, inputs: &[Input<'_>], outputs: &[Output<'_, E>]) -> bool {
    let sides = inputs
        .iter()
        .flat_map(|input| std::iter::once(&input.left).chain(input.factors.iter().map(|factor| &factor.right)));
    let rights = outputs.iter().flat_map(|output| &output.terms).map(|term| &term.right);
    rows <= most_rows(kernel.path()) && sides.chain(rights).all(|operand| operand.across == Across::Rows)
}

/// As `sum_of_products`, which has checked the lengths.
pub(super) fn sum_of_few<E: Element>(
    kernel: Kernel,
    rows: usize,
    inputs: &[Input<'_>],
    outputs: &[Output<'_, E>],
    parallel: bool,
) {
    if kernel.pairs() {
        sum_in::<u16, E>(kernel.path(), rows, inputs, outputs, parallel);
    } else {
        sum_in::<f32, E>(kernel.path(), rows, inputs, outputs, parallel);
    }
}

/// What is multiplied: f32, or the bits of bf16.
trait Format: Pooled + Sync {
    /// A row where it lies, if it does so in this format.
    fn lying(plain: Plain<'_>, row: usize, depth: usize) -> Option<&[Self]>;

    fn read(source: &dyn Rows, path: Path, row: usize, to: &mut [Self]);

    /// What multiplies panels: the left side itself, if it is f32.
    fn for_panels(_: &Lefts<Self>) -> Option<&Lefts<f32>> {
        None
    }

    /// The products of the `rows` rows of `x`, `stride` apart, with each of `w`.
    fn dots(path: Path, x: &[Self], stride: usize, w: Rights<'_, Self>, rows: usize, sums: &mut Sums);
}

impl Format for f32 {
    fn lying(plain: Plain<'_>, row: usize, depth: usize) -> Option<&[Self]> {
        let Plain::F32(all) = plain else { return None };
        Some(&all.data[row * all.row_stride..][..depth])
    }

    fn read(source: &dyn Rows, path: Path, row: usize, to: &mut [Self]) {
        source.read(path, row, 0..to.len(), to);
    }

    fn for_panels(x: &Lefts<Self>) -> Option<&Lefts<f32>> {
        Some(x)
    }

    fn dots(path: Path, x: &[Self], stride: usize, w: Rights<'_, Self>, rows: usize, sums: &mut Sums) {
        #[cfg(target_arch = "x86_64")]
        if path.multiplies_bf16() {
            by_groups(x, stride, w, rows, sums, Dots512::<false>);
            return;
        }
        dots_f32(path, x, stride, w, rows, sums);
    }
}

impl Format for u16 {
    fn lying(plain: Plain<'_>, row: usize, depth: usize) -> Option<&[Self]> {
        let Plain::Bf16(all) = plain else { return None };
        Some(all.data[row * all.row_stride..][..depth].reinterpret_cast())
    }

    fn read(source: &dyn Rows, path: Path, row: usize, to: &mut [Self]) {
        source.read_bf16(path, row, 0..to.len(), to);
    }

    fn dots(path: Path, x: &[Self], stride: usize, w: Rights<'_, Self>, rows: usize, sums: &mut Sums) {
        debug_assert!(path.multiplies_bf16(), "{path} does not multiply pairs of bf16");
        #[cfg(target_arch = "x86_64")]
        by_groups(x, stride, w, rows, sums, Dots512::<true>);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{path} multiplies f32: {}", x.len() + stride + w.len() + rows + sums.len());
    }
}

/// Rows of a right side, of one length.
type Rights<'a, F> = [&'a [F]; TOGETHER];
/// For each of them the products with all rows of the left side.
type Sums = [[f32; MOST_ROWS]; TOGETHER];

/// Products of any number of left rows with some right ones.
trait Dots<F> {
    fn of<const ROWS: usize>(&self, x: [&[F]; ROWS], w: Rights<'_, F>) -> [[f32; ROWS]; TOGETHER];
}

/// Takes the rows of `x` four at a time, then one at a time: the sums of a row are the same either way.
#[inline(always)]
fn by_groups<F>(x: &[F], stride: usize, w: Rights<'_, F>, rows: usize, sums: &mut Sums, dots: impl Dots<F>) {
    let row = |i: usize| &x[i * stride..][..w[0].len()];
    let grouped = rows / TOGETHER * TOGETHER;
    for first in (0..grouped).step_by(TOGETHER) {
        let found = dots.of::<TOGETHER>(std::array::from_fn(|i| row(first + i)), w);
        for (sums, found) in sums.iter_mut().zip(found) {
            sums[first..first + TOGETHER].copy_from_slice(&found);
        }
    }
    for i in grouped..rows {
        let found = dots.of([row(i)], w);
        sums.iter_mut().zip(found).for_each(|(sums, [found])| sums[i] = found);
    }
}

#[cfg(target_arch = "x86_64")]
struct Dots512<const PAIRS: bool>;

#[cfg(target_arch = "x86_64")]
impl<F: Pooled, const PAIRS: bool> Dots<F> for Dots512<PAIRS> {
    #[inline(always)]
    fn of<const ROWS: usize>(&self, x: [&[F]; ROWS], w: Rights<'_, F>) -> [[f32; ROWS]; TOGETHER] {
        let len = w[0].len();
        assert!(x.iter().chain(&w).all(|row| row.len() == len));
        // SAFETY: made for the path that has the instructions; the slices are of one length, in bytes `size_of_val`.
        unsafe {
            super::avx512::dots::<ROWS, TOGETHER, PAIRS>(
                x.map(|x| x.as_ptr().cast()),
                w.map(|w| w.as_ptr().cast()),
                size_of_val(w[0]) / 2,
            )
        }
    }
}

struct Plainly<const FMA: bool>;

impl<const FMA: bool> Dots<f32> for Plainly<FMA> {
    #[inline(always)]
    fn of<const ROWS: usize>(&self, x: [&[f32]; ROWS], w: Rights<'_, f32>) -> [[f32; ROWS]; TOGETHER] {
        // Not a `map`: what that calls would not be compiled for the path.
        let mut sums = [[0f32; ROWS]; TOGETHER];
        for (sums, w) in sums.iter_mut().zip(w) {
            *sums = dots_of::<FMA, ROWS>(x, w);
        }
        sums
    }
}

multiversion!(fn dots_f32(
    x: &[f32],
    stride: usize,
    w: Rights<'_, f32>,
    rows: usize,
    sums: &mut Sums,
) = dots_body);

#[inline(always)]
fn dots_body<const FMA: bool>(x: &[f32], stride: usize, w: Rights<'_, f32>, rows: usize, sums: &mut Sums) {
    by_groups(x, stride, w, rows, sums, Plainly::<FMA>);
}

#[inline(always)]
fn dots_of<const FMA: bool, const ROWS: usize>(x: [&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
    let mut sums = [[0f32; LANES]; ROWS];
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (whole, rest) = (x.map(|x| x.as_chunks::<LANES>().0), x.map(|x| x.as_chunks::<LANES>().1));
    let whole = whole.map(|x| &x[..w.len()]);
    for (p, w) in w.iter().enumerate() {
        for (sums, x) in sums.iter_mut().zip(&whole) {
            *sums = std::array::from_fn(|j| multiply_add::<FMA>(x[p][j], w[j], sums[j]));
        }
    }
    for (sums, x) in sums.iter_mut().zip(rest) {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(w_rest) {
            *sum = multiply_add::<FMA>(*x, *w, *sum);
        }
    }
    sums.map(fold)
}

multiversion!(
    /// Adds the products of all left rows with as many rows of panels as there are sums, `RUN` at most.
    fn add_panels(x: &Lefts<f32>, rows: usize, w: PanelRows<'_>, sums: &mut [[f32; MOST_ROWS]]) = add_panels_body
);

#[inline(always)]
fn add_panels_body<const FMA: bool>(x: &Lefts<f32>, rows: usize, w: PanelRows<'_>, sums: &mut [[f32; MOST_ROWS]]) {
    let mut first = 0;
    while first < rows {
        first += match rows - first {
            1 => add_panel_sums::<FMA, 1>(x, first, w, sums),
            2 => add_panel_sums::<FMA, 2>(x, first, w, sums),
            3 => add_panel_sums::<FMA, 3>(x, first, w, sums),
            _ => add_panel_sums::<FMA, TOGETHER>(x, first, w, sums),
        };
    }
}

/// Adds the products of the `ROWS` left rows from `first` on with as many rows of panels as there are sums: panel after panel,
/// as they lie, with the partial sums in memory. Gives `ROWS`.
#[inline(always)]
fn add_panel_sums<const FMA: bool, const ROWS: usize>(
    x: &Lefts<f32>,
    first: usize,
    w: PanelRows<'_>,
    sums: &mut [[f32; MOST_ROWS]],
) -> usize {
    // On cache lines.
    let mut partial = Scratch::<f32>::take(sums.len() * ROWS * LANES);
    partial.fill(0.0);
    let partial = partial.as_chunks_mut::<LANES>().0.as_chunks_mut::<ROWS>().0;
    let panels = x.depth.div_ceil(PANEL);
    for panel in (0..panels / 2).map(|pair| 2 * pair) {
        add_lines::<FMA, ROWS, 2>(x, first, w, panel, partial);
    }
    if !panels.is_multiple_of(2) {
        add_lines::<FMA, ROWS, 1>(x, first, w, panels - 1, partial);
    }
    for (sums, partial) in sums.iter_mut().zip(partial) {
        sums[first..].iter_mut().zip(partial).for_each(|(sum, partial)| *sum += fold(*partial));
    }
    ROWS
}

/// Adds the products with the lines of `PANELS` panels beside each other to the partial sums of as many lines.
#[inline(always)]
fn add_lines<const FMA: bool, const ROWS: usize, const PANELS: usize>(
    x: &Lefts<f32>,
    first: usize,
    w: PanelRows<'_>,
    panel: usize,
    partial: &mut [[[f32; LANES]; ROWS]],
) {
    let column = |i: usize| (panel + i) * PANEL;
    let mut left = [[[0f32; LANES]; PANELS]; ROWS];
    for (row, left) in left.iter_mut().enumerate() {
        let from = &x.values[(first + row) * x.stride + column(0)..];
        left.as_flattened_mut().copy_from_slice(&from[..PANELS * LANES]);
    }
    let lines: [_; PANELS] = std::array::from_fn(|i| w.panel(column(i), partial.len()));
    let next = PANELS * w.panel_len() / PANEL;
    for (line, partial) in partial.iter_mut().enumerate() {
        for lines in &lines {
            fetch(lines.as_ptr().wrapping_add(line + next));
        }
        for (partial, left) in partial.iter_mut().zip(&left) {
            for (lines, left) in lines.iter().zip(left) {
                *partial = std::array::from_fn(|j| multiply_add::<FMA>(left[j], lines[line][j], partial[j]));
            }
        }
    }
}

/// The sum, by halves. Never inlined: the compiler would lay out the loops before it by the pairs.
#[inline(never)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// The left side of some terms, `[rows, depth]`, its rows an odd number of cache lines apart, lest they all fall in one
/// cache set.
struct Lefts<F: Pooled> {
    values: Scratch<F>,
    stride: usize,
    depth: usize,
}

impl<F: Format> Lefts<F> {
    fn read(path: Path, source: &dyn Rows, rows: usize, depth: usize) -> Self {
        let line = LINE / size_of::<F>();
        let stride = depth.next_multiple_of(2 * line) + line;
        let mut values = Scratch::<F>::take(rows * stride);
        for (row, to) in values.chunks_exact_mut(stride).enumerate() {
            F::read(source, path, row, &mut to[..depth]);
            // What a last line of a panel is multiplied by.
            to[depth..depth.next_multiple_of(line)].fill(F::default());
        }
        Self { values, stride, depth }
    }

    /// Adds the products of all rows with the rows of a right side from `first` on, one for each of `sums`.
    fn add_products(
        &self,
        path: Path,
        rows: usize,
        right: &dyn Rows,
        first: usize,
        buffer: &mut [F],
        sums: &mut [[f32; MOST_ROWS]],
    ) {
        let depth = self.depth;
        if depth == 0 {
            return;
        }
        let plain = right.plain();
        if let (Some(Plain::Panels(all)), Some(x)) = (plain, F::for_panels(self)) {
            for (run, sums) in sums.chunks_mut(RUN).enumerate() {
                add_panels(path, x, rows, all.below(first + run * RUN), sums);
            }
            return;
        }
        for (group, sums) in sums.chunks_mut(TOGETHER).enumerate() {
            // What is missing of the last group is multiplied again and dropped.
            let row = |i: usize| first + group * TOGETHER + i.min(sums.len() - 1);
            let lying: [_; TOGETHER] = std::array::from_fn(|i| plain.and_then(|plain| F::lying(plain, row(i), depth)));
            if lying.iter().any(Option::is_none) {
                for (i, w) in buffer.chunks_exact_mut(depth).take(sums.len()).enumerate() {
                    F::read(right, path, row(i), w);
                }
            }
            let w = std::array::from_fn(|i| lying[i].unwrap_or(&buffer[i.min(sums.len() - 1) * depth..][..depth]));
            let mut own = [[0f32; MOST_ROWS]; TOGETHER];
            F::dots(path, &self.values, self.stride, w, rows, &mut own);
            for (sums, own) in sums.iter_mut().zip(own) {
                sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            }
        }
    }
}

fn sum_in<F: Format, E: Element>(
    path: Path,
    rows: usize,
    inputs: &[Input<'_>],
    outputs: &[Output<'_, E>],
    parallel: bool,
) {
    // For each input itself, then the low sides of its factors.
    let lefts: Vec<Vec<Lefts<F>>> = inputs.iter().map(|input| lefts_of(path, rows, input)).collect();
    let deepest = lefts.iter().flatten().map(|left| left.depth).max().unwrap_or(0);
    let cuts = if parallel { CUTS_A_THREAD * rayon::current_num_threads() } else { 1 };
    for_each(outputs.len() * cuts, parallel, |job| {
        let Output { terms, columns, target } = &outputs[job / cuts];
        let cut = job % cuts;
        let mut buffer = Scratch::<F>::take(TOGETHER * deepest);
        let (from, end) = (cut * columns / cuts, (cut + 1) * columns / cuts);
        for first in (from..end).step_by(RUN) {
            let run = RUN.min(end - first);
            let mut sums = [[0f32; MOST_ROWS]; RUN];
            for Term { side, right } in terms {
                let left = match *side {
                    Side::Input(input) => &lefts[input][0],
                    Side::Low(input, factor) => &lefts[input][1 + factor],
                };
                left.add_products(path, rows, right.source, first, &mut buffer, &mut sums[..run]);
            }
            for row in 0..rows {
                // SAFETY: the driver checked that the target holds all rows; jobs differ in their output or their columns.
                let to = unsafe { target.output.slice(target.offset + row * target.stride + first, run) };
                for (i, (to, sums)) in to.iter_mut().zip(&sums).enumerate() {
                    let base = match target.base {
                        TargetBase::Zero => 0.0,
                        TargetBase::Bias(bias) => bias[first + i],
                        TargetBase::Output => to.to_f32(),
                    };
                    *to = E::from_f32(base + target.scale * sums[row]);
                }
            }
        }
    });
}

/// The left side of an input, and the low sides of its factors, which are written out too.
fn lefts_of<F: Format>(path: Path, rows: usize, input: &Input<'_>) -> Vec<Lefts<F>> {
    let mut lefts = vec![Lefts::<F>::read(path, input.left.source, rows, input.depth)];
    let mut buffer = Scratch::<F>::take(TOGETHER * input.depth);
    for factor in &input.factors {
        let rank = factor.rank;
        // SAFETY: low sides are borrowed each for one factor; the driver checked that this one holds all rows.
        let low = unsafe { factor.low.slice(0, rows * rank) };
        let mut sums = vec![[0f32; MOST_ROWS]; rank];
        lefts[0].add_products(path, rows, factor.right.source, 0, &mut buffer, &mut sums);
        for (row, low) in low.chunks_exact_mut(rank).enumerate() {
            low.iter_mut().zip(&sums).for_each(|(low, sums)| *low = factor.scale * sums[row]);
        }
        lefts.push(Lefts::read(path, &Strided { data: &*low, row_stride: rank }, rows, rank));
    }
    lefts
}
