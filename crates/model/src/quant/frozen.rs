//! Base weights in the format that a silo's plan asks for.

use super::quantise::check_finite;
use super::{BLOCK, QuantError, code_book, quantise};
use fedpipe_core::BaseFormat;
use fedpipe_kernels::{FrozenMatrix, PANEL, pack_codes};

/// A frozen weight `[rows, columns]` from its row-major values.
///
/// # Errors
/// When the values do not fill the shape, or a value that is to be quantised is not finite.
pub fn frozen(format: BaseFormat, rows: usize, columns: usize, values: &[f32]) -> Result<FrozenMatrix, QuantError> {
    if rows.checked_mul(columns) != Some(values.len()) {
        return Err(QuantError::Shape { rows, columns, got: values.len() });
    }
    let Some(bits) = format.code_bits() else {
        return Ok(match format {
            BaseFormat::Bf16 => FrozenMatrix::bf16(rows, columns, values),
            BaseFormat::Int8 => {
                check_finite(values)?;
                FrozenMatrix::int8(rows, columns, values)
            }
            _ => FrozenMatrix::f32(rows, columns, values),
        });
    };
    let quantised = quantise(values, bits)?;
    let book = code_book(bits)?;
    let packed = pack_codes(book.bits, &quantised.codes);
    Ok(FrozenMatrix::from_codes(rows, columns, &book, packed, quantised.absmax, BLOCK))
}

/// Bytes that a frozen weight takes at rest: its values or codes, for int8 an `f32` a row and for codes one a block of
/// [`BLOCK`].
pub fn bytes(format: BaseFormat, rows: usize, columns: usize) -> u64 {
    let values = rows as u64 * columns as u64;
    match format.code_bits() {
        Some(bits) => (values * u64::from(bits)).div_ceil(8) + 4 * values.div_ceil(BLOCK as u64),
        None => match format {
            BaseFormat::Bf16 => 2 * values,
            BaseFormat::Int8 => values + 4 * rows as u64,
            // In panels that are filled up.
            _ => 4 * rows as u64 * columns.next_multiple_of(PANEL) as u64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect()
    }

    #[test]
    fn memory_at_rest_is_what_is_planned_for() {
        for format in BaseFormat::ALL {
            for (rows, columns) in [(384, 1536), (5, 77), (1, 1)] {
                let matrix = frozen(format, rows, columns, &values(rows * columns)).unwrap();
                assert_eq!(matrix.bytes() as u64, bytes(format, rows, columns), "{format} {rows}x{columns}");
            }
        }
    }

    /// 64·128 values: 8 bytes a pair in f32; 64 rows of 4 bytes beside int8, 128 blocks of 4 bytes beside codes.
    #[test]
    fn byte_counts_by_hand() {
        let counts = BaseFormat::ALL.map(|format| bytes(format, 64, 128));
        assert_eq!(counts, [32768, 16384, 8192 + 256, 8192 + 512, 4096 + 512, 3072 + 512, 2048 + 512]);
    }

    #[test]
    fn fewer_bits_are_further_off_but_never_far() {
        let values = values(64 * 64);
        let error = |format| {
            let back = frozen(format, 64, 64, &values).unwrap().dequantize();
            values.iter().zip(back).map(|(v, b)| f64::from(v - b).powi(2)).sum::<f64>().sqrt()
        };
        // Two families: a scale for each row does not compare with a scale for each block.
        let (plain, coded): (Vec<_>, Vec<_>) = BaseFormat::ALL.into_iter().partition(|f| f.code_bits().is_none());
        let [plain, coded] = [plain, coded].map(|formats| formats.into_iter().map(error).collect::<Vec<_>>());
        assert!(plain.is_sorted() && coded.is_sorted(), "{plain:?} {coded:?}");
        assert_eq!(plain[0], 0.0);
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!(plain[2] < 0.01 * norm && coded[3] < 0.5 * norm, "{plain:?} {coded:?} of {norm}");
    }

    /// `crates/testkit/fixtures/int8`, made by `scripts/golden_int8.py` with PyTorch's quantizer.
    #[test]
    fn int8_is_that_of_pytorch() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/fixtures/int8/golden.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: String| -> Vec<f32> {
            let data = golden.tensor(&name).unwrap().data().chunks_exact(4);
            data.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        for name in ["plain", "ragged", "ties"] {
            let codes = golden.tensor(&format!("{name}.codes")).unwrap();
            let [rows, columns] = codes.shape().try_into().unwrap();
            let expected = floats(format!("{name}.dequantized"));
            let quantised = frozen(BaseFormat::Int8, rows, columns, &floats(format!("{name}.values"))).unwrap();
            assert_eq!(quantised.dequantize(), expected, "{name}");
            let codes = codes.data().iter().map(|&code| code as i8).collect();
            let kept = FrozenMatrix::from_int8(rows, columns, codes, floats(format!("{name}.scales")));
            assert_eq!(kept.dequantize(), expected, "{name}");
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_reported_in_every_format_that_scales() {
        for format in BaseFormat::ALL.into_iter().filter(|f| !matches!(f, BaseFormat::F32 | BaseFormat::Bf16)) {
            let error = frozen(format, 1, 3, &[1.0, f32::INFINITY, f32::NAN]).unwrap_err();
            assert!(error.to_string().starts_with("the value at index 1 is inf"), "{format}: {error}");
        }
    }

    #[test]
    fn values_that_do_not_fill_the_shape_are_refused() {
        let error = frozen(BaseFormat::F32, 2, 3, &[0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a 2x3 matrix takes another number of values than 5");
    }
}
