//! Comma-separated values, RFC 4180.

use super::source::open;
use super::{Columns, Example, MAX_RECORD_BYTES, Origin, Places, Sink, io_error};
use crate::data::DataError;
use ::csv::{ByteRecord, ErrorKind, ReaderBuilder, StringRecord};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::Path;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let mut records = Records::open(path)?;
    let Some((header, origin)) = records.next()?.transpose()? else { return Ok(()) };
    let places = Places::of(columns, &header.iter().collect::<Vec<_>>(), &origin).map_err(|error| {
        let other = [(';', "semicolons"), ('\t', "tabs")]
            .into_iter()
            .find(|(c, _)| header.len() == 1 && header[0].contains(*c));
        let Some((_, other)) = other else { return error };
        origin.malformed(format!(
            "the header is one column, `{}`; separate the columns by commas instead of {other}",
            &header[0]
        ))
    })?;
    while let Some(record) = records.next()? {
        let found = record.and_then(|(record, origin)| from_record(columns, &places, header.len(), &record, origin));
        sink.take(found)?;
    }
    Ok(())
}

fn from_record(
    columns: &Columns,
    places: &Places,
    width: usize,
    record: &StringRecord,
    origin: Origin,
) -> Result<Example, DataError> {
    let found = record.len();
    if found != width {
        return Err(origin.malformed(format!(
            "the header has {width} columns, but this record has {found}; a text with a comma, a quote or a line \
             break must be in quotes"
        )));
    }
    places.example(columns, origin, |place| record[place].to_owned())
}

/// A record and where it begins; the error is about that record alone.
type Record = Result<(StringRecord, Origin), DataError>;

/// Records, each bounded in length, with the line that each begins on.
struct Records {
    reader: ::csv::Reader<Source>,
    start: Origin,
}

impl Records {
    fn open(path: &Path) -> Result<Self, DataError> {
        let source = Source {
            file: open(path)?,
            allowance: 0,
            bytes: 0,
            line: 1,
            fresh: true,
            starts: VecDeque::new(),
            quoting: Quoting::FieldStart,
        };
        let reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source);
        Ok(Self { reader, start: Origin::new(path, 1) })
    }

    /// The next record; `None` at the end. After a record that is too long or whose quote stays open nothing can be read: where
    /// it ends is not known.
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        let mut record = ByteRecord::new();
        let begin = self.reader.position().byte();
        self.reader.get_mut().allowance = MAX_RECORD_BYTES;
        let read = self.reader.read_byte_record(&mut record);
        let origin = self.start.at(self.reader.get_mut().line_at(begin));
        match read.map_err(|error| error.into_kind()) {
            Ok(false) => Ok(None),
            Ok(true) if let Some(line) = self.open_at_the_end() => Err(origin
                .malformed(format!("a quote that opens in line {line} is closed nowhere up to the end of the file"))),
            Ok(true) => match StringRecord::from_byte_record(record) {
                Ok(record) => Ok(Some(Ok((record, origin)))),
                Err(_) => Ok(Some(Err(DataError::NotUtf8 { origin }))),
            },
            Err(ErrorKind::Io(source)) if source.kind() == io::ErrorKind::FileTooLarge => Err(origin
                .malformed(format!("the record is longer than {MAX_RECORD_BYTES} bytes; is a quote left open there?"))),
            Err(ErrorKind::Io(source)) => Err(io_error(&self.start.file)(source)),
            Err(other) => Err(origin.malformed(format!("{other:?}"))),
        }
    }

    /// The line of the quote within which the file ended, where the last record did so.
    fn open_at_the_end(&self) -> Option<u64> {
        let source = self.reader.get_ref();
        match source.quoting {
            Quoting::Quoted(line) if self.reader.position().byte() == source.bytes => Some(line),
            _ => None,
        }
    }
}

/// Where in a record a byte is, by its quotes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Quoting {
    FieldStart,
    Unquoted,
    /// Since a quote in this line.
    Quoted(u64),
    /// After a quote in a quoted field: its end, or the first of two that stand for one.
    MayEnd(u64),
}

impl Quoting {
    fn after(self, byte: u8, line: u64) -> Self {
        match (self, byte) {
            (Self::Quoted(opened), b'"') => Self::MayEnd(opened),
            (Self::Quoted(opened), _) | (Self::MayEnd(opened), b'"') => Self::Quoted(opened),
            (_, b',' | b'\n' | b'\r') => Self::FieldStart,
            (Self::FieldStart, b'"') => Self::Quoted(line),
            _ => Self::Unquoted,
        }
    }
}

/// The file's bytes, no more than an allowance for each record. It notes where lines that are not blank begin, since
/// the position that the parser reports for a record may still be on the end of the line before it.
struct Source {
    file: Box<dyn Read>,
    /// How many more bytes may be read.
    allowance: usize,
    /// Bytes read so far.
    bytes: u64,
    /// The line of the next byte.
    line: u64,
    /// Whether that line has shown nothing yet.
    fresh: bool,
    /// First byte and number of each line that is not blank.
    starts: VecDeque<(u64, u64)>,
    quoting: Quoting,
}

impl Source {
    /// The number of the first line that begins at or after a byte and is not blank; lines before it are forgotten.
    fn line_at(&mut self, byte: u64) -> u64 {
        while self.starts.front().is_some_and(|&(start, _)| start < byte) {
            self.starts.pop_front();
        }
        self.starts.front().map_or(self.line, |&(_, line)| line)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.allowance == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let room = buffer.len().min(self.allowance);
        let count = self.file.read(&mut buffer[..room])?;
        self.allowance -= count;
        for &byte in &buffer[..count] {
            // The parser skips a byte order mark.
            if self.bytes >= 3 || !"\u{feff}".as_bytes().contains(&byte) {
                self.quoting = self.quoting.after(byte, self.line);
            }
            if byte == b'\n' {
                self.line += 1;
                self.fresh = true;
            } else if self.fresh && byte != b'\r' {
                self.starts.push_back((self.bytes, self.line));
                self.fresh = false;
            }
            self.bytes += 1;
        }
        Ok(count)
    }
}
