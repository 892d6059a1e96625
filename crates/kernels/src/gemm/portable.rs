//! Register tiles of 4 × 8 in plain Rust, which the compiler vectorises for the machine's baseline: eight accumulators
//! of four elements. A panel of two vectors is done in two passes, since twice the accumulators would not fit SSE2.

use super::micro::{Base, Initial, Tile};
use crate::element::Element;

const LANES: usize = 8;
const LEFT_STRIDE: usize = 8;

/// # Safety
/// As `Kernel::run`.
pub(super) unsafe fn run<E: Element>(tile: &Tile<'_, E>) {
    for skipped in (0..tile.columns).step_by(LANES) {
        // SAFETY: the tile has more than `skipped` columns, so output and base row have elements there.
        let part = unsafe {
            Tile {
                output: tile.output.add(skipped),
                columns: LANES.min(tile.columns - skipped),
                base: if let Base::Row(row) = tile.base { Base::Row(row.add(skipped)) } else { tile.base },
                ..*tile
            }
        };
        // SAFETY: the caller's promise.
        unsafe {
            match part.rows {
                1 => multiply::<1, E>(&part, skipped),
                2 => multiply::<2, E>(&part, skipped),
                3 => multiply::<3, E>(&part, skipped),
                4 => multiply::<4, E>(&part, skipped),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// The tile's columns from `skipped`.
unsafe fn multiply<const ROWS: usize, E: Element>(tile: &Tile<'_, E>, skipped: usize) {
    let mut sums = [[0f32; LANES]; ROWS];
    if let Some(Initial { sums: initial, stride }) = tile.initial {
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `initial` holds ROWS rows of LANES sums from `skipped`.
            *sums = unsafe { *initial.add(i * stride + skipped).cast::<[f32; LANES]>() };
        }
    }
    for part in tile.parts {
        let (mut left, right, right_stride) = tile.sides_of(part, 2 * LANES);
        let mut right = right.wrapping_add(skipped);
        for _ in 0..part.depth {
            // SAFETY: the right panel holds `depth` rows with LANES lanes from here, the left one `depth` rows of
            // LEFT_STRIDE.
            let (columns, rows) = unsafe { (*right.cast::<[f32; LANES]>(), *left.cast::<[f32; ROWS]>()) };
            for (sums, value) in sums.iter_mut().zip(rows) {
                *sums = std::array::from_fn(|j| sums[j] + value * columns[j]);
            }
            left = left.wrapping_add(LEFT_STRIDE);
            right = right.wrapping_add(right_stride);
        }
    }
    // SAFETY: the caller's promise; the sums hold ROWS rows of LANES.
    unsafe { write(tile, &sums) };
}

/// Adds the sums to the base and writes the tile's columns of them.
///
/// # Safety
/// As `Kernel::run`.
#[inline(always)]
pub(super) unsafe fn write<const ROWS: usize, const COLUMNS: usize, E: Element>(
    tile: &Tile<'_, E>,
    sums: &[[f32; COLUMNS]; ROWS],
) {
    // Whole rows go through copies of a length that the compiler knows, or nothing here would be vectorised.
    if tile.columns == COLUMNS {
        // SAFETY: the caller's promise.
        unsafe { write_rows(tile, sums, COLUMNS) };
    } else {
        // SAFETY: as above.
        unsafe { write_rows(tile, sums, tile.columns) };
    }
}

#[inline(always)]
unsafe fn write_rows<const ROWS: usize, const COLUMNS: usize, E: Element>(
    tile: &Tile<'_, E>,
    sums: &[[f32; COLUMNS]; ROWS],
    columns: usize,
) {
    for (i, sums) in sums.iter().enumerate() {
        let mut base = [0f32; COLUMNS];
        // SAFETY: output and base row hold the tile's columns.
        unsafe {
            let output = tile.output.add(i * tile.output_stride);
            match tile.base {
                Base::Zero => {}
                Base::Row(row) => row.copy_to_nonoverlapping(base.as_mut_ptr(), columns),
                Base::Output => {
                    let mut held = [E::default(); COLUMNS];
                    output.copy_to_nonoverlapping(held.as_mut_ptr(), columns);
                    base = held.map(E::to_f32);
                }
            }
            let values: [E; COLUMNS] = std::array::from_fn(|j| E::from_f32(base[j] + tile.scale * sums[j]));
            values.as_ptr().copy_to_nonoverlapping(output, columns);
        }
    }
}
