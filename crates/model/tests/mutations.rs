//! The functions that `make fuzz` runs under a sanitizer, over seeded mutations of the same seeds: nothing panics.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

#[path = "../../../fuzz/src/lib.rs"]
mod inputs;

use fedpipe_core::Seed;
use rand_core::Rng;
use std::fs;
use std::path::{Path, PathBuf};

/// Mutations of every seed.
const ROUNDS: u32 = 300;
/// Numbers that lengths and offsets lie with.
const LIES: [u64; 6] = [0, 1, u64::MAX, u32::MAX as u64, i64::MAX as u64, 1 << 40];

type Stream = Box<dyn FnMut(usize) -> usize>;

/// A draw below a number, from a stream of the seed.
fn stream(number: u64) -> Stream {
    let mut stream = Seed(number).named("mutations").stream();
    Box::new(move |below| (stream.next_u64() % below.max(1) as u64) as usize)
}

/// One to four changes: a byte, a bit, a number, a piece left out, a piece of it twice, an end cut off.
fn mutate(bytes: &mut Vec<u8>, draw: &mut Stream) {
    for _ in 0..=draw(4) {
        let (place, length) = (draw(bytes.len()), 1 + draw(32));
        let piece = place..(place + length).min(bytes.len());
        match draw(6) {
            _ if bytes.is_empty() => bytes.push(draw(256) as u8),
            0 => bytes[place] = draw(256) as u8,
            1 => bytes[place] ^= 1 << draw(8),
            2 => {
                let lie = LIES[draw(LIES.len())].to_le_bytes();
                for (byte, lie) in bytes[place..].iter_mut().zip(&lie[..[2, 4, 8][draw(3)]]) {
                    *byte = *lie;
                }
            }
            3 => drop(bytes.drain(piece)),
            4 => {
                let piece = bytes[piece].to_vec();
                bytes.splice(place..place, piece);
            }
            _ => bytes.truncate(place),
        }
    }
}

fn run(target: impl Fn(&[u8]), seeds: &Path) {
    let mut files: Vec<PathBuf> = if seeds.is_dir() {
        fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().path()).collect()
    } else {
        vec![seeds.into()]
    };
    files.sort();
    assert!(!files.is_empty(), "{} holds no seeds", seeds.display());
    for (number, file) in (0u64..).zip(&files) {
        let seed = fs::read(file).unwrap();
        target(&seed);
        let mut draw = stream(number);
        for _ in 0..ROUNDS {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut draw);
            target(&bytes);
        }
    }
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn gguf_files() {
    run(inputs::gguf, &root("crates/testkit/fixtures/gguf/tiny.gguf"));
}

#[test]
fn adapters() {
    let folder = tempfile::tempdir().unwrap();
    run(|bytes| inputs::adapter(folder.path(), bytes), &root("fuzz/seeds/adapter"));
}

#[test]
fn chat_templates() {
    run(inputs::chat, &root("fuzz/seeds/chat"));
}

#[test]
fn data_files() {
    let folder = tempfile::tempdir().unwrap();
    run(|bytes| inputs::data(folder.path(), bytes), &root("fuzz/seeds/data"));
}
