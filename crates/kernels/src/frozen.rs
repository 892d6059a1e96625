//! A base weight that is never updated, and its products.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::codes::{CodeBook, Codes};
use crate::dispatch::Path;
use crate::element::Element;
use crate::gemm::{
    Across, Extents, Kernel, Operand, Panels, Plain, Rows, Strided, Target, TargetBase, product, read_row_by_row,
    round_to_bf16, widen,
};
use crate::int8::Int8;
use crate::shared::SharedSlice;

/// How a [`FrozenMatrix`] is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// 4 bytes a weight, columns rounded up to a multiple of [`PANEL`](crate::PANEL); products in f32.
    F32,
    /// 2 bytes a weight.
    Bf16,
    /// 1 byte a weight, and one f32 a row.
    Int8,
    /// `bits` bits a weight, and one f32 a block.
    Codes {
        /// 2, 3, 4 or 8.
        bits: u8,
    },
}

/// A base weight `W` of shape `[rows, columns]` = `[out, in]`, row-major, stored once and never updated.
///
/// Both products read this one copy: tiles of it are expanded in a small buffer per thread as the product needs them, so
/// memory stays at the stored width. f32 weights multiply in f32. The others multiply in bf16 with f32 sums where the
/// processor has that ([`Path::multiplies_bf16`]), in f32 elsewhere. Results do not depend on the number of threads, nor a
/// row's result on the other rows of the batch; but `x · Wᵀ` of at most 8 rows (3 without AVX-512) sums in another order than
/// that of more rows, and differs from it by rounding.
///
/// ```
/// use fedpipe_kernels::FrozenMatrix;
///
/// let weight = FrozenMatrix::f32(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// let mut y = [0.0; 2];
/// weight.product(&[1.0, 0.0, -1.0], 1, Some(&[0.5, 0.5]), &mut y);
/// assert_eq!(y, [-1.5, -1.5]);
/// let mut dx = [0.0; 3];
/// weight.product_transposed(&[1.0, 1.0], 1, &mut dx);
/// assert_eq!(dx, [5.0, 7.0, 9.0]);
/// ```
#[derive(Clone, Debug)]
pub struct FrozenMatrix {
    rows: usize,
    columns: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    F32(Panels),
    Bf16(Vec<bf16>),
    Int8(Int8),
    Codes(Codes),
}

impl FrozenMatrix {
    /// Stores f32 weights, in panels of [`PANEL`](crate::PANEL) columns.
    ///
    /// # Panics
    /// When there are not `rows · columns` of them.
    pub fn f32(rows: usize, columns: usize, weights: &[f32]) -> Self {
        assert_eq!(weights.len(), rows * columns, "weights of a [{rows}, {columns}] matrix");
        Self { rows, columns, data: Data::F32(Panels::new(rows, columns, weights)) }
    }

    /// Rounds weights to bf16, to nearest even.
    ///
    /// # Panics
    /// When there are not `rows · columns` of them.
    pub fn bf16(rows: usize, columns: usize, weights: &[f32]) -> Self {
        assert_eq!(weights.len(), rows * columns, "weights of a [{rows}, {columns}] matrix");
        let mut rounded = vec![bf16::ZERO; weights.len()];
        round_to_bf16(Path::current(), weights, rounded.reinterpret_cast_mut());
        Self { rows, columns, data: Data::Bf16(rounded) }
    }

    /// Keeps weights that are bf16 already.
    ///
    /// # Panics
    /// When there are not `rows · columns` of them.
    pub fn from_bf16(rows: usize, columns: usize, weights: Vec<bf16>) -> Self {
        assert_eq!(weights.len(), rows * columns, "weights of a [{rows}, {columns}] matrix");
        Self { rows, columns, data: Data::Bf16(weights) }
    }

    /// Rounds weights to symmetric 8-bit integers, to nearest even: weight `[i, j]` becomes `code[i, j] · scale[i]` with
    /// `scale[i] = max |weight[i, ·]| / 127`. The weights have to be finite.
    ///
    /// # Panics
    /// When there are not `rows · columns` of them.
    pub fn int8(rows: usize, columns: usize, weights: &[f32]) -> Self {
        assert_eq!(weights.len(), rows * columns, "weights of a [{rows}, {columns}] matrix");
        Self { rows, columns, data: Data::Int8(Int8::quantise(rows, columns, weights)) }
    }

    /// Keeps 8-bit integers with a scale for each row: weight `[i, j]` is `codes[i, j] · scales[i]`.
    ///
    /// # Panics
    /// When there are not `rows · columns` codes and `rows` scales.
    pub fn from_int8(rows: usize, columns: usize, codes: Vec<i8>, scales: Vec<f32>) -> Self {
        assert_eq!(codes.len(), rows * columns, "codes of a [{rows}, {columns}] matrix");
        assert_eq!(scales.len(), rows, "one scale for each of {rows} rows");
        Self { rows, columns, data: Data::Int8(Int8::new(columns, codes, scales)) }
    }

    /// Keeps codes: weight `i` of the flattened matrix is `book.table[code i] · absmax[i / block]`. The codes are packed
    /// as by [`pack_codes`](crate::pack_codes).
    ///
    /// # Panics
    /// When the lengths do not fit each other, or `block` is not a multiple of 64.
    pub fn from_codes(
        rows: usize,
        columns: usize,
        book: &CodeBook,
        packed: Vec<u8>,
        absmax: Vec<f32>,
        block: usize,
    ) -> Self {
        Self { rows, columns, data: Data::Codes(Codes::new(rows * columns, book, packed, absmax, block)) }
    }

    /// Outputs of the layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the layer.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Memory at rest, in bytes: the weights or codes, and their scales.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(weights) => weights.bytes(),
            Data::Bf16(weights) => size_of_val(&**weights),
            Data::Int8(codes) => codes.bytes(),
            Data::Codes(codes) => codes.bytes(),
        }
    }

    /// How the weights are stored.
    pub fn storage(&self) -> Storage {
        match &self.data {
            Data::F32(_) => Storage::F32,
            Data::Bf16(_) => Storage::Bf16,
            Data::Int8(_) => Storage::Int8,
            Data::Codes(codes) => Storage::Codes { bits: codes.bits() },
        }
    }

    /// All weights as f32, `[rows, columns]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.rows * self.columns];
        if self.columns > 0 {
            for (row, to) in weights.chunks_exact_mut(self.columns).enumerate() {
                self.row_into(row, to);
            }
        }
        weights
    }

    /// Reads one row as f32, `[columns]`: what an embedding gathers.
    ///
    /// # Panics
    /// When there is no such row, or `to` is not as long as one.
    pub fn row_into(&self, row: usize, to: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert_eq!(to.len(), self.columns, "length of a row");
        self.read(Path::current(), row, 0..self.columns, to);
    }

    /// The forward product: `y = x · Wᵀ + bias`, with `x` `[tokens, columns]`, `bias` `[rows]` and `y` `[tokens, rows]`.
    ///
    /// # Panics
    /// When a slice does not have its length.
    pub fn product<E: Element>(&self, x: &[E], tokens: usize, bias: Option<&[f32]>, y: &mut [E]) {
        assert_eq!(x.len(), tokens * self.columns, "x is [tokens, columns]");
        assert_eq!(y.len(), tokens * self.rows, "y is [tokens, rows]");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.rows, "bias is [rows]");
        }
        let base = bias.map_or(TargetBase::Zero, TargetBase::Bias);
        self.multiply(x, tokens, Across::Rows, base, y);
    }

    /// The backward product: `dx = dy · W`, with `dy` `[tokens, rows]` and `dx` `[tokens, columns]`.
    ///
    /// # Panics
    /// When a slice does not have its length.
    pub fn product_transposed<E: Element>(&self, dy: &[E], tokens: usize, dx: &mut [E]) {
        assert_eq!(dy.len(), tokens * self.rows, "dy is [tokens, rows]");
        assert_eq!(dx.len(), tokens * self.columns, "dx is [tokens, columns]");
        self.multiply(dy, tokens, Across::Columns, TargetBase::Zero, dx);
    }

    /// The arithmetic of this weight's products.
    pub(crate) fn kernel(&self, path: Path) -> Kernel {
        if self.storage() == Storage::F32 { Kernel::f32(path) } else { Kernel::bf16(path) }
    }

    fn multiply<E: Element>(&self, x: &[E], tokens: usize, across: Across, base: TargetBase<'_>, y: &mut [E]) {
        let kernel = self.kernel(Path::current());
        let (columns, depth) = match across {
            Across::Rows => (self.rows, self.columns),
            Across::Columns => (self.columns, self.rows),
        };
        let left = Strided { data: x, row_stride: depth };
        let target = Target { output: SharedSlice::new(y), offset: 0, stride: columns, scale: 1.0, base };
        product(
            kernel,
            Operand { source: &left, across: Across::Rows },
            Operand { source: self, across },
            Extents { rows: tokens, columns, depth },
            target,
        );
    }
}

/// The rows of a weight from `first` on, as one side of a product.
pub(crate) struct RowsFrom<'a> {
    pub(crate) matrix: &'a FrozenMatrix,
    pub(crate) first: usize,
}

impl Rows for RowsFrom<'_> {
    fn plain(&self) -> Option<Plain<'_>> {
        self.matrix.plain().map(|all| all.below(self.first))
    }

    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        self.matrix.read(path, self.first + row, columns, to);
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        self.matrix.read_bf16(path, self.first + row, columns, to);
    }

    fn read_rows_bf16(&self, path: Path, rows: Range<usize>, columns: Range<usize>, to: &mut [u16]) {
        self.matrix.read_rows_bf16(path, self.first + rows.start..self.first + rows.end, columns, to);
    }
}

impl Rows for FrozenMatrix {
    fn plain(&self) -> Option<Plain<'_>> {
        match &self.data {
            Data::F32(weights) => Some(Plain::Panels(weights.all())),
            Data::Bf16(weights) => Some(Plain::Bf16(Strided { data: weights, row_stride: self.columns })),
            Data::Int8(_) | Data::Codes(_) => None,
        }
    }

    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        let range = row * self.columns + columns.start..row * self.columns + columns.end;
        match &self.data {
            Data::F32(weights) => weights.all().read(row, columns, to),
            Data::Bf16(weights) => widen(path, weights[range].reinterpret_cast(), to),
            Data::Int8(codes) => codes.read(path, row, columns, to),
            Data::Codes(codes) => codes.read(path, range, to),
        }
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        let range = row * self.columns + columns.start..row * self.columns + columns.end;
        match &self.data {
            Data::F32(weights) => Plain::Panels(weights.all()).read_bf16(path, row, columns, to),
            Data::Bf16(weights) => to.copy_from_slice(weights[range].reinterpret_cast()),
            Data::Int8(codes) => codes.read_bf16(path, row, columns, to),
            Data::Codes(codes) => codes.read_bf16(path, range, to),
        }
    }

    fn read_rows_bf16(&self, path: Path, rows: Range<usize>, columns: Range<usize>, to: &mut [u16]) {
        match &self.data {
            Data::Codes(codes) => codes.read_rows_bf16(path, self.columns, rows, columns, to),
            _ => read_row_by_row(self, path, rows, columns, to),
        }
    }
}
