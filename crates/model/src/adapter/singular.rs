//! Adapters in singular-value form and the sensitivity of their triplets (AdaLoRA, arXiv 2303.10512).

use super::{Normal, Trained};
use crate::parameters::{Gradients, ParameterId, Parameters};
use fedpipe_core::{Matrix, Seed, WeightId};
use fedpipe_kernels::dense::{self, Write, matmul};
use std::collections::BTreeMap;

/// ΔW = P·diag(λ)·Q: P `[out, rank]`, λ `[1, rank]`, Q `[rank, in]`.
///
/// The base model sees low-rank factors B = P and A = diag(λ)·Q, which are made of the triplets before a step; the gradient
/// of A is handed on to λ and Q after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Triplets {
    p: ParameterId,
    lambda: ParameterId,
    q: ParameterId,
    a: ParameterId,
}

impl Triplets {
    /// λ = 0, P and Q normal with deviation 0.02, as AdaLoRA starts.
    pub(crate) fn fresh(parameters: &mut Parameters, rank: usize, inputs: usize, outputs: usize, seed: Seed) -> Self {
        let mut normal = Normal::new(seed);
        let mut random = |rows, cols| Matrix::from_fn(rows, cols, |_, _| (0.02 * normal.next()) as f32);
        let (p, q) = (random(outputs, rank), random(rank, inputs));
        Self {
            p: parameters.add(p),
            lambda: parameters.add(Matrix::zeros(1, rank)),
            q: parameters.add(q),
            a: parameters.add(Matrix::zeros(rank, inputs)),
        }
    }

    /// The factors that the base model sees.
    pub(crate) fn factors(&self) -> Trained {
        Trained { a: self.a, b: self.p }
    }

    /// P, λ and Q.
    fn variables(&self) -> [ParameterId; 3] {
        [self.p, self.lambda, self.q]
    }

    /// A = diag(λ)·Q.
    pub(crate) fn compose(&self, parameters: &mut Parameters) {
        let lambda = parameters.get(self.lambda).data().to_vec();
        let mut a = parameters.get(self.q).clone();
        let width = a.cols();
        for (row, lambda) in a.data_mut().chunks_exact_mut(width).zip(lambda) {
            row.iter_mut().for_each(|value| *value *= lambda);
        }
        *parameters.get_mut(self.a) = a;
    }

    /// ∂/∂Q_k = λ_k·∂/∂A_k and ∂/∂λ_k = Q_k·∂/∂A_k; A itself does not train.
    pub(crate) fn hand_on(&self, parameters: &Parameters, gradients: &mut Gradients) {
        let Some(of_a) = gradients.take(self.a).map(|gradient| gradient.to_vec()) else { return };
        let (lambda, q) = (parameters.get(self.lambda), parameters.get(self.q));
        let rows = of_a.chunks_exact(q.cols());
        for (k, row) in rows.clone().enumerate() {
            let inner = row.iter().zip(q.row(k)).map(|(g, q)| f64::from(*g) * f64::from(*q)).sum::<f64>();
            gradients.get_mut(self.lambda)[k] += inner as f32;
        }
        let to = gradients.get_mut(self.q).chunks_exact_mut(q.cols());
        for ((to, row), lambda) in to.zip(rows).zip(lambda.data()) {
            to.iter_mut().zip(row).for_each(|(to, g)| *to += lambda * g);
        }
    }

    /// Adds the gradient of `weight · (‖PᵀP − I‖² + ‖QQᵀ − I‖²)`: 4·P·(PᵀP − I) and 4·(QQᵀ − I)·Q.
    pub(crate) fn add_orthogonality(&self, weight: f64, parameters: &Parameters, gradients: &mut Gradients) {
        let scale = 4.0 * weight as f32;
        let (p, q) = (parameters.get(self.p), parameters.get(self.q));
        let view = |m| {
            let m: &Matrix = m;
            dense::Matrix::new(m.rows(), m.cols(), m.data())
        };
        let excess = |left: dense::Matrix<'_>, right: dense::Matrix<'_>| {
            let rank = left.rows();
            let mut product = vec![0f32; rank * rank];
            matmul(left, right, 1.0, Write::Overwrite, &mut product);
            product.iter_mut().step_by(rank + 1).for_each(|diagonal| *diagonal -= 1.0);
            product
        };
        let of_p = excess(view(p).transposed(), view(p));
        let of_p = dense::Matrix::new(p.cols(), p.cols(), &of_p);
        matmul(view(p), of_p, scale, Write::Accumulate, gradients.get_mut(self.p));
        let of_q = excess(view(q), view(q).transposed());
        let of_q = dense::Matrix::new(q.rows(), q.rows(), &of_q);
        matmul(of_q, view(q), scale, Write::Accumulate, gradients.get_mut(self.q));
    }
}

/// Sensitivity and uncertainty of every entry, smoothed over the steps of a probe.
///
/// For an entry p: I = |p·∂L/∂p|, Ī ← β₁·Ī + (1 − β₁)·I, Ū ← β₂·Ū + (1 − β₂)·|I − Ī|, s = Ī·Ū. A triplet's score is
/// s(λ_k) + mean_j s(P_jk) + mean_j s(Q_kj). That a weight's score is the sum of its triplets' is this project's choice.
#[derive(Debug)]
pub(crate) struct Sensitivity {
    betas: (f64, f64),
    entries: BTreeMap<WeightId, [Vec<Entry>; 3]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    sensitivity: f64,
    uncertainty: f64,
}

impl Entry {
    fn observe(&mut self, value: f32, gradient: f32, (beta1, beta2): (f64, f64)) {
        let now = (f64::from(value) * f64::from(gradient)).abs();
        self.sensitivity = beta1 * self.sensitivity + (1.0 - beta1) * now;
        self.uncertainty = beta2 * self.uncertainty + (1.0 - beta2) * (now - self.sensitivity).abs();
    }

    fn score(self) -> f64 {
        self.sensitivity * self.uncertainty
    }
}

impl Sensitivity {
    /// Nothing seen yet; `betas` are β₁ and β₂.
    pub(crate) fn new(betas: (f64, f64)) -> Self {
        Self { betas, entries: BTreeMap::new() }
    }

    /// Takes in the gradients of one step. Called before the optimizer changes the values.
    pub(crate) fn observe(
        &mut self,
        weight: &WeightId,
        triplets: &Triplets,
        parameters: &Parameters,
        gradients: &Gradients,
    ) {
        let entries = self.entries.entry(weight.clone()).or_default();
        for (entries, variable) in entries.iter_mut().zip(triplets.variables()) {
            let values = parameters.get(variable).data();
            entries.resize(values.len(), Entry::default());
            for (i, (entry, &value)) in entries.iter_mut().zip(values).enumerate() {
                entry.observe(value, gradients.get(variable).map_or(0.0, |gradient| gradient[i]), self.betas);
            }
        }
    }

    /// The score of every weight, divided by their sum; equal shares when nothing mattered.
    pub(crate) fn scores(&self) -> BTreeMap<WeightId, f64> {
        normalised(self.entries.iter().map(|(id, entries)| (id.clone(), weight_score(entries))).collect())
    }
}

/// Scores divided by their sum; equal shares when nothing mattered.
pub(crate) fn normalised(scores: BTreeMap<WeightId, f64>) -> BTreeMap<WeightId, f64> {
    let total: f64 = scores.values().sum();
    let equal = 1.0 / scores.len().max(1) as f64;
    scores.into_iter().map(|(id, s)| (id, if total > 0.0 { s / total } else { equal })).collect()
}

/// Σ_k s(λ_k) + mean_j s(P_jk) + mean_j s(Q_kj): a mean over j of a sum over k is the sum of all over the count of j.
fn weight_score([p, lambda, q]: &[Vec<Entry>; 3]) -> f64 {
    let total = |entries: &[Entry]| entries.iter().map(|e| e.score()).sum::<f64>();
    let rank = lambda.len().max(1) as f64;
    let mean_over = |entries: &[Entry]| total(entries) * rank / entries.len().max(1) as f64;
    total(lambda) + mean_over(p) + mean_over(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: values and gradients (2, 3) then (2, -1) with β₁ = β₂ = 0.5:
    /// I = 6: Ī = 3, Ū = 0.5·|6 − 3| = 1.5; I = 2: Ī = 2.5, Ū = 0.75 + 0.5·|2 − 2.5| = 1; s = 2.5.
    #[test]
    fn an_entry_smooths_sensitivity_and_uncertainty_as_adalora_does() {
        let mut entry = Entry::default();
        entry.observe(2.0, 3.0, (0.5, 0.5));
        assert_eq!((entry.sensitivity, entry.uncertainty), (3.0, 1.5));
        entry.observe(2.0, -1.0, (0.5, 0.5));
        assert_eq!((entry.sensitivity, entry.uncertainty, entry.score()), (2.5, 1.0, 2.5));
    }

    /// With rank 2, out 3, in 1: λ scores 1 and 2, P's rows sum to 6 per triplet pair, Q's to 4:
    /// (1 + 2) + (6·2)/6 + (4·2)/2 = 3 + 2 + 4.
    #[test]
    fn a_weight_sums_its_triplets() {
        let entries =
            |scores: &[f64]| scores.iter().map(|&s| Entry { sensitivity: s, uncertainty: 1.0 }).collect::<Vec<_>>();
        let weight = [entries(&[1.0; 6]), entries(&[1.0, 2.0]), entries(&[1.0, 3.0])];
        assert_eq!(weight_score(&weight), 9.0);
    }

    /// Against differences of the penalty itself.
    #[test]
    fn the_gradient_of_the_penalty_is_its_slope() {
        let mut parameters = Parameters::default();
        let triplets = Triplets::fresh(&mut parameters, 2, 3, 4, Seed(1));
        let penalty = |parameters: &Parameters| {
            let excess = |m: &Matrix, at: &dyn Fn(usize, usize) -> usize, rank: usize, other: usize| {
                let cell = |i: usize, j: usize| {
                    let product: f64 =
                        (0..other).map(|o| f64::from(m.data()[at(i, o)]) * f64::from(m.data()[at(j, o)])).sum();
                    (product - f64::from(u8::from(i == j))).powi(2)
                };
                (0..rank * rank).map(|ij| cell(ij / rank, ij % rank)).sum::<f64>()
            };
            excess(parameters.get(triplets.p), &|k, o| o * 2 + k, 2, 4)
                + excess(parameters.get(triplets.q), &|k, i| k * 3 + i, 2, 3)
        };
        for id in [triplets.p, triplets.q] {
            parameters.get_mut(id).data_mut().iter_mut().enumerate().for_each(|(i, v)| *v = (i as f32 * 0.7).sin());
        }
        let mut gradients = Gradients::new(&parameters);
        triplets.add_orthogonality(0.5, &parameters, &mut gradients);
        for id in [triplets.p, triplets.q] {
            for i in 0..parameters.get(id).data().len() {
                let at = |step: f32| {
                    let mut moved = parameters.clone();
                    moved.get_mut(id).data_mut()[i] += step;
                    penalty(&moved)
                };
                let slope = 0.5 * (at(1e-3) - at(-1e-3)) / 2e-3;
                let found = f64::from(gradients.get(id).unwrap()[i]);
                assert!((found - slope).abs() < 1e-2 * slope.abs().max(1.0), "{found} is not {slope}");
            }
        }
    }

    /// By hand: λ = (2, 3), Q = ((1, 2), (3, 4)), ∂/∂A = ((5, 6), (7, 8)): ∂/∂λ = (17, 53), ∂/∂Q = ((10, 12), (21, 24)).
    #[test]
    fn the_gradient_of_the_factor_goes_to_the_triplets() {
        let mut parameters = Parameters::default();
        let triplets = Triplets::fresh(&mut parameters, 2, 2, 1, Seed(1));
        *parameters.get_mut(triplets.lambda) = Matrix::new(1, 2, vec![2.0, 3.0]).unwrap();
        *parameters.get_mut(triplets.q) = Matrix::new(2, 2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        triplets.compose(&mut parameters);
        assert_eq!(parameters.get(triplets.a).data(), [2.0, 4.0, 9.0, 12.0]);
        let mut gradients = Gradients::new(&parameters);
        gradients.get_mut(triplets.a).copy_from_slice(&[5.0, 6.0, 7.0, 8.0]);
        triplets.hand_on(&parameters, &mut gradients);
        assert_eq!(gradients.get(triplets.lambda).unwrap(), [17.0, 53.0]);
        assert_eq!(gradients.get(triplets.q).unwrap(), [10.0, 12.0, 21.0, 24.0]);
        assert_eq!(gradients.get(triplets.a), None);
    }
}
