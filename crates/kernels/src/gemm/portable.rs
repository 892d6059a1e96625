//! Register tiles of 4 × 8 in plain Rust, which the compiler vectorises for the machine's baseline: eight accumulators
//! of four elements. A panel of two vectors is done in two passes, since twice the accumulators would not fit SSE2.

use super::micro::{Base, Tile};

const LANES: usize = 8;
const LEFT_STRIDE: usize = 8;

/// # Safety
/// As `Kernel::run`.
pub(super) unsafe fn run(tile: &Tile) {
    for pass in 0..tile.columns.div_ceil(LANES) {
        let skipped = pass * LANES;
        // SAFETY: the tile has more than `skipped` columns, so all three have elements there.
        let part = unsafe {
            Tile {
                right: tile.right.add(skipped),
                output: tile.output.add(skipped),
                columns: LANES.min(tile.columns - skipped),
                base: if let Base::Row(row) = tile.base { Base::Row(row.add(skipped)) } else { tile.base },
                ..*tile
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            match part.rows {
                1 => multiply::<1>(&part),
                2 => multiply::<2>(&part),
                3 => multiply::<3>(&part),
                4 => multiply::<4>(&part),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

unsafe fn multiply<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[0f32; LANES]; ROWS];
    let (mut left, mut right) = (tile.left.cast::<f32>(), tile.right.cast::<f32>());
    for _ in 0..tile.depth {
        // SAFETY: the right panel holds `depth` rows with LANES lanes from here, the left one `depth` rows of LEFT_STRIDE.
        let (columns, rows) = unsafe { (*right.cast::<[f32; LANES]>(), *left.cast::<[f32; ROWS]>()) };
        for (sums, value) in sums.iter_mut().zip(rows) {
            *sums = std::array::from_fn(|j| sums[j] + value * columns[j]);
        }
        left = left.wrapping_add(LEFT_STRIDE);
        right = right.wrapping_add(tile.vectors * LANES);
    }
    // SAFETY: the caller's promise; the sums hold ROWS rows of LANES.
    unsafe { write(tile, &sums) };
}

/// Adds the sums to the base and writes the tile's columns of them.
///
/// # Safety
/// As `Kernel::run`.
#[inline(always)]
pub(super) unsafe fn write<const ROWS: usize, const COLUMNS: usize>(tile: &Tile, sums: &[[f32; COLUMNS]; ROWS]) {
    for (i, row) in sums.iter().enumerate() {
        for (j, &sum) in row.iter().enumerate().take(tile.columns) {
            // SAFETY: `j` keeps to the tile's columns; output and base row hold them.
            unsafe {
                let output = tile.output.add(i * tile.output_stride + j);
                let base = match tile.base {
                    Base::Zero => 0.0,
                    Base::Row(base) => *base.add(j),
                    Base::Output => *output,
                };
                *output = base + tile.scale * sum;
            }
        }
    }
}
