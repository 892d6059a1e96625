//! Low-bit storage of frozen weights: NormalFloat codes with an absolute maximum for each block (QLoRA, arXiv
//! 2305.14314), at 4 bits the very codes of bitsandbytes.

mod code_book;
mod frozen;
mod normal;
mod quantise;

pub use code_book::code_book;
pub use frozen::{bytes, frozen};
pub use quantise::{BLOCK, Quantised, quantise};

/// Values that cannot be quantised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// There is no code book of this width.
    #[error("there is no NormalFloat code book of {bits} bits; use 2, 3, 4 or 8")]
    Bits {
        /// The width.
        bits: u32,
    },
    /// A value is infinite or not a number.
    #[error("the value at index {index} is {value}; only finite values can be quantised")]
    NotFinite {
        /// Its place, row by row.
        index: usize,
        /// What it is, as text.
        value: String,
    },
    /// A shape that does not hold the values.
    #[error("a {rows}x{columns} matrix takes another number of values than {got}")]
    Shape {
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Number of values.
        got: usize,
    },
}
