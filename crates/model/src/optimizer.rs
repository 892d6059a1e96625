//! AdamW over all parameters.

use crate::parameters::{Gradients, Parameters};
use fedpipe_kernels::{AdamW as Kernel, Parameter};

/// AdamW (arXiv 1711.05101) with the moments of every parameter.
pub(crate) struct AdamW {
    first_moments: Vec<Vec<f32>>,
    second_moments: Vec<Vec<f32>>,
    weight_decay: f64,
    step: u64,
}

impl AdamW {
    pub(crate) fn new(parameters: &Parameters, weight_decay: f64) -> Self {
        let zeros: Vec<Vec<f32>> = parameters.iter().map(|(_, values)| vec![0.0; values.data().len()]).collect();
        Self { first_moments: zeros.clone(), second_moments: zeros, weight_decay, step: 0 }
    }

    /// One step along the gradients, scaled down when their global norm exceeds `max_norm`; a parameter without a gradient
    /// stays as it is.
    pub(crate) fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        learning_rate: f64,
        max_norm: f64,
    ) {
        self.step += 1;
        let norm = gradients.norm();
        if norm > max_norm {
            gradients.scale((max_norm / norm) as f32);
        }
        let kernel = Kernel { learning_rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: self.weight_decay };
        let moments = self.first_moments.iter_mut().zip(&mut self.second_moments);
        let mut slots: Vec<Parameter<'_>> = parameters
            .iter_mut()
            .zip(moments)
            .filter_map(|((id, value), (first_moment, second_moment))| {
                let gradient = gradients.get(id)?;
                Some(Parameter { value: value.data_mut(), gradient, first_moment, second_moment })
            })
            .collect();
        kernel.step(self.step, &mut slots);
    }
}
