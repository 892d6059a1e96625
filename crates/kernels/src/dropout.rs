//! Dropout whose mask is a function of a key and an element's index: nothing is stored for the backward pass.
//!
//! The generator is Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with 13 rounds,
//! which its authors found enough for TestU01's BigCrush. Made of additions, rotations and exclusive ors of u32 alone, it
//! vectorises on every processor, where its sibling Philox needs the high halves of products. Its key is a u64, and one
//! block gives 16 bits for each of four elements.

use rayon::prelude::*;

use crate::dense::Write;
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::vector::{CHUNK, LEAST_JOBS, store};

/// Blocks of the generator that are made at once, for a group of elements: the lower halves of the blocks' first words are
/// the first quarter of the group, then come the upper halves, then the second words.
const BLOCKS: usize = 64;
const GROUP: usize = 4 * BLOCKS;
const _: () = assert!(CHUNK.is_multiple_of(GROUP));

/// Dropout (Srivastava et al. 2014): `y = x·mask/(1 - probability)`, or `y += …`, where an element's mask is 0 with
/// `probability` and 1 otherwise. The gradient is the same call on `dy`. The probability is rounded to 16 bits, and the
/// scale is that of the rounded one.
///
/// The mask of element `i` depends on `key` and `i` alone. Derive a key for each place and each step from the run's seed.
///
/// # Panics
/// When the slices differ in length, or `probability` is not in [0, 1).
pub fn dropout<E: Element>(x: &[E], probability: f32, key: u64, write: Write, y: &mut [E]) {
    assert_eq!(x.len(), y.len(), "x and y of dropout");
    assert!((0.0..1.0).contains(&probability), "a dropout probability of {probability}; it must be in [0, 1)");
    const ALL: f32 = 65_536.0;
    let dropped = (probability * ALL).round().min(ALL - 1.0);
    let mask = Mask { key: [key as u32, (key >> 32) as u32], dropped: dropped as u16, scale: ALL / (ALL - dropped) };
    let path = Path::current();
    x.par_chunks(CHUNK)
        .zip(y.par_chunks_mut(CHUNK))
        .enumerate()
        .with_min_len(LEAST_JOBS)
        .for_each(|(i, (x, y))| run(path, mask, i * (CHUNK / GROUP), x, write, y));
}

#[derive(Clone, Copy)]
struct Mask {
    key: [u32; 2],
    /// Random bits below these drop their element.
    dropped: u16,
    scale: f32,
}

multiversion!(fn run<E: Element>(mask: Mask, first_group: usize, x: &[E], write: Write, y: &mut [E]) = run_body);

#[inline(always)]
fn run_body<const FMA: bool, E: Element>(mask: Mask, first_group: usize, x: &[E], write: Write, y: &mut [E]) {
    let mut bits = [[0u16; BLOCKS]; 4];
    for (i, (x, y)) in x.chunks(GROUP).zip(y.chunks_mut(GROUP)).enumerate() {
        let counter = ((first_group + i) * BLOCKS) as u64;
        fill(mask.key, counter, &mut bits);
        let kept = x.iter().zip(bits.as_flattened()).map(|(&x, &bits)| {
            let scaled = x.to_f32() * mask.scale;
            if bits >= mask.dropped { scaled } else { 0.0 }
        });
        store(write, kept, y);
    }
}

/// The blocks from `counter`, a multiple of `BLOCKS`, so that the lower half of none overflows.
#[inline(always)]
fn fill(key: [u32; 2], counter: u64, [a, b, c, d]: &mut [[u16; BLOCKS]; 4]) {
    let (low, high) = (counter as u32, (counter >> 32) as u32);
    for (i, ((a, b), (c, d))) in a.iter_mut().zip(b).zip(c.iter_mut().zip(d)).enumerate() {
        let [first, second] = threefry([low.wrapping_add(i as u32), high], key);
        (*a, *b) = (first as u16, (first >> 16) as u16);
        (*c, *d) = (second as u16, (second >> 16) as u16);
    }
}

/// Threefry-2x32-13. Written out, since a loop of rounds would not be vectorised over the blocks.
#[inline(always)]
fn threefry(counter: [u32; 2], key: [u32; 2]) -> [u32; 2] {
    /// The key schedule's constant, from Skein.
    const PARITY: u32 = 0x1bd1_1bda;

    let last = key[0] ^ key[1] ^ PARITY;
    let start = inject(counter, key[0], key[1]);
    let one = inject(round(round(round(round(start, 13), 15), 26), 6), key[1], last.wrapping_add(1));
    let two = inject(round(round(round(round(one, 17), 29), 16), 24), last, key[0].wrapping_add(2));
    let three = inject(round(round(round(round(two, 13), 15), 26), 6), key[0], key[1].wrapping_add(3));
    round(three, 17)
}

#[inline(always)]
fn round([a, b]: [u32; 2], rotation: u32) -> [u32; 2] {
    let sum = a.wrapping_add(b);
    [sum, b.rotate_left(rotation) ^ sum]
}

#[inline(always)]
fn inject([a, b]: [u32; 2], for_a: u32, for_b: u32) -> [u32; 2] {
    [a.wrapping_add(for_a), b.wrapping_add(for_b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_known_answers() {
        // `kat_vectors` of Random123, the authors' library: counter, key, result.
        let answers = [
            ([0, 0], [0, 0], [0x9d1c_5ec6, 0x8bd5_0731]),
            ([!0, !0], [!0, !0], [0xfd36_d048, 0x2d17_272c]),
            ([0x243f_6a88, 0x85a3_08d3], [0x1319_8a2e, 0x0370_7344], [0xba3e_4725, 0xf27d_669e]),
        ];
        for (counter, key, result) in answers {
            assert_eq!(threefry(counter, key), result, "{counter:x?} under {key:x?}");
        }
    }
}
