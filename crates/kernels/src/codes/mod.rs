//! Low-bit codes: packing, and decoding at the speed of the product.
//!
//! Codes are a bit stream, the first code in the highest bits. At 4 bits this is the layout of bitsandbytes; at 3 bits 64
//! codes take 24 bytes. Blocks of `block` consecutive values of the flattened tensor share one absolute maximum.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use crate::dispatch::{Path, multiversion};
use crate::gemm::round_to_bf16;
use crate::scratch::Scratch;

/// Codes that are decoded at once; every width fills whole bytes with them.
const CHUNK: usize = 64;

/// What the codes of a width stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeBook {
    /// Bits of a code: 2, 3, 4 or 8.
    pub bits: u8,
    /// The value of each code, `2^bits` of them, usually in [-1, 1].
    pub table: Vec<f32>,
}

/// Packs codes, the first in the highest bits.
///
/// # Panics
/// When `bits` is not 2, 3, 4 or 8, or a code does not fit in it.
pub fn pack_codes(bits: u8, codes: &[u8]) -> Vec<u8> {
    check_bits(bits);
    let width = usize::from(bits);
    let mut packed = vec![0u8; packed_len(bits, codes.len())];
    for (group, to) in codes.chunks(8).zip(packed.chunks_mut(width)) {
        let mut word = 0u64;
        for (i, &code) in group.iter().enumerate() {
            assert!(u32::from(code) < 1 << bits, "code {code} does not fit in {bits} bits");
            word |= u64::from(code) << (64 - width * (i + 1));
        }
        to.copy_from_slice(&word.to_be_bytes()[..to.len()]);
    }
    packed
}

/// The first `count` codes of a packed stream: the inverse of [`pack_codes`].
///
/// # Panics
/// When `bits` is not 2, 3, 4 or 8, or the stream is shorter.
pub fn unpack_codes(bits: u8, packed: &[u8], count: usize) -> Vec<u8> {
    check_bits(bits);
    let bytes = packed_len(bits, count);
    assert!(packed.len() >= bytes, "{count} codes of {bits} bits take {bytes} bytes, got {}", packed.len());
    let mut codes = vec![0u8; count.next_multiple_of(CHUNK)];
    let chunk_bytes = usize::from(bits) * CHUNK / 8;
    for (from, to) in packed[..bytes].chunks(chunk_bytes).zip(codes.chunks_mut(CHUNK)) {
        let mut whole = [0u8; CHUNK];
        whole[..from.len()].copy_from_slice(from);
        let mut chunk = [0u8; CHUNK];
        unpack_chunk(bits, &whole[..chunk_bytes], &mut chunk);
        to.copy_from_slice(&chunk);
    }
    codes.truncate(count);
    codes
}

fn check_bits(bits: u8) {
    assert!(matches!(bits, 2 | 3 | 4 | 8), "codes of {bits} bits; choose 2, 3, 4 or 8");
}

fn packed_len(bits: u8, count: usize) -> usize {
    (count * usize::from(bits)).div_ceil(8)
}

#[inline(always)]
fn unpack_chunk(bits: u8, from: &[u8], to: &mut [u8; CHUNK]) {
    match bits {
        2 => unpack_groups::<2>(from, to),
        3 => unpack_groups::<3>(from, to),
        4 => {
            for (pair, &byte) in to.chunks_exact_mut(2).zip(from) {
                pair[0] = byte >> 4;
                pair[1] = byte & 15;
            }
        }
        _ => to.copy_from_slice(from),
    }
}

/// Eight codes of `BITS` bits from every `BITS` bytes.
#[inline(always)]
fn unpack_groups<const BITS: usize>(from: &[u8], to: &mut [u8; CHUNK]) {
    for (group, bytes) in to.chunks_exact_mut(8).zip(from.chunks_exact(BITS)) {
        let word = bytes.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        for (i, code) in group.iter_mut().enumerate() {
            *code = (word >> (BITS * (7 - i)) & ((1 << BITS) - 1)) as u8;
        }
    }
}

/// Chunks to decode one after the other: `count` runs of `len` chunks, starting `step` apart.
#[derive(Clone, Copy)]
struct Runs {
    first: usize,
    len: usize,
    step: usize,
    count: usize,
}

impl Runs {
    fn one(first: usize, len: usize) -> Self {
        Self { first, len, step: 0, count: 1 }
    }

    #[inline(always)]
    fn chunks(self) -> impl Iterator<Item = usize> {
        (0..self.count).flat_map(move |run| {
            let first = self.first + run * self.step;
            first..first + self.len
        })
    }
}

/// The codes of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    bits: u8,
    /// The code book, padded so that any byte is an index.
    table: Box<[f32; 256]>,
    /// The low and the high 16 bits of its values.
    #[cfg(target_arch = "x86_64")]
    halves: Box<[[u16; 256]; 2]>,
    packed: Vec<u8>,
    absmax: Vec<f32>,
    block: usize,
    len: usize,
}

impl Codes {
    pub(crate) fn new(len: usize, book: &CodeBook, packed: Vec<u8>, absmax: Vec<f32>, block: usize) -> Self {
        check_bits(book.bits);
        let values = 1usize << book.bits;
        assert_eq!(book.table.len(), values, "a code book of {} bits has {values} values", book.bits);
        assert!(
            block > 0 && block.is_multiple_of(CHUNK),
            "a block of {block} values; it must be a multiple of {CHUNK}"
        );
        let bytes = packed_len(book.bits, len);
        assert_eq!(packed.len(), bytes, "{len} codes of {} bits take {bytes} bytes", book.bits);
        assert_eq!(absmax.len(), len.div_ceil(block), "one absolute maximum for each block of {block} values");
        let mut table = Box::new([0f32; 256]);
        table[..values].copy_from_slice(&book.table);
        Self {
            bits: book.bits,
            #[cfg(target_arch = "x86_64")]
            halves: Box::new([0, 16].map(|shift| table.map(|value| (value.to_bits() >> shift) as u16))),
            table,
            packed,
            absmax,
            block,
            len,
        }
    }

    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    pub(crate) fn bytes(&self) -> usize {
        self.packed.len() + size_of_val(self.absmax.as_slice())
    }

    pub(crate) fn read(&self, path: Path, range: Range<usize>, to: &mut [f32]) {
        self.by_chunks(range, to, |runs, to| decode(path, self, runs, to));
    }

    pub(crate) fn read_bf16(&self, path: Path, range: Range<usize>, to: &mut [u16]) {
        self.by_chunks(range, to, |runs, to| self.decode_bf16(path, runs, to));
    }

    /// Reads `columns` of each of `rows`, where the tensor is a matrix with rows of `row_len` values.
    pub(crate) fn read_rows_bf16(
        &self,
        path: Path,
        row_len: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        to: &mut [u16],
    ) {
        let whole = [row_len, columns.start, columns.end].iter().all(|edge| edge.is_multiple_of(CHUNK));
        if whole {
            let first = (rows.start * row_len + columns.start) / CHUNK;
            let runs = Runs { first, len: columns.len() / CHUNK, step: row_len / CHUNK, count: rows.len() };
            self.fetch(Runs { first: first + rows.len() * runs.step, ..runs });
            self.decode_bf16(path, runs, to);
            return;
        }
        for (i, row) in rows.enumerate() {
            let range = row * row_len + columns.start..row * row_len + columns.end;
            self.read_bf16(path, range, &mut to[i * columns.len()..][..columns.len()]);
        }
    }

    /// Brings codes into the cache, as far as there are such.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "no such instruction in stable Rust"))]
    fn fetch(&self, runs: Runs) {
        #[cfg(target_arch = "x86_64")]
        for chunk in runs.chunks() {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = self.packed.as_ptr().wrapping_add(chunk * self.chunk_bytes());
            // SAFETY: SSE is in every x86-64, and any address may be asked for.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
    }

    fn chunk_bytes(&self) -> usize {
        usize::from(self.bits) * CHUNK / 8
    }

    /// Decodes a range through `decode`, which does runs of whole chunks; the ends go through a buffer.
    fn by_chunks<T: Copy + Default>(&self, range: Range<usize>, to: &mut [T], decode: impl Fn(Runs, &mut [T])) {
        debug_assert!(range.end <= self.len && to.len() == range.len());
        let mut at = range.start;
        while at < range.end {
            let (chunk, skipped) = (at / CHUNK, at % CHUNK);
            let rest = &mut to[at - range.start..];
            let run = rest.len() / CHUNK;
            if skipped == 0 && run > 0 {
                decode(Runs::one(chunk, run), &mut rest[..run * CHUNK]);
                at += run * CHUNK;
            } else {
                let mut buffer = [T::default(); CHUNK];
                decode(Runs::one(chunk, 1), &mut buffer);
                let count = rest.len().min(CHUNK - skipped);
                rest[..count].copy_from_slice(&buffer[skipped..skipped + count]);
                at += count;
            }
        }
    }

    /// Calls `body` with each chunk's bytes, completed with zeros at the end of the tensor, and its scale.
    #[inline(always)]
    fn each_chunk(&self, runs: Runs, mut body: impl FnMut(usize, &[u8], f32)) {
        let bytes = self.chunk_bytes();
        let mut last = [0u8; CHUNK];
        for (i, chunk) in runs.chunks().enumerate() {
            let from = &self.packed[chunk * bytes..self.packed.len().min((chunk + 1) * bytes)];
            let from = if from.len() == bytes {
                from
            } else {
                last[..from.len()].copy_from_slice(from);
                &last[..bytes]
            };
            // A division costs as much as a quarter of the chunk does.
            let block = if self.block == CHUNK { chunk } else { chunk * CHUNK / self.block };
            body(i, from, self.absmax[block]);
        }
    }

    fn decode_bf16(&self, path: Path, runs: Runs, to: &mut [u16]) {
        #[cfg(target_arch = "x86_64")]
        if path.multiplies_bf16() {
            // SAFETY: `Path::current` hands out supported paths only.
            unsafe { avx512::decode_bf16(self, runs, to) };
            return;
        }
        let mut plain = Scratch::<f32>::take(to.len());
        decode(path, self, runs, &mut plain);
        round_to_bf16(path, &plain, to);
    }
}

multiversion!(fn decode(codes: &Codes, runs: Runs, to: &mut [f32]) = decode_body);

#[inline(always)]
fn decode_body<const FMA: bool>(codes: &Codes, runs: Runs, to: &mut [f32]) {
    let mut unpacked = [0u8; CHUNK];
    codes.each_chunk(runs, |i, bytes, scale| {
        unpack_chunk(codes.bits, bytes, &mut unpacked);
        for (to, &code) in to[i * CHUNK..(i + 1) * CHUNK].iter_mut().zip(&unpacked) {
            *to = codes.table[usize::from(code)] * scale;
        }
    });
}
