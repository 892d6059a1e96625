//! Tab-separated values without quoting.

use super::text::Lines;
use super::{Columns, Example, Places, example};
use crate::data::DataError;
use std::path::Path;

pub(super) fn read(path: &Path, columns: &Columns) -> Result<Vec<Example>, DataError> {
    let mut lines = Lines::open(path)?;
    let (places, width) = match lines.next()? {
        None => return Ok(vec![]),
        Some((header, origin)) => {
            let header: Vec<&str> = header.split('\t').collect();
            (Places::of(columns, &header, &origin)?, header.len())
        }
    };
    let mut examples = Vec::new();
    while let Some((line, origin)) = lines.next()? {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != width {
            let found = fields.len();
            return Err(origin.malformed(format!("the header has {width} columns, but this line has {found}")));
        }
        let field = |place: usize| fields[place].to_owned();
        let (label, site) = (places.label.map(field), places.site.map(field));
        examples.push(example(columns, origin, field(places.text), label, site)?);
    }
    Ok(examples)
}
