//! Attention in AVX-512, in bf16 or in f32: everything that a head's products read is laid out once, in the order that
//! the register tiles read it, and scores go from tile to softmax to tile within the first cache.

mod backward;
mod forward;
mod head;
mod layout;
mod softmax;
mod tile;

pub(super) use backward::backward;
pub(super) use forward::forward;

use std::arch::x86_64::{__m512, __m512i, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_storeu_ps, _mm512_storeu_si512};
use std::ops::Range;

/// Lanes of one vector.
const LANES: usize = 16;
/// Columns of a tile: two vectors.
const WIDE: usize = 2 * LANES;

/// A cache line.
type Line<T> = [T; LANES];
/// A row of a tile.
type Wide<T> = [Line<T>; 2];

fn lines<T>(buffer: &[T]) -> &[Line<T>] {
    buffer.as_chunks().0
}

fn lines_mut<T>(buffer: &mut [T]) -> &mut [Line<T>] {
    buffer.as_chunks_mut().0
}

fn wides<T>(buffer: &[T]) -> &[Wide<T>] {
    lines(buffer).as_chunks().0
}

fn wides_mut<T>(buffer: &mut [T]) -> &mut [Wide<T>] {
    lines_mut(buffer).as_chunks_mut().0
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &Line<f32>) -> __m512 {
    // SAFETY: a line is a vector.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(values: __m512, to: &mut Line<f32>) {
    // SAFETY: a line is a vector.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_lanes(from: &Line<u32>) -> __m512i {
    // SAFETY: a line is a vector.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_lanes(lanes: __m512i, to: &mut Line<u32>) {
    // SAFETY: a line is a vector.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), lanes) }
}

/// Cuts `range` into as few parts of at most `most` as there can be, about equal, at multiples of `step` from its start.
fn cuts(range: Range<usize>, most: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let steps = range.len().div_ceil(step);
    let count = steps.div_ceil(most / step);
    (0..count).map(move |i| {
        let [start, end] = [i, i + 1].map(|i| range.start + i * steps / count * step);
        start..end.min(range.end)
    })
}

/// The bits of a tile's columns that are below `count`.
fn columns_below(count: usize) -> u32 {
    u32::MAX.checked_shr((WIDE - count.min(WIDE)) as u32).unwrap_or(0)
}
