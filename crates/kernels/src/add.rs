//! Sums of activations and of gradients.

use rayon::prelude::*;

use crate::dense::Write;
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::vector::{CHUNK, LEAST_JOBS, store};

/// `y += x`, element by element.
///
/// # Panics
/// When the slices differ in length.
pub fn add_into<E: Element>(x: &[E], y: &mut [E]) {
    assert_eq!(x.len(), y.len(), "x and y of a sum");
    let path = Path::current();
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).with_min_len(LEAST_JOBS).for_each(|(x, y)| add(path, x, y));
}

multiversion!(pub(crate) fn add<E: Element>(x: &[E], y: &mut [E]) = add_body);

#[inline(always)]
fn add_body<const FMA: bool, E: Element>(x: &[E], y: &mut [E]) {
    store(Write::Accumulate, x.iter().map(|x| x.to_f32()), y);
}
