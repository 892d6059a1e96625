//! Decoding to bf16 in registers: code books of at most 16 values are looked up in one of them, 256 values in sixteen.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512bh, __m512i, _mm_loadu_si128, _mm256_loadu_si256, _mm256_set_m128i,
    _mm256_shuffle_epi8, _mm512_add_epi32, _mm512_castsi256_si512, _mm512_castsi512_ps, _mm512_cvtepu8_epi16,
    _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_epi16, _mm512_mul_ps,
    _mm512_permutex2var_epi16, _mm512_permutexvar_epi32, _mm512_permutexvar_epi64, _mm512_permutexvar_ps,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi64, _mm512_srlv_epi32, _mm512_storeu_si512,
    _mm512_test_epi16_mask, _mm512_unpackhi_epi16, _mm512_unpacklo_epi16,
};
use std::array::from_fn;
use std::mem::transmute;

use super::{CHUNK, Codes, Runs};

/// Elements of one store.
const STORE: usize = 32;

/// Decodes whole chunks.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn decode_bf16(codes: &Codes, runs: Runs, to: &mut [u16]) {
    match codes.bits {
        2 => narrow::<2>(codes, runs, to),
        3 => narrow::<3>(codes, runs, to),
        4 => narrow::<4>(codes, runs, to),
        _ => wide(codes, runs, to),
    }
}

/// Codes of 2, 3 or 4 bits. A chunk is eight groups of eight codes, each `BITS` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn narrow<const BITS: usize>(codes: &Codes, runs: Runs, to: &mut [u16]) {
    // The lookup reads four bits of an index: the book repeats itself, so that those above a code do not matter.
    let book: [f32; 16] = from_fn(|i| codes.table[i % (1 << BITS)]);
    // Each group becomes a number: its bytes in reverse, zeros above. Four groups come from a load at the chunk's start,
    // four from one at its end.
    let order: [i8; 32] = from_fn(|i| {
        let (group, byte) = (i / 4, i % 4);
        let start = if group < 4 { 0 } else { 8 * BITS - 16 };
        if byte < BITS { (group * BITS - start + BITS - 1 - byte) as i8 } else { -1 }
    });
    // Of sixteen lanes, eight take one group and eight the next; each shifts its code down to the lowest bits.
    let groups: [i32; 16] = from_fn(|lane| (lane / 8) as i32);
    let shifts: [i32; 16] = from_fn(|lane| (BITS * (7 - lane % 8)) as i32);
    // SAFETY: the arrays are as long as the loads.
    let (book, order, groups, shifts) = unsafe {
        (
            _mm512_loadu_ps(book.as_ptr()),
            _mm256_loadu_si256(order.as_ptr().cast::<__m256i>()),
            _mm512_loadu_si512(groups.as_ptr().cast()),
            _mm512_loadu_si512(shifts.as_ptr().cast()),
        )
    };
    codes.each_chunk(runs, |i, bytes, scale| {
        assert!(bytes.len() == 8 * BITS);
        // SAFETY: both loads are of 16 bytes within the chunk's 8 · BITS.
        let numbers = unsafe {
            let start = _mm_loadu_si128(bytes.as_ptr().cast::<__m128i>());
            let end = _mm_loadu_si128(bytes.as_ptr().add(8 * BITS - 16).cast::<__m128i>());
            _mm512_castsi256_si512(_mm256_shuffle_epi8(_mm256_set_m128i(end, start), order))
        };
        let scale = _mm512_set1_ps(scale);
        let values = |first: i32| {
            let number = _mm512_permutexvar_epi32(_mm512_add_epi32(groups, _mm512_set1_epi32(first)), numbers);
            _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srlv_epi32(number, shifts), book), scale)
        };
        let (first, second) = to[i * CHUNK..(i + 1) * CHUNK].split_at_mut(STORE);
        store(rounded(values(0), values(2)), first);
        store(rounded(values(4), values(6)), second);
    });
}

/// Codes of 8 bits. The halves of the book's values are looked up apart, each among 256 words in eight registers: measured
/// three times as fast as a loop that reads the book from memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn wide(codes: &Codes, runs: Runs, to: &mut [u16]) {
    // SAFETY: each half of the book is 256 words, eight loads of 32.
    let [low, high]: [[__m512i; 8]; 2] =
        from_fn(|half| from_fn(|i| unsafe { _mm512_loadu_si512(codes.halves[half].as_ptr().add(STORE * i).cast()) }));
    let (bit_6, bit_7) = (_mm512_set1_epi16(1 << 6), _mm512_set1_epi16(1 << 7));
    // Fours of the even and of the odd half of a rounded pair, in turn.
    let in_order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    codes.each_chunk(runs, |i, bytes, scale| {
        let scale = _mm512_set1_ps(scale);
        let to = &mut to[i * CHUNK..(i + 1) * CHUNK];
        for (to, bytes) in to.chunks_exact_mut(STORE).zip(bytes.chunks_exact(STORE)) {
            // SAFETY: 32 bytes.
            let index = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast::<__m256i>()) });
            let (bit_6, bit_7) = (_mm512_test_epi16_mask(index, bit_6), _mm512_test_epi16_mask(index, bit_7));
            let look_up = |words: &[__m512i; 8]| {
                // Each reads the low six bits of the index.
                let quarter = |i: usize| _mm512_permutex2var_epi16(words[2 * i], index, words[2 * i + 1]);
                let below = _mm512_mask_blend_epi16(bit_6, quarter(0), quarter(1));
                let above = _mm512_mask_blend_epi16(bit_6, quarter(2), quarter(3));
                _mm512_mask_blend_epi16(bit_7, below, above)
            };
            let (low, high) = (look_up(&low), look_up(&high));
            let even = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low, high));
            let odd = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, high));
            let values = rounded(_mm512_mul_ps(even, scale), _mm512_mul_ps(odd, scale));
            store(_mm512_permutexvar_epi64(in_order, values), to);
        }
    });
}

/// 32 bf16, of `first` and of `second`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 512 plain bits.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: __m512i, to: &mut [u16]) {
    assert!(to.len() == STORE);
    // SAFETY: 32 bf16 are 64 bytes.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), values) };
}
