//! What trains, and its gradients.

use fedpipe_core::{Head, Matrix};
use std::collections::BTreeMap;

/// One trained matrix of [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterId(usize);

impl ParameterId {
    /// Its place among the parameters, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Trained matrices, in a fixed order.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    values: Vec<Matrix>,
}

impl Parameters {
    /// Takes a matrix in.
    pub fn add(&mut self, values: Matrix) -> ParameterId {
        self.values.push(values);
        ParameterId(self.values.len() - 1)
    }

    /// Takes an adapter's head in, by the names of its tensors.
    pub fn add_head(&mut self, head: &Head) -> BTreeMap<String, ParameterId> {
        head.iter().map(|(name, values)| (name.clone(), self.add(values.clone()))).collect()
    }

    /// The values as they are now.
    pub fn get(&self, id: ParameterId) -> &Matrix {
        &self.values[id.0]
    }

    /// The values, to be changed.
    pub fn get_mut(&mut self, id: ParameterId) -> &mut Matrix {
        &mut self.values[id.0]
    }

    /// Every parameter with its values.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Matrix)> {
        self.values.iter().enumerate().map(|(i, values)| (ParameterId(i), values))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ParameterId, &mut Matrix)> {
        self.values.iter_mut().enumerate().map(|(i, values)| (ParameterId(i), values))
    }
}

/// A gradient of every parameter, kept from step to step. A parameter that a step did not reach has none.
#[derive(Debug, Clone)]
pub struct Gradients {
    values: Vec<Vec<f32>>,
    present: Vec<bool>,
}

impl Gradients {
    /// None yet, with room for all.
    pub fn new(parameters: &Parameters) -> Self {
        let values: Vec<Vec<f32>> = parameters.values.iter().map(|m| vec![0.0; m.data().len()]).collect();
        Self { present: vec![false; values.len()], values }
    }

    /// Forgets the last step's.
    pub fn clear(&mut self) {
        self.present.fill(false);
    }

    /// The gradient, row-major as the parameter.
    pub fn get(&self, id: ParameterId) -> Option<&[f32]> {
        self.present[id.0].then(|| self.values[id.0].as_slice())
    }

    /// The gradient to add to, from zeros on.
    pub fn get_mut(&mut self, id: ParameterId) -> &mut [f32] {
        let values = &mut self.values[id.0];
        if !std::mem::replace(&mut self.present[id.0], true) {
            values.fill(0.0);
        }
        values
    }

    /// The gradient, which is then none.
    pub(crate) fn take(&mut self, id: ParameterId) -> Option<&mut [f32]> {
        std::mem::take(&mut self.present[id.0]).then(|| self.values[id.0].as_mut_slice())
    }

    /// √(Σ g²) over all parameters.
    pub fn norm(&self) -> f64 {
        let present = self.values.iter().zip(&self.present).filter(|(_, present)| **present);
        present.flat_map(|(values, _)| values).map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f32) {
        for (values, _) in self.values.iter_mut().zip(&self.present).filter(|(_, present)| **present) {
            values.iter_mut().for_each(|g| *g *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_starts_from_zeros_in_every_step() {
        let mut parameters = Parameters::default();
        let ids = [parameters.add(Matrix::zeros(1, 2)), parameters.add(Matrix::zeros(1, 1))];
        let mut gradients = Gradients::new(&parameters);
        gradients.get_mut(ids[0])[1] += 3.0;
        gradients.get_mut(ids[0])[0] += 4.0;
        assert_eq!((gradients.get(ids[0]), gradients.get(ids[1])), (Some([4.0, 3.0].as_slice()), None));
        assert_eq!(gradients.norm(), 5.0);
        gradients.clear();
        assert_eq!((gradients.get(ids[0]), gradients.norm()), (None, 0.0));
        assert_eq!(gradients.get_mut(ids[0]), [0.0, 0.0]);
    }
}
