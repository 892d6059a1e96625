//! Values into codes.

use super::{QuantError, code_book};
use rayon::prelude::*;

/// Values that share an absolute maximum, row by row across the ends of rows.
pub const BLOCK: usize = 64;

/// Codes, one a byte, and the absolute maximum of every block of [`BLOCK`]: value ≈ table\[code\] · absmax.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// A code for every value.
    pub codes: Vec<u8>,
    /// The absolute maximum of every block; the last block may be shorter.
    pub absmax: Vec<f32>,
}

/// The nearest code for every value, relative to the absolute maximum of its block.
///
/// As in bitsandbytes a value half-way between two codes takes the lower one, values are scaled by the reciprocal of the
/// maximum, and a block of zeros has maximum 0 and the codes of zero.
///
/// # Errors
/// When there is no code book of `bits`, or a value is not finite.
pub fn quantise(values: &[f32], bits: u32) -> Result<Quantised, QuantError> {
    let table = code_book(bits)?.table;
    let bounds: Vec<f32> = table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    check_finite(values)?;
    let mut codes = vec![0u8; values.len()];
    let absmax = values
        .par_chunks(BLOCK)
        .zip(codes.par_chunks_mut(BLOCK))
        .map(|(values, codes)| {
            let absmax = values.iter().fold(0f32, |max, v| max.max(v.abs()));
            // bitsandbytes' floor, below which the reciprocal would overflow.
            let scale = 1.0 / absmax.max(1e-38);
            for (value, code) in values.iter().zip(codes) {
                *code = bounds.partition_point(|&bound| bound < value * scale) as u8;
            }
            absmax
        })
        .collect();
    Ok(Quantised { codes, absmax })
}

pub(super) fn check_finite(values: &[f32]) -> Result<(), QuantError> {
    match values.par_iter().position_first(|v| !v.is_finite()) {
        Some(index) => Err(QuantError::NotFinite { index, value: values[index].to_string() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dequantised(quantised: &Quantised, bits: u32) -> Vec<f32> {
        let table = code_book(bits).unwrap().table;
        let value = |(i, &code): (usize, &u8)| table[usize::from(code)] * quantised.absmax[i / BLOCK];
        quantised.codes.iter().enumerate().map(value).collect()
    }

    /// `crates/testkit/fixtures/nf4`, made by `scripts/golden_nf4.py` with bitsandbytes.
    #[test]
    fn codes_and_maxima_are_those_of_bitsandbytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/fixtures/nf4/golden.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let raw = |name: &str| golden.tensor(name).unwrap().data().to_vec();
        let floats = |name: &str| -> Vec<f32> {
            raw(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        assert_eq!(code_book(4).unwrap().table, floats("code_book"));
        for name in ["plain", "ragged"] {
            let quantised = quantise(&floats(&format!("{name}.values")), 4).unwrap();
            assert_eq!(quantised.absmax, floats(&format!("{name}.absmax")));
            // bitsandbytes fills the last byte up with the code of zero.
            let mut codes = quantised.codes.clone();
            codes.resize(codes.len().next_multiple_of(2), 7);
            assert_eq!(fedpipe_kernels::pack_codes(4, &codes), raw(&format!("{name}.codes")));
            assert_eq!(dequantised(&quantised, 4), floats(&format!("{name}.dequantized")));
        }
    }

    #[test]
    fn a_tie_takes_the_lower_code_and_a_block_of_zeros_stays_zero() {
        let table = code_book(4).unwrap().table;
        let mut values: Vec<f32> = table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        values.resize(BLOCK, 1.0);
        values.extend([0.0; BLOCK]);
        values.extend([-1e-40, 0.0]);
        let quantised = quantise(&values, 4).unwrap();
        assert_eq!(quantised.codes[..15], (0..15).collect::<Vec<u8>>());
        assert_eq!((quantised.absmax[1], &quantised.codes[BLOCK..2 * BLOCK]), (0.0, [7u8; BLOCK].as_slice()));
        assert_eq!(dequantised(&quantised, 4)[BLOCK], 0.0);
        assert!(dequantised(&quantised, 4).iter().all(|v| v.is_finite()));
    }

    #[test]
    fn a_value_that_is_not_finite_is_reported_with_its_place() {
        let mut values = vec![1.0; 200];
        values[130] = f32::NAN;
        let error = quantise(&values, 8).unwrap_err();
        assert_eq!(error.to_string(), "the value at index 130 is NaN; only finite values can be quantised");
    }

    proptest! {
        #[test]
        fn no_value_is_further_off_than_half_the_widest_gap(
            values in prop::collection::vec(-1e3f32..1e3, 1..300), bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        ) {
            let table = code_book(bits).unwrap().table;
            let gap = table.windows(2).map(|pair| pair[1] - pair[0]).fold(0f32, f32::max);
            let quantised = quantise(&values, bits).unwrap();
            for (i, (value, back)) in values.iter().zip(dequantised(&quantised, bits)).enumerate() {
                let bound = (gap / 2.0 + 1e-6) * quantised.absmax[i / BLOCK];
                prop_assert!((value - back).abs() <= bound, "{value} came back as {back}");
            }
        }
    }
}
