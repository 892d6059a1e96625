//! Layer norm and RMS norm over rows of `hidden` elements, with frozen scale and shift.

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::vector::{CHUNK, dot, multiply_add, sum};

/// Layer norm (Ba et al. 2016): `y = (x - mean)·rstd·gamma + beta` for every row, `rstd = 1/√(variance + eps)`.
///
/// `x`, `y` are `[rows, hidden]`, `gamma`, `beta` `[hidden]`; `mean`, `rstd` `[rows]` are kept for the backward pass.
///
/// # Panics
/// When a slice does not have its length, or `hidden` is 0.
#[expect(clippy::too_many_arguments, reason = "four slices in, three out, as the formula has them")]
pub fn layer_norm_forward(
    x: &[f32],
    hidden: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let rows = check(x, hidden, gamma, &[y, rstd]);
    assert_eq!(beta.len(), hidden, "beta is [hidden]");
    assert_eq!(mean.len(), rows, "mean is [rows]");
    let (path, rows) = (Path::current(), rows_at_once(hidden));
    let affine = Affine { gamma, beta, eps };
    x.par_chunks(rows * hidden)
        .zip(y.par_chunks_mut(rows * hidden))
        .zip(mean.par_chunks_mut(rows).zip(rstd.par_chunks_mut(rows)))
        .for_each(|((x, y), (mean, rstd))| layer_forward(path, x, affine, y, mean, rstd));
}

/// The gradient of [`layer_norm_forward`] by its input; scale and shift are frozen.
///
/// `x`, `dy`, `dx` are `[rows, hidden]`, `mean`, `rstd` `[rows]` come from the forward pass.
///
/// # Panics
/// When a slice does not have its length, or `hidden` is 0.
pub fn layer_norm_backward(
    x: &[f32],
    hidden: usize,
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let rows = check(x, hidden, gamma, &[dx, rstd]);
    assert_eq!(dy.len(), x.len(), "dy is [rows, hidden]");
    assert_eq!(mean.len(), rows, "mean is [rows]");
    let (path, rows) = (Path::current(), rows_at_once(hidden));
    x.par_chunks(rows * hidden)
        .zip(dy.par_chunks(rows * hidden))
        .zip(dx.par_chunks_mut(rows * hidden))
        .zip(mean.par_chunks(rows).zip(rstd.par_chunks(rows)))
        .for_each(|(((x, dy), dx), (mean, rstd))| layer_backward(path, x, gamma, mean, rstd, dy, dx));
}

/// RMS norm (Zhang and Sennrich 2019): `y = x·rstd·gamma` for every row, `rstd = 1/√(mean of x² + eps)`.
///
/// `x`, `y` are `[rows, hidden]`, `gamma` `[hidden]`; `rstd` `[rows]` is kept for the backward pass.
///
/// # Panics
/// When a slice does not have its length, or `hidden` is 0.
pub fn rms_norm_forward(x: &[f32], hidden: usize, gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    check(x, hidden, gamma, &[y, rstd]);
    let (path, rows) = (Path::current(), rows_at_once(hidden));
    x.par_chunks(rows * hidden)
        .zip(y.par_chunks_mut(rows * hidden))
        .zip(rstd.par_chunks_mut(rows))
        .for_each(|((x, y), rstd)| rms_forward(path, x, gamma, eps, y, rstd));
}

/// The gradient of [`rms_norm_forward`] by its input; the scale is frozen.
///
/// `x`, `dy`, `dx` are `[rows, hidden]`, `rstd` `[rows]` comes from the forward pass.
///
/// # Panics
/// When a slice does not have its length, or `hidden` is 0.
pub fn rms_norm_backward(x: &[f32], hidden: usize, gamma: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32]) {
    check(x, hidden, gamma, &[dx, rstd]);
    assert_eq!(dy.len(), x.len(), "dy is [rows, hidden]");
    let (path, rows) = (Path::current(), rows_at_once(hidden));
    x.par_chunks(rows * hidden)
        .zip(dy.par_chunks(rows * hidden))
        .zip(dx.par_chunks_mut(rows * hidden))
        .zip(rstd.par_chunks(rows))
        .for_each(|(((x, dy), dx), rstd)| rms_backward(path, x, gamma, rstd, dy, dx));
}

/// Checks what all four have in common: `like_x` is `[rows, hidden]`, `by_row` `[rows]`. Returns the rows.
fn check(x: &[f32], hidden: usize, gamma: &[f32], [like_x, by_row]: &[&[f32]; 2]) -> usize {
    assert!(hidden > 0, "a norm over rows of no elements");
    assert!(x.len().is_multiple_of(hidden), "x is [rows, {hidden}], got {} elements", x.len());
    assert_eq!(gamma.len(), hidden, "gamma is [hidden]");
    assert_eq!(like_x.len(), x.len(), "the output is [rows, hidden]");
    let rows = x.len() / hidden;
    assert_eq!(by_row.len(), rows, "rstd is [rows]");
    rows
}

fn rows_at_once(hidden: usize) -> usize {
    (CHUNK / hidden).max(1)
}

/// What a layer norm does to a normalised row.
#[derive(Clone, Copy)]
struct Affine<'a> {
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
}

multiversion!(fn layer_forward(
    x: &[f32], affine: Affine<'_>, y: &mut [f32], means: &mut [f32], rstds: &mut [f32]
) = layer_forward_body);

#[inline(always)]
fn layer_forward_body<const FMA: bool>(
    x: &[f32],
    affine: Affine<'_>,
    y: &mut [f32],
    means: &mut [f32],
    rstds: &mut [f32],
) {
    let Affine { gamma, beta, eps } = affine;
    let hidden = gamma.len();
    let rows = x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden));
    for ((x, y), (mean_out, rstd_out)) in rows.zip(means.iter_mut().zip(rstds)) {
        let mean = sum(x, |x| x) / hidden as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / hidden as f32;
        let rstd = 1.0 / (variance + eps).sqrt();
        for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = multiply_add::<FMA>((x - mean) * rstd, gamma, beta);
        }
        *mean_out = mean;
        *rstd_out = rstd;
    }
}

multiversion!(fn layer_backward(
    x: &[f32], gamma: &[f32], mean: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32]
) = layer_backward_body);

/// With x̂ the normalised row and g = dy·gamma: `dx = rstd·(g - mean(g) - x̂·mean(g·x̂))`.
#[inline(always)]
fn layer_backward_body<const FMA: bool>(
    x: &[f32],
    gamma: &[f32],
    means: &[f32],
    rstds: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let hidden = gamma.len();
    let rows = x.chunks_exact(hidden).zip(dy.chunks_exact(hidden)).zip(dx.chunks_exact_mut(hidden));
    for (((x, dy), dx), (&mean, &rstd)) in rows.zip(means.iter().zip(rstds)) {
        for ((g, &dy), &gamma) in dx.iter_mut().zip(dy).zip(gamma) {
            *g = dy * gamma;
        }
        let g_mean = sum(dx, |g| g) / hidden as f32;
        // Σ g·x̂ with the mean taken out of both factors, lest a large mean of x cancels.
        let g_x = centred_dot::<FMA>(dx, x, mean) * rstd / hidden as f32;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = rstd * multiply_add::<FMA>((x - mean) * rstd, -g_x, *g - g_mean);
        }
    }
}

/// Σ g·(x - mean), by stretches through a small buffer.
#[inline(always)]
fn centred_dot<const FMA: bool>(g: &[f32], x: &[f32], mean: f32) -> f32 {
    const STRETCH: usize = 256;
    let mut centred = [0f32; STRETCH];
    let mut total = 0.0;
    for (g, x) in g.chunks(STRETCH).zip(x.chunks(STRETCH)) {
        for (to, &x) in centred.iter_mut().zip(x) {
            *to = x - mean;
        }
        total += dot::<FMA>(g, &centred[..x.len()]);
    }
    total
}

multiversion!(fn rms_forward(x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) = rms_forward_body);

#[inline(always)]
fn rms_forward_body<const FMA: bool>(x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstds: &mut [f32]) {
    let hidden = gamma.len();
    for ((x, y), rstd_out) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).zip(rstds) {
        let rstd = 1.0 / (dot::<FMA>(x, x) / hidden as f32 + eps).sqrt();
        for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(gamma) {
            *y = x * rstd * gamma;
        }
        *rstd_out = rstd;
    }
}

multiversion!(fn rms_backward(x: &[f32], gamma: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32]) = rms_backward_body);

/// With g = dy·gamma: `dx = rstd·(g - x·rstd²·mean(g·x))`.
#[inline(always)]
fn rms_backward_body<const FMA: bool>(x: &[f32], gamma: &[f32], rstds: &[f32], dy: &[f32], dx: &mut [f32]) {
    let hidden = gamma.len();
    let rows = x.chunks_exact(hidden).zip(dy.chunks_exact(hidden)).zip(dx.chunks_exact_mut(hidden));
    for (((x, dy), dx), &rstd) in rows.zip(rstds) {
        for ((g, &dy), &gamma) in dx.iter_mut().zip(dy).zip(gamma) {
            *g = dy * gamma;
        }
        let g_x = dot::<FMA>(dx, x) * rstd * rstd / hidden as f32;
        for (g, &x) in dx.iter_mut().zip(x) {
            *g = rstd * multiply_add::<FMA>(x, -g_x, *g);
        }
    }
}
