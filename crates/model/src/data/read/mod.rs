//! Files of labelled texts, by extension.
//!
//! TSV is plain: a tab separates, a line ends a record, and nothing is quoted, so a text that contains quotes is read as
//! it is. CSV follows RFC 4180. JSON is an array of objects, like JSONL one object a line, or SQuAD's articles. In
//! Parquet, columns of lists, structs and maps are read where the task reads JSON ([`Columns::structured`]). In plain text
//! (.txt) every line is an example. Text is UTF-8; a byte-order mark is skipped, as are blank lines. All but Parquet may
//! be compressed: `.gz` or `.zst` follows the extension.

mod csv;
mod json;
mod lines;
mod parquet;
mod sink;
mod source;
mod text;
mod tsv;

pub use sink::{OnBadRecord, Records};
pub use source::COMPRESSIONS;

use super::DataError;
use sink::Sink;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Longest record that is read, so that a file which is no table cannot take all memory.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// The extensions that have a reader.
pub const EXTENSIONS: [&str; 7] = ["tsv", "csv", "jsonl", "ndjson", "json", "parquet", "txt"];

/// Names of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The text.
    pub text: String,
    /// A second text that goes with it: the other sentence of a pair, or what an instruction is about.
    pub second: Option<String>,
    /// Its label; none when texts are read to be labelled.
    pub label: Option<String>,
    /// The site that it belongs to, when the data are split by a column.
    pub site: Option<String>,
    /// Whether the text or the label may be a list or an object of JSON; it is taken as such.
    pub structured: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { label: Some("label".into()), ..Self::of_text("text") }
    }
}

impl Columns {
    /// A text alone.
    pub fn of_text(column: &str) -> Self {
        Self { text: column.into(), second: None, label: None, site: None, structured: false }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.text).chain(&self.second).chain(&self.label).chain(&self.site).map(String::as_str)
    }
}

/// Where something was read: a file and its line (row, for Parquet; element, in a JSON array), from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    file: Arc<Path>,
    line: u64,
}

impl Origin {
    /// A line of a file.
    pub fn new(file: &Path, line: u64) -> Self {
        Self { file: file.into(), line }
    }

    /// Another line of the same file.
    fn at(&self, line: u64) -> Self {
        Self { file: self.file.clone(), line }
    }

    fn malformed(&self, reason: impl Into<String>) -> DataError {
        DataError::Malformed { origin: self.clone(), reason: reason.into() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One labelled text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The text; it may be empty.
    pub text: String,
    /// The second text, when [`Columns::second`] asks for it; it may be empty.
    pub second: Option<String>,
    /// Its label; empty when [`Columns::label`] asks for none.
    pub label: String,
    /// The site that it belongs to, when [`Columns::site`] asks for it.
    pub site: Option<String>,
    /// Where it was read.
    pub origin: Origin,
}

/// The examples of one file.
///
/// # Errors
/// [`DataError`] with the file and, where there is one, the line.
pub fn read(path: &Path, columns: &Columns) -> Result<Vec<Example>, DataError> {
    Ok(read_records(path, columns, OnBadRecord::Error, &|| ())?.examples)
}

/// The examples of one file, with a choice for records that cannot be used; `on_record` hears of every record.
///
/// # Errors
/// As [`read`]. Where bad records are skipped: when the file itself cannot be read, such as without a column of its
/// header, or when not one record can be used, with what is wrong with the first.
pub fn read_records(
    path: &Path,
    columns: &Columns,
    on_bad: OnBadRecord,
    on_record: &dyn Fn(),
) -> Result<Records, DataError> {
    let (extension, compressed) = source::extension(path);
    let read = match extension.as_deref() {
        Some("tsv") => tsv::read,
        Some("csv") => csv::read,
        Some("jsonl" | "ndjson" | "json") => json::read,
        Some("parquet") if !compressed => parquet::read,
        Some("txt") => lines::read,
        _ => return Err(DataError::Extension { path: path.into() }),
    };
    let mut sink = Sink::new(on_bad, on_record);
    read(path, columns, &mut sink)?;
    sink.finish(path)
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> DataError {
    move |source| DataError::Io { path: path.into(), source }
}

/// Places of the columns in a header.
struct Places {
    text: usize,
    second: Option<usize>,
    label: Option<usize>,
    site: Option<usize>,
}

impl Places {
    fn of(columns: &Columns, header: &[&str], origin: &Origin) -> Result<Self, DataError> {
        let place = |column: &str| {
            let mut found = (0..header.len()).filter(|&i| header[i] == column);
            match (found.next(), found.next()) {
                (Some(place), None) => Ok(place),
                (Some(_), Some(_)) => {
                    Err(DataError::AmbiguousColumn { origin: origin.clone(), column: column.to_owned() })
                }
                _ => Err(missing_column(origin, column, header.iter().copied())),
            }
        };
        Ok(Self {
            text: place(&columns.text)?,
            second: columns.second.as_deref().map(place).transpose()?,
            label: columns.label.as_deref().map(place).transpose()?,
            site: columns.site.as_deref().map(place).transpose()?,
        })
    }

    /// The example with these fields.
    fn example(
        &self,
        columns: &Columns,
        origin: Origin,
        field: impl Fn(usize) -> String,
    ) -> Result<Example, DataError> {
        let [second, label, site] = [self.second, self.label, self.site].map(|place| place.map(&field));
        Example { text: field(self.text), second, label: label.unwrap_or_default(), site, origin }.checked(columns)
    }
}

fn missing_column<'a>(origin: &Origin, column: &str, present: impl Iterator<Item = &'a str>) -> DataError {
    let present: Vec<String> = present.map(str::to_owned).collect();
    let similarity =
        |name: &String| strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &column.to_lowercase());
    let nearest = present.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let nearest = nearest.filter(|name| similarity(name) >= 0.5).cloned();
    DataError::MissingColumn { origin: origin.clone(), column: column.to_owned(), present, nearest }
}

impl Example {
    /// The example, unless its label or site says nothing.
    fn checked(self, columns: &Columns) -> Result<Self, DataError> {
        let must_say = [(&columns.label, Some(&self.label)), (&columns.site, self.site.as_ref())];
        for (column, value) in must_say {
            if let (Some(column), Some(value)) = (column, value)
                && value.trim().is_empty()
            {
                return Err(DataError::EmptyValue { origin: self.origin, column: column.clone() });
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
