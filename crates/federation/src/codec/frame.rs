//! The safetensors layout that the codecs share.

use fedpipe_core::{CodecError, Matrix, Tensors};
use safetensors::tensor::{Dtype, TensorView};

/// Writes every matrix as a tensor `[rows, cols]` of `dtype` with the bytes that `bytes_of` makes of its values.
#[expect(clippy::expect_used, reason = "a Matrix holds rows * cols values, which is all that safetensors checks")]
pub(super) fn write(tensors: &Tensors, dtype: Dtype, bytes_of: impl Fn(&[f32]) -> Vec<u8>) -> Vec<u8> {
    let encoded: Vec<(&String, &Matrix, Vec<u8>)> =
        tensors.iter().map(|(name, matrix)| (name, matrix, bytes_of(matrix.data()))).collect();
    let views = encoded.iter().map(|(name, matrix, bytes)| {
        let view = TensorView::new(dtype, vec![matrix.rows(), matrix.cols()], bytes);
        (name.as_str(), view.expect("as many bytes as the shape says"))
    });
    safetensors::serialize(views, None).expect("valid views serialise")
}

/// Reads what [`write`] wrote. Memory stays within a small multiple of the bytes given: safetensors bounds the header and
/// checks every shape against the bytes that are there.
pub(super) fn read(
    codec: &'static str,
    bytes: &[u8],
    dtype: Dtype,
    values_of: impl Fn(&[u8]) -> Vec<f32>,
) -> Result<Tensors, CodecError> {
    let error = |reason: String| CodecError { codec, reason };
    let file = safetensors::SafeTensors::deserialize(bytes)
        .map_err(|e| error(format!("{} bytes that are not a safetensors message: {e}", bytes.len())))?;
    let mut tensors = Tensors::new();
    for (name, view) in file.iter() {
        let &[rows, cols] = view.shape() else {
            return Err(error(format!("tensor `{name}` has shape {:?}; a matrix has two dimensions", view.shape())));
        };
        if view.dtype() != dtype {
            return Err(error(format!("tensor `{name}` holds {:?}; this codec writes {dtype:?}", view.dtype())));
        }
        let matrix =
            Matrix::new(rows, cols, values_of(view.data())).map_err(|e| error(format!("tensor `{name}`: {e}")))?;
        tensors.insert(name.to_string(), matrix);
    }
    Ok(tensors)
}
