//! Products of dense f32 matrices: the thin trainable factors of an adapter and their gradients.

use crate::dispatch::Path;
use crate::gemm::{Across, Extents, Kernel, Operand, Strided, Target, TargetBase, product};
use crate::shared::SharedSlice;

/// A dense f32 matrix, as it lies or transposed.
///
/// ```
/// use fedpipe_kernels::dense::{Matrix, Write, matmul};
///
/// // u = x · Aᵀ, with x [tokens, in] = [1, 3] and A [rank, in] = [2, 3].
/// let x = Matrix::new(1, 3, &[1.0, 2.0, 3.0]);
/// let a = Matrix::new(2, 3, &[1.0, 1.0, 1.0, 0.0, 0.0, 2.0]);
/// let mut u = [0.0; 2];
/// matmul(x, a.transposed(), 0.5, Write::Overwrite, &mut u);
/// assert_eq!(u, [3.0, 3.0]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// When `data` does not hold `rows · columns` elements.
    pub fn new(rows: usize, columns: usize, data: &'a [f32]) -> Self {
        assert_eq!(data.len(), rows * columns, "elements of a [{rows}, {columns}] matrix");
        Self { data, rows, columns, transposed: false }
    }

    /// The transposed matrix, over the same elements.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// Rows, after any transposition.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, after any transposition.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The elements as they lie.
    fn stored(&self) -> Strided<'a> {
        let row_stride = if self.transposed { self.rows } else { self.columns };
        Strided { data: self.data, row_stride }
    }
}

/// What becomes of the output's former contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `output = scale · left · right`.
    Overwrite,
    /// `output += scale · left · right`.
    Accumulate,
}

/// Multiplies `left` `[m, k]` by `right` `[k, n]`, scales, and writes or adds to `output` `[m, n]`, row-major.
///
/// The layouts that adapters need: `u = x·Aᵀ`, `y += scale·u·Bᵀ`, `dB = scale·dyᵀ·u`, `du = scale·dy·B`, `dA = duᵀ·x`,
/// `dx += du·A`. Results do not depend on the number of threads.
///
/// # Panics
/// When the extents do not fit each other.
pub fn matmul(left: Matrix<'_>, right: Matrix<'_>, scale: f32, write: Write, output: &mut [f32]) {
    assert_eq!(left.columns, right.rows, "columns of the left side and rows of the right side");
    assert_eq!(output.len(), left.rows * right.columns, "output is [left rows, right columns]");
    let base = match write {
        Write::Overwrite => TargetBase::Zero,
        Write::Accumulate => TargetBase::Output,
    };
    let stride = right.columns;
    product(
        Kernel::f32(Path::current()),
        Operand { source: &left.stored(), across: if left.transposed { Across::Columns } else { Across::Rows } },
        Operand { source: &right.stored(), across: if right.transposed { Across::Rows } else { Across::Columns } },
        Extents { rows: left.rows, columns: right.columns, depth: left.columns },
        Target { output: SharedSlice::new(output), offset: 0, stride, scale, base },
    );
}
