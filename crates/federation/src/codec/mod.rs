//! What travels: tensors as bytes and back. Both codecs are safetensors in memory, a format with a bound on its header
//! that every tool can read; a new one is a file here and a row in [`CODECS`].

mod bf16;
mod f32;
mod frame;

pub use bf16::Bf16;
pub use f32::F32;

use crate::UnknownName;
use fedpipe_core::Codec;

/// Every codec, with the bytes that one value takes (what the cost model charges for a transfer).
pub const CODECS: &[(&dyn Codec, f64)] = &[(&F32, 4.0), (&Bf16, 2.0)];

/// The codec of that name and the bytes that one value takes in it.
///
/// # Errors
/// When no row of [`CODECS`] has the name.
pub fn by_name(name: &str) -> Result<(&'static dyn Codec, f64), UnknownName> {
    CODECS
        .iter()
        .copied()
        .find(|(codec, _)| codec.name() == name)
        .ok_or_else(|| UnknownName::new("codec", name, CODECS.iter().map(|(codec, _)| codec.name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_core::{Matrix, Tensors};
    use proptest::prelude::*;

    #[test]
    fn every_row_of_the_table_is_found_by_its_name_and_conforms() {
        for (codec, _) in CODECS {
            assert_eq!(by_name(codec.name()).unwrap().0.name(), codec.name());
            fedpipe_testkit::codec_conformance(*codec);
        }
    }

    #[test]
    fn the_bytes_of_a_value_are_what_the_codec_writes() {
        let bytes = |codec: &dyn Codec, n: usize| {
            let tensors: Tensors = [("w".to_string(), Matrix::zeros(1, n))].into();
            codec.encode(&tensors).len()
        };
        for (codec, width) in CODECS {
            // Same number of digits in the header, 512 values more.
            assert_eq!((bytes(*codec, 4608) - bytes(*codec, 4096)) as f64, 512.0 * width);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_tensors_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (codec, _) in CODECS {
                let _ = codec.decode(&bytes);
            }
        }

        /// Random headers of a valid length get deeper into the decoder than random bytes do.
        #[test]
        fn any_header_is_an_error_or_tensors_but_never_a_panic(
            shape in proptest::collection::vec(any::<u64>(), 0..4),
            offsets in (any::<u16>(), any::<u16>()),
            dtype in prop::sample::select(vec!["F32", "BF16", "I64", "F8"]),
            data in 0usize..64,
        ) {
            let header = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{}]}}}}"#,
                offsets.0 % 65, offsets.1 % 65
            );
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.bytes());
            bytes.extend(std::iter::repeat_n(1u8, data));
            for (codec, _) in CODECS {
                let _ = codec.decode(&bytes);
            }
        }
    }
}
