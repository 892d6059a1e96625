//! Register tiles of 6 × 16 for AVX2 with FMA: twelve accumulators, two right vectors, one broadcast.

use std::arch::asm;
use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::micro::{Base, Initial, LeftLayout, Tile, by_layout};
use super::pack::LINE_LANES;
use super::portable::write;
use crate::element::Element;

const LANES: usize = 8;
const LEFT_STRIDE: usize = 8;
/// Steps in depth of one turn of the loop.
const UNROLLED: usize = 4;

/// # Safety
/// As `Kernel::run`, on a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<E: Element>(tile: &Tile<'_, E>) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (tile.rows, tile.vectors) {
                    $(
                        ($rows, 2) => multiply::<$rows, 2, { 2 * LANES }, E>(tile),
                        ($rows, 1) => multiply::<$rows, 1, LANES, E>(tile),
                    )*
                    (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            }
        };
    }
    by_rows!(1 2 3 4 5 6)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const COLUMNS: usize, E: Element>(tile: &Tile<'_, E>) {
    let mut sums = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    if let Some(Initial { sums: initial, stride }) = tile.initial {
        for (i, row) in sums.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                // SAFETY: `initial` holds ROWS rows of COLUMNS sums.
                *sum = unsafe { _mm256_loadu_ps(initial.add(i * stride + v * LANES)) };
            }
        }
    }
    for part in tile.parts {
        let (left, mut right, right_stride) = tile.sides_of(part, 2 * LANES);
        macro_rules! accumulate {
            ($lane:expr, $ahead:expr) => {{
                let mut at = left;
                let pitch = $lane(0, 1);
                let mut step = || {
                    let mut columns = [_mm256_setzero_ps(); VECTORS];
                    for (v, column) in columns.iter_mut().enumerate() {
                        // SAFETY: the right panel holds `depth` rows of VECTORS · LANES lanes.
                        *column = unsafe { _mm256_loadu_ps(right.add(v * LANES)) };
                    }
                    for (i, row) in sums.iter_mut().enumerate() {
                        // SAFETY: the left side holds `depth` lanes of ROWS rows.
                        let broadcast = _mm256_broadcast_ss(unsafe { &*at.add($lane(i, 0)) });
                        for (sum, &column) in row.iter_mut().zip(&columns) {
                            *sum = _mm256_fmadd_ps(broadcast, column, *sum);
                        }
                    }
                    // Behind the last row there may be nothing, and nothing is read.
                    right = right.wrapping_add(right_stride);
                    at = after(at.wrapping_add(pitch), &mut sums[ROWS - 1][VECTORS - 1]);
                };
                let fetch = |p| _mm_prefetch::<_MM_HINT_T0>(left.wrapping_add($ahead(p)).cast());
                let unrolled = part.depth / UNROLLED * UNROLLED;
                for p in (0..unrolled).step_by(UNROLLED) {
                    // As few as bring all that the next rows need: their addresses cost the products time.
                    if pitch > 1 {
                        (p..p + UNROLLED).step_by(LINE_LANES / LEFT_STRIDE).for_each(fetch);
                    } else if p.is_multiple_of(LINE_LANES) {
                        (p..p + ROWS).for_each(fetch);
                    }
                    for _ in 0..UNROLLED {
                        step();
                    }
                }
                for _ in unrolled..part.depth {
                    step();
                }
            }};
        }
        by_layout!(part.layout, ROWS, LEFT_STRIDE, accumulate);
    }
    if tile.columns == COLUMNS && !E::IS_BF16 {
        // SAFETY: the caller's promise.
        return unsafe { finish(tile, &sums) };
    }
    let mut plain = [[0f32; COLUMNS]; ROWS];
    for (row, to) in sums.iter().zip(&mut plain) {
        for (sum, to) in row.iter().zip(to.chunks_exact_mut(LANES)) {
            // SAFETY: the chunk holds LANES elements.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), *sum) };
        }
    }
    // SAFETY: the caller's promise; the sums hold ROWS rows of COLUMNS.
    unsafe { write(tile, &plain) };
}

/// Adds the sums to the base and writes them, from registers to a whole tile of f32.
///
/// # Safety
/// As `Kernel::run`, for a tile of VECTORS · LANES columns of f32.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<const ROWS: usize, const VECTORS: usize, E: Element>(
    tile: &Tile<'_, E>,
    sums: &[[__m256; VECTORS]; ROWS],
) {
    let scale = _mm256_set1_ps(tile.scale);
    for (i, row) in sums.iter().enumerate() {
        for (v, &sum) in row.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let output = tile.output.add(i * tile.output_stride + v * LANES).cast::<f32>();
                let base = match tile.base {
                    Base::Zero => _mm256_setzero_ps(),
                    Base::Row(base) => _mm256_loadu_ps(base.add(v * LANES)),
                    Base::Output => _mm256_loadu_ps(output),
                };
                // Rounded twice, as in `write`.
                _mm256_storeu_ps(output, _mm256_add_ps(base, _mm256_mul_ps(scale, sum)));
            }
        }
    }
}

/// The address, which the compiler learns only when the sum is there: it would else load the left lanes of all unrolled steps
/// first, more than there are registers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn after(mut address: *const f32, sum: &mut __m256) -> *const f32 {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {0} {1} */", inout(reg) address, inout(ymm_reg) *sum, options(pure, readonly, nostack, preserves_flags))
    };
    address
}
