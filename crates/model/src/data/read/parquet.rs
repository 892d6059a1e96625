//! Parquet, through the record interface: no Arrow.

use super::{Columns, Example, Origin, Places, Sink, io_error};
use crate::data::DataError;
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let file = File::open(path).map_err(io_error(path))?;
    // The decoder panics on some damaged files (parquet 60).
    catch_unwind(AssertUnwindSafe(|| read_rows(file, path, columns, sink)))
        .unwrap_or_else(|_| Err(Origin::new(path, 1).malformed("not a Parquet file that can be read: it is broken")))
}

fn read_rows(file: File, path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let start = Origin::new(path, 1);
    let broken =
        |origin: &Origin, e: ParquetError| origin.malformed(format!("not a Parquet file that can be read: {e}"));
    let reader = SerializedFileReader::new(file).map_err(|e| broken(&start, e))?;
    let schema = reader.metadata().file_metadata().schema();
    let header: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
    Places::of(columns, &header, &start)?;

    let wanted = |field: &&Arc<Type>| columns.names().any(|name| name == field.name());
    let wanted: Vec<Arc<Type>> = schema.get_fields().iter().filter(wanted).cloned().collect();
    if let Some(nested) = wanted.iter().find(|f| !f.is_primitive()) {
        return Err(start
            .malformed(format!("the column `{}` is nested; write the records as JSON Lines instead", nested.name())));
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build();
    let rows = RowIter::from_file(Some(projection.map_err(|e| broken(&start, e))?), &reader);
    let rows = rows.map_err(|e| broken(&start, e))?;
    for (row, number) in rows.zip(1..) {
        let origin = start.at(number);
        // A row that cannot be decoded says nothing of where the next one is.
        let fields = row.map_err(|e| broken(&origin, e))?.into_columns();
        sink.take(from_fields(columns, fields, origin))?;
    }
    Ok(())
}

fn from_fields(columns: &Columns, fields: Vec<(String, Field)>, origin: Origin) -> Result<Example, DataError> {
    // A site may be read off a column that is also the text.
    let take = |column: &str| {
        let field = fields.iter().find(|(name, _)| name == column);
        word(field.map(|(_, field)| field.clone()), column, &origin)
    };
    let site = columns.site.as_deref().map(take).transpose()?;
    let label = columns.label.as_deref().map(take).transpose()?;
    let second = columns.second.as_deref().map(take).transpose()?;
    let text = take(&columns.text)?;
    Example { text, second, label: label.unwrap_or_default(), site, origin }.checked(columns)
}

fn word(field: Option<Field>, column: &str, origin: &Origin) -> Result<String, DataError> {
    match field {
        Some(Field::Str(text)) => Ok(text),
        Some(Field::Bytes(bytes)) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| DataError::NotUtf8 { origin: origin.clone() })
        }
        Some(Field::Bool(truth)) => Ok(truth.to_string()),
        Some(Field::Byte(n)) => Ok(n.to_string()),
        Some(Field::Short(n)) => Ok(n.to_string()),
        Some(Field::Int(n)) => Ok(n.to_string()),
        Some(Field::Long(n)) => Ok(n.to_string()),
        Some(Field::UByte(n)) => Ok(n.to_string()),
        Some(Field::UShort(n)) => Ok(n.to_string()),
        Some(Field::UInt(n)) => Ok(n.to_string()),
        Some(Field::ULong(n)) => Ok(n.to_string()),
        Some(Field::Null) | None => Err(DataError::EmptyValue { origin: origin.clone(), column: column.to_owned() }),
        Some(_) => Err(origin.malformed(format!("`{column}` is neither text nor a whole number"))),
    }
}
