//! Register tiles of 6 × 16 for AVX2 with FMA: twelve accumulators, two right vectors, one broadcast.

use std::arch::x86_64::{
    _MM_HINT_T0, _mm_prefetch, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::micro::{Initial, LeftLayout, Tile, by_layout};
use super::portable::write;
use crate::element::Element;

const LANES: usize = 8;
const LEFT_STRIDE: usize = 8;

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
            ($lane:expr, $ahead:expr) => {
                for p in 0..part.depth {
                    let mut columns = [_mm256_setzero_ps(); VECTORS];
                    for (v, column) in columns.iter_mut().enumerate() {
                        // SAFETY: the right panel holds `depth` rows of VECTORS · LANES lanes.
                        *column = unsafe { _mm256_loadu_ps(right.add(v * LANES)) };
                    }
                    for (i, row) in sums.iter_mut().enumerate() {
                        // SAFETY: the left side holds `depth` lanes of ROWS rows.
                        let broadcast = _mm256_broadcast_ss(unsafe { &*left.add($lane(i, p)) });
                        for (sum, &column) in row.iter_mut().zip(&columns) {
                            *sum = _mm256_fmadd_ps(broadcast, column, *sum);
                        }
                    }
                    _mm_prefetch::<_MM_HINT_T0>(left.wrapping_add($ahead(p)).cast());
                    // Behind the last row of a side that lies in rows there is nothing, and nothing is read.
                    right = right.wrapping_add(right_stride);
                }
            };
        }
        by_layout!(part.layout, ROWS, LEFT_STRIDE, accumulate);
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
