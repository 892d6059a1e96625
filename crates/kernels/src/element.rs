//! How activations are stored: f32, or bf16 at half the memory and traffic.

use half::bf16;

/// An element of an activation: [`f32`] or [`bf16`]. Arithmetic is in f32 either way; storing rounds to nearest even.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed + 'static {
    /// Whether the element is a bf16, so that products over it may multiply in bf16.
    const IS_BF16: bool;

    /// The value.
    fn to_f32(self) -> f32;

    /// The nearest element, ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Not `half`'s own: branch-free, so that loops over it are vectorised.
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_bits(round(value))
    }
}

/// The upper half of an f32, rounded to nearest even.
#[inline(always)]
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let even = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a NaN into infinity: keep it quiet instead.
    if value.is_nan() { (bits >> 16 | 0x40) as u16 } else { even as u16 }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bf16, halfway points between them and their neighbours, against the `half` crate.
    #[test]
    fn rounding_is_to_nearest_even() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (<bf16 as Element>::from_f32(value), bf16::from_f32(value));
                assert!(ours.to_bits() == theirs.to_bits() || value.is_nan() && ours.is_nan(), "{value:e}");
            }
            let exact = bf16::from_bits(high);
            assert!(Element::to_f32(exact) == bf16::to_f32(exact) || exact.is_nan());
        }
    }
}
