//! Merging factor by factor.

use super::low_rank;
use fedpipe_core::{Aggregator, LowRank, WeightedFactors};

/// The mean of A and the mean of B, component by component; a silo that lacks a component counts as zero there
/// (the aggregation of HetLoRA, arXiv 2401.06432, without its sparsity weights).
///
/// Cheap and biased: mean(B)·mean(A) ≠ mean(B·A), and with more silos of small rank the upper components fade. Here to
/// compare against [`super::Product`]. Components beyond `max_rank` are cut by index.
#[derive(Debug, Clone, Copy, Default)]
pub struct ZeroPad;

impl Aggregator for ZeroPad {
    fn name(&self) -> &'static str {
        "zero-pad"
    }

    fn merge(&self, parts: &[WeightedFactors<'_>], max_rank: usize) -> LowRank {
        let Some(first) = parts.first() else { return low_rank((0, 0, 0), |_, _| 0.0, |_, _| 0.0) };
        let (inputs, outputs) = (first.factors.a().cols(), first.factors.b().rows());
        let rank = parts.iter().map(|part| part.factors.rank()).max().unwrap_or(0).min(max_rank);
        let mean = |component: usize, value: &dyn Fn(&LowRank) -> f32| -> f32 {
            let owners = parts.iter().filter(|part| component < part.factors.rank());
            owners.map(|part| part.share * f64::from(value(part.factors))).sum::<f64>() as f32
        };
        low_rank(
            (rank, inputs, outputs),
            |k, j| mean(k, &|factors| factors.a().row(k)[j]),
            |i, k| mean(k, &|factors| factors.b().row(i)[k]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::Matrix;

    /// By hand: shares 1/4 and 3/4; the second component belongs to the second silo alone.
    #[test]
    fn components_are_averaged_and_missing_ones_count_as_zero() {
        let small =
            LowRank::new(Matrix::new(1, 2, vec![4.0, 8.0]).unwrap(), Matrix::new(1, 1, vec![2.0]).unwrap()).unwrap();
        let large = LowRank::new(
            Matrix::new(2, 2, vec![0.0, 4.0, 8.0, 12.0]).unwrap(),
            Matrix::new(1, 2, vec![6.0, 4.0]).unwrap(),
        )
        .unwrap();
        let parts =
            [WeightedFactors { share: 0.25, factors: &small }, WeightedFactors { share: 0.75, factors: &large }];
        let merged = ZeroPad.merge(&parts, 4);
        assert_eq!(merged.a().data(), [1.0, 5.0, 6.0, 9.0]);
        assert_eq!(merged.b().data(), [5.0, 3.0]);
        assert_eq!(ZeroPad.merge(&parts, 1).a().data(), [1.0, 5.0]);
    }
}
