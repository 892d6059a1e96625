//! Element-wise activations and their derivatives.

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::vector::{CHUNK, exp, multiply_add};

/// An element-wise activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·Φ(x)`, with the error function: "gelu" (Hendrycks and Gimpel 2016). Within 1e-6 of the exact value, or
    /// two units in the last place where that is more.
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`: "gelu_new", "gelu_pytorch_tanh".
    GeluTanh,
    /// `x·σ(x)`: "silu", "swish".
    Silu,
}

impl Activation {
    /// `y = f(x)`, element by element.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn forward(self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "x and y of an activation");
        let path = Path::current();
        let run = |(x, y): (&[f32], &mut [f32])| forward(path, self, x, y);
        if x.len() <= CHUNK {
            run((x, y));
        } else {
            x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(run);
        }
    }

    /// `dx = dy · f'(x)`, element by element.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn backward(self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        assert_eq!(x.len(), dy.len(), "x and dy of an activation");
        assert_eq!(x.len(), dx.len(), "x and dx of an activation");
        let path = Path::current();
        let run = |((x, dy), dx): ((&[f32], &[f32]), &mut [f32])| backward(path, self, x, dy, dx);
        if x.len() <= CHUNK {
            run(((x, dy), dx));
        } else {
            x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)).zip(dx.par_chunks_mut(CHUNK)).for_each(run);
        }
    }
}

multiversion!(fn forward(kind: Activation, x: &[f32], y: &mut [f32]) = forward_body);

#[inline(always)]
fn forward_body<const FMA: bool>(kind: Activation, x: &[f32], y: &mut [f32]) {
    match kind {
        Activation::Gelu => x.iter().zip(y).for_each(|(&x, y)| *y = x * normal::<FMA>(x).0),
        Activation::GeluTanh => x.iter().zip(y).for_each(|(&x, y)| *y = x * sigmoid::<FMA>(tanh_argument::<FMA>(x)).0),
        Activation::Silu => x.iter().zip(y).for_each(|(&x, y)| *y = x * sigmoid::<FMA>(x).0),
    }
}

multiversion!(fn backward(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) = backward_body);

#[inline(always)]
fn backward_body<const FMA: bool>(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let elements = x.iter().zip(dy).zip(dx);
    match kind {
        Activation::Gelu => elements.for_each(|((&x, &dy), dx)| {
            let (cumulative, density) = normal::<FMA>(x);
            *dx = dy * multiply_add::<FMA>(x, density, cumulative);
        }),
        Activation::GeluTanh => elements.for_each(|((&x, &dy), dx)| {
            let (s, rest) = sigmoid::<FMA>(tanh_argument::<FMA>(x));
            let slope = multiply_add::<FMA>(x * x, 3.0 * TANH_CUBE * TANH_SCALE, TANH_SCALE);
            *dx = dy * multiply_add::<FMA>(finite(x * slope) * s, rest, s);
        }),
        Activation::Silu => elements.for_each(|((&x, &dy), dx)| {
            let (s, rest) = sigmoid::<FMA>(x);
            *dx = dy * multiply_add::<FMA>(x * s, rest, s);
        }),
    }
}

/// 2·√(2/π): `(1 + tanh z)/2 = σ(2z)`, so the tanh form is a sigmoid of twice its argument.
const TANH_SCALE: f32 = 1.595_769;
const TANH_CUBE: f32 = 0.044_715;

#[inline(always)]
fn tanh_argument<const FMA: bool>(x: f32) -> f32 {
    TANH_SCALE * x * multiply_add::<FMA>(TANH_CUBE * x, x, 1.0)
}

/// Keeps an overflow from turning `∞ · 0` into NaN where the sigmoid is saturated.
#[inline(always)]
fn finite(x: f32) -> f32 {
    x.clamp(f32::MIN, f32::MAX)
}

/// σ(x) and 1 - σ(x), neither by a subtraction that cancels.
#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> (f32, f32) {
    let e = exp::<FMA>(-x.abs());
    let near = 1.0 / (1.0 + e);
    let far = e * near;
    if x < 0.0 { (far, near) } else { (near, far) }
}

/// The standard normal distribution and its density at x.
///
/// Abramowitz and Stegun 7.1.26: `erfc(z) = e^{-z²}·t·poly(t)`, `t = 1/(1 + 0.3275911·z)`, error below 1.5e-7; taken on
/// |x|, so nothing cancels in the lower tail.
#[inline(always)]
fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    /// 0.3275911/√2.
    const SLOPE: f32 = 0.231_641_89;
    /// 1/√(2π).
    const DENSITY: f32 = 0.398_942_3;

    let z = x.abs();
    let t = 1.0 / multiply_add::<FMA>(z, SLOPE, 1.0);
    let mut p = 1.061_405_4;
    p = multiply_add::<FMA>(p, t, -1.453_152_1);
    p = multiply_add::<FMA>(p, t, 1.421_413_8);
    p = multiply_add::<FMA>(p, t, -0.284_496_72);
    p = multiply_add::<FMA>(p, t, 0.254_829_6);
    let e = exp::<FMA>(-0.5 * x * x);
    let tail = 0.5 * p * t * e;
    let cumulative = if x > 0.0 { 1.0 - tail } else { tail };
    (cumulative, DENSITY * e)
}
