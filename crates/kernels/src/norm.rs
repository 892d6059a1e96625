//! Layer norm and RMS norm over rows of `hidden` elements, with frozen scale and shift.
//!
//! Both take the residual along: they normalise `s = x + residual`, rounded to the element type, so that the result is
//! the same whether the sum is kept or not. `hidden` is the length of `gamma`.

use rayon::prelude::*;

use crate::dense::Write;
use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::scratch::Scratch;
use crate::vector::{LEAST_JOBS, dot, multiply_add, rows_a_job, store, sum};

/// What a norm writes; all `[rows, hidden]` but `rstd`.
#[derive(Debug)]
pub struct NormOutput<'a, E> {
    /// The normalised, scaled and shifted rows.
    pub y: &'a mut [E],
    /// `x + residual` itself: what pre-norm models carry on.
    pub sum: Option<&'a mut [E]>,
    /// What the backward pass needs.
    pub saved: Option<NormSaved<'a, E>>,
}

/// What the backward pass of a norm needs.
#[derive(Debug)]
pub struct NormSaved<'a, E> {
    /// The rows before scale and shift, `[rows, hidden]`.
    pub normed: &'a mut [E],
    /// The inverse standard deviation (RMS norm: root mean square) of each row, `[rows]`.
    pub rstd: &'a mut [f32],
}

/// Layer norm (Ba et al. 2016) of `s = x + residual`, row by row: `y = (s - mean)·rstd·gamma + beta` with
/// `rstd = 1/√(variance + eps)`.
///
/// `x`, `residual` are `[rows, hidden]`, `gamma`, `beta` `[hidden]`.
///
/// # Panics
/// When a slice does not have its length, or `gamma` is empty.
pub fn layer_norm_forward<E: Element>(
    x: &[E],
    residual: Option<&[E]>,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    output: NormOutput<'_, E>,
) {
    assert_eq!(beta.len(), gamma.len(), "beta is [hidden], as gamma");
    forward(Affine { kind: Kind::Layer { beta }, gamma, eps }, x, residual, output);
}

/// RMS norm (Zhang and Sennrich 2019) of `s = x + residual`, row by row: `y = s·rstd·gamma` with
/// `rstd = 1/√(mean of s² + eps)`.
///
/// `x`, `residual` are `[rows, hidden]`, `gamma` `[hidden]`.
///
/// # Panics
/// When a slice does not have its length, or `gamma` is empty.
pub fn rms_norm_forward<E: Element>(
    x: &[E],
    residual: Option<&[E]>,
    gamma: &[f32],
    eps: f32,
    output: NormOutput<'_, E>,
) {
    forward(Affine { kind: Kind::Rms, gamma, eps }, x, residual, output);
}

/// The gradient of [`layer_norm_forward`] by `s`, which is that by `x` and that by the residual; scale and shift are
/// frozen.
///
/// `normed` and `rstd` are what the forward pass saved; `dy`, `dx` are `[rows, hidden]`.
///
/// # Panics
/// When a slice does not have its length, or `gamma` is empty.
pub fn layer_norm_backward<E: Element>(
    normed: &[E],
    rstd: &[f32],
    gamma: &[f32],
    dy: &[E],
    write: Write,
    dx: &mut [E],
) {
    backward(true, normed, rstd, gamma, dy, write, dx);
}

/// The gradient of [`rms_norm_forward`] by `s`, which is that by `x` and that by the residual; the scale is frozen.
///
/// `normed` and `rstd` are what the forward pass saved; `dy`, `dx` are `[rows, hidden]`.
///
/// # Panics
/// When a slice does not have its length, or `gamma` is empty.
pub fn rms_norm_backward<E: Element>(normed: &[E], rstd: &[f32], gamma: &[f32], dy: &[E], write: Write, dx: &mut [E]) {
    backward(false, normed, rstd, gamma, dy, write, dx);
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Layer { beta: &'a [f32] },
    Rms,
}

/// What a norm does to a row.
#[derive(Clone, Copy)]
struct Affine<'a> {
    kind: Kind<'a>,
    gamma: &'a [f32],
    eps: f32,
}

/// Some of the rows of a forward pass.
struct Piece<'a, E> {
    x: &'a [E],
    residual: Option<&'a [E]>,
    output: NormOutput<'a, E>,
}

fn forward<E: Element>(affine: Affine<'_>, x: &[E], residual: Option<&[E]>, output: NormOutput<'_, E>) {
    let (rows, at_once) = rows(x, affine.gamma);
    assert!(residual.is_none_or(|residual| residual.len() == x.len()), "the residual is [rows, hidden]");
    assert_eq!(output.y.len(), x.len(), "y is [rows, hidden]");
    assert!(output.sum.as_ref().is_none_or(|sum| sum.len() == x.len()), "the sum is [rows, hidden]");
    if let Some(saved) = &output.saved {
        assert_eq!(saved.normed.len(), x.len(), "normed is [rows, hidden]");
        assert_eq!(saved.rstd.len(), rows, "rstd is [rows]");
    }
    let elements = at_once * affine.gamma.len();
    let mut residuals = residual.map(|residual| residual.chunks(elements));
    let mut sums = output.sum.map(|sum| sum.chunks_mut(elements));
    let mut saved = output.saved.map(|saved| saved.normed.chunks_mut(elements).zip(saved.rstd.chunks_mut(at_once)));
    let pieces = x.chunks(elements).zip(output.y.chunks_mut(elements)).map(|(x, y)| Piece {
        x,
        residual: residuals.as_mut().and_then(Iterator::next),
        output: NormOutput {
            y,
            sum: sums.as_mut().and_then(Iterator::next),
            saved: saved.as_mut().and_then(Iterator::next).map(|(normed, rstd)| NormSaved { normed, rstd }),
        },
    });
    let path = Path::current();
    let pieces: Vec<_> = pieces.collect();
    pieces.into_par_iter().with_min_len(LEAST_JOBS).for_each(|piece| forward_rows(path, affine, piece));
}

/// The rows of `x`, and how many of them one job takes.
fn rows<E>(x: &[E], gamma: &[f32]) -> (usize, usize) {
    let hidden = gamma.len();
    assert!(hidden > 0, "a norm over rows of no elements");
    assert!(x.len().is_multiple_of(hidden), "x is [rows, {hidden}], as gamma says; got {} elements", x.len());
    (x.len() / hidden, rows_a_job(hidden))
}

multiversion!(fn forward_rows<E: Element>(affine: Affine<'_>, piece: Piece<'_, E>) = forward_rows_body);

#[inline(always)]
fn forward_rows_body<const FMA: bool, E: Element>(affine: Affine<'_>, piece: Piece<'_, E>) {
    let Piece { x, residual, output: NormOutput { y, sum: mut kept_sum, mut saved } } = piece;
    let hidden = affine.gamma.len();
    let mut row = Scratch::<f32>::take(hidden);
    for (i, (x, y)) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).enumerate() {
        let at = i * hidden..(i + 1) * hidden;
        match residual {
            Some(residual) => {
                for ((to, &x), &residual) in row.iter_mut().zip(x).zip(&residual[at.clone()]) {
                    *to = E::from_f32(x.to_f32() + residual.to_f32()).to_f32();
                }
            }
            None => row.iter_mut().zip(x).for_each(|(to, &x)| *to = x.to_f32()),
        }
        if let Some(sum) = &mut kept_sum {
            store(Write::Overwrite, row.iter().copied(), &mut sum[at.clone()]);
        }
        let rstd = normalise::<FMA>(affine, &mut row);
        if let Some(saved) = &mut saved {
            store(Write::Overwrite, row.iter().copied(), &mut saved.normed[at]);
            saved.rstd[i] = rstd;
        }
        let scaled = row.iter().zip(affine.gamma);
        match affine.kind {
            Kind::Layer { beta } => {
                let shifted = scaled.zip(beta).map(|((&x, &gamma), &beta)| multiply_add::<FMA>(x, gamma, beta));
                store(Write::Overwrite, shifted, y);
            }
            Kind::Rms => store(Write::Overwrite, scaled.map(|(x, gamma)| x * gamma), y),
        }
    }
}

/// Normalises a row; returns what it was divided by, inverted.
#[inline(always)]
fn normalise<const FMA: bool>(affine: Affine<'_>, row: &mut [f32]) -> f32 {
    let hidden = row.len() as f32;
    let (mean, square) = match affine.kind {
        Kind::Layer { .. } => {
            let mean = sum(row, |x| x) / hidden;
            (mean, sum(row, |x| (x - mean) * (x - mean)))
        }
        Kind::Rms => (0.0, dot::<FMA>(row, row)),
    };
    let rstd = 1.0 / (square / hidden + affine.eps).sqrt();
    row.iter_mut().for_each(|x| *x = (*x - mean) * rstd);
    rstd
}

fn backward<E: Element>(
    centred: bool,
    normed: &[E],
    rstd: &[f32],
    gamma: &[f32],
    dy: &[E],
    write: Write,
    dx: &mut [E],
) {
    let (rows, at_once) = rows(normed, gamma);
    assert_eq!(rstd.len(), rows, "rstd is [rows]");
    assert_eq!(dy.len(), normed.len(), "dy is [rows, hidden]");
    assert_eq!(dx.len(), normed.len(), "dx is [rows, hidden]");
    let elements = at_once * gamma.len();
    let path = Path::current();
    normed
        .par_chunks(elements)
        .zip(rstd.par_chunks(at_once))
        .zip(dy.par_chunks(elements))
        .zip(dx.par_chunks_mut(elements))
        .with_min_len(LEAST_JOBS)
        .for_each(|(((normed, rstd), dy), dx)| backward_rows(path, centred, normed, rstd, gamma, dy, write, dx));
}

multiversion!(
    #[expect(clippy::too_many_arguments, reason = "what the two backward passes take")]
    fn backward_rows<E: Element>(
        centred: bool, normed: &[E], rstd: &[f32], gamma: &[f32], dy: &[E], write: Write, dx: &mut [E]
    ) = backward_rows_body
);

/// With x̂ the normalised row and g = dy·gamma: `dx = rstd·(g - mean(g) - x̂·mean(g·x̂))`, where an RMS norm, which does not
/// centre, has no mean(g).
#[inline(always)]
fn backward_rows_body<const FMA: bool, E: Element>(
    centred: bool,
    normed: &[E],
    rstds: &[f32],
    gamma: &[f32],
    dy: &[E],
    write: Write,
    dx: &mut [E],
) {
    let hidden = gamma.len();
    let (mut g, mut x) = (Scratch::<f32>::take(hidden), Scratch::<f32>::take(hidden));
    let rows = normed.chunks_exact(hidden).zip(dy.chunks_exact(hidden)).zip(dx.chunks_exact_mut(hidden));
    for (((normed, dy), dx), &rstd) in rows.zip(rstds) {
        for ((g, &dy), &gamma) in g.iter_mut().zip(dy).zip(gamma) {
            *g = dy.to_f32() * gamma;
        }
        x.iter_mut().zip(normed).for_each(|(x, &normed)| *x = normed.to_f32());
        let g_mean = if centred { sum(&g, |g| g) / hidden as f32 } else { 0.0 };
        let g_x = dot::<FMA>(&g, &x) / hidden as f32;
        store(write, g.iter().zip(&*x).map(|(&g, &x)| rstd * multiply_add::<FMA>(x, -g_x, g - g_mean)), dx);
    }
}
