//! Metadata values, which stay in the file until they are asked for.

use std::ops::Range;

/// The type of a metadata value, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// In the order of their numbers.
const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    pub(super) fn of_number(number: u32) -> Option<Self> {
        usize::try_from(number).ok().and_then(|n| KINDS.get(n)).copied()
    }

    /// Bytes of a value, where they do not depend on it.
    pub(super) fn width(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }

    /// The number in `bytes`, which are as many as its width; of a text or an array, none.
    pub(super) fn number(self, bytes: &[u8]) -> Option<Number> {
        fn exactly<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
            bytes.try_into().ok()
        }
        Some(match self {
            Self::U8 => Number::Whole(u8::from_le_bytes(exactly(bytes)?).into()),
            Self::I8 => Number::Whole(i8::from_le_bytes(exactly(bytes)?).into()),
            Self::U16 => Number::Whole(u16::from_le_bytes(exactly(bytes)?).into()),
            Self::I16 => Number::Whole(i16::from_le_bytes(exactly(bytes)?).into()),
            Self::U32 => Number::Whole(u32::from_le_bytes(exactly(bytes)?).into()),
            Self::I32 => Number::Whole(i32::from_le_bytes(exactly(bytes)?).into()),
            Self::U64 => Number::Whole(u64::from_le_bytes(exactly(bytes)?).into()),
            Self::I64 => Number::Whole(i64::from_le_bytes(exactly(bytes)?).into()),
            Self::F32 => Number::F32(f32::from_le_bytes(exactly(bytes)?)),
            Self::F64 => Number::F64(f64::from_le_bytes(exactly(bytes)?)),
            Self::Bool => match exactly::<1>(bytes)? {
                [0] => Number::Bool(false),
                [1] => Number::Bool(true),
                _ => return None,
            },
            Self::Text | Self::Array => return None,
        })
    }
}

/// A number or a truth value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    /// Holds every whole number of the format.
    Whole(i128),
    F32(f32),
    F64(f64),
    Bool(bool),
}

impl Number {
    /// As f64; of an f32 the number that has its shortest decimal form, so that 1e-5 stays 1e-5.
    pub(super) fn as_f64(self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(number as f64),
            Self::F32(number) => number.to_string().parse().ok(),
            Self::F64(number) => Some(number),
            Self::Bool(_) => None,
        }
    }

    pub(super) fn as_usize(self) -> Option<usize> {
        match self {
            Self::Whole(number) => usize::try_from(number).ok(),
            _ => None,
        }
    }
}

/// A value, or where it lies in the file. Nothing here is larger than a few words, whatever the file claims.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(Number),
    /// The bytes of a text; whether they are UTF-8 is checked when it is read.
    Text(Range<usize>),
    /// `count` values of one kind in these bytes, which were walked once, so that they are whole.
    Array {
        kind: Kind,
        count: usize,
        bytes: Range<usize>,
    },
}
