//! NormalFloat code books.

use super::QuantError;
use super::normal::normal_quantile;
use fedpipe_kernels::CodeBook;

/// bitsandbytes' table (`bitsandbytes.functional.get_4bit_type("nf4")`), to the last bit of an `f32`.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Probability whose quantile is the largest value before normalisation (bitsandbytes, `create_normal_map`).
const OFFSET: f64 = 0.9677083;

/// The NormalFloat code book of 2, 3, 4 or 8 bits: 2^bits increasing values in [-1, 1], zero among them.
///
/// # Errors
/// When there is none of that width.
pub fn code_book(bits: u32) -> Result<CodeBook, QuantError> {
    let table = match bits {
        4 => NF4.to_vec(),
        2 | 3 | 8 => by_recipe(bits),
        _ => return Err(QuantError::Bits { bits }),
    };
    Ok(CodeBook { bits: bits as u8, table })
}

/// NF4's recipe at any width: quantiles at evenly spaced probabilities between one half and [`OFFSET`], one more of
/// them on the positive side, and zero; all divided by the largest.
fn by_recipe(bits: u32) -> Vec<f32> {
    let half = 1usize << (bits - 1);
    // The `count` quantiles above zero, from the largest down.
    let quantiles =
        |count: usize| (0..count).map(move |i| normal_quantile(OFFSET + (0.5 - OFFSET) * i as f64 / count as f64));
    let largest = normal_quantile(OFFSET);
    let negative = quantiles(half - 1).map(|q| -q);
    let positive = quantiles(half).collect::<Vec<_>>().into_iter().rev();
    negative.chain([0.0]).chain(positive).map(|q| (q / largest) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(actual: &[f32], expected: &[f64], bound: f64) {
        assert_eq!(actual.len(), expected.len());
        for (&a, &e) in actual.iter().zip(expected) {
            assert!((f64::from(a) - e).abs() <= bound, "{a} is not {e}");
        }
    }

    /// The differences, up to 9e-8, are those of the `f32` arithmetic that bitsandbytes' table was made with.
    #[test]
    fn the_recipe_gives_the_table_of_nf4() {
        assert_close(&by_recipe(4), &NF4.map(f64::from), 1.2e-7);
    }

    /// ```python
    /// import numpy as np; from scipy.stats import norm; o = 0.9677083
    /// def table(bits):
    ///     h = 2 ** (bits - 1)
    ///     v = np.sort(np.r_[norm.ppf(np.linspace(o, 0.5, h + 1)[:-1]), 0, -norm.ppf(np.linspace(o, 0.5, h)[:-1])])
    ///     return v / v.max()
    /// ```
    #[test]
    fn the_other_tables_agree_with_scipy() {
        assert_close(&code_book(2).unwrap().table, &[-1.0, 0.0, 0.337915193521655, 1.0], 3e-8);
        let nf3 = [
            -1.0,
            -0.478629160115911,
            -0.21714181782574402,
            0.0,
            0.16093017270493612,
            0.337915193521655,
            0.5626169700752371,
            1.0,
        ];
        assert_close(&code_book(3).unwrap().table, &nf3, 3e-8);
        let nf8 = code_book(8).unwrap().table;
        assert_eq!(nf8.len(), 256);
        for (place, expected) in [
            (0, -1.0),
            (1, -0.9736547048548599),
            (2, -0.9494338983035805),
            (63, -0.34095575132377426),
            (126, -0.004994991070430228),
            (127, 0.0),
            (128, 0.004955966607123895),
            (191, 0.337915193521655),
            (254, 0.9738517570774492),
            (255, 1.0),
        ] {
            assert_close(&nf8[place..=place], &[expected], 3e-8);
        }
    }

    #[test]
    fn every_book_increases_and_holds_zero_and_both_ends() {
        for bits in [2, 3, 4, 8] {
            let table = code_book(bits).unwrap().table;
            assert!(table.is_sorted_by(|a, b| a < b));
            assert_eq!((table[0], table[(1 << (bits - 1)) - 1], table[(1 << bits) - 1]), (-1.0, 0.0, 1.0));
        }
        assert_eq!(code_book(5).unwrap_err(), QuantError::Bits { bits: 5 });
    }
}
