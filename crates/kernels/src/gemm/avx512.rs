//! Register tiles of 14 × 32 for AVX-512: 28 accumulators, two right vectors, broadcasts from memory.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, _MM_HINT_T0, _mm_prefetch, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16,
    _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32,
};
use std::mem::transmute;

use super::micro::{Base, Initial, LeftLayout, Tile, by_layout};
use super::pack::LINE_LANES;
use crate::element::Element;

pub(super) const LANES: usize = 16;
const LEFT_STRIDE: usize = 16;

/// # Safety
/// As `Kernel::run`, on a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run<E: Element>(tile: &Tile<'_, E>, pairs: bool) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (tile.rows, tile.vectors, pairs) {
                    $(
                        ($rows, 2, true) => multiply::<$rows, 2, true, E>(tile),
                        ($rows, 1, true) => multiply::<$rows, 1, true, E>(tile),
                        ($rows, 2, false) => multiply::<$rows, 2, false, E>(tile),
                        ($rows, 1, false) => multiply::<$rows, 1, false, E>(tile),
                    )*
                    (rows, vectors, _) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const PAIRS: bool, E: Element>(tile: &Tile<'_, E>) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    if let Some(Initial { sums: initial, stride }) = tile.initial {
        for (i, row) in sums.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                // SAFETY: `initial` holds ROWS rows of VECTORS · LANES sums.
                *sum = unsafe { _mm512_loadu_ps(initial.add(i * stride + v * LANES)) };
            }
        }
    }
    for part in tile.parts {
        let (left, mut right, right_stride) = tile.sides_of(part, 2 * LANES);
        // Pairs are always packed; a constant is one register less.
        let (right_stride, apart) = match PAIRS {
            true => (VECTORS * LANES, LANES),
            false => (right_stride, part.right_layout.vectors_apart(LANES)),
        };
        macro_rules! accumulate {
            ($lane:expr, $ahead:expr) => {
                for p in 0..part.depth {
                    let mut columns = [_mm512_setzero_ps(); VECTORS];
                    for (v, column) in columns.iter_mut().enumerate() {
                        // SAFETY: the right panel holds `depth` rows of VECTORS · LANES lanes.
                        *column = unsafe { _mm512_loadu_ps(right.add(v * apart)) };
                    }
                    for (i, row) in sums.iter_mut().enumerate() {
                        // SAFETY: the left side holds `depth` lanes of ROWS rows.
                        let broadcast = unsafe { _mm512_set1_ps(*left.add($lane(i, p))) };
                        for (sum, &column) in row.iter_mut().zip(&columns) {
                            *sum = multiply_add::<PAIRS>(broadcast, column, *sum);
                        }
                    }
                    // The next rows come from afar; behind the last there is nothing to read, which is allowed.
                    _mm_prefetch::<_MM_HINT_T0>(left.wrapping_add($ahead(p)).cast());
                    // Behind the last row there may be nothing, and nothing is read.
                    right = right.wrapping_add(right_stride);
                }
            };
        }
        by_layout!(part.layout, ROWS, LEFT_STRIDE, accumulate);
    }

    for (i, row) in sums.iter().enumerate() {
        for (v, &sum) in row.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { finish(tile, i, v, sum) };
        }
    }
}

/// Writes the sums of a row and a vector of columns.
///
/// # Safety
/// As `Kernel::run`, for a row and a vector of the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn finish<E: Element>(tile: &Tile<'_, E>, row: usize, vector: usize, sum: __m512) {
    let left_over = tile.columns.saturating_sub(vector * LANES);
    let mask = if left_over >= LANES { u16::MAX } else { (1u16 << left_over) - 1 };
    // SAFETY: the mask keeps to the tile's columns; output and base row hold them.
    unsafe {
        let output = tile.output.add(row * tile.output_stride).wrapping_add(vector * LANES);
        let base = match tile.base {
            Base::Zero => _mm512_setzero_ps(),
            Base::Row(base) => _mm512_maskz_loadu_ps(mask, base.wrapping_add(vector * LANES)),
            Base::Output => load::<E>(output, mask),
        };
        store::<E>(output, mask, _mm512_fmadd_ps(sum, _mm512_set1_ps(tile.scale), base));
    }
}

/// # Safety
/// The elements that `mask` names are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn load<E: Element>(from: *const E, mask: u16) -> __m512 {
    // SAFETY: the caller's promise; an `E` that is no bf16 is an f32.
    unsafe {
        if E::IS_BF16 {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        } else {
            _mm512_maskz_loadu_ps(mask, from.cast())
        }
    }
}

/// # Safety
/// As [`load`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn store<E: Element>(to: *mut E, mask: u16, values: __m512) {
    // SAFETY: the caller's promise; an `E` that is no bf16 is an f32; vectors of bf16 and of integers are the same bits.
    unsafe {
        if E::IS_BF16 {
            let halves = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(to.cast(), mask, halves);
        } else {
            _mm512_mask_storeu_ps(to.cast(), mask, values);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn multiply_add<const PAIRS: bool>(left: __m512, right: __m512, sum: __m512) -> __m512 {
    if PAIRS {
        // SAFETY: both types are 512 plain bits.
        let (left, right) = unsafe { (transmute::<__m512, __m512bh>(left), transmute::<__m512, __m512bh>(right)) };
        _mm512_dpbf16_ps(sum, left, right)
    } else {
        _mm512_fmadd_ps(left, right, sum)
    }
}

/// The products of some rows with others, each in 16 partial sums. Lanes are f32, or pairs of bf16; `halves` is the length
/// of every row, counted in 16 bits.
///
/// # Safety
/// The processor has AVX-512 with BF16, and every row is that long.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dots<const ROWS: usize, const RIGHTS: usize, const PAIRS: bool>(
    x: [*const i16; ROWS],
    w: [*const i16; RIGHTS],
    halves: usize,
) -> [[f32; ROWS]; RIGHTS] {
    const STEP: usize = 2 * LANES;
    let mut sums = [[_mm512_setzero_ps(); ROWS]; RIGHTS];
    for at in (0..halves).step_by(STEP) {
        let left_over = halves - at;
        let mask = if left_over >= STEP { u32::MAX } else { (1 << left_over) - 1 };
        // SAFETY: the mask keeps to the elements there are.
        let load = |from: *const i16| unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from.add(at))) };
        let mut left = [_mm512_setzero_ps(); ROWS];
        for (left, &x) in left.iter_mut().zip(&x) {
            *left = load(x);
        }
        for (sums, &w) in sums.iter_mut().zip(&w) {
            // The rows that come next, where these follow one another: the processor does not look ahead beyond a page.
            _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(at + RIGHTS * halves).cast());
            let w = load(w);
            for (sum, &x) in sums.iter_mut().zip(&left) {
                *sum = multiply_add::<PAIRS>(x, w, *sum);
            }
        }
    }
    let mut products = [[0f32; ROWS]; RIGHTS];
    for (products, sums) in products.iter_mut().zip(sums) {
        for (product, sum) in products.iter_mut().zip(sums) {
            *product = _mm512_reduce_add_ps(sum);
        }
    }
    products
}
