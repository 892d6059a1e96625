//! Tiles of 32 × 32 for AMX: four tile registers of sums, two of left rows and two of right columns, 32 bf16 deep.
//!
//! Left sides lie in rows, as tile registers hold them; right panels lie as everywhere, pairs of the depth beside each other,
//! which is what the instruction takes. Depths are whole tiles, completed with zeros where they were packed.

use std::arch::asm;
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_load_ps, _mm512_loadu_ps, _mm512_setzero_ps,
    _mm512_storeu_si512,
};
use std::cell::Cell;
use std::mem::{MaybeUninit, transmute};
use std::ptr;

use super::avx512::{LANES, finish};
use super::micro::{Base, Initial, LeftLayout, RightLayout, TILE_LANES, TILE_ROWS, Tile};
use crate::element::Element;

/// Rows of a tile register.
const ROWS: usize = 16;
/// Bytes of a row of a tile register.
const ROW_BYTES: usize = 64;

/// The tile registers of this thread, for as long as it multiplies: shaping them anew takes as long as several products, and
/// leaving them filled burdens the system.
pub(crate) struct Registers(Cell<Option<&'static Config>>);

impl Registers {
    pub(crate) fn new() -> Self {
        Self(Cell::new(None))
    }

    /// Shapes the registers so, which empties them, if they are not yet.
    ///
    /// # Safety
    /// The processor has AMX and the system lets the process use it.
    #[inline]
    unsafe fn shape(&self, config: &'static Config) {
        if !self.0.get().is_some_and(|current| ptr::eq(current, config)) {
            // SAFETY: the caller's promise; a configuration is what the instruction reads.
            unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly, preserves_flags)) };
            self.0.set(Some(config));
        }
    }
}

impl Registers {
    /// Shapes the registers for so many rows, and for so many lanes in depth beyond whole registers; without any, whatever they
    /// are shaped for will do.
    ///
    /// # Safety
    /// As [`Registers::shape`].
    #[inline]
    unsafe fn shape_for_rest(&self, rows: usize, rest: usize) {
        let of_rows = &BY_REST[rows];
        let shaped = self.0.get().is_some_and(|current| of_rows.as_ptr_range().contains(&ptr::from_ref(current)));
        if rest > 0 || !shaped {
            // SAFETY: the caller's promise.
            unsafe { self.shape(&of_rows[rest]) };
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        if self.0.get().is_some() {
            // SAFETY: they were shaped, so they are there.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
        }
    }
}

/// What `ldtilecfg` reads: the shape of every tile register.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const fn config(of_registers: [(usize, usize); 8]) -> Config {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut register = 0;
    while register < of_registers.len() {
        let (rows, lanes) = of_registers[register];
        // Without rows or without lanes a register must have neither.
        if rows * lanes > 0 {
            config.rows[register] = rows as u8;
            config.row_bytes[register] = (size_of::<u32>() * lanes) as u16;
        }
        register += 1;
    }
    config
}

/// By rows of a tile: registers 0 to 3 hold the sums, upper rows first; 4 and 5 the left rows, 6 and 7 the right columns.
static BY_ROWS: [Config; TILE_ROWS + 1] = {
    let mut configs = [const { config([(0, 0); 8]) }; TILE_ROWS + 1];
    let mut rows = 0;
    while rows <= TILE_ROWS {
        let upper = (if rows < ROWS { rows } else { ROWS }, LANES);
        let lower = (rows - upper.0, LANES);
        let right = (TILE_LANES, LANES);
        configs[rows] = config([upper, upper, lower, lower, upper, lower, right, right]);
        rows += 1;
    }
    configs
};

/// By rows of a product of any depth, and by the lanes of it beyond whole registers: 0 and 1 hold the sums, 4 the left rows, 6 and
/// 7 the right columns; 5, 2 and 3 the same of the rest.
static BY_REST: [[Config; TILE_LANES]; ROWS + 1] = {
    let mut configs = [const { [const { config([(0, 0); 8]) }; TILE_LANES] }; ROWS + 1];
    let mut rows = 0;
    while rows <= ROWS {
        let mut rest = 0;
        while rest < TILE_LANES {
            let (sums, left, right) = ((rows, LANES), (rows, TILE_LANES), (TILE_LANES, LANES));
            let (left_rest, right_rest) = ((rows, rest), (rest, LANES));
            configs[rows][rest] = config([sums, sums, right_rest, right_rest, left, left_rest, right, right]);
            rest += 1;
        }
        rows += 1;
    }
    configs
};

/// # Safety
/// As `Kernel::run`, on a processor with AMX that the system lets the process use; left sides lie in rows, right ones in panels,
/// and depths are whole tile registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run<E: Element>(registers: &Registers, tile: &Tile<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.rows > ROWS, tile.vectors) {
            (true, 2) => multiply::<true, true, E>(registers, tile),
            (true, _) => multiply::<true, false, E>(registers, tile),
            (false, 2) => multiply::<false, true, E>(registers, tile),
            (false, _) => multiply::<false, false, E>(registers, tile),
        }
    }
}

/// `LOWER`: there are more than 16 rows; `WIDE`: there are two vectors of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn multiply<const LOWER: bool, const WIDE: bool, E: Element>(registers: &Registers, tile: &Tile<'_, E>) {
    // SAFETY: the caller's promise.
    unsafe { registers.shape(&BY_ROWS[tile.rows]) };
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
        if E::IS_BF16 && WIDE && tile.columns == 2 * LANES && tile.scale == 1.0 && !matches!(tile.base, Base::Output) {
            finish_whole_rows(tile, sums);
            return;
        }
        for row in 0..tile.rows {
            for vector in 0..if WIDE { 2 } else { 1 } {
                finish(tile, row, vector, _mm512_load_ps(sums.add((2 * row + vector) * LANES)));
            }
        }
    }
}

/// Writes the sums of whole rows of bf16, which nothing is added to but a bias.
///
/// # Safety
/// As `Kernel::run`; `sums` holds the tile's rows of two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn finish_whole_rows<E: Element>(tile: &Tile<'_, E>, sums: *const f32) {
    // SAFETY: the caller's promise; two vectors of f32 are one of bf16.
    unsafe {
        let bias = match tile.base {
            Base::Row(bias) => [_mm512_loadu_ps(bias), _mm512_loadu_ps(bias.add(LANES))],
            _ => [_mm512_setzero_ps(); 2],
        };
        for row in 0..tile.rows {
            let of_half = |half: usize| _mm512_add_ps(_mm512_load_ps(sums.add((2 * row + half) * LANES)), bias[half]);
            let values = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(of_half(1), of_half(0)));
            _mm512_storeu_si512(tile.output.add(row * tile.output_stride).cast(), values);
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

/// `to[i, j] = Σ_p left[p / 16, i, p % 16] · right[p, j]`, or added to it, of at most 16 rows, of one vector of columns or two
/// (`wide`), and of `depth` lanes: pairs of bf16. The left side is in pieces of 16 lanes of depth, so many lanes apart; the rows
/// of the other two are two vectors.
///
/// # Safety
/// The processor has AMX and the system lets the process use it; the pointers are valid for these extents, of which neither
/// rows nor depth are 0.
#[inline]
pub(crate) unsafe fn tile_product(
    registers: &Registers,
    (left, pieces_apart): (*const u32, usize),
    right: *const f32,
    (rows, wide, depth): (usize, bool, usize),
    added: bool,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if wide {
            product_of::<true>(registers, (left, pieces_apart), right, (rows, depth), added, to);
        } else {
            product_of::<false>(registers, (left, pieces_apart), right, (rows, depth), added, to);
        }
    }
}

/// # Safety
/// As [`tile_product`].
unsafe fn product_of<const WIDE: bool>(
    registers: &Registers,
    (left, pieces_apart): (*const u32, usize),
    right: *const f32,
    (rows, depth): (usize, usize),
    added: bool,
    to: *mut f32,
) {
    let (pieces, rest) = (depth / TILE_LANES, depth % TILE_LANES);
    let wide_bytes = 2 * ROW_BYTES;
    // SAFETY: the caller's promise; the compiler does not use tile registers.
    unsafe {
        registers.shape_for_rest(rows, rest);
        if added {
            load_sums::<false, WIDE>(to, 2 * LANES);
        } else {
            zero_sums::<false, WIDE>();
        }
        // A piece of depth, by the registers of its left side and of the right side's two columns of lanes.
        macro_rules! add_piece {
            ($piece:expr, $left:literal, $first:literal, $second:literal) => {
                let left = left.add($piece * pieces_apart);
                let right = right.add($piece * TILE_LANES * 2 * LANES);
                asm!(
                    concat!("tileloadd ", $left, ", [{left} + {left_stride}]"),
                    concat!("tileloadd ", $first, ", [{right} + {right_stride}]"),
                    concat!("tdpbf16ps tmm0, ", $left, ", ", $first),
                    left = in(reg) left, left_stride = in(reg) ROW_BYTES,
                    right = in(reg) right, right_stride = in(reg) wide_bytes,
                    options(nostack, readonly, preserves_flags)
                );
                if WIDE {
                    asm!(
                        concat!("tileloadd ", $second, ", [{right} + {right_stride} + 64]"),
                        concat!("tdpbf16ps tmm1, ", $left, ", ", $second),
                        right = in(reg) right, right_stride = in(reg) wide_bytes,
                        options(nostack, readonly, preserves_flags)
                    );
                }
            };
        }
        for piece in 0..pieces {
            add_piece!(piece, "tmm4", "tmm6", "tmm7");
        }
        if rest > 0 {
            // Registers of the rest's own shapes.
            add_piece!(pieces, "tmm5", "tmm2", "tmm3");
        }
        store_sums::<false, WIDE>(to);
    }
}
