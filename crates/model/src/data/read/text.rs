//! Lines of a text file, each bounded in length and checked to be UTF-8.

use super::source::open;
use super::{DataError, MAX_RECORD_BYTES, Origin, io_error};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Reads a text file line by line.
pub(super) struct Lines {
    reader: BufReader<Box<dyn Read>>,
    buffer: Vec<u8>,
    origin: Origin,
    /// Whether the rest of a line that is too long is still to be passed over.
    within: bool,
}

/// A line and where it is; the error is about that line alone.
pub(super) type Line<'a> = Result<(&'a str, Origin), DataError>;

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let reader = BufReader::new(open(path)?);
        Ok(Self { reader, buffer: Vec::new(), origin: Origin::new(path, 0), within: false })
    }

    /// Bytes that are set aside for a line.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// The next line that is not blank, without its ending; `None` at the end. No more of a line than
    /// [`MAX_RECORD_BYTES`] is in memory.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, DataError> {
        if std::mem::take(&mut self.within) {
            self.reader.skip_until(b'\n').map_err(io_error(&self.origin.file))?;
        }
        loop {
            self.origin.line += 1;
            self.buffer.clear();
            let mut bounded = (&mut self.reader).take(MAX_RECORD_BYTES as u64 + 1);
            let bytes = bounded.read_until(b'\n', &mut self.buffer).map_err(io_error(&self.origin.file))?;
            if bytes == 0 {
                return Ok(None);
            }
            if bytes > MAX_RECORD_BYTES {
                self.within = self.buffer.last() != Some(&b'\n');
                let error = self.origin.malformed(format!("the line is longer than {MAX_RECORD_BYTES} bytes"));
                return Ok(Some(Err(error)));
            }
            if !content(&self.buffer, self.origin.line == 1).is_empty() {
                break;
            }
        }
        let line = content(&self.buffer, self.origin.line == 1);
        Ok(Some(match std::str::from_utf8(line) {
            Ok(text) => Ok((text, self.origin.clone())),
            Err(_) => Err(DataError::NotUtf8 { origin: self.origin.clone() }),
        }))
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
