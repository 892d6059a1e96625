//! Register tiles: at most 14 rows by two vectors, of left sides as they lie or turned; in tile registers at most 16.

use std::arch::x86_64::{
    __m512, __m512bh, _mm512_add_ps, _mm512_castps_si512, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::layout::transpose;
use super::{LANES, Line, Wide, store_lanes};
use crate::attention::TILE;
use crate::dispatch::Path;
use crate::element::Element;
use crate::gemm::{Registers, tile_product};

/// Most rows of a tile, whatever multiplies it.
pub(super) const ROWS: usize = 16;

/// What multiplies tiles: vectors, or tile registers where there are some and elements are bf16.
pub(super) struct Multiplier {
    registers: Option<Registers>,
}

impl Multiplier {
    pub(super) fn of<E: Element>(path: Path) -> Self {
        Self { registers: (E::IS_BF16 && path == Path::Amx).then(Registers::new) }
    }

    /// Most rows of a tile: 28 accumulators, two right vectors and a broadcast fill the registers; tile registers hold 16.
    pub(super) fn most_rows(&self) -> usize {
        if self.registers.is_some() { ROWS } else { 14 }
    }
}

/// Extents of a tile.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// At most [`Multiplier::most_rows`].
    pub(super) rows: usize,
    /// Columns that are needed: 1 to 32.
    pub(super) columns: usize,
    /// Lanes.
    pub(super) depth: usize,
}

/// What becomes of a tile's former contents.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Former {
    Overwritten,
    Added,
}

/// `to[i, j] = Σ_p left[i, p] · right[p, j]`, of a left side cut into pieces of 16 lanes of depth, a piece `stride` rows
/// after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn product<E: Element>(
    by: &Multiplier,
    left: &[Line<u32>],
    stride: usize,
    right: &[Wide<u32>],
    size: Size,
    former: Former,
    to: &mut [Wide<f32>],
) {
    let pieces = size.depth.div_ceil(LANES);
    assert!(left.len() >= (pieces - 1) * stride + size.rows, "a left side of {} rows", left.len());
    check(right, size, to);
    let (left, stride) = (left.as_ptr().cast(), stride * LANES);
    // SAFETY: checked; the path of a multiplier is a supported one.
    unsafe {
        if let Some(registers) = &by.registers {
            let extents = (size.rows, size.columns > LANES, size.depth);
            let (right, to) = (right.as_ptr().cast(), to.as_mut_ptr().cast());
            tile_product(registers, (left, stride), right, extents, former == Former::Added, to);
        } else {
            run::<false, E>(left, stride, right, size, former, to);
        }
    }
}

/// The same of a left side whose depth runs down its rows: `to[i, j] = Σ_p left[p, first + i] · right[p, j]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn product_turned<E: Element>(
    by: &Multiplier,
    left: &[Wide<u32>],
    first: usize,
    right: &[Wide<u32>],
    size: Size,
    former: Former,
    to: &mut [Wide<f32>],
) {
    assert!(left.len() >= size.depth && first + size.rows <= 2 * LANES, "a left side of {} lanes", left.len());
    if by.registers.is_some() {
        // Tile registers have no way to read columns.
        let mut rows = [[[0; LANES]; ROWS]; MOST_PIECES];
        turn_back(left, first, size.depth, &mut rows);
        return product::<E>(by, rows.as_flattened(), ROWS, right, size, former, to);
    }
    check(right, size, to);
    // SAFETY: checked.
    unsafe { run::<true, E>(left.as_ptr().cast::<u32>().add(first), 0, right, size, former, to) }
}

/// Pieces of the deepest left side that is turned: a tile of keys, in pairs.
const MOST_PIECES: usize = TILE / 2 / LANES;

/// The columns from `first` on, at most 16 of them that count, of `depth` lanes as rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn_back(left: &[Wide<u32>], first: usize, depth: usize, to: &mut [[Line<u32>; ROWS]; MOST_PIECES]) {
    let left = &left.as_flattened().as_flattened()[..depth * 2 * LANES];
    for (piece, to) in to.iter_mut().take(depth.div_ceil(LANES)).enumerate() {
        let mut lanes = [[0; LANES]; LANES];
        for (lanes, from) in lanes.iter_mut().zip(left[piece * LANES * 2 * LANES..].chunks_exact(2 * LANES)) {
            let from = &from[first..];
            let count = LANES.min(from.len());
            lanes[..count].copy_from_slice(&from[..count]);
        }
        for (to, column) in to.iter_mut().zip(transpose(&lanes)) {
            store_lanes(_mm512_castps_si512(column), to);
        }
    }
}

fn check(right: &[Wide<u32>], size: Size, to: &[Wide<f32>]) {
    assert!(size.depth > 0 && right.len() >= size.depth, "a right side of {} lanes", right.len());
    assert!((1..=2 * LANES).contains(&size.columns) && to.len() >= size.rows, "a tile of {} rows", to.len());
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn run<const TURNED: bool, E: Element>(
    left: *const u32,
    stride: usize,
    right: &[Wide<u32>],
    size: Size,
    former: Former,
    to: &mut [Wide<f32>],
) {
    let (right, to) = (right.as_ptr().cast(), to.as_mut_ptr().cast());
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (size.rows, size.columns > LANES) {
                    $(
                        ($rows, true) => multiply::<$rows, 2, TURNED, E>(left, stride, right, size.depth, former, to),
                        ($rows, false) => multiply::<$rows, 1, TURNED, E>(left, stride, right, size.depth, former, to),
                    )*
                    (rows, _) => unreachable!("a tile of {rows} rows"),
                }
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// # Safety
/// The left side holds `ROWS` rows and `depth` lanes, the right one `depth` rows of 32 lanes, `to` `ROWS` rows of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const TURNED: bool, E: Element>(
    mut left: *const u32,
    stride: usize,
    mut right: *const f32,
    depth: usize,
    former: Former,
    to: *mut f32,
) {
    let (row, step) = if TURNED { (1, 2 * LANES) } else { (LANES, 1) };
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut rest = depth;
    while rest > 0 {
        let steps = if TURNED { rest } else { rest.min(LANES) };
        let mut at = left.cast::<f32>();
        for _ in 0..steps {
            let mut columns = [_mm512_setzero_ps(); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                // SAFETY: the right side holds `depth` rows.
                *column = unsafe { _mm512_loadu_ps(right.add(v * LANES)) };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the left side holds `depth` lanes of ROWS rows.
                let broadcast = unsafe { _mm512_set1_ps(*at.add(i * row)) };
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = multiply_add::<E>(broadcast, column, *sum);
                }
            }
            // SAFETY: at most the end of the sides.
            unsafe {
                at = at.add(step);
                right = right.add(2 * LANES);
            }
        }
        left = left.wrapping_add(stride);
        rest -= steps;
    }
    for (i, sums) in sums.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            // SAFETY: `to` holds ROWS rows of two vectors.
            unsafe {
                let to = to.add((2 * i + v) * LANES);
                let sum = if former == Former::Added { _mm512_add_ps(sum, _mm512_loadu_ps(to)) } else { sum };
                _mm512_storeu_ps(to, sum);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn multiply_add<E: Element>(left: __m512, right: __m512, sum: __m512) -> __m512 {
    if E::IS_BF16 {
        // SAFETY: both types are 512 plain bits.
        let (left, right) = unsafe { (transmute::<__m512, __m512bh>(left), transmute::<__m512, __m512bh>(right)) };
        _mm512_dpbf16_ps(sum, left, right)
    } else {
        _mm512_fmadd_ps(left, right, sum)
    }
}
