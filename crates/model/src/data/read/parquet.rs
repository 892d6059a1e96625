//! Parquet, through the record interface: no Arrow. Columns of lists, structs and maps, as of messages or of SQuAD's
//! answers, become JSON where the task reads JSON.

use super::{Columns, Example, MAX_RECORD_BYTES, Origin, Places, Sink, io_error};
use crate::data::DataError;
use ::parquet::basic::Repetition;
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;
use serde_json::{Value, json};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

/// Most values that a row group may have in a nested column, names of roles and the like included.
const MAX_GROUP_VALUES: usize = 8 << 20;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let file = File::open(path).map_err(io_error(path))?;
    // The decoder panics on some damaged files (parquet 60).
    catch_unwind(AssertUnwindSafe(|| read_rows(file, path, columns, sink)))
        .unwrap_or_else(|_| Err(Origin::new(path, 1).malformed("not a Parquet file that can be read: it is broken")))
}

fn read_rows(file: File, path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let start = Origin::new(path, 1);
    let reader = SerializedFileReader::new(file).map_err(|e| broken(&start, e))?;
    let schema = reader.metadata().file_metadata().schema();
    let header: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
    Places::of(columns, &header, &start)?;

    let wanted = |field: &&Arc<Type>| columns.names().any(|name| name == field.name());
    let wanted: Vec<Arc<Type>> = schema.get_fields().iter().filter(wanted).cloned().collect();
    let nested = |name: &str| wanted.iter().any(|field| field.name() == name && is_nested(field));
    if let Some(name) = header.iter().find(|name| nested(name) && !may_be_json(columns, name)) {
        return Err(start.malformed(format!("the column `{name}` is nested, and this task reads plain values there")));
    }
    let leaves = reader.metadata().file_metadata().schema_descr().columns().iter();
    let nested: Vec<usize> =
        (0..).zip(leaves).filter(|(_, leaf)| nested(&leaf.path().parts()[0])).map(|(i, _)| i).collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build();
    let projection = projection.map_err(|e| broken(&start, e))?;
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(|e| broken(&start.at(number + 1), e))?;
        for &leaf in &nested {
            check_sizes(&*group, leaf, &start.at(number + 1))?;
        }
        let rows = RowIter::from_row_group(Some(projection.clone()), &*group);
        for row in rows.map_err(|e| broken(&start.at(number + 1), e))? {
            number += 1;
            let origin = start.at(number);
            // A row that cannot be decoded says nothing of where the next one is.
            let fields = row.map_err(|e| broken(&origin, e))?.into_columns();
            sink.take(from_fields(columns, fields, origin))?;
        }
    }
    Ok(())
}

/// Whether a row may hold more than one value in this column. A plain column that is repeated is a list as well.
fn is_nested(column: &Type) -> bool {
    let info = column.get_basic_info();
    let repeated = info.has_repetition() && info.repetition() == Repetition::REPEATED;
    repeated || !column.is_primitive()
}

fn may_be_json(columns: &Columns, name: &str) -> bool {
    columns.structured && (name == columns.text || columns.label.as_deref() == Some(name))
}

/// Refuses a leaf of a nested column of whose values a few bytes may stand for more than memory holds: a row of it is
/// read whole. `first` is the group's first row.
fn check_sizes(group: &dyn RowGroupReader, leaf: usize, first: &Origin) -> Result<(), DataError> {
    let mut pages = group.get_column_page_reader(leaf).map_err(|e| broken(first, e))?;
    let mut values = 0;
    while let Some(page) = pages.peek_next_page().map_err(|e| broken(first, e))? {
        values += page.num_levels.unwrap_or(0);
        pages.skip_next_page().map_err(|e| broken(first, e))?;
    }
    if values > MAX_GROUP_VALUES {
        return Err(first.malformed(format!(
            "a row group has {values} values in a nested column, and {MAX_GROUP_VALUES} can be read; write smaller row \
             groups"
        )));
    }
    match group.get_column_reader(leaf).map_err(|e| broken(first, e))? {
        ColumnReader::ByteArrayColumnReader(mut column) => check_rows(&mut column, ByteArray::len, first),
        ColumnReader::FixedLenByteArrayColumnReader(mut column) => check_rows(&mut column, |value| value.len(), first),
        // Of all others a value is no larger than what its row takes per value anyway.
        _ => Ok(()),
    }
}

/// Refuses a row of which a leaf's texts are longer than a record may be. They are shared until they are taken out.
fn check_rows<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    len: impl Fn(&T::T) -> usize,
    first: &Origin,
) -> Result<(), DataError> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0.. {
        let origin = first.at(first.line + row);
        values.clear();
        definitions.clear();
        repetitions.clear();
        let read = column.read_records(1, Some(&mut definitions), Some(&mut repetitions), &mut values);
        let (rows, ..) = read.map_err(|e| broken(&origin, e))?;
        if rows == 0 {
            break;
        }
        if values.iter().map(&len).sum::<usize>() > MAX_RECORD_BYTES {
            return Err(origin.malformed(format!("the record is longer than {MAX_RECORD_BYTES} bytes")));
        }
    }
    Ok(())
}

fn broken(origin: &Origin, error: ParquetError) -> DataError {
    origin.malformed(format!("not a Parquet file that can be read: {error}"))
}

fn from_fields(columns: &Columns, fields: Vec<(String, Field)>, origin: Origin) -> Result<Example, DataError> {
    // A site may be read off a column that is also the text.
    let take = |column: &str| match fields.iter().find(|(name, _)| name == column).map(|(_, field)| field) {
        Some(nested @ (Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_)))
            if may_be_json(columns, column) =>
        {
            Ok(json(nested).to_string())
        }
        field => word(field.cloned(), column, &origin),
    };
    let site = columns.site.as_deref().map(take).transpose()?;
    let label = columns.label.as_deref().map(take).transpose()?;
    let second = columns.second.as_deref().map(take).transpose()?;
    let text = take(&columns.text)?;
    Example { text, second, label: label.unwrap_or_default(), site, origin }.checked(columns)
}

/// A nested value as JSON. What JSON has no kind for is null: that a message says when it was written, or holds a picture,
/// takes nothing from its text.
fn json(field: &Field) -> Value {
    match field {
        Field::Group(row) => Value::Object(row.get_column_iter().map(|(name, f)| (name.clone(), json(f))).collect()),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(json).collect()),
        Field::MapInternal(map) => {
            Value::Object(map.entries().iter().map(|(key, f)| (json_key(key), json(f))).collect())
        }
        Field::Bool(truth) => json!(truth),
        Field::Byte(n) => json!(n),
        Field::Short(n) => json!(n),
        Field::Int(n) => json!(n),
        Field::Long(n) => json!(n),
        Field::UByte(n) => json!(n),
        Field::UShort(n) => json!(n),
        Field::UInt(n) => json!(n),
        Field::ULong(n) => json!(n),
        Field::Float16(x) => json!(f64::from(*x)),
        Field::Float(x) => json!(x),
        Field::Double(x) => json!(x),
        Field::Str(text) => json!(text),
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, Value::from),
        // Parquet's own text of some of these panics, such as that of the largest time there is.
        Field::Null
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::Null,
    }
}

/// Keys of JSON are text.
fn json_key(key: &Field) -> String {
    match json(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
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
