//! AdamW over a list of parameters, in one pass over their memory.

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::vector::{CHUNK, LEAST_JOBS, multiply_add};

/// AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay and bias correction, as `torch.optim.AdamW`.
///
/// ```text
/// value  ·= 1 - learning_rate·weight_decay
/// first   = beta1·first + (1 - beta1)·gradient
/// second  = beta2·second + (1 - beta2)·gradient²
/// value  -= learning_rate · (first/(1 - beta1^step)) / (√(second/(1 - beta2^step)) + eps)
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// One parameter with its gradient and moments, all of one length. The moments start at zero.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// What is trained.
    pub value: &'a mut [f32],
    /// Gradient of the loss by it.
    pub gradient: &'a [f32],
    /// Running mean of the gradient.
    pub first_moment: &'a mut [f32],
    /// Running mean of the squared gradient.
    pub second_moment: &'a mut [f32],
}

impl AdamW {
    /// Updates every parameter; `step` counts from 1.
    ///
    /// # Panics
    /// When `step` is 0 or a parameter's slices differ in length.
    pub fn step(&self, step: u64, parameters: &mut [Parameter<'_>]) {
        assert!(step > 0, "AdamW counts steps from 1");
        let factors = Factors::new(self, step);
        let path = Path::current();
        let mut pieces = Vec::new();
        let mut elements = 0;
        for parameter in parameters {
            let len = parameter.value.len();
            assert_eq!(parameter.gradient.len(), len, "a gradient is as long as its parameter");
            assert_eq!(parameter.first_moment.len(), len, "a first moment is as long as its parameter");
            assert_eq!(parameter.second_moment.len(), len, "a second moment is as long as its parameter");
            let values = parameter.value.chunks_mut(CHUNK).zip(parameter.gradient.chunks(CHUNK));
            let moments = parameter.first_moment.chunks_mut(CHUNK).zip(parameter.second_moment.chunks_mut(CHUNK));
            pieces.extend(values.zip(moments));
            elements += len;
        }
        // Few elements in all are updated on this thread.
        let least = if elements < 2 * LEAST_JOBS * CHUNK { pieces.len().max(1) } else { 1 };
        pieces.into_par_iter().with_min_len(least).for_each(|((value, gradient), (first, second))| {
            update(path, factors, value, gradient, first, second);
        });
    }
}

/// The constants of one step, computed in f64 as torch does and rounded once.
#[derive(Clone, Copy)]
struct Factors {
    beta1: f32,
    beta2: f32,
    /// `1 - beta1`, rounded once.
    rest1: f32,
    rest2: f32,
    decay: f32,
    step_size: f32,
    /// `1/√(1 - beta2^step)`.
    root_correction: f32,
    eps: f32,
}

impl Factors {
    fn new(adamw: &AdamW, step: u64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            beta1: adamw.beta1 as f32,
            beta2: adamw.beta2 as f32,
            rest1: (1.0 - adamw.beta1) as f32,
            rest2: (1.0 - adamw.beta2) as f32,
            decay: (1.0 - adamw.learning_rate * adamw.weight_decay) as f32,
            step_size: (adamw.learning_rate / correction(adamw.beta1)) as f32,
            root_correction: correction(adamw.beta2).sqrt().recip() as f32,
            eps: adamw.eps as f32,
        }
    }
}

multiversion!(fn update(
    factors: Factors, value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]
) = update_body);

#[inline(always)]
fn update_body<const FMA: bool>(
    factors: Factors,
    value: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let moments = first.iter_mut().zip(second);
    for ((value, &gradient), (first, second)) in value.iter_mut().zip(gradient).zip(moments) {
        *first = multiply_add::<FMA>(*first, factors.beta1, factors.rest1 * gradient);
        *second = multiply_add::<FMA>(*second, factors.beta2, factors.rest2 * gradient * gradient);
        let denominator = multiply_add::<FMA>(second.sqrt(), factors.root_correction, factors.eps);
        *value = multiply_add::<FMA>(*value, factors.decay, -(factors.step_size * *first / denominator));
    }
}
