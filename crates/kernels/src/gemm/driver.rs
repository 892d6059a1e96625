//! The threaded driver: several outputs, each a sum of products, from inputs that are packed once.
//!
//! A linear layer with low-rank factors is `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`: one input `x` with a factor `A` whose product, the *low*
//! side, is packed beside `x`; one output with two terms. Several layers over one `x` are several outputs. Their gradient
//! `dx = Σ dyᵢ·Wᵢ + (dyᵢ·Bᵢ)·Aᵢ` is one output with two terms for every layer. Nothing is added up in memory: a term only
//! makes the depth of a register tile longer.

use std::ops::Range;

use super::few::{are_few, sum_of_few};
use super::micro::{Initial, LeftLayout, Part, RightLayout, Tile};
use super::pack::{
    Across, Operand, Panel, Rows, Strided, left_layout, left_len, left_panels, pack_left, right_len, right_panels,
};
use super::{Extents, Kernel, Registers, Right, Target, TargetBase, check, for_each};
use crate::dispatch::Path;
use crate::element::Element;
use crate::scratch::Scratch;
use crate::shared::SharedSlice;

/// Output columns of one job; a multiple of every kernel's width and of the 64 codes that are decoded at once.
const JOB_COLUMNS: usize = 64;
/// Lanes in depth of one expanded right tile: 64 columns of it take half of a usual second-level cache.
const DEPTH_LANES: usize = 1024;
/// Most rows of a job that goes down all of them for one right panel before the next, measured.
const DOWN_ROWS: usize = 128;
/// Lanes in depth of such a panel: it is 32 KiB then, two thirds of the first-level caches that this was measured on.
const DOWN_DEPTH_LANES: usize = 512;
/// What blocks are a multiple of in depth: whole groups of the codes that are decoded at once, whole tile registers.
const DEPTH_STEP: usize = 64;
/// Most output rows that are packed at once, which bounds the working memory of a large batch.
const ROWS_AT_ONCE: usize = 1024;
/// The same where none have to be: the right side is expanded once for all of them. Sums between blocks take 256 bytes of each.
const LYING_ROWS_AT_ONCE: usize = 4096;
/// Working memory for the packed left sides, in bytes, that a deep product trades rows for.
const LEFT_BYTES: usize = 16 << 20;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL_WORK: usize = 1 << 17;

/// A left side `[rows, depth]`, packed once for every term that reads it.
pub(crate) struct Input<'a> {
    pub(crate) left: Operand<'a>,
    pub(crate) depth: usize,
    /// Thin products of this input, which are sides of their own.
    pub(crate) factors: Vec<Factor<'a>>,
}

/// A low side `[rows, rank] = scale · left · right`.
pub(crate) struct Factor<'a> {
    /// `[depth of the input, rank]`.
    pub(crate) right: Operand<'a>,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// Receives the low side, `[rows, rank]`.
    pub(crate) low: SharedSlice<'a>,
}

/// What a term reads on its left.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// The input with this index.
    Input(usize),
    /// The low side of an input and a factor of it.
    Low(usize, usize),
}

/// `left · right`.
pub(crate) struct Term<'a> {
    pub(crate) side: Side,
    /// `[depth of the side, columns of the output]`.
    pub(crate) right: Operand<'a>,
}

/// `target = base + scale · Σ terms`, `[rows, columns]`.
pub(crate) struct Output<'a, E> {
    pub(crate) terms: Vec<Term<'a>>,
    pub(crate) columns: usize,
    pub(crate) target: Target<'a, E>,
}

/// Computes the factors' low sides and the outputs on all threads of the current pool.
pub(crate) fn sum_of_products<E: Element>(
    kernel: Kernel,
    rows: usize,
    inputs: &[Input<'_>],
    outputs: &[Output<'_, E>],
) {
    if rows == 0 {
        return;
    }
    let mut work = 0;
    for output in outputs.iter().filter(|output| output.columns > 0) {
        check(Extents { rows, columns: output.columns, depth: 0 }, &output.target);
        work += rows * output.columns * output.terms.iter().map(|term| depth_of(inputs, term.side)).sum::<usize>();
    }
    for factor in inputs.iter().flat_map(|input| &input.factors) {
        let _end = factor.low.at(rows * factor.rank);
    }
    let parallel = work >= SERIAL_WORK && rayon::current_num_threads() > 1;
    if are_few(kernel, rows, inputs, outputs) {
        sum_of_few(kernel, rows, inputs, outputs, parallel);
        return;
    }
    let thin: Vec<Right> = inputs.iter().map(|input| input.thin(kernel)).collect();
    let lying: Lying<'_> = inputs.iter().map(|input| input.left.lying(kernel, rows, input.depth)).collect();
    let packs = inputs.iter().zip(&lying).any(|(input, lying)| lying.is_none() || !input.factors.is_empty());
    let row_bytes = Areas::new(kernel, inputs, &lying, 1).row_lanes(kernel) * size_of::<u32>();
    let most = match row_bytes {
        0 => LYING_ROWS_AT_ONCE,
        bytes => (LEFT_BYTES / bytes).clamp(8 * kernel.rows(), ROWS_AT_ONCE),
    };
    let chunks = rows.div_ceil(most);
    for chunk in 0..chunks {
        let (start, end) = (chunk * rows / chunks, (chunk + 1) * rows / chunks);
        let areas = Areas::new(kernel, inputs, &lying, end - start);
        let mut packed = Scratch::<u32>::take(areas.len);
        let chunk = Chunk { kernel, inputs, lying: &lying, start, rows: end - start, areas: &areas };

        if packs {
            let shared = SharedSlice::new(&mut packed);
            let panels = chunk.panel_count();
            let groups = if parallel { panels.min(4 * rayon::current_num_threads()) } else { 1 };
            for_each(groups, parallel, |group| {
                let (from, to) = (group * panels / groups, (group + 1) * panels / groups);
                // SAFETY: groups differ in their panels, so no two write the same lanes or the same rows of a low side.
                unsafe { chunk.pack(&thin, from, to, shared) };
            });
        }

        let jobs = chunk.jobs(outputs, parallel);
        for_each(jobs.len(), parallel, |job| {
            // SAFETY: jobs differ in their output, their columns or their rows, so no two write the same element.
            unsafe { jobs[job].run(&chunk, outputs, &packed) };
        });
    }
}

fn depth_of(inputs: &[Input<'_>], side: Side) -> usize {
    match side {
        Side::Input(input) => inputs[input].depth,
        Side::Low(input, factor) => inputs[input].factors[factor].rank,
    }
}

impl Input<'_> {
    /// Σ of the factors' ranks.
    fn ranks(&self) -> usize {
        self.factors.iter().map(|factor| factor.rank).sum()
    }

    /// The right sides of all factors beside each other, which every row needs whole.
    fn thin(&self, kernel: Kernel) -> Right {
        let source = Beside { factors: &self.factors };
        let across = self.factors.first().map_or(Across::Rows, |factor| factor.right.across);
        debug_assert!(self.factors.iter().all(|factor| factor.right.across == across));
        Right::pack(kernel, &Operand { source: &source, across }, self.ranks(), self.depth)
    }
}

/// The right sides of several factors as one: their rows one after the other where these run across, else their columns.
struct Beside<'a> {
    factors: &'a [Factor<'a>],
}

impl Beside<'_> {
    /// Calls `read` for each stretch of a row that lies within one factor: its source, row, columns and place.
    fn pieces(&self, row: usize, columns: Range<usize>, mut read: impl FnMut(&dyn Rows, usize, Range<usize>, usize)) {
        let mut skipped = 0;
        for factor in self.factors {
            let own = skipped..skipped + factor.rank;
            match factor.right.across {
                Across::Rows if own.contains(&row) => read(factor.right.source, row - own.start, columns.clone(), 0),
                Across::Rows => {}
                Across::Columns => {
                    let (from, to) = (columns.start.max(own.start), columns.end.min(own.end));
                    if from < to {
                        read(factor.right.source, row, from - own.start..to - own.start, from - columns.start);
                    }
                }
            }
            skipped = own.end;
        }
    }
}

impl Rows for Beside<'_> {
    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        self.pieces(row, columns, |source, row, columns, at| {
            let len = columns.len();
            source.read(path, row, columns, &mut to[at..at + len]);
        });
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        self.pieces(row, columns, |source, row, columns, at| {
            let len = columns.len();
            source.read_bf16(path, row, columns, &mut to[at..at + len]);
        });
    }
}

/// Where the packed sides of a chunk lie.
struct Areas {
    /// For each input its own offset in lanes, then those of its factors.
    offsets: Vec<Vec<usize>>,
    len: usize,
}

/// For each input its rows as lanes, and the lanes from one to the next, where they are read as they lie.
type Lying<'a> = Vec<Option<(&'a [u32], usize)>>;

impl Areas {
    fn new(kernel: Kernel, inputs: &[Input<'_>], lying: &Lying<'_>, rows: usize) -> Self {
        let mut len = 0;
        let mut take = |depth| {
            let offset = len;
            len += left_len(kernel, rows, depth);
            offset
        };
        let offsets = inputs.iter().zip(lying).map(|(input, lying)| {
            let own = if lying.is_some() { 0 } else { input.depth };
            let depths = std::iter::once(own).chain(input.factors.iter().map(|factor| factor.rank));
            depths.map(&mut take).collect()
        });
        Self { offsets: offsets.collect(), len }
    }

    /// Lanes of one row, where these are the areas of a single row: a panel of them holds several.
    fn row_lanes(&self, kernel: Kernel) -> usize {
        self.len.div_ceil(kernel.rows())
    }

    fn offset(&self, side: Side) -> usize {
        match side {
            Side::Input(input) => self.offsets[input][0],
            Side::Low(input, factor) => self.offsets[input][1 + factor],
        }
    }
}

/// Where the rows of a chunk lie in an operand: its row `i` is the operand's row `first + i - skipped`.
#[derive(Clone, Copy)]
struct Origin {
    first: usize,
    skipped: usize,
}

/// Some rows of all sides, packed together.
struct Chunk<'a> {
    kernel: Kernel,
    inputs: &'a [Input<'a>],
    lying: &'a Lying<'a>,
    /// First row.
    start: usize,
    rows: usize,
    areas: &'a Areas,
}

impl Chunk<'_> {
    fn lying_side(&self, side: Side) -> Option<(&[u32], usize)> {
        match side {
            Side::Input(input) => self.lying[input],
            Side::Low(..) => None,
        }
    }

    fn panel_count(&self) -> usize {
        left_panels(self.kernel, self.rows, 0).len()
    }

    /// The panels `from..to` of a side of this depth; their offsets count from its area.
    fn panels(&self, depth: usize, from: usize, to: usize) -> impl Iterator<Item = Panel> + Clone {
        left_panels(self.kernel, self.rows, depth).skip(from).take(to - from)
    }

    /// Packs the panels `from..to` of every input that does not lie as tiles read it, computes the low sides of their rows
    /// and packs them.
    ///
    /// # Safety
    /// Nobody else touches these panels' lanes of `packed`, nor these rows of the low sides.
    unsafe fn pack(&self, thin: &[Right], from: usize, to: usize, packed: SharedSlice<'_, u32>) {
        let Some((first, last)) = self.row_range(from, to) else { return };
        let whole = Origin { first: self.start, skipped: 0 };
        for (i, input) in self.inputs.iter().enumerate() {
            let (left, layout) = match self.lying[i] {
                Some((rows, stride)) => (&rows[(self.start + first) * stride..], LeftLayout::Rows(stride)),
                None => {
                    // SAFETY: the caller's promise.
                    let panels = unsafe { self.pack_side(&input.left, whole, Side::Input(i), from..to, packed) };
                    (panels, left_layout(self.kernel, input.depth))
                }
            };
            if input.factors.is_empty() {
                continue;
            }
            let ranks = input.ranks();
            let mut low = Scratch::<f32>::take((last - first) * ranks);
            self.multiply_thin((left, layout), &thin[i], input.depth, (from, to), &mut low);
            let mut skipped = 0;
            for (f, factor) in input.factors.iter().enumerate() {
                let rank = factor.rank;
                // SAFETY: the caller's promise; the driver checked that the low side holds all rows.
                let own = unsafe { factor.low.slice((self.start + first) * rank, (last - first) * rank) };
                for (own, low) in own.chunks_exact_mut(rank).zip(low.chunks_exact(ranks)) {
                    own.iter_mut().zip(&low[skipped..]).for_each(|(own, low)| *own = factor.scale * low);
                }
                skipped += rank;
                let source = Strided { data: &*own, row_stride: rank };
                let left = Operand { source: &source, across: Across::Rows };
                // SAFETY: the caller's promise.
                unsafe {
                    self.pack_side(&left, Origin { first: 0, skipped: first }, Side::Low(i, f), from..to, packed)
                };
            }
        }
    }

    /// Multiplies the rows of the panels `from..to` of an input by the right sides of its factors, into `low`
    /// `[rows of the panels, Σ ranks]`.
    fn multiply_thin(
        &self,
        (left, layout): (&[u32], LeftLayout),
        thin: &Right,
        depth: usize,
        (from, to): (usize, usize),
        low: &mut [f32],
    ) {
        let kernel = self.kernel;
        let ranks = thin.columns;
        let output = SharedSlice::new(low);
        let target = Target { output, offset: 0, stride: ranks, scale: 1.0, base: TargetBase::Zero };
        let first = self.panels(0, from, to).next().map_or(0, |panel| panel.start);
        let lanes_deep = kernel.depth_lanes(depth);
        let part = Part {
            depth: lanes_deep,
            left: left.as_ptr(),
            layout,
            right: thin.lanes.as_ptr(),
            right_layout: RightLayout::Panels(lanes_deep * kernel.columns()),
        };
        let registers = Registers::new();
        for (i, rows) in self.panels(depth, from, to).enumerate() {
            let rows = Panel { start: rows.start - first, ..rows };
            for (j, columns) in thin.panels(kernel, ranks).enumerate() {
                // SAFETY: the sides hold the panels; `low` holds the rows and is borrowed for this call.
                unsafe { kernel.run(&registers, &target.tile(kernel, (rows, columns), (i, j), 0, &[part])) };
            }
        }
    }

    /// The rows of the panels `from..to`, counted from the chunk's start.
    fn row_range(&self, from: usize, to: usize) -> Option<(usize, usize)> {
        let mut panels = self.panels(0, from, to);
        let first = panels.next()?;
        let last = panels.last().unwrap_or(first);
        Some((first.start, last.start + last.count))
    }

    /// Packs some panels of a side and returns them.
    ///
    /// # Safety
    /// As [`Chunk::pack`].
    unsafe fn pack_side<'p>(
        &self,
        left: &Operand<'_>,
        origin: Origin,
        side: Side,
        panels: Range<usize>,
        packed: SharedSlice<'p, u32>,
    ) -> &'p [u32] {
        let depth = depth_of(self.inputs, side);
        let start = |panel| {
            let all = left_len(self.kernel, self.rows, depth);
            left_panels(self.kernel, self.rows, depth).nth(panel).map_or(all, |panel| panel.offset)
        };
        let (skipped, end) = (start(panels.start), start(panels.end));
        // SAFETY: the caller's promise.
        let lanes = unsafe { packed.slice(self.areas.offset(side) + skipped, end - skipped) };
        let panels = self.panels(depth, panels.start, panels.end).map(|panel| Panel {
            offset: panel.offset - skipped,
            start: panel.start - origin.skipped,
            ..panel
        });
        pack_left(left, self.kernel, origin.first, panels, depth, lanes);
        lanes
    }

    /// Every output cut by columns, and by rows too where there are few columns for the threads, in an order in which equal
    /// stretches take equal time. A row cut expands the same right tiles again, so only what would be left over is cut
    /// more finely.
    fn jobs<E>(&self, outputs: &[Output<'_, E>], parallel: bool) -> Vec<Job> {
        let panels = self.panel_count();
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let blocks: Vec<(usize, Range<usize>)> = outputs
            .iter()
            .enumerate()
            .flat_map(|(output, &Output { columns, .. })| {
                let firsts = (0..columns).step_by(JOB_COLUMNS);
                firsts.map(move |first| (output, first..columns.min(first + JOB_COLUMNS)))
            })
            .collect();
        let least = if parallel { 3 * threads } else { 1 };
        let row_jobs = least.div_ceil(blocks.len().max(1)).clamp(1, panels);
        let cut = |(output, columns): &(usize, Range<usize>), row_jobs: usize| {
            let (output, first, last) = (*output, columns.start, columns.end);
            let rows = move |part| part * panels / row_jobs;
            (0..row_jobs).map(move |part| Job { output, first, last, from: rows(part), to: rows(part + 1) })
        };
        let shared_evenly = |jobs: usize| jobs.is_multiple_of(threads);
        let even = (0..=blocks.len()).rev().find(|blocks| shared_evenly(blocks * row_jobs)).unwrap_or(0);
        let (even, left_over) = blocks.split_at(even);
        let more = (row_jobs..panels).find(|row_jobs| shared_evenly(left_over.len() * row_jobs)).unwrap_or(panels);
        let whole: Vec<Job> = even.iter().flat_map(|block| cut(block, row_jobs)).collect();
        let pieces: Vec<Job> = left_over.iter().flat_map(|block| cut(block, more)).collect();
        let share = |jobs: &[Job], thread: usize| -> Range<usize> {
            thread * jobs.len() / threads..(thread + 1) * jobs.len() / threads
        };
        let of_thread = |thread| pieces[share(&pieces, thread)].iter().chain(&whole[share(&whole, thread)]);
        (0..threads).flat_map(of_thread).copied().collect()
    }
}

/// The columns `first..last` of an output, for the left panels `from..to`.
#[derive(Clone, Copy)]
struct Job {
    output: usize,
    first: usize,
    last: usize,
    from: usize,
    to: usize,
}

/// A stretch of a term's depth within a block.
struct Piece<'a> {
    side: Side,
    right: Operand<'a>,
    depth: Range<usize>,
}

impl Job {
    /// # Safety
    /// Nobody else touches these elements of the target.
    unsafe fn run<E: Element>(&self, chunk: &Chunk<'_>, outputs: &[Output<'_, E>], packed: &[u32]) {
        let &Self { first, last, from, to, .. } = self;
        let output = &outputs[self.output];
        let (kernel, columns) = (chunk.kernel, last - first);
        let target = output.target;
        let target = Target { offset: target.offset + chunk.start * target.stride + first, ..target };
        let row_panels: Vec<Panel> = chunk.panels(0, from, to).collect();
        let Some(&top) = row_panels.first() else { return };
        let rows: usize = row_panels.iter().map(|panel| panel.count).sum();
        let order = if kernel.goes_down() && rows <= DOWN_ROWS { Order::Down } else { Order::Across };
        let blocks = blocks(kernel, chunk.inputs, &output.terms, columns, order);
        let expanded_len = blocks.iter().map(|block| block.lanes).max().unwrap_or(0);
        let mut expanded = Scratch::<u32>::take(expanded_len);
        let column_panels: Vec<Panel> = right_panels(kernel, columns, 0).collect();
        // Sums between blocks of a deep product; with one block there are none.
        let between = if blocks.len() > 1 { rows * JOB_COLUMNS } else { 0 };
        let mut between = Scratch::<f32>::take(between);
        let between = between.as_mut_ptr();
        let registers = Registers::new();
        let mut parts = Vec::new();
        for (b, block) in blocks.iter().enumerate() {
            parts.clear();
            let mut rest = &mut *expanded;
            for piece in &block.pieces {
                let panels;
                (panels, rest) = rest.split_at_mut(right_len(kernel, columns, piece.depth.len()));
                parts.push(self.part(chunk, piece, packed, panels));
            }
            // SAFETY: the parts' slices hold the panels; the target was checked whole and is the caller's to write; the sums
            // between blocks are this job's own, a row of them as wide as the job.
            unsafe {
                let sums = |right: &Panel| between.wrapping_add(right.start);
                let initial = |right: &Panel| (b > 0).then(|| Initial { sums: sums(right), stride: JOB_COLUMNS });
                if b + 1 == blocks.len() {
                    let tile = |(j, right): (usize, &Panel)| Tile {
                        initial: initial(right),
                        ..target.tile(kernel, (top, *right), (0, j), first, &parts)
                    };
                    let tiles = column_panels.iter().enumerate().map(tile).collect();
                    order.run(kernel, &registers, tiles, &row_panels);
                } else {
                    let tile = |(j, right): (usize, &Panel)| Tile {
                        parts: &parts,
                        panels: (0, j),
                        first_row: top.start,
                        initial: initial(right),
                        output: sums(right),
                        output_stride: JOB_COLUMNS,
                        rows: top.count,
                        columns: right.stride,
                        vectors: right.stride / kernel.lanes(),
                        scale: 1.0,
                        base: super::Base::Zero,
                    };
                    let tiles = column_panels.iter().enumerate().map(tile).collect();
                    order.run(kernel, &registers, tiles, &row_panels);
                }
            }
        }
    }

    /// What the tiles read of a piece. `panels` has room for its right panels: they are packed there, unless they are stored
    /// as tiles read them.
    fn part(&self, chunk: &Chunk<'_>, piece: &Piece<'_>, packed: &[u32], panels: &mut [u32]) -> Part {
        let (kernel, columns) = (chunk.kernel, self.last - self.first);
        let depth = kernel.depth_lanes(piece.depth.len());
        let skipped = kernel.depth_lanes(piece.depth.start);
        let (left, layout) = match chunk.lying_side(piece.side) {
            Some((rows, stride)) => (&rows[chunk.start * stride + skipped..], LeftLayout::Rows(stride)),
            None => {
                let layout = left_layout(kernel, depth_of(chunk.inputs, piece.side));
                let all = &packed[chunk.areas.offset(piece.side)..];
                let left = match layout {
                    LeftLayout::Panels(step) => &all[self.from * step + skipped * kernel.left_stride()..],
                    LeftLayout::Rows(_) => &all[skipped..],
                };
                (left, layout)
            }
        };
        let part = |right, right_layout| Part { depth, left: left.as_ptr(), layout, right, right_layout };
        if let Some((stored, step)) = piece.right.stored_panels(kernel, self.first, columns, piece.depth.clone()) {
            return part(stored.as_ptr(), RightLayout::Stored(step));
        }
        let all = right_panels(kernel, columns, piece.depth.len());
        piece.right.pack(kernel, self.first, all, piece.depth.clone(), panels);
        part(panels.as_ptr(), RightLayout::Panels(depth * kernel.columns()))
    }
}

/// The order of a block's tiles.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// All columns of a row panel, then those of the next: its left panel stays in the first-level cache.
    Across,
    /// All rows of a column panel, then those of the next: its right panel stays there.
    Down,
}

impl Order {
    /// Runs the tiles of all row panels: `tops` are those of the first, one for each column panel.
    ///
    /// # Safety
    /// As [`Kernel::run`], for all of them.
    unsafe fn run<E: Element>(self, kernel: Kernel, registers: &Registers, mut tops: Vec<Tile<'_, E>>, rows: &[Panel]) {
        let columns = tops.len();
        let mut run = |j: usize, i: usize| {
            let tile = &mut tops[j];
            tile.move_to(i, rows[i]);
            // SAFETY: the caller's promise.
            unsafe { kernel.run(registers, tile) };
        };
        match self {
            Order::Across => (0..rows.len()).for_each(|i| (0..columns).for_each(|j| run(j, i))),
            Order::Down => (0..columns).for_each(|j| (0..rows.len()).for_each(|i| run(j, i))),
        }
    }
}

/// Pieces whose right tiles are expanded together.
struct Block<'a> {
    pieces: Vec<Piece<'a>>,
    lanes: usize,
}

/// The depth of all terms, cut evenly so that a block's right tiles stay in the cache.
fn blocks<'a>(
    kernel: Kernel,
    inputs: &[Input<'_>],
    terms: &[Term<'a>],
    columns: usize,
    order: Order,
) -> Vec<Block<'a>> {
    let most = match order {
        Order::Down => DOWN_DEPTH_LANES,
        Order::Across => DEPTH_LANES * if kernel.pairs() { 2 } else { 1 },
    };
    let all: usize = terms.iter().map(|term| kernel.depth_elements(depth_of(inputs, term.side))).sum();
    let elements = all.div_ceil(all.div_ceil(most).max(1)).next_multiple_of(DEPTH_STEP);
    let mut blocks = vec![Block { pieces: vec![], lanes: 0 }];
    let mut room = elements;
    for term in terms {
        let depth = depth_of(inputs, term.side);
        let mut start = 0;
        while start < depth {
            if room == 0 {
                blocks.push(Block { pieces: vec![], lanes: 0 });
                room = elements;
            }
            // Every piece starts where groups of codes, tile registers and stored panels do.
            let end = depth.min((start + room).next_multiple_of(DEPTH_STEP));
            // An end within a lane, or within a tile register, takes all of it.
            room = room.saturating_sub(kernel.depth_elements(end - start));
            if let Some(block) = blocks.last_mut() {
                block.lanes += right_len(kernel, columns, end - start);
                block.pieces.push(Piece { side: term.side, right: term.right, depth: start..end });
            }
            start = end;
        }
    }
    blocks
}
