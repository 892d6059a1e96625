//! What is trained and travels: low-rank factors by weight, and the task's head.

use crate::{Matrix, Seed, WeightId};
use rand_core::Rng;
use std::collections::BTreeMap;

/// Named matrices, as codecs and checkpoints see them.
pub type Tensors = BTreeMap<String, Matrix>;

/// Dense trained parameters of the task's head by checkpoint name (`classifier.weight`, `classifier.bias`);
/// a vector is a matrix of one row.
pub type Head = Tensors;

/// The factors of one weight: ΔW = scaling · B·A, with A `[rank, in]` and B `[out, rank]` (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    a: Matrix,
    b: Matrix,
}

/// Factors or tensors that do not make an adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// A and B disagree on the rank.
    #[error("{weight}: A has {a_rows} rows and B has {b_cols} columns, but both are the rank")]
    Rank {
        /// Where.
        weight: String,
        /// Rows of A.
        a_rows: usize,
        /// Columns of B.
        b_cols: usize,
    },
    /// One factor came without the other.
    #[error("{weight}: factor {missing} is missing")]
    Incomplete {
        /// Where.
        weight: String,
        /// `lora_A` or `lora_B`.
        missing: &'static str,
    },
}

impl LowRank {
    /// Factors A `[rank, in]` and B `[out, rank]`.
    ///
    /// # Errors
    /// When A and B disagree on the rank.
    pub fn new(a: Matrix, b: Matrix) -> Result<Self, AdapterError> {
        if a.rows() != b.cols() {
            return Err(AdapterError::Rank { weight: "factors".into(), a_rows: a.rows(), b_cols: b.cols() });
        }
        Ok(Self { a, b })
    }

    /// Fresh factors that change nothing yet: A uniform in ±1/√in (the spread that Hugging Face PEFT starts from:
    /// Kaiming-uniform with a = √5), B zero.
    pub fn fresh(rank: usize, inputs: usize, outputs: usize, seed: Seed) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        let mut stream = seed.stream();
        let mut uniform = || (stream.next_u32() as f64 + 0.5) / 2f64.powi(32);
        let a = Matrix::from_fn(rank, inputs, |_, _| ((2.0 * uniform() - 1.0) * bound) as f32);
        Self { a, b: Matrix::zeros(outputs, rank) }
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// A `[rank, in]`.
    pub fn a(&self) -> &Matrix {
        &self.a
    }

    /// B `[out, rank]`.
    pub fn b(&self) -> &Matrix {
        &self.b
    }

    /// Number of values in both factors.
    pub fn parameters(&self) -> usize {
        self.a.data().len() + self.b.data().len()
    }

    /// The components `range` of the rank, as factors of their own.
    ///
    /// # Panics
    /// When `range` reaches past the rank.
    pub fn components(&self, range: std::ops::Range<usize>) -> LowRank {
        let a = Matrix::from_fn(range.len(), self.a.cols(), |i, j| self.a.row(range.start + i)[j]);
        let b = Matrix::from_fn(self.b.rows(), range.len(), |i, j| self.b.row(i)[range.start + j]);
        LowRank { a, b }
    }

    /// Both products side by side: the components of `self`, then those of `other`.
    ///
    /// # Panics
    /// When the two belong to weights of different shape.
    pub fn stacked(&self, other: &LowRank) -> LowRank {
        assert_eq!(
            (self.a.cols(), self.b.rows()),
            (other.a.cols(), other.b.rows()),
            "factors of one weight have one shape"
        );
        let (r, s) = (self.rank(), other.rank());
        let a =
            Matrix::from_fn(r + s, self.a.cols(), |i, j| if i < r { self.a.row(i)[j] } else { other.a.row(i - r)[j] });
        let b =
            Matrix::from_fn(self.b.rows(), r + s, |i, j| if j < r { self.b.row(i)[j] } else { other.b.row(i)[j - r] });
        LowRank { a, b }
    }
}

/// A model-wide adapter: factors by weight, one scaling for all of them, and the head.
///
/// The scaling is PEFT's alpha / r. It is one number for every rank, so that factors of different rank lie on one
/// scale and can be merged; an export writes alpha = scaling · r for each weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// PEFT's alpha / r.
    pub scaling: f32,
    /// Factors by weight; a weight that is not here is not adapted.
    pub factors: BTreeMap<WeightId, LowRank>,
    /// The task's head.
    pub head: Head,
}

/// How PEFT ends the name of a factor A.
pub const A_SUFFIX: &str = ".lora_A.weight";
/// How PEFT ends the name of a factor B.
pub const B_SUFFIX: &str = ".lora_B.weight";

impl Adapter {
    /// Number of trained values: factors and head.
    pub fn parameters(&self) -> usize {
        self.factors.values().map(LowRank::parameters).sum::<usize>()
            + self.head.values().map(|m| m.data().len()).sum::<usize>()
    }

    /// Named matrices: `<weight>.lora_A.weight`, `<weight>.lora_B.weight`, and the head under its own names.
    pub fn to_tensors(&self) -> Tensors {
        let mut tensors = self.head.clone();
        for (weight, low_rank) in &self.factors {
            tensors.insert(format!("{weight}{A_SUFFIX}"), low_rank.a.clone());
            tensors.insert(format!("{weight}{B_SUFFIX}"), low_rank.b.clone());
        }
        tensors
    }

    /// The reverse of [`Adapter::to_tensors`]; every name that is not a factor's belongs to the head.
    ///
    /// # Errors
    /// When a factor lacks its partner or the two disagree on the rank.
    pub fn from_tensors(scaling: f32, tensors: Tensors) -> Result<Self, AdapterError> {
        let mut head = Head::new();
        let mut halves: BTreeMap<WeightId, (Option<Matrix>, Option<Matrix>)> = BTreeMap::new();
        for (name, matrix) in tensors {
            if let Some(weight) = name.strip_suffix(A_SUFFIX) {
                halves.entry(WeightId::new(weight)).or_default().0 = Some(matrix);
            } else if let Some(weight) = name.strip_suffix(B_SUFFIX) {
                halves.entry(WeightId::new(weight)).or_default().1 = Some(matrix);
            } else {
                head.insert(name, matrix);
            }
        }
        let mut factors = BTreeMap::new();
        for (weight, halves) in halves {
            let (a, b) = match halves {
                (Some(a), Some(b)) => (a, b),
                (None, _) => return Err(AdapterError::Incomplete { weight: weight.to_string(), missing: "lora_A" }),
                (_, None) => return Err(AdapterError::Incomplete { weight: weight.to_string(), missing: "lora_B" }),
            };
            let (a_rows, b_cols) = (a.rows(), b.cols());
            let low_rank =
                LowRank::new(a, b).map_err(|_| AdapterError::Rank { weight: weight.to_string(), a_rows, b_cols })?;
            factors.insert(weight, low_rank);
        }
        Ok(Self { scaling, factors, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low_rank(rank: usize) -> LowRank {
        let a = Matrix::from_fn(rank, 3, |i, j| (10 * i + j) as f32);
        let b = Matrix::from_fn(4, rank, |i, j| (10 * i + j) as f32 - 5.0);
        LowRank::new(a, b).unwrap()
    }

    #[test]
    fn splitting_and_stacking_the_components_gives_the_factors_back() {
        let whole = low_rank(5);
        assert_eq!(whole.components(0..2).stacked(&whole.components(2..5)), whole);
    }

    #[test]
    fn tensors_round_trip() {
        let adapter = Adapter {
            scaling: 2.0,
            factors: [(WeightId::from("layer.0.query"), low_rank(2))].into(),
            head: [("classifier.bias".to_string(), Matrix::zeros(1, 3))].into(),
        };
        assert_eq!(Adapter::from_tensors(2.0, adapter.to_tensors()).unwrap(), adapter);
        assert_eq!(adapter.parameters(), 2 * 3 + 4 * 2 + 3);
    }

    #[test]
    fn a_lone_factor_is_refused_by_name() {
        let tensors = [("w.lora_A.weight".to_string(), Matrix::zeros(1, 1))].into();
        assert_eq!(Adapter::from_tensors(1.0, tensors).unwrap_err().to_string(), "w: factor lora_B is missing");
    }

    #[test]
    fn fresh_factors_change_nothing_and_follow_the_seed() {
        let fresh = LowRank::fresh(4, 16, 8, Seed(7));
        assert!(fresh.b().data().iter().all(|&v| v == 0.0));
        assert!(fresh.a().data().iter().all(|v| v.abs() <= 0.25));
        assert_eq!(fresh, LowRank::fresh(4, 16, 8, Seed(7)));
        assert_ne!(fresh, LowRank::fresh(4, 16, 8, Seed(8)));
    }
}
