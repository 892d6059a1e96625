//! AdamW over candle variables.

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use fedpipe_kernels::{AdamW as Kernel, Parameter};

/// AdamW (arXiv 1711.05101) with the moments of a fixed list of variables.
pub(crate) struct AdamW {
    slots: Vec<Slot>,
    weight_decay: f64,
    step: u64,
}

struct Slot {
    variable: Var,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
}

impl AdamW {
    pub(crate) fn new(variables: Vec<Var>, weight_decay: f64) -> Self {
        let slots = variables.into_iter().map(|variable| {
            let count = variable.elem_count();
            Slot { variable, first_moment: vec![0.0; count], second_moment: vec![0.0; count] }
        });
        Self { slots: slots.collect(), weight_decay, step: 0 }
    }

    /// One step along the sum of `gradients`, scaled down when its global norm exceeds `max_norm`; a variable without
    /// a gradient stays as it is.
    pub(crate) fn step(&mut self, gradients: &[&GradStore], learning_rate: f64, max_norm: f64) -> Result<()> {
        self.step += 1;
        let mut updates = Vec::with_capacity(self.slots.len());
        for slot in &mut self.slots {
            let parts = gradients.iter().filter_map(|store| store.get(&slot.variable)).cloned();
            let Some(gradient) = parts.map(Ok).reduce(|sum, part| sum? + part?) else { continue };
            let gradient: Vec<f32> = gradient?.flatten_all()?.to_vec1()?;
            let value: Vec<f32> = slot.variable.flatten_all()?.to_vec1()?;
            updates.push((slot, value, gradient));
        }
        let square: f64 = updates.iter().flat_map(|(_, _, g)| g).map(|&g| f64::from(g) * f64::from(g)).sum();
        if square.sqrt() > max_norm {
            let scale = (max_norm / square.sqrt()) as f32;
            updates.iter_mut().flat_map(|(_, _, g)| g).for_each(|g| *g *= scale);
        }
        let kernel = Kernel { learning_rate, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: self.weight_decay };
        let mut parameters: Vec<Parameter<'_>> = updates
            .iter_mut()
            .map(|(slot, value, gradient)| Parameter {
                value,
                gradient,
                first_moment: &mut slot.first_moment,
                second_moment: &mut slot.second_moment,
            })
            .collect();
        kernel.step(self.step, &mut parameters);
        for (slot, value, _) in updates {
            let shape = slot.variable.shape().clone();
            slot.variable.set(&Tensor::from_vec(value, shape, &Device::Cpu)?)?;
        }
        Ok(())
    }
}
