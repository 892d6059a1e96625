//! A damaged GGUF file never panics, and never makes the reader allocate more than a few times the file's length.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use fedpipe_kernels::CountingAllocator;
use fedpipe_model::io::{GgufFile, IoError, WeightSource};
use proptest::prelude::*;
use std::alloc::System;
use std::path::Path;
use std::sync::Mutex;

#[global_allocator]
static HEAP: CountingAllocator<System> = CountingAllocator::new(System);

/// Allocations are the process's, so its tests run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Of the file's length: its copy, the tensors one by one as f32 (Q4_0 grows sevenfold, then rows are put in order), the
/// tokenizer's tables, and what candle and the thread pool take.
const GROWTH: usize = 40;
const FIXED: usize = 1 << 20;

fn small() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/gguf/tiny.gguf");
    std::fs::read(path).unwrap()
}

/// Reads all that there is to read.
fn read(bytes: Vec<u8>) -> Result<(), IoError> {
    let file = GgufFile::from_bytes(Path::new("m.gguf"), bytes)?;
    for name in file.tensor_names() {
        let shape = file.tensor_shape(name)?.to_vec();
        file.tensor_f32(name, &shape)?;
    }
    file.chat_template()?;
    let tokenizer = file.tokenizer()?;
    tokenizer.tokenizer.encode("hello 12 <s>", true).map(|_| ()).map_err(|e| panic!("a text cannot be encoded: {e}"))
}

/// As [`read`], and nothing beyond the bound is allocated.
fn bounded(bytes: Vec<u8>, what: impl std::fmt::Display) -> Result<(), IoError> {
    let (before, most) = (HEAP.current_bytes(), GROWTH * bytes.len() + FIXED);
    HEAP.reset_peak();
    let result = read(bytes);
    let peak = HEAP.peak_bytes().saturating_sub(before);
    assert!(peak <= most, "{what}: {peak} bytes were allocated, {most} may be");
    result
}

/// Where the tensors begin: the length without the data.
fn header(bytes: &[u8]) -> usize {
    let last = b"blk.0.ffn_down.weight";
    bytes.windows(last.len()).rposition(|window| window == last).unwrap() + 64
}

#[test]
fn every_truncation_is_an_error() {
    let _alone = ALONE.lock();
    let whole = small();
    bounded(whole.clone(), "the whole file").unwrap();
    // Within the data every length says the same, so a few do.
    let lengths = (0..header(&whole)).chain((header(&whole)..whole.len() - 64).step_by(97));
    for length in lengths {
        let error = bounded(whole[..length].to_vec(), length).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: GGUF: "), "{length}: {error}");
    }
}

#[test]
fn every_damaged_byte_of_the_header_is_survived() {
    let _alone = ALONE.lock();
    let whole = small();
    for place in 0..header(&whole) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[place] ^= flip;
            let _ = bounded(damaged, format!("byte {place} ^ {flip:#x}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Lengths, counts and offsets are eight bytes: whole words of nonsense at any place, several at once.
    #[test]
    fn nonsense_is_survived(
        words in prop::collection::vec((0usize..8_000, prop_oneof![any::<u64>(), 0u64..100_000, Just(u64::MAX), Just(1 << 62)]), 1..4),
        random in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _alone = ALONE.lock();
        let mut damaged = small();
        for (place, word) in words {
            damaged[place..place + 8].copy_from_slice(&word.to_le_bytes());
        }
        let _ = bounded(damaged, "words");
        let _ = bounded([b"GGUF\x03\0\0\0".as_slice(), &random].concat(), "random bytes");
    }
}
