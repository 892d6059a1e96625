//! The lossless codec.

use super::frame;
use fedpipe_core::{Codec, CodecError, Tensors};
use safetensors::tensor::Dtype;

/// Every value as it is, four bytes each.
#[derive(Debug, Clone, Copy, Default)]
pub struct F32;

impl Codec for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn encode(&self, tensors: &Tensors) -> Vec<u8> {
        frame::write(tensors, Dtype::F32, |values| values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Tensors, CodecError> {
        frame::read(self.name(), bytes, Dtype::F32, |data| {
            data.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::Matrix;

    #[test]
    fn every_bit_survives_even_of_values_that_are_no_numbers() {
        let values = vec![0.0, -0.0, 1.0 / 3.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::NAN];
        let tensors: Tensors = [("w".to_string(), Matrix::new(2, 3, values.clone()).unwrap())].into();
        let back = F32.decode(&F32.encode(&tensors)).unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(back["w"].data()), bits(&values));
    }

    #[test]
    fn the_messages_of_the_other_codec_are_refused_by_name() {
        let tensors: Tensors = [("head".to_string(), Matrix::zeros(1, 2))].into();
        let error = F32.decode(&super::super::Bf16.encode(&tensors)).unwrap_err();
        assert_eq!(error.to_string(), "f32: tensor `head` holds BF16; this codec writes F32");
    }
}
