#![no_main]

use std::sync::LazyLock;
use tempfile::TempDir;

/// Under `TMPDIR`, which the script puts in memory.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fedpipe_fuzz::data(FOLDER.path(), bytes));
