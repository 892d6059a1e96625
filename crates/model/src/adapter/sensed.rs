//! How much the loss hangs on the factors that train, beside the training itself.

use super::Trainable;
use crate::parameters::Gradients;
use fedpipe_core::WeightId;
use std::collections::BTreeMap;

/// Σ |p·∂L/∂p| over the entries p of A and B of every weight, summed over steps: AdaLoRA's sensitivity (arXiv 2303.10512,
/// eq. 8) without its smoothing, for which the mean of a round's steps stands.
#[derive(Debug, Default)]
pub(crate) struct Sensed {
    sums: BTreeMap<WeightId, f64>,
    steps: u32,
}

impl Sensed {
    /// Takes in the gradients of one step, before the optimizer scales them and changes the values.
    pub(crate) fn observe(&mut self, trainable: &Trainable, gradients: &Gradients) {
        self.steps += 1;
        for (weight, factors) in trainable.factors() {
            let of = |id| {
                let values = trainable.parameters.get(id).data();
                let entries = gradients.get(id).into_iter().flatten().zip(values);
                entries.map(|(&gradient, &value)| (f64::from(value) * f64::from(gradient)).abs()).sum::<f64>()
            };
            let now = of(factors.a) + of(factors.b);
            match self.sums.get_mut(weight) {
                Some(sum) => *sum += now,
                None => drop(self.sums.insert(weight.clone(), now)),
            }
        }
    }

    /// The mean of the steps.
    pub(crate) fn mean(self) -> BTreeMap<WeightId, f64> {
        let steps = f64::from(self.steps.max(1));
        self.sums.into_iter().map(|(weight, sum)| (weight, sum / steps)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::{Adapter, Head, LowRank, Matrix};

    /// By hand: A = (1, −2), B = (3); gradients (4, 5) and (−6) give 4 + 10 + 18 = 32, and a step that reached A alone with
    /// (0, 1) gives 2: 17 a step.
    #[test]
    fn entries_count_by_their_size_and_steps_are_averaged() {
        let factors = LowRank::new(Matrix::new(1, 2, vec![1.0, -2.0]).unwrap(), Matrix::new(1, 1, vec![3.0]).unwrap());
        let factors = [("x".into(), factors.unwrap())].into();
        let trainable = Trainable::new(&Adapter { scaling: 1.0, factors, head: Head::new() });
        let ids = trainable.factors()[&"x".into()];
        let mut gradients = Gradients::new(&trainable.parameters);
        let mut sensed = Sensed::default();
        gradients.get_mut(ids.a).copy_from_slice(&[4.0, 5.0]);
        gradients.get_mut(ids.b).copy_from_slice(&[-6.0]);
        sensed.observe(&trainable, &gradients);
        gradients.clear();
        gradients.get_mut(ids.a).copy_from_slice(&[0.0, 1.0]);
        sensed.observe(&trainable, &gradients);
        assert_eq!(sensed.mean(), [("x".into(), 17.0)].into());
    }
}
