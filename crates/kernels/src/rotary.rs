//! Rotary position embedding, forward and backward.

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::vector::{LEAST_JOBS, multiply_add, rows_a_job};

/// The angles of a rotary position embedding (Su et al. 2021) for every position: element `i` of the first half of a head
/// and element `i` of its second half are turned by `position · inverse_frequency[i]`, the layout that Hugging Face calls
/// `rotate_half`.
///
/// ```
/// use fedpipe_kernels::RotaryTable;
///
/// // A quarter turn a position, for heads of two elements.
/// let table = RotaryTable::from_inverse_frequencies(&[std::f64::consts::FRAC_PI_2], 3);
/// let mut x = [1f32, 0.0, 1.0, 0.0];
/// table.forward(&[1, 2], 1, &mut x);
/// assert!((x[1] - 1.0).abs() < 1e-6 && (x[2] + 1.0).abs() < 1e-6);
/// table.backward(&[1, 2], 1, &mut x);
/// assert!((x[0] - 1.0).abs() < 1e-6 && (x[2] - 1.0).abs() < 1e-6);
/// ```
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// `[positions, head_dim/2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    positions: usize,
}

impl RotaryTable {
    /// The table of the paper: `inverse_frequency[i] = theta^(-2i/head_dim)`; `theta` is 10 000 there, a model's
    /// `rope_theta`.
    ///
    /// # Panics
    /// When `head_dim` is 0 or odd.
    pub fn new(head_dim: usize, positions: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "a rotary embedding turns pairs; head_dim is {head_dim}");
        let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
        let inverse_frequencies: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(exponent(i))).collect();
        Self::from_inverse_frequencies(&inverse_frequencies, positions)
    }

    /// A table of other frequencies, `head_dim/2` of them: those of a model that scales them for long contexts.
    ///
    /// # Panics
    /// When there are none.
    pub fn from_inverse_frequencies(inverse_frequencies: &[f64], positions: usize) -> Self {
        assert!(!inverse_frequencies.is_empty(), "a rotary embedding of no frequencies");
        let angles = (0..positions).flat_map(|p| inverse_frequencies.iter().map(move |frequency| p as f64 * frequency));
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { cos, sin, half: inverse_frequencies.len(), positions }
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Positions that the table holds, from 0.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Turns the heads of `x` `[tokens, heads · head_dim]` in place, given the position of each token `[tokens]`.
    ///
    /// # Panics
    /// When `x` does not have its length, or a position is beyond the table.
    pub fn forward<E: Element>(&self, positions: &[u32], heads: usize, x: &mut [E]) {
        self.turn(1.0, positions, heads, x);
    }

    /// Turns the gradient of what [`forward`](Self::forward) gave back into that of what it took: the inverse rotation, in
    /// place.
    ///
    /// # Panics
    /// When `dx` does not have its length, or a position is beyond the table.
    pub fn backward<E: Element>(&self, positions: &[u32], heads: usize, dx: &mut [E]) {
        self.turn(-1.0, positions, heads, dx);
    }

    fn turn<E: Element>(&self, direction: f32, positions: &[u32], heads: usize, x: &mut [E]) {
        let width = heads * self.head_dim();
        assert_eq!(x.len(), positions.len() * width, "x is [tokens, heads · head_dim]");
        if let Some(beyond) = positions.iter().find(|&&position| position as usize >= self.positions) {
            panic!("position {beyond} of a rotary table of {} positions", self.positions);
        }
        if width == 0 {
            return;
        }
        let path = Path::current();
        let at_once = rows_a_job(width);
        x.par_chunks_mut(at_once * width)
            .zip(positions.par_chunks(at_once))
            .with_min_len(LEAST_JOBS)
            .for_each(|(x, positions)| turn_rows(path, self, direction, positions, x));
    }
}

multiversion!(
    fn turn_rows<E: Element>(table: &RotaryTable, direction: f32, positions: &[u32], x: &mut [E]) = turn_rows_body
);

#[inline(always)]
fn turn_rows_body<const FMA: bool, E: Element>(table: &RotaryTable, direction: f32, positions: &[u32], x: &mut [E]) {
    let half = table.half;
    let width = x.len() / positions.len();
    for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
        let at = position as usize * half..(position as usize + 1) * half;
        let (cos, sin) = (&table.cos[at.clone()], &table.sin[at]);
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for ((first, second), (&cos, &sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                let (a, b, sin) = (first.to_f32(), second.to_f32(), direction * sin);
                *first = E::from_f32(multiply_add::<FMA>(a, cos, -(b * sin)));
                *second = E::from_f32(multiply_add::<FMA>(b, cos, a * sin));
            }
        }
    }
}
