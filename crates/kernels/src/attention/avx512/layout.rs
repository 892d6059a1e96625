//! The layouts of a head that the tiles read.
//!
//! A *lane* is one f32, or two bf16 neighbours in depth, the earlier in the lower half. *Rows* are a head as it lies, cut
//! into pieces of 16 lanes: `[pieces, rows, 16]`; they are the left side of a product over the head's elements. *Turned*
//! is `[panels of 32 rows, lanes, 32]`, its right side. *Stacked* is `[panels of 32 elements, rows as lanes, 32]`: the
//! right side of a product over the rows, two of them in a lane where elements are bf16.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_si512,
    _mm512_permutex2var_epi16, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{LANES, Line, WIDE, Wide, load_lanes, store_lanes};
use crate::element::Element;

/// Elements of a lane.
pub(super) const fn elements<E: Element>() -> usize {
    if E::IS_BF16 { 2 } else { 1 }
}

/// Lanes that `len` elements take.
pub(super) fn lanes<E: Element>(len: usize) -> usize {
    len.div_ceil(elements::<E>())
}

/// Pieces of 16 lanes that `len` elements take.
pub(super) fn pieces<E: Element>(len: usize) -> usize {
    lanes::<E>(len).div_ceil(LANES)
}

/// Turns `rows` rows of `depth` lanes, which are padded to `padded`, a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn turn(from: &[Line<u32>], rows: usize, padded: usize, depth: usize, to: &mut [Wide<u32>]) {
    for (piece, from) in from.chunks_exact(padded).take(depth.div_ceil(LANES)).enumerate() {
        let first = piece * LANES;
        for (group, from) in from.chunks_exact(LANES).take(rows.div_ceil(LANES)).enumerate() {
            let columns = transpose(from);
            let to = &mut to[group / 2 * depth + first..][..LANES.min(depth - first)];
            for (to, column) in to.iter_mut().zip(columns) {
                store_lanes(_mm512_castps_si512(column), &mut to[group % 2]);
            }
        }
    }
}

/// Transposes 16 by 16 lanes: pairs, then fours, then quarters of vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn transpose(from: &[Line<u32>]) -> [__m512; LANES] {
    let mut r = [_mm512_setzero_ps(); LANES];
    for (row, from) in r.iter_mut().zip(from) {
        *row = _mm512_castsi512_ps(load_lanes(from));
    }
    let mut s = r;
    for i in (0..LANES).step_by(2) {
        s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // Element `i` of four: column `i` of every quarter, of four rows.
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (a, b) = (_mm512_castps_pd(s[i + half]), _mm512_castps_pd(s[i + half + 2]));
            r[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for i in 0..4 {
        let low = [0, 8].map(|j| _mm512_shuffle_f32x4::<0b01_00_01_00>(r[i + j], r[i + j + 4]));
        let high = [0, 8].map(|j| _mm512_shuffle_f32x4::<0b11_10_11_10>(r[i + j], r[i + j + 4]));
        s[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low[0], low[1]);
        s[i + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low[0], low[1]);
        s[i + 8] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high[0], high[1]);
        s[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high[0], high[1]);
    }
    s
}

/// Stacks `rows` rows of `dim` elements, which are padded to `padded` rows, an even number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn stack<E: Element>(from: &[Line<u32>], rows: usize, dim: usize, padded: usize, to: &mut [Wide<u32>]) {
    for (panel, to) in to.chunks_exact_mut(lanes::<E>(rows)).take(dim.div_ceil(WIDE)).enumerate() {
        if E::IS_BF16 {
            for (to, rows) in to.iter_mut().zip(from[panel * padded..].as_chunks::<2>().0) {
                let [low, high] = pairs(load_lanes(&rows[0]), load_lanes(&rows[1]));
                store_lanes(low, &mut to[0]);
                store_lanes(high, &mut to[1]);
            }
        } else {
            let mut pieces = from[2 * panel * padded..].chunks_exact(padded);
            for half in 0..2 {
                let Some(piece) = pieces.next() else { break };
                to.iter_mut().zip(piece).for_each(|(to, from)| to[half] = *from);
            }
        }
    }
}

/// The elements of two rows side by side, the first row's in the lower halves of lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn pairs(first: __m512i, second: __m512i) -> [__m512i; 2] {
    const fn order(start: u16) -> [u16; WIDE] {
        let mut order = [0; WIDE];
        let mut i = 0;
        while i < WIDE {
            // Bit 5 chooses the second row.
            order[i] = start + i as u16 / 2 + if i % 2 == 1 { 32 } else { 0 };
            i += 1;
        }
        order
    }
    static ORDER: [[u16; WIDE]; 2] = [order(0), order(LANES as u16)];
    // SAFETY: an order is a vector.
    let [low, high] =
        unsafe { [_mm512_loadu_si512(ORDER[0].as_ptr().cast()), _mm512_loadu_si512(ORDER[1].as_ptr().cast())] };
    [_mm512_permutex2var_epi16(first, low, second), _mm512_permutex2var_epi16(first, high, second)]
}
