//! Tiles of 32 × 32 for AMX: four tile registers of sums, two of left rows and two of right columns, 32 bf16 deep.
//!
//! Left sides lie in rows, as tile registers hold them; right panels lie as everywhere, pairs of the depth beside each other,
//! which is what the instruction takes. Depths are whole tiles, completed with zeros where they were packed.

use std::arch::asm;
use std::arch::x86_64::_mm512_load_ps;
use std::mem::MaybeUninit;

use super::avx512::{LANES, finish};
use super::micro::{Initial, LeftLayout, RightLayout, TILE_LANES, TILE_ROWS, Tile};
use crate::element::Element;

/// Rows of a tile register.
const ROWS: usize = 16;
/// Bytes of a row of a tile register.
const ROW_BYTES: usize = 64;

/// What `ldtilecfg` reads: the shape of every tile register.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Registers 0 to 3 hold the sums, upper rows first; 4 and 5 the left rows, 6 and 7 the right columns.
static CONFIGS: [Config; TILE_ROWS + 1] = {
    const NONE: Config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut configs = [NONE; TILE_ROWS + 1];
    let mut rows = 0;
    while rows <= TILE_ROWS {
        let upper = if rows < ROWS { rows } else { ROWS };
        let of_register = [upper, upper, rows - upper, rows - upper, upper, rows - upper, ROWS, ROWS];
        let mut register = 0;
        while register < of_register.len() {
            configs[rows].rows[register] = of_register[register] as u8;
            configs[rows].row_bytes[register] = if of_register[register] > 0 { ROW_BYTES as u16 } else { 0 };
            register += 1;
        }
        rows += 1;
    }
    configs
};

/// # Safety
/// As `Kernel::run`, on a processor with AMX that the system lets the process use; left sides lie in rows, right ones in panels,
/// and depths are whole tile registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run<E: Element>(tile: &Tile<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.rows > ROWS, tile.vectors) {
            (true, 2) => multiply::<true, true, E>(tile),
            (true, _) => multiply::<true, false, E>(tile),
            (false, 2) => multiply::<false, true, E>(tile),
            (false, _) => multiply::<false, false, E>(tile),
        }
    }
}

/// `LOWER`: there are more than 16 rows; `WIDE`: there are two vectors of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<const LOWER: bool, const WIDE: bool, E: Element>(tile: &Tile<'_, E>) {
    // SAFETY: reads a configuration; nobody else uses the registers of this thread, and none is read before it is set.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIGS[tile.rows], options(nostack, readonly, preserves_flags)) };
    match tile.initial {
        // SAFETY: the registers are configured; `initial` holds the tile's rows of `vectors · 16` sums.
        Some(Initial { sums, stride }) => unsafe { load_sums::<LOWER, WIDE>(sums, stride) },
        // SAFETY: as above.
        None => unsafe { zero_sums::<LOWER, WIDE>() },
    }
    for part in tile.parts {
        let (left, right, _) = tile.sides_of(part, 2 * LANES);
        let LeftLayout::Rows(stride) = part.layout else { unreachable!("tiles read rows") };
        debug_assert!(matches!(part.right_layout, RightLayout::Panels(_)) && part.depth.is_multiple_of(TILE_LANES));
        // SAFETY: the left side holds the tile's rows, `depth` lanes each, and the right panel `depth` rows of vectors.
        unsafe { accumulate::<LOWER, WIDE>(left, stride, right, part.depth / TILE_LANES) };
    }
    let mut sums = MaybeUninit::<Sums>::uninit();
    // SAFETY: the array takes all four registers; rows and columns of the tile are in those that are configured, and only these
    // are read.
    unsafe {
        store_sums::<LOWER, WIDE>(sums.as_mut_ptr().cast());
        let sums = sums.as_ptr().cast::<f32>();
        for row in 0..tile.rows {
            for vector in 0..if WIDE { 2 } else { 1 } {
                finish(tile, row, vector, _mm512_load_ps(sums.add((2 * row + vector) * LANES)));
            }
        }
    }
}

/// `[TILE_ROWS, 2 · LANES]`.
#[repr(align(64))]
struct Sums(#[expect(dead_code, reason = "written and read by address")] [f32; TILE_ROWS * 2 * LANES]);

/// # Safety
/// The registers are configured.
unsafe fn zero_sums<const LOWER: bool, const WIDE: bool>() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilezero tmm0", options(nostack, nomem, preserves_flags));
        if WIDE {
            asm!("tilezero tmm1", options(nostack, nomem, preserves_flags));
        }
        if LOWER {
            asm!("tilezero tmm2", options(nostack, nomem, preserves_flags));
        }
        if LOWER && WIDE {
            asm!("tilezero tmm3", options(nostack, nomem, preserves_flags));
        }
    }
}

/// # Safety
/// The registers are configured, and `sums` holds as many rows of `LANES` or twice as many, `stride` apart.
unsafe fn load_sums<const LOWER: bool, const WIDE: bool>(sums: *const f32, stride: usize) {
    let (upper, lower, stride) = (sums, sums.wrapping_add(ROWS * stride), size_of::<f32>() * stride);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tileloadd tmm0, [{} + {}]", in(reg) upper, in(reg) stride, options(nostack, readonly, preserves_flags));
        if WIDE {
            asm!("tileloadd tmm1, [{} + {} + 64]", in(reg) upper, in(reg) stride, options(nostack, readonly, preserves_flags));
        }
        if LOWER {
            asm!("tileloadd tmm2, [{} + {}]", in(reg) lower, in(reg) stride, options(nostack, readonly, preserves_flags));
        }
        if LOWER && WIDE {
            asm!("tileloadd tmm3, [{} + {} + 64]", in(reg) lower, in(reg) stride, options(nostack, readonly, preserves_flags));
        }
    }
}

/// # Safety
/// The registers are configured, and `to` is a [`Sums`].
unsafe fn store_sums<const LOWER: bool, const WIDE: bool>(to: *mut f32) {
    let (upper, lower, stride) = (to, to.wrapping_add(ROWS * 2 * LANES), 2 * ROW_BYTES);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilestored [{} + {}], tmm0", in(reg) upper, in(reg) stride, options(nostack, preserves_flags));
        if WIDE {
            asm!("tilestored [{} + {} + 64], tmm1", in(reg) upper, in(reg) stride, options(nostack, preserves_flags));
        }
        if LOWER {
            asm!("tilestored [{} + {}], tmm2", in(reg) lower, in(reg) stride, options(nostack, preserves_flags));
        }
        if LOWER && WIDE {
            asm!("tilestored [{} + {} + 64], tmm3", in(reg) lower, in(reg) stride, options(nostack, preserves_flags));
        }
    }
}

/// Adds products of `steps` tile registers in depth.
///
/// # Safety
/// The registers are configured; `left` holds their rows, `stride` lanes apart, and `right` 16 rows of one or two vectors for
/// each step.
unsafe fn accumulate<const LOWER: bool, const WIDE: bool>(
    left: *const f32,
    stride: usize,
    right: *const f32,
    steps: usize,
) {
    if steps == 0 {
        return;
    }
    let lower = left.wrapping_add(ROWS * stride);
    let left_stride = size_of::<f32>() * stride;
    let right_stride = if WIDE { 2 * ROW_BYTES } else { ROW_BYTES };
    macro_rules! steps {
        ($right_step:literal, $($instruction:literal),*) => {
            asm!(
                "2:",
                $($instruction,)*
                "add {upper}, 64",
                "add {lower}, 64",
                concat!("add {right}, ", $right_step),
                "dec {steps}",
                "jnz 2b",
                upper = inout(reg) left => _,
                lower = inout(reg) lower => _,
                right = inout(reg) right => _,
                steps = inout(reg) steps => _,
                left_stride = in(reg) left_stride,
                right_stride = in(reg) right_stride,
                options(nostack, readonly)
            )
        };
    }
    // SAFETY: the caller's promise. The compiler does not use tile registers.
    unsafe {
        match (LOWER, WIDE) {
            (true, true) => steps!(
                2048,
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{upper} + {left_stride}]",
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {left_stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ),
            (true, false) => steps!(
                1024,
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{upper} + {left_stride}]",
                "tileloadd tmm5, [{lower} + {left_stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6"
            ),
            (false, true) => steps!(
                2048,
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{upper} + {left_stride}]",
                "tileloadd tmm7, [{right} + {right_stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7"
            ),
            (false, false) => steps!(
                1024,
                "tileloadd tmm6, [{right} + {right_stride}]",
                "tileloadd tmm4, [{upper} + {left_stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6"
            ),
        }
    }
}
