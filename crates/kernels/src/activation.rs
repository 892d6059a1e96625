//! Element-wise activations and their derivatives.

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::vector::{CHUNK, LEAST_JOBS, exp, multiply_add};

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
    pub fn forward<E: Element>(self, x: &[E], y: &mut [E]) {
        assert_eq!(x.len(), y.len(), "x and y of an activation");
        let path = Path::current();
        x.par_chunks(CHUNK)
            .zip(y.par_chunks_mut(CHUNK))
            .with_min_len(LEAST_JOBS)
            .for_each(|(x, y)| forward(path, self, x, y));
    }

    /// `dx = dy · f'(x)`, element by element, with the `x` of the forward pass.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn backward<E: Element>(self, x: &[E], dy: &[E], dx: &mut [E]) {
        assert_eq!(x.len(), dy.len(), "x and dy of an activation");
        assert_eq!(x.len(), dx.len(), "x and dx of an activation");
        let path = Path::current();
        x.par_chunks(CHUNK)
            .zip(dy.par_chunks(CHUNK))
            .zip(dx.par_chunks_mut(CHUNK))
            .with_min_len(LEAST_JOBS)
            .for_each(|((x, dy), dx)| backward(path, self, x, dy, dx));
    }

    /// A gated linear unit (Shazeer 2020): `y = f(gate) · up`, element by element. SwiGLU with [`Silu`](Self::Silu),
    /// GeGLU with a GELU.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn gate_forward<E: Element>(self, gate: &[E], up: &[E], y: &mut [E]) {
        assert_eq!(gate.len(), up.len(), "gate and up of a gated unit");
        assert_eq!(gate.len(), y.len(), "gate and y of a gated unit");
        let path = Path::current();
        gate.par_chunks(CHUNK)
            .zip(up.par_chunks(CHUNK))
            .zip(y.par_chunks_mut(CHUNK))
            .with_min_len(LEAST_JOBS)
            .for_each(|((gate, up), y)| gate_forward(path, self, gate, up, y));
    }

    /// The gradients of [`gate_forward`](Self::gate_forward): `dgate = dy · up · f'(gate)` and `dup = dy · f(gate)`, with
    /// the `gate` and `up` of the forward pass.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn gate_backward<E: Element>(self, gate: &[E], up: &[E], dy: &[E], dgate: &mut [E], dup: &mut [E]) {
        assert_eq!(gate.len(), up.len(), "gate and up of a gated unit");
        assert_eq!(gate.len(), dy.len(), "gate and dy of a gated unit");
        assert_eq!(gate.len(), dgate.len(), "gate and dgate of a gated unit");
        assert_eq!(gate.len(), dup.len(), "gate and dup of a gated unit");
        let path = Path::current();
        gate.par_chunks(CHUNK)
            .zip(up.par_chunks(CHUNK))
            .zip(dy.par_chunks(CHUNK))
            .zip(dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK)))
            .with_min_len(LEAST_JOBS)
            .for_each(|(((gate, up), dy), (dgate, dup))| gate_backward(path, self, gate, up, dy, dgate, dup));
    }
}

/// Runs `$run(…, f)` with the value and slope of the activation. Chosen outside of the loop, which then vectorises.
macro_rules! with_slope {
    ($kind:ident, $run:ident($($argument:ident),*)) => {
        match $kind {
            Activation::Gelu => $run($($argument,)* gelu::<FMA>),
            Activation::GeluTanh => $run($($argument,)* gelu_tanh::<FMA>),
            Activation::Silu => $run($($argument,)* silu::<FMA>),
        }
    };
}

multiversion!(fn forward<E: Element>(kind: Activation, x: &[E], y: &mut [E]) = forward_body);

#[inline(always)]
fn forward_body<const FMA: bool, E: Element>(kind: Activation, x: &[E], y: &mut [E]) {
    #[inline(always)]
    fn run<E: Element>(x: &[E], y: &mut [E], f: impl Fn(f32) -> (f32, f32)) {
        for (&x, y) in x.iter().zip(y) {
            *y = E::from_f32(f(x.to_f32()).0);
        }
    }
    with_slope!(kind, run(x, y))
}

multiversion!(fn backward<E: Element>(kind: Activation, x: &[E], dy: &[E], dx: &mut [E]) = backward_body);

#[inline(always)]
fn backward_body<const FMA: bool, E: Element>(kind: Activation, x: &[E], dy: &[E], dx: &mut [E]) {
    #[inline(always)]
    fn run<E: Element>(x: &[E], dy: &[E], dx: &mut [E], f: impl Fn(f32) -> (f32, f32)) {
        for ((&x, &dy), dx) in x.iter().zip(dy).zip(dx) {
            *dx = E::from_f32(dy.to_f32() * f(x.to_f32()).1);
        }
    }
    with_slope!(kind, run(x, dy, dx))
}

multiversion!(
    fn gate_forward<E: Element>(kind: Activation, gate: &[E], up: &[E], y: &mut [E]) = gate_forward_body
);

#[inline(always)]
fn gate_forward_body<const FMA: bool, E: Element>(kind: Activation, gate: &[E], up: &[E], y: &mut [E]) {
    #[inline(always)]
    fn run<E: Element>(gate: &[E], up: &[E], y: &mut [E], f: impl Fn(f32) -> (f32, f32)) {
        for ((&gate, &up), y) in gate.iter().zip(up).zip(y) {
            *y = E::from_f32(f(gate.to_f32()).0 * up.to_f32());
        }
    }
    with_slope!(kind, run(gate, up, y))
}

multiversion!(fn gate_backward<E: Element>(
    kind: Activation, gate: &[E], up: &[E], dy: &[E], dgate: &mut [E], dup: &mut [E]
) = gate_backward_body);

#[inline(always)]
fn gate_backward_body<const FMA: bool, E: Element>(
    kind: Activation,
    gate: &[E],
    up: &[E],
    dy: &[E],
    dgate: &mut [E],
    dup: &mut [E],
) {
    #[inline(always)]
    fn run<E: Element>(gate: &[E], up: &[E], dy: &[E], dgate: &mut [E], dup: &mut [E], f: impl Fn(f32) -> (f32, f32)) {
        let outputs = dgate.iter_mut().zip(dup);
        for (((&gate, &up), &dy), (dgate, dup)) in gate.iter().zip(up).zip(dy).zip(outputs) {
            let (value, slope) = f(gate.to_f32());
            *dgate = E::from_f32(dy.to_f32() * up.to_f32() * slope);
            *dup = E::from_f32(dy.to_f32() * value);
        }
    }
    with_slope!(kind, run(gate, up, dy, dgate, dup))
}

/// The value and the slope of [`Activation::Gelu`].
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    let (cumulative, density) = normal::<FMA>(x);
    (x * cumulative, multiply_add::<FMA>(x, density, cumulative))
}

/// The value and the slope of [`Activation::GeluTanh`].
#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    let argument = TANH_SCALE * x * multiply_add::<FMA>(TANH_CUBE * x, x, 1.0);
    let (s, rest) = sigmoid::<FMA>(argument);
    let slope = multiply_add::<FMA>(x * x, 3.0 * TANH_CUBE * TANH_SCALE, TANH_SCALE);
    (x * s, multiply_add::<FMA>(finite(x * slope) * s, rest, s))
}

/// The value and the slope of [`Activation::Silu`].
#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> (f32, f32) {
    let (s, rest) = sigmoid::<FMA>(x);
    (x * s, multiply_add::<FMA>(x * s, rest, s))
}

/// 2·√(2/π): `(1 + tanh z)/2 = σ(2z)`, so the tanh form is a sigmoid of twice its argument.
const TANH_SCALE: f32 = 1.595_769;
const TANH_CUBE: f32 = 0.044_715;

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
