//! Lines of a text file, each bounded in length and checked to be UTF-8.

use super::{DataError, MAX_RECORD_BYTES, Origin, io_error};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Reads a text file line by line.
pub(super) struct Lines {
    reader: BufReader<File>,
    buffer: Vec<u8>,
    origin: Origin,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(io_error(path))?;
        Ok(Self { reader: BufReader::new(file), buffer: Vec::new(), origin: Origin::new(path, 0) })
    }

    /// The next line that is not blank, without its ending, and where it is; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(&str, Origin)>, DataError> {
        loop {
            self.origin.line += 1;
            self.buffer.clear();
            let mut bounded = (&mut self.reader).take(MAX_RECORD_BYTES as u64 + 1);
            let bytes = bounded.read_until(b'\n', &mut self.buffer).map_err(io_error(&self.origin.file))?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes > MAX_RECORD_BYTES {
                return Err(self.origin.malformed(format!("the line is longer than {MAX_RECORD_BYTES} bytes")));
            }
            if !content(&self.buffer, self.origin.line == 1).is_empty() {
                break;
            }
        }
        let line = content(&self.buffer, self.origin.line == 1);
        let text = std::str::from_utf8(line).map_err(|_| DataError::NotUtf8 { origin: self.origin.clone() })?;
        Ok(Some((text, self.origin.clone())))
    }
}

/// A line without its ending and, if it is the first, without a byte-order mark.
fn content(line: &[u8], first: bool) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if first { without_mark(line) } else { line }
}

/// Bytes without UTF-8's byte-order mark.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}
