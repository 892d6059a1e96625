//! Tab-separated values without quoting.

use super::text::Lines;
use super::{Columns, Example, Origin, Places, Sink};
use crate::data::DataError;
use std::path::Path;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let mut lines = Lines::open(path)?;
    let (places, width) = match lines.next()?.transpose()? {
        None => return Ok(()),
        Some((header, origin)) => {
            let header: Vec<&str> = header.split('\t').collect();
            (Places::of(columns, &header, &origin)?, header.len())
        }
    };
    while let Some(line) = lines.next()? {
        sink.take(line.and_then(|(line, origin)| from_line(columns, &places, width, line, origin)))?;
    }
    Ok(())
}

fn from_line(
    columns: &Columns,
    places: &Places,
    width: usize,
    line: &str,
    origin: Origin,
) -> Result<Example, DataError> {
    let fields: Vec<&str> = line.split('\t').collect();
    if fields.len() != width {
        let found = fields.len();
        return Err(origin.malformed(format!("the header has {width} columns, but this line has {found}")));
    }
    places.example(columns, origin, |place| fields[place].to_owned())
}
