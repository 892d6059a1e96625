//! The `gemm` crate, which candle multiplies with, on the same slices.

use fedpipe_kernels::Path;
use gemm::Parallelism;

/// The path of ours that uses the instructions that the crate picks on this machine: AVX-512 where it is built with the
/// feature `bench-gemm-avx512`, else AVX2. `None` where ours has no such path.
pub fn path() -> Option<Path> {
    let path = if cfg!(feature = "bench-gemm-avx512") {
        Path::Avx512Bf16
    } else if cfg!(target_arch = "aarch64") {
        Path::Neon
    } else {
        Path::Avx2
    };
    path.is_supported().then_some(path)
}

/// A row-major matrix, or the transpose of one.
#[derive(Clone, Copy)]
struct Side<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

/// `y = x · Wᵀ`, with `x` `[tokens, columns]`, `weights` `[rows, columns]` and `y` `[tokens, rows]`.
pub fn product(x: &[f32], weights: &[f32], columns: usize, y: &mut [f32]) {
    let (tokens, rows) = (x.len() / columns, weights.len() / columns);
    let right = Side { data: weights, row_stride: 1, column_stride: columns };
    multiply(Side { data: x, row_stride: columns, column_stride: 1 }, right, [tokens, rows, columns], y);
}

/// `dx = dy · W`, with `dy` `[tokens, rows]`, `weights` `[rows, columns]` and `dx` `[tokens, columns]`.
pub fn product_transposed(dy: &[f32], weights: &[f32], columns: usize, dx: &mut [f32]) {
    let rows = weights.len() / columns;
    let right = Side { data: weights, row_stride: columns, column_stride: 1 };
    multiply(Side { data: dy, row_stride: rows, column_stride: 1 }, right, [dy.len() / rows, columns, rows], dx);
}

fn multiply(left: Side<'_>, right: Side<'_>, [rows, columns, depth]: [usize; 3], to: &mut [f32]) {
    assert_eq!((left.data.len(), right.data.len(), to.len()), (rows * depth, depth * columns, rows * columns));
    // SAFETY: by the lengths above, every element that the strides reach lies within its slice.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            to.as_mut_ptr(),
            1,
            columns as isize,
            false,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}
