//! Symmetric 8-bit integers with one scale for each row.

use std::ops::Range;

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::element::round;

/// The largest code; -128 is not used, so that codes are symmetric.
const MOST: f32 = 127.0;

/// The codes of a matrix: a value is `code · scale of its row`.
#[derive(Clone, Debug)]
pub(crate) struct Int8 {
    columns: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Int8 {
    /// The nearest codes, ties to even, with the least scale for each row at which none is larger than [`MOST`].
    pub(crate) fn quantise(rows: usize, columns: usize, weights: &[f32]) -> Self {
        let path = Path::current();
        let (mut codes, mut scales) = (vec![0; weights.len()], vec![0.0; rows]);
        let row = columns.max(1);
        let of_rows = weights.par_chunks(row).zip(codes.par_chunks_mut(row)).zip(&mut scales);
        of_rows.for_each(|((weights, codes), scale)| {
            *scale = weights.iter().fold(0f32, |most, weight| most.max(weight.abs())) / MOST;
            if *scale > 0.0 {
                encode(path, weights, *scale, codes);
            }
        });
        Self { columns, codes, scales }
    }

    pub(crate) fn new(columns: usize, codes: Vec<i8>, scales: Vec<f32>) -> Self {
        Self { columns, codes, scales }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.scales.as_slice())
    }

    pub(crate) fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        let (codes, scale) = self.row(row, columns);
        decode(path, codes, scale, to);
    }

    pub(crate) fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        let (codes, scale) = self.row(row, columns);
        #[cfg(target_arch = "x86_64")]
        if path.multiplies_bf16() {
            // SAFETY: `Path::current` hands out supported paths only.
            unsafe { avx512::decode_bf16(codes, scale, to) };
            return;
        }
        decode_bf16(path, codes, scale, to);
    }

    fn row(&self, row: usize, columns: Range<usize>) -> (&[i8], f32) {
        (&self.codes[row * self.columns..][columns], self.scales[row])
    }
}

multiversion!(fn encode(weights: &[f32], scale: f32, codes: &mut [i8]) = encode_body);

#[inline(always)]
fn encode_body<const FMA: bool>(weights: &[f32], scale: f32, codes: &mut [i8]) {
    for (code, &weight) in codes.iter_mut().zip(weights) {
        // Beyond the largest code only where the scale is so small that it is rounded itself.
        *code = (weight / scale).round_ties_even().clamp(-MOST, MOST) as i8;
    }
}

multiversion!(fn decode(codes: &[i8], scale: f32, to: &mut [f32]) = decode_body);

#[inline(always)]
fn decode_body<const FMA: bool>(codes: &[i8], scale: f32, to: &mut [f32]) {
    for (to, &code) in to.iter_mut().zip(codes) {
        *to = f32::from(code) * scale;
    }
}

multiversion!(fn decode_bf16(codes: &[i8], scale: f32, to: &mut [u16]) = decode_bf16_body);

#[inline(always)]
fn decode_bf16_body<const FMA: bool>(codes: &[i8], scale: f32, to: &mut [u16]) {
    for (to, &code) in to.iter_mut().zip(codes) {
        *to = round(f32::from(code) * scale);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m128i, __m512bh, __m512i, _mm_loadu_si128, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtne2ps_pbh,
        _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_si512,
    };
    use std::mem::transmute;

    const LANES: usize = 16;

    /// # Safety
    /// The processor has AVX-512 with BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(super) unsafe fn decode_bf16(codes: &[i8], scale: f32, to: &mut [u16]) {
        let vector = _mm512_set1_ps(scale);
        let (pairs, rest) = codes.as_chunks::<{ 2 * LANES }>();
        let (to_pairs, to_rest) = to.as_chunks_mut::<{ 2 * LANES }>();
        for (codes, to) in pairs.iter().zip(to_pairs) {
            // SAFETY: 32 codes are two loads of 16 bytes, 32 bf16 one store of 64; vectors of bf16 and of integers are the
            // same plain bits.
            unsafe {
                let value = |first: usize| {
                    let codes = _mm_loadu_si128(codes.as_ptr().add(first).cast::<__m128i>());
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), vector)
                };
                let rounded = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(value(LANES), value(0)));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded);
            }
        }
        super::decode_bf16_body::<true>(rest, scale, to_rest);
    }
}
