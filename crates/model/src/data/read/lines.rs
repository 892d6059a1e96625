//! Plain text: every line that is not blank is an example.

use super::text::Lines;
use super::{Columns, Example, Origin, Sink};
use crate::data::DataError;
use std::path::Path;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let mut lines = Lines::open(path)?;
    if let Some(column) = columns.names().nth(1) {
        let reason = format!("a text file has no column `{column}`; use .jsonl, .csv, .tsv or .parquet");
        return Err(Origin::new(path, 1).malformed(reason));
    }
    while let Some(line) = lines.next()? {
        sink.take(line.map(|(line, origin)| Example {
            text: line.to_string(),
            second: None,
            label: String::new(),
            site: None,
            origin,
        }))?;
    }
    Ok(())
}
