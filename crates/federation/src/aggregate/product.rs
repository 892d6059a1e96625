//! Exact merging of products.

use super::{low_rank, svd::svd};
use fedpipe_core::{Aggregator, LowRank, WeightedFactors};
use nalgebra::DMatrix;

/// Components below this share of the largest singular value are rounding of `f32` and are dropped.
const NEGLIGIBLE: f64 = 1e-7;

/// Norm of the rows of A in the result: 1/√3 is that of LoRA's fresh A (in · variance (1/√in)²/3), so that old and new
/// components of one adapter learn at one pace; B carries the magnitude.
const ROW_NORM: f64 = 0.577_350_269_189_625_8;

/// M = Σᵢ shareᵢ·Bᵢ·Aᵢ, exact while `max_rank` ≥ Σ ranks and otherwise its best approximation of that rank
/// (Eckart–Young). The mean of the factors one by one would be another matrix: mean(B)·mean(A) ≠ mean(B·A).
///
/// With B̂ = [share₁·B₁ | share₂·B₂ | …] and Â = [A₁; A₂; …], M = B̂·Â. From B̂ = Q_b·R_b and Âᵀ = Q_a·R_a follows
/// M = Q_b·(R_b·R_aᵀ)·Q_aᵀ, so the SVD of the small core R_b·R_aᵀ gives that of M, and the dense `[out, in]` matrix is
/// never formed (Σ ranks is much smaller than in or out). The result is A = c·Vᵀ and B = U·S/c with c = 1/√3, strongest
/// component first; the entry of largest magnitude in every row of A is positive, so that signs do not depend on rounding.
/// All in `f64`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Product;

impl Aggregator for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn merge(&self, parts: &[WeightedFactors<'_>], max_rank: usize) -> LowRank {
        let Some(first) = parts.first() else { return low_rank((0, 0, 0), |_, _| 0.0, |_, _| 0.0) };
        let (inputs, outputs) = (first.factors.a().cols(), first.factors.b().rows());
        let (b, a_transposed) = stack(parts, inputs, outputs);
        let (q_b, r_b) = b.qr().unpack();
        let (q_a, r_a) = a_transposed.qr().unpack();
        let core = svd(&(r_b * r_a.transpose()));
        let largest = core.s.first().copied().unwrap_or(0.0);
        let rank = core.s.iter().take(max_rank).take_while(|&&s| s > NEGLIGIBLE * largest).count();
        let (u, v) = (q_b * core.u.columns(0, rank), q_a * core.v.columns(0, rank));
        let signs: Vec<f64> = v.column_iter().map(|column| sign_of_largest(column.as_slice())).collect();
        low_rank(
            (rank, inputs, outputs),
            |k, j| (signs[k] * ROW_NORM * v[(j, k)]) as f32,
            |i, k| (signs[k] * u[(i, k)] * core.s[k] / ROW_NORM) as f32,
        )
    }
}

/// B̂ `[out, Σ ranks]` with the shares in it, and Âᵀ `[in, Σ ranks]`.
fn stack(parts: &[WeightedFactors<'_>], inputs: usize, outputs: usize) -> (DMatrix<f64>, DMatrix<f64>) {
    let total = parts.iter().map(|part| part.factors.rank()).sum();
    let mut b = DMatrix::zeros(outputs, total);
    let mut a_transposed = DMatrix::zeros(inputs, total);
    let mut column = 0;
    for part in parts {
        for k in 0..part.factors.rank() {
            for (i, value) in b.column_mut(column).iter_mut().enumerate() {
                *value = part.share * f64::from(part.factors.b().row(i)[k]);
            }
            for (value, &a) in a_transposed.column_mut(column).iter_mut().zip(part.factors.a().row(k)) {
                *value = f64::from(a);
            }
            column += 1;
        }
    }
    (b, a_transposed)
}

fn sign_of_largest(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0.0, |best: f64, &v| if v.abs() > best.abs() { v } else { best });
    if largest < 0.0 { -1.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::Matrix;
    use proptest::prelude::*;

    fn dense(parts: &[WeightedFactors<'_>]) -> DMatrix<f64> {
        let (b, a_transposed) = stack(parts, parts[0].factors.a().cols(), parts[0].factors.b().rows());
        b * a_transposed.transpose()
    }

    fn product_of(factors: &LowRank) -> DMatrix<f64> {
        dense(&[WeightedFactors { share: 1.0, factors }])
    }

    /// The smallest error that any matrix of rank `rank` can have against `m`: the tail of its singular values, taken
    /// from the eigenvalues of MᵀM, a way that shares nothing with the code under test.
    fn best_error(m: &DMatrix<f64>, rank: usize) -> f64 {
        let mut eigenvalues: Vec<f64> = (m.transpose() * m).symmetric_eigenvalues().iter().copied().collect();
        eigenvalues.sort_by(|x, y| y.total_cmp(x));
        eigenvalues.iter().skip(rank).map(|&l| l.max(0.0)).sum::<f64>().sqrt()
    }

    fn factors(rank: usize, inputs: usize, outputs: usize) -> impl Strategy<Value = LowRank> {
        let values = |n| proptest::collection::vec(-1.0f32..1.0, n);
        (values(rank * inputs), values(outputs * rank)).prop_map(move |(a, b)| {
            LowRank::new(Matrix::new(rank, inputs, a).unwrap(), Matrix::new(outputs, rank, b).unwrap()).unwrap()
        })
    }

    fn silos() -> impl Strategy<Value = (Vec<LowRank>, Vec<f64>)> {
        (1usize..9, 1usize..9).prop_flat_map(|(inputs, outputs)| {
            proptest::collection::vec((0usize..4).prop_flat_map(move |r| factors(r, inputs, outputs)), 1..5)
                .prop_flat_map(|parts| {
                    let n = parts.len();
                    (Just(parts), proptest::collection::vec(0.05f64..1.0, n))
                })
        })
    }

    proptest! {
        /// Protects the claim of the module: exact before truncation, and the best of its rank after it.
        #[test]
        fn equals_the_dense_mean_of_products_truncated_by_svd((parts, raw) in silos(), max_rank in 0usize..8) {
            let total: f64 = raw.iter().sum();
            let parts: Vec<_> =
                parts.iter().zip(&raw).map(|(factors, w)| WeightedFactors { share: w / total, factors }).collect();
            let expected = dense(&parts);
            let merged = Product.merge(&parts, max_rank);
            prop_assert!(merged.rank() <= max_rank);
            let error = (product_of(&merged) - &expected).norm();
            let tolerance = 1e-6 * expected.norm() + 1e-9;
            prop_assert!(error <= best_error(&expected, max_rank) + tolerance, "{error}");
            let whole = Product.merge(&parts, parts.iter().map(|p| p.factors.rank()).sum());
            prop_assert!((product_of(&whole) - &expected).norm() <= tolerance);
        }
    }

    #[test]
    fn rows_of_a_have_the_norm_of_fresh_factors_and_b_falls_in_magnitude() {
        let factors = LowRank::new(
            Matrix::from_fn(2, 4, |i, j| (1 + i * j) as f32),
            Matrix::from_fn(3, 2, |i, j| (i + 2 * j) as f32 - 1.0),
        )
        .unwrap();
        let merged = Product.merge(&[WeightedFactors { share: 1.0, factors: &factors }], 8);
        assert_eq!(merged.rank(), 2);
        for row in 0..2 {
            let norm = merged.a().row(row).iter().map(|v| v * v).sum::<f32>().sqrt();
            assert!((norm - 1.0 / 3f32.sqrt()).abs() < 1e-6);
        }
        let magnitude = |k: usize| (0..3).map(|i| merged.b().row(i)[k].powi(2)).sum::<f32>();
        assert!(magnitude(0) > magnitude(1));
    }

    #[test]
    fn silos_that_agree_do_not_grow_the_rank_and_zero_updates_have_none() {
        let one = LowRank::new(Matrix::from_fn(1, 5, |_, j| j as f32), Matrix::from_fn(4, 1, |i, _| i as f32)).unwrap();
        let half = WeightedFactors { share: 0.5, factors: &one };
        assert_eq!(Product.merge(&[half, half], 8).rank(), 1);
        let zero = LowRank::new(Matrix::from_fn(2, 5, |_, j| j as f32), Matrix::zeros(4, 2)).unwrap();
        assert_eq!(Product.merge(&[WeightedFactors { share: 1.0, factors: &zero }], 8).rank(), 0);
    }
}
