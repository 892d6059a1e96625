//! Adapters in singular-value form and the sensitivity of their triplets (AdaLoRA, arXiv 2303.10512).

use super::{Normal, variable};
use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use fedpipe_core::{Matrix, Seed, WeightId};
use std::collections::BTreeMap;

/// ΔW = P·diag(λ)·Q: P `[out, rank]`, λ `[rank]`, Q `[rank, in]`.
#[derive(Debug, Clone)]
pub struct Triplets {
    p: Var,
    lambda: Var,
    q: Var,
}

impl Triplets {
    /// λ = 0, P and Q normal with deviation 0.02, as AdaLoRA starts.
    ///
    /// # Errors
    /// When candle fails.
    pub fn fresh(rank: usize, inputs: usize, outputs: usize, seed: Seed) -> Result<Self> {
        let mut normal = Normal::new(seed);
        let mut random = |rows, cols| Matrix::from_fn(rows, cols, |_, _| (0.02 * normal.next()) as f32);
        let (p, q) = (variable(&random(outputs, rank))?, variable(&random(rank, inputs))?);
        Ok(Self { p, lambda: Var::zeros(rank, candle_core::DType::F32, &Device::Cpu)?, q })
    }

    /// x·ΔWᵀ for x `[tokens, in]`.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.q.t()?)?.broadcast_mul(&self.lambda)?.matmul(&self.p.t()?)
    }

    /// ‖PᵀP − I‖² + ‖QQᵀ − I‖².
    ///
    /// # Errors
    /// When candle fails.
    pub fn orthogonality_penalty(&self) -> Result<Tensor> {
        let identity = Tensor::eye(self.lambda.elem_count(), candle_core::DType::F32, self.p.device())?;
        let p = (self.p.t()?.matmul(self.p.as_tensor())? - &identity)?.sqr()?.sum_all()?;
        let q = (self.q.matmul(&self.q.t()?)? - &identity)?.sqr()?.sum_all()?;
        p + q
    }

    /// P, λ and Q.
    pub fn variables(&self) -> [Var; 3] {
        [self.p.clone(), self.lambda.clone(), self.q.clone()]
    }
}

/// Sensitivity and uncertainty of every entry, smoothed over the steps of a probe.
///
/// For an entry p: I = |p·∂L/∂p|, Ī ← β₁·Ī + (1 − β₁)·I, Ū ← β₂·Ū + (1 − β₂)·|I − Ī|, s = Ī·Ū. A triplet's score is
/// s(λ_k) + mean_j s(P_jk) + mean_j s(Q_kj). That a weight's score is the sum of its triplets' is this project's choice.
#[derive(Debug)]
pub struct Sensitivity {
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
    pub fn new(betas: (f64, f64)) -> Self {
        Self { betas, entries: BTreeMap::new() }
    }

    /// Takes in the gradients of one step. Called before the optimizer changes the values.
    ///
    /// # Errors
    /// When candle fails.
    pub fn observe(&mut self, weight: &WeightId, triplets: &Triplets, gradients: &GradStore) -> Result<()> {
        let entries = self.entries.entry(weight.clone()).or_default();
        for (entries, variable) in entries.iter_mut().zip(triplets.variables()) {
            let values: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            entries.resize(values.len(), Entry::default());
            let gradient: Vec<f32> = match gradients.get(&variable) {
                Some(gradient) => gradient.flatten_all()?.to_vec1()?,
                None => vec![0.0; values.len()],
            };
            for ((entry, value), gradient) in entries.iter_mut().zip(values).zip(gradient) {
                entry.observe(value, gradient, self.betas);
            }
        }
        Ok(())
    }

    /// The score of every weight, divided by their sum; equal shares when nothing mattered.
    pub fn scores(&self) -> BTreeMap<WeightId, f64> {
        let raw: BTreeMap<_, _> =
            self.entries.iter().map(|(id, entries)| (id.clone(), weight_score(entries))).collect();
        let total: f64 = raw.values().sum();
        let equal = 1.0 / raw.len().max(1) as f64;
        raw.into_iter().map(|(id, s)| (id, if total > 0.0 { s / total } else { equal })).collect()
    }
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

    #[test]
    fn the_penalty_vanishes_for_orthonormal_factors() {
        let triplets = Triplets::fresh(2, 3, 4, Seed(1)).unwrap();
        assert!(triplets.orthogonality_penalty().unwrap().to_scalar::<f32>().unwrap() > 3.0);
        let identity = |rows: usize, cols: usize| Matrix::from_fn(rows, cols, |i, j| f32::from(i == j));
        let orthonormal =
            Triplets { p: variable(&identity(4, 2)).unwrap(), q: variable(&identity(2, 3)).unwrap(), ..triplets };
        assert_eq!(orthonormal.orthogonality_penalty().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
