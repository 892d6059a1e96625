//! The packed layout of codes, which files and other programs share.

mod common;

use common::words;
use fedpipe_kernels::{pack_codes, unpack_codes};
use proptest::prelude::*;

#[test]
fn the_first_code_lies_in_the_highest_bits() {
    // Written out by hand. At 4 bits this is bitsandbytes' order.
    assert_eq!(pack_codes(2, &[0b11, 0b00, 0b10, 0b01, 0b10]), [0b1100_1001, 0b1000_0000]);
    assert_eq!(pack_codes(3, &[0b111, 0b000, 0b101, 0b011]), [0b1110_0010, 0b1011_0000]);
    assert_eq!(pack_codes(4, &[0x1, 0xf, 0x7]), [0x1f, 0x70]);
    assert_eq!(pack_codes(8, &[7, 255]), [7, 255]);
    assert_eq!(pack_codes(3, &[5; 64]).len(), 24);
}

#[test]
#[should_panic(expected = "code 8 does not fit in 3 bits")]
fn a_code_that_does_not_fit_is_named() {
    pack_codes(3, &[8]);
}

proptest! {
    #[test]
    fn unpacking_gives_the_codes_back(bits in prop::sample::select(vec![2u8, 3, 4, 8]), len in 0usize..300, seed: u64) {
        let codes: Vec<u8> = words(seed, len).map(|word| (word >> (64 - bits)) as u8).collect();
        prop_assert_eq!(unpack_codes(bits, &pack_codes(bits, &codes), len), codes);
    }
}
