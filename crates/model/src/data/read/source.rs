//! The bytes of a file, decompressed as they are read.

use super::{DataError, io_error};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Extensions of compressed files; they follow the one of the format, as in `.jsonl.gz`.
pub const COMPRESSIONS: [&str; 2] = ["gz", "zst"];

/// The extension of a file's format in lower case, and whether that of a compression follows it.
pub(super) fn extension(path: &Path) -> (Option<String>, bool) {
    let last = |path: &Path| path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match last(path) {
        Some(e) if COMPRESSIONS.contains(&e.as_str()) => (path.file_stem().and_then(|stem| last(stem.as_ref())), true),
        other => (other, false),
    }
}

/// Opens a file. What is read is decompressed on the way, a few hundred KiB at a time (up to the window of 128 MiB that
/// a Zstandard file may ask for).
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let file = File::open(path).map_err(io_error(path))?;
    let compression = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match compression.as_deref() {
        Some("gz") => Ok(Box::new(MultiGzDecoder::new(file))),
        Some("zst") => Ok(Box::new(zstd::Decoder::new(file).map_err(io_error(path))?)),
        _ => Ok(Box::new(file)),
    }
}
