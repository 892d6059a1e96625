//! Transposing rows of lanes into depth-major groups.

use super::panels::PANEL;
use crate::dispatch::Path;

/// Rows that are transposed together.
pub(super) const GROUP: usize = 8;

/// Eight rows of lanes. Of a row `PANEL` lanes lie together, then it goes on elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) lanes: &'a [u32],
    /// Lanes from one row to the next.
    pub(super) row_stride: usize,
    /// Lanes from `PANEL` lanes of a row to its next ones: `PANEL` where rows lie whole.
    pub(super) line_stride: usize,
}

impl Group<'_> {
    /// Where lane `p` of the first row lies.
    #[inline(always)]
    fn at(self, p: usize) -> usize {
        p / PANEL * self.line_stride + p % PANEL
    }

    /// Whether all rows have so many lanes.
    #[inline(always)]
    pub(super) fn holds(self, lanes: usize) -> bool {
        let Some(last) = lanes.checked_sub(1) else { return true };
        self.line_stride >= PANEL && (GROUP - 1) * self.row_stride + self.at(last) < self.lanes.len()
    }
}

/// Writes the first `lanes` lanes of eight rows as groups of eight, `stride` apart.
pub(super) fn transpose(path: Path, rows: Group<'_>, lanes: usize, to: &mut [u32], stride: usize) {
    if lanes == 0 {
        return;
    }
    assert!(rows.holds(lanes), "rows to transpose out of bounds");
    assert!(to.len() >= (lanes - 1) * stride + GROUP, "groups to write out of bounds");
    let whole = match path {
        #[cfg(target_arch = "x86_64")]
        Path::Amx | Path::Avx512Bf16 | Path::Avx2 => {
            let whole = lanes / GROUP * GROUP;
            // SAFETY: the path is a supported one with AVX2; the assertions above bound both sides.
            unsafe { avx2::transpose(rows, whole, to.as_mut_ptr(), stride) };
            whole
        }
        #[cfg(target_arch = "aarch64")]
        Path::Neon => {
            let whole = lanes / neon::SQUARE * neon::SQUARE;
            // SAFETY: every aarch64 has NEON; the assertions above bound both sides.
            unsafe { neon::transpose(rows, whole, to.as_mut_ptr(), stride) };
            whole
        }
        _ => 0,
    };
    for p in whole..lanes {
        for (i, to) in to[p * stride..][..GROUP].iter_mut().enumerate() {
            *to = rows.lanes[i * rows.row_stride + rows.at(p)];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    };

    use super::{GROUP, Group};

    /// # Safety
    /// AVX2 is there; the rows hold `lanes` lanes, a multiple of eight; `to` holds `lanes` groups.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn transpose(rows: Group<'_>, lanes: usize, to: *mut u32, to_stride: usize) {
        for p in (0..lanes).step_by(GROUP) {
            let from = rows.lanes.as_ptr().wrapping_add(rows.at(p));
            let mut r = [_mm256_setzero_si256(); GROUP];
            for (i, row) in r.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *row = unsafe { _mm256_loadu_si256(from.add(i * rows.row_stride).cast::<__m256i>()) };
            }
            for (i, row) in square(r).into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm256_storeu_si256(to.add((p + i) * to_stride).cast::<__m256i>(), row) };
            }
        }
    }

    /// Transposes eight by eight lanes: pairs, then fours, then halves.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn square(mut r: [__m256i; GROUP]) -> [__m256i; GROUP] {
        let mut s = r;
        for i in 0..4 {
            s[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            s[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in [0, 4] {
            r[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
            r[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
            r[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
            r[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
        }
        for i in 0..4 {
            s[i] = _mm256_permute2x128_si256::<0x20>(r[i], r[i + 4]);
            s[i + 4] = _mm256_permute2x128_si256::<0x31>(r[i], r[i + 4]);
        }
        s
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{
        uint32x4_t, vdupq_n_u32, vld1q_u32, vreinterpretq_u32_u64, vreinterpretq_u64_u32, vst1q_u32, vtrn1q_u32,
        vtrn1q_u64, vtrn2q_u32, vtrn2q_u64,
    };

    use super::{GROUP, Group};

    /// Lanes of a register.
    pub(super) const SQUARE: usize = 4;

    /// # Safety
    /// The rows hold `lanes` lanes, a multiple of four; `to` holds `lanes` groups.
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn transpose(rows: Group<'_>, lanes: usize, to: *mut u32, to_stride: usize) {
        for p in (0..lanes).step_by(SQUARE) {
            let from = rows.lanes.as_ptr().wrapping_add(rows.at(p));
            for half in (0..GROUP).step_by(SQUARE) {
                let mut r = [vdupq_n_u32(0); SQUARE];
                for (i, row) in r.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    *row = unsafe { vld1q_u32(from.add((half + i) * rows.row_stride)) };
                }
                for (i, row) in square(r).into_iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe { vst1q_u32(to.add((p + i) * to_stride + half), row) };
                }
            }
        }
    }

    /// Transposes four by four lanes: pairs, then fours.
    #[inline]
    #[target_feature(enable = "neon")]
    fn square([a, b, c, d]: [uint32x4_t; SQUARE]) -> [uint32x4_t; SQUARE] {
        let even = [vtrn1q_u32(a, b), vtrn1q_u32(c, d)].map(|pairs| vreinterpretq_u64_u32(pairs));
        let odd = [vtrn2q_u32(a, b), vtrn2q_u32(c, d)].map(|pairs| vreinterpretq_u64_u32(pairs));
        [
            vtrn1q_u64(even[0], even[1]),
            vtrn1q_u64(odd[0], odd[1]),
            vtrn2q_u64(even[0], even[1]),
            vtrn2q_u64(odd[0], odd[1]),
        ]
        .map(|row| vreinterpretq_u32_u64(row))
    }
}
