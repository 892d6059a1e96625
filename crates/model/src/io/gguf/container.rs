//! The container of the GGUF format: header, metadata and directory of tensors.
//!
//! Nothing is allocated by a number that the file states: a count is believed when as many bytes are there, texts and
//! arrays stay in the file, and what is kept is a few words an entry. See the specification in the ggml project,
//! `docs/gguf.md`, versions 2 and 3.

use super::blocks::Format;
use super::value::{Kind, Value};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most metadata entries, and most tensors; models with hundreds of layers have a few thousand.
const MAX_ENTRIES: u64 = 1 << 16;
/// By the specification.
const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// By the specification.
const MAX_NAME_BYTES: usize = 64;
/// By the specification.
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;
/// More would be a lie: a page is 4,096 bytes.
const MAX_ALIGNMENT: usize = 1 << 16;

/// What a file says about itself, checked against its length.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

/// Where a tensor lies in the file.
#[derive(Debug)]
pub(super) struct Tensor {
    /// The slowest dimension first, as everywhere in this crate; the file has the fastest first.
    pub(super) shape: Vec<usize>,
    pub(super) format: Format,
    pub(super) bytes: Range<usize>,
}

impl Container {
    /// Reads the directory of a whole file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let mut cursor = Cursor { file, at: 0 };
        if cursor.take(4, "the magic number")? != b"GGUF" {
            return Err("it does not begin with `GGUF`, so it is no GGUF file".into());
        }
        let version = cursor.u32("the version")?;
        match version {
            2 | 3 => {}
            // A version number in the other byte order.
            _ if version & 0xffff == 0 && version != 0 => {
                return Err("a big-endian file, which cannot be read here; convert the model again".into());
            }
            _ => return Err(format!("version {version} of the format; 2 and 3 can be read")),
        }
        let tensors = cursor.count("tensors")?;
        let entries = cursor.count("metadata entries")?;
        let metadata = read_metadata(&mut cursor, entries)?;
        let alignment = alignment(&metadata)?;
        let directory = read_directory(&mut cursor, tensors)?;
        let start = cursor.at.checked_next_multiple_of(alignment).ok_or("its header is too long")?;
        let tensors = place(directory, file.len(), start, alignment)?;
        Ok(Self { metadata, tensors })
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, entries: u64) -> Result<BTreeMap<String, Value>, String> {
    let mut metadata = BTreeMap::new();
    for number in 1..=entries {
        let key = cursor.name(MAX_KEY_BYTES, &format!("the key of metadata entry {number}"))?;
        let what = format!("the metadata `{key}`");
        let kind = cursor.kind(&what)?;
        let value = match kind {
            Kind::Array => cursor.array(&what)?,
            Kind::Text => Value::Text(cursor.text(&what)?),
            _ => {
                let bytes = cursor.take(kind.width().unwrap_or_default() as u64, &what)?;
                Value::Number(kind.number(bytes).ok_or_else(|| format!("{what} is neither true nor false"))?)
            }
        };
        if metadata.insert(key, value).is_some() {
            return Err(format!("{what} is there twice"));
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Number(number)) => number
            .as_usize()
            .filter(|a| a.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(a))
            .ok_or_else(|| format!("`general.alignment` is no power of two from 8 to {MAX_ALIGNMENT}")),
        Some(_) => Err("`general.alignment` is no number".into()),
    }
}

/// An entry of the directory: name, shape, format, bytes and their offset in the data.
struct Entry {
    name: String,
    shape: Vec<usize>,
    format: Format,
    size: usize,
    offset: u64,
}

fn read_directory(cursor: &mut Cursor<'_>, tensors: u64) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    for number in 1..=tensors {
        let name = cursor.name(MAX_NAME_BYTES, &format!("the name of tensor {number}"))?;
        let what = format!("the tensor `{name}`");
        let dimensions = cursor.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("{what} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let extent = cursor.u64(&what)?;
            shape.push(
                usize::try_from(extent)
                    .ok()
                    .filter(|&n| n > 0)
                    .ok_or_else(|| format!("{what} has a dimension of {extent}"))?,
            );
        }
        shape.reverse();
        let format = Format::of_number(cursor.u32(&what)?).map_err(|e| format!("{what} {e}"))?;
        let size = format.size(&shape).map_err(|e| format!("{what} {e}"))?;
        let offset = cursor.u64(&what)?;
        entries.push(Entry { name, shape, format, size, offset });
    }
    Ok(entries)
}

/// Checks that tensors lie in the file, aligned and apart.
fn place(
    mut entries: Vec<Entry>,
    file_bytes: usize,
    start: usize,
    alignment: usize,
) -> Result<BTreeMap<String, Tensor>, String> {
    entries.sort_by_key(|entry| entry.offset);
    let mut tensors = BTreeMap::new();
    let mut free = start;
    for Entry { name, shape, format, size, offset } in entries {
        let begin = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let bytes = begin.and_then(|begin| Some(begin..begin.checked_add(size)?));
        let Some(bytes) = bytes.filter(|bytes| bytes.end <= file_bytes) else {
            return Err(format!(
                "the tensor `{name}` takes {size} bytes at offset {offset} of the data, but the file ends before; it is cut off"
            ));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!(
                "the tensor `{name}` lies at {offset}, which is no multiple of the alignment {alignment}"
            ));
        }
        if bytes.start < free {
            return Err(format!("the tensor `{name}` overlaps another"));
        }
        free = bytes.end;
        let what = format!("the tensor `{name}` is there twice");
        if tensors.insert(name, Tensor { shape, format, bytes }).is_some() {
            return Err(what);
        }
    }
    Ok(tensors)
}

/// A place in the file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn range(&mut self, count: u64, what: &str) -> Result<Range<usize>, String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        match end.filter(|&end| end <= self.file.len()) {
            Some(end) => {
                let range = self.at..end;
                self.at = end;
                Ok(range)
            }
            None => Err(format!(
                "{what} takes {count} bytes at {}, but the file has {} bytes; it is cut off or damaged",
                self.at,
                self.file.len()
            )),
        }
    }

    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], String> {
        let range = self.range(count, what)?;
        Ok(&self.file[range])
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let bytes = self.take(4, what)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        let bytes = self.take(8, what)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn count(&mut self, what: &str) -> Result<u64, String> {
        let count = self.u64(&format!("the number of {what}"))?;
        if count > MAX_ENTRIES {
            return Err(format!("it claims {count} {what}; at most {MAX_ENTRIES} are read"));
        }
        Ok(count)
    }

    fn kind(&mut self, what: &str) -> Result<Kind, String> {
        let number = self.u32(what)?;
        Kind::of_number(number).ok_or_else(|| format!("{what} is of type {number}, which is none"))
    }

    fn text(&mut self, what: &str) -> Result<Range<usize>, String> {
        let length = self.u64(what)?;
        self.range(length, what)
    }

    /// A short text of the directory itself.
    fn name(&mut self, most: usize, what: &str) -> Result<String, String> {
        let range = self.text(what)?;
        if range.is_empty() || range.len() > most {
            return Err(format!("{what} has {} bytes; 1 to {most} are possible", range.len()));
        }
        String::from_utf8(self.file[range].to_vec()).map_err(|_| format!("{what} is not UTF-8"))
    }

    fn array(&mut self, what: &str) -> Result<Value, String> {
        let kind = self.kind(what)?;
        let stated = self.u64(what)?;
        let begin = self.at;
        match kind.width() {
            Some(width) => {
                let bytes = stated.checked_mul(width as u64).ok_or_else(|| format!("{what} claims {stated} values"))?;
                self.range(bytes, what)?;
            }
            None if kind == Kind::Text => {
                for _ in 0..stated {
                    self.text(what)?;
                }
            }
            None => return Err(format!("{what} is an array of arrays, which no model needs")),
        }
        // Every value took a byte at least, so the count is one of this file.
        let count = usize::try_from(stated).map_err(|_| format!("{what} claims {stated} values"))?;
        Ok(Value::Array { kind, count, bytes: begin..self.at })
    }
}
