//! A dense matrix of `f32`, for factors that travel and are merged; not for a model's arithmetic.

/// Row-major `[rows, cols]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

/// A shape that does not hold what it is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {rows}x{cols} matrix takes {expected} values, got {got}")]
pub struct MatrixError {
    rows: usize,
    cols: usize,
    expected: usize,
    got: usize,
}

impl Matrix {
    /// A matrix over row-major `data`.
    ///
    /// # Errors
    /// When `data` does not hold `rows * cols` values.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self, MatrixError> {
        match rows.checked_mul(cols) {
            Some(expected) if expected == data.len() => Ok(Self { rows, cols, data }),
            expected => Err(MatrixError { rows, cols, expected: expected.unwrap_or(usize::MAX), got: data.len() }),
        }
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Every entry from its row and column.
    pub fn from_fn(rows: usize, cols: usize, mut value: impl FnMut(usize, usize) -> f32) -> Self {
        let data = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
        Self { rows, cols, data }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values, row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, row by row.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values, row by row, without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// Whether every value is finite.
    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|v| v.is_finite())
    }

    /// The Frobenius norm, summed in `f64`.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_count_is_refused_with_both_numbers() {
        let error = Matrix::new(2, 3, vec![0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a 2x3 matrix takes 6 values, got 5");
        assert!(Matrix::new(usize::MAX, 2, vec![]).is_err());
    }

    #[test]
    fn rows_and_norm_follow_the_row_major_order() {
        let m = Matrix::from_fn(2, 2, |i, j| (i * 2 + j) as f32);
        assert_eq!(m.row(1), [2.0, 3.0]);
        assert_eq!(m.norm(), 14f64.sqrt());
    }
}
