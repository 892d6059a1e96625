//! One head of one sequence within a packed tensor: reading it and writing it.
//!
//! Its rows are a few cache lines each, a whole token apart: too far for the processor to see them coming. So they are
//! asked for bit by bit while the products of the head before are computed.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512i, _MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch, _mm256_mask_storeu_epi16,
    _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtneps_pbh, _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi16,
    _mm512_maskz_loadu_epi32, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::mem::transmute;
use std::ops::Range;

use super::layout::{elements, pieces};
use super::softmax::by_row;
use super::tile::multiply_add;
use super::{LANES, WIDE, Wide, lines_mut, load, store, store_lanes};
use crate::element::Element;
use crate::shared::SharedSlice;

/// Where a head lies: the `dim` columns from `column`, in the rows of a sequence.
pub(super) struct Head {
    /// Elements of a token.
    pub(super) width: usize,
    pub(super) tokens: Range<usize>,
    pub(super) column: usize,
    pub(super) dim: usize,
}

impl Head {
    fn offset(&self, row: usize) -> usize {
        (self.tokens.start + row) * self.width + self.column
    }

    /// Elements from a row to the same of what is read after this head: the next head, or the next sequence's first.
    fn ahead(&self) -> usize {
        if self.column + self.dim < self.width { self.dim } else { self.tokens.len() * self.width - self.column }
    }

    /// Copies the head as rows; the lines up to `padded` and what follows the last element of a row become 0.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn read<E: Element>(&self, from: &[E], padded: usize, to: &mut [u32]) {
        let width = LANES * elements::<E>();
        for (piece, to) in lines_mut(to).chunks_exact_mut(padded).take(pieces::<E>(self.dim)).enumerate() {
            let columns = piece * width..self.dim.min((piece + 1) * width);
            let (filled, padding) = to.split_at_mut(self.tokens.len());
            for (row, to) in filled.iter_mut().enumerate() {
                store_lanes(self.lanes(from, row, columns.clone()), to);
            }
            padding.fill([0; LANES]);
        }
    }

    /// At most 16 lanes of a row, zeros behind them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn lanes<E: Element>(&self, from: &[E], row: usize, columns: Range<usize>) -> __m512i {
        let from = &from[self.offset(row)..][columns];
        // SAFETY: the masks keep to the slice; an `E` that is no bf16 is an f32.
        unsafe {
            if E::IS_BF16 {
                _mm512_maskz_loadu_epi16(u32::MAX >> (2 * LANES - from.len()), from.as_ptr().cast())
            } else {
                _mm512_maskz_loadu_epi32(u16::MAX >> (LANES - from.len()), from.as_ptr().cast())
            }
        }
    }

    /// The inner products of each row of two tensors; zeros up to the length of `to`, a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn inner<E: Element>(&self, x: &[E], y: &[E], to: &mut [f32]) {
        let width = LANES * elements::<E>();
        for (group, to) in lines_mut(to).iter_mut().enumerate() {
            let mut sums = [_mm512_setzero_ps(); LANES];
            for piece in 0..pieces::<E>(self.dim) {
                let columns = piece * width..self.dim.min((piece + 1) * width);
                for (sum, row) in sums.iter_mut().zip(group * LANES..self.tokens.len()) {
                    let (x, y) = (self.lanes(x, row, columns.clone()), self.lanes(y, row, columns.clone()));
                    *sum = multiply_add::<E>(_mm512_castsi512_ps(x), _mm512_castsi512_ps(y), *sum);
                }
            }
            store(by_row(sums, |a, b| _mm512_add_ps(a, b)), to);
        }
    }

    /// Asks for some rows of the head that is read after this one.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn fetch_next<E: Element>(&self, rows: Range<usize>, from: &[E]) {
        let ahead = self.ahead();
        for row in rows {
            let first = from.as_ptr().wrapping_add(self.offset(row) + ahead);
            fetch::<_MM_HINT_T1, E>(first, self.dim, ahead != self.dim);
        }
    }

    /// Asks for some rows of this head, which are written next.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn fetch_to_write<E: Element>(&self, rows: Range<usize>, to: SharedSlice<'_, E>) {
        for row in rows {
            fetch::<_MM_HINT_ET0, E>(to.at(self.offset(row)), self.dim, self.column == 0);
        }
    }

    /// Writes the columns of panel `panel` of some rows: their sums, times a factor for each.
    ///
    /// # Safety
    /// Nobody else touches these elements.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn write<E: Element>(
        &self,
        rows: Range<usize>,
        panel: usize,
        sums: &[Wide<f32>],
        factor: impl Fn(usize) -> f32,
        to: SharedSlice<'_, E>,
    ) {
        let columns = panel * WIDE..self.dim.min((panel + 1) * WIDE);
        for (i, (row, sums)) in rows.zip(sums).enumerate() {
            // SAFETY: the caller's promise.
            let to = unsafe { to.slice(self.offset(row) + columns.start, columns.len()) };
            let factor = _mm512_set1_ps(factor(i));
            for (sums, to) in sums.iter().zip(to.chunks_mut(LANES)) {
                put(_mm512_mul_ps(load(sums), factor), to);
            }
        }
    }
}

/// Asks for the cache lines of `len` elements. Heads begin within lines: the first is here already if it is the last of
/// the head before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn fetch<const HINT: i32, E>(first: *const E, len: usize, is_first_head: bool) {
    let last = first.wrapping_add(len - 1).cast::<i8>();
    for before in (0..len * size_of::<E>()).step_by(64) {
        _mm_prefetch::<HINT>(last.wrapping_sub(before));
    }
    if is_first_head {
        _mm_prefetch::<HINT>(first.cast());
    }
}

/// Stores at most 16 elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put<E: Element>(values: __m512, to: &mut [E]) {
    let mask = u16::MAX >> (LANES - to.len());
    // SAFETY: the mask keeps to the slice; an `E` that is no bf16 is an f32; vectors of bf16 and of integers are the same
    // bits.
    unsafe {
        if E::IS_BF16 {
            let halves = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
            _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, halves);
        } else {
            _mm512_mask_storeu_ps(to.as_mut_ptr().cast(), mask, values);
        }
    }
}

/// A step of work that something else is done along with, bit by bit.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) step: usize,
    pub(super) steps: usize,
}

impl Step {
    /// The share of `rows` rows that falls to this step.
    pub(super) fn of(self, rows: usize) -> Range<usize> {
        self.step * rows / self.steps..(self.step + 1) * rows / self.steps
    }
}
