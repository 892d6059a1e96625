//! Register tiles of 6 × 16 for NEON: 24 accumulators, four right vectors, and a left side in two vectors that
//! multiply-adds read by element.

use std::arch::aarch64::{vdupq_n_f32, vfmaq_laneq_f32, vld1q_f32, vst1q_f32};

use super::micro::{Initial, Tile};
use super::portable::write;
use crate::element::Element;

/// Elements of one register; a vector of the interface is two of them.
const LANES: usize = 4;
const LEFT_STRIDE: usize = 8;

/// # Safety
/// As `Kernel::run`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<E: Element>(tile: &Tile<'_, E>) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (tile.rows, tile.vectors) {
                    $(
                        ($rows, 2) => multiply::<$rows, 4, { 4 * LANES }, E>(tile),
                        ($rows, 1) => multiply::<$rows, 2, { 2 * LANES }, E>(tile),
                    )*
                    (rows, vectors) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            }
        };
    }
    by_rows!(1 2 3 4 5 6)
}

#[target_feature(enable = "neon")]
unsafe fn multiply<const ROWS: usize, const REGISTERS: usize, const COLUMNS: usize, E: Element>(tile: &Tile<'_, E>) {
    let mut sums = [[vdupq_n_f32(0.0); REGISTERS]; ROWS];
    if let Some(Initial { sums: initial, stride }) = tile.initial {
        for (i, row) in sums.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                // SAFETY: `initial` holds ROWS rows of COLUMNS sums.
                *sum = unsafe { vld1q_f32(initial.add(i * stride + v * LANES)) };
            }
        }
    }
    for part in tile.parts {
        let (mut left, mut right, right_stride) = tile.sides_of(part, 4 * LANES);
        for _ in 0..part.depth {
            // SAFETY: the left panel holds `depth` rows of LEFT_STRIDE lanes.
            let rows = unsafe { [vld1q_f32(left), vld1q_f32(left.add(LANES))] };
            let mut columns = [vdupq_n_f32(0.0); REGISTERS];
            for (v, column) in columns.iter_mut().enumerate() {
                // SAFETY: the right panel holds `depth` rows of COLUMNS lanes.
                *column = unsafe { vld1q_f32(right.add(v * LANES)) };
            }
            // An element of a register is named by a constant.
            macro_rules! rows {
                ($($i:literal)*) => {$(
                    if let Some(row) = sums.get_mut($i) {
                        for (sum, &column) in row.iter_mut().zip(&columns) {
                            *sum = vfmaq_laneq_f32::<{ $i % 4 }>(*sum, column, rows[$i / LANES]);
                        }
                    }
                )*};
            }
            rows!(0 1 2 3 4 5);
            left = left.wrapping_add(LEFT_STRIDE);
            right = right.wrapping_add(right_stride);
        }
    }
    let mut plain = [[0f32; COLUMNS]; ROWS];
    for (row, to) in sums.iter().zip(&mut plain) {
        for (&sum, to) in row.iter().zip(to.chunks_exact_mut(LANES)) {
            // SAFETY: the chunk holds LANES elements.
            unsafe { vst1q_f32(to.as_mut_ptr(), sum) };
        }
    }
    // SAFETY: the caller's promise; the sums hold ROWS rows of COLUMNS.
    unsafe { write(tile, &plain) };
}
