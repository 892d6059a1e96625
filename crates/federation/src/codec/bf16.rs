//! Half the bytes at eight bits of precision.

use super::frame;
use fedpipe_core::{Codec, CodecError, Tensors};
use safetensors::tensor::Dtype;

/// Every value rounded to the nearest bfloat16, two bytes each: the range of `f32` with a relative error of at most 2⁻⁸.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bf16;

impl Codec for Bf16 {
    fn name(&self) -> &'static str {
        "bf16"
    }

    fn encode(&self, tensors: &Tensors) -> Vec<u8> {
        frame::write(tensors, Dtype::BF16, |values| {
            values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
        })
    }

    fn decode(&self, bytes: &[u8]) -> Result<Tensors, CodecError> {
        frame::read(self.name(), bytes, Dtype::BF16, |data| {
            data.as_chunks().0.iter().map(|&value| half::bf16::from_le_bytes(value).to_f32()).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::Matrix;

    #[test]
    fn values_are_rounded_to_nearest() {
        let tensors: Tensors =
            [("w".to_string(), Matrix::new(1, 3, vec![1.0, 1.0 + 1.0 / 512.0, -3.1]).unwrap())].into();
        let back = Bf16.decode(&Bf16.encode(&tensors)).unwrap();
        assert_eq!(back["w"].data(), [1.0, 1.0, -3.09375]);
    }
}
