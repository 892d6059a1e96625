//! JSON: one object a line, an array of objects, or the articles of SQuAD.

use super::source::open;
use super::text::{Lines, without_mark};
use super::{Columns, Example, Origin, Sink, io_error, missing_column};
use crate::data::DataError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// Largest document that is read whole; lines have no such bound, since they are read one by one.
const MAX_ARRAY_BYTES: u64 = 1 << 30;

pub(super) fn read(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    match layout(path)? {
        Layout::Lines => read_lines(path, columns, sink),
        Layout::Array => read_whole(path, columns, sink, |array| serde_json::from_str(array)),
        Layout::Squad => read_whole(path, columns, sink, |squad| serde_json::from_str(squad).map(questions)),
    }
}

enum Layout {
    Lines,
    Array,
    /// `{"version": …, "data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}`
    Squad,
}

/// What the first characters that are not blank tell.
fn layout(path: &Path) -> Result<Layout, DataError> {
    let mut start = Vec::new();
    open(path)?.take(4096).read_to_end(&mut start).map_err(io_error(path))?;
    let start: Vec<u8> = without_mark(&start).iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if start.starts_with(b"[") {
        return Ok(Layout::Array);
    }
    let version = start.strip_prefix(br#"{"version":""#).and_then(|rest| {
        let end = rest.iter().position(|&byte| byte == b'"')?;
        rest[end..].strip_prefix(br#"","#)
    });
    let members = version.or(start.strip_prefix(b"{")).unwrap_or_default();
    Ok(if members.starts_with(br#""data":["#) { Layout::Squad } else { Layout::Lines })
}

fn read_lines(path: &Path, columns: &Columns, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        if matches!(line, Ok((line, _)) if line.trim().is_empty()) {
            continue;
        }
        sink.take(line.and_then(|(line, origin)| {
            let value = serde_json::from_str(line).map_err(|e| origin.malformed(format!("not JSON: {e}")))?;
            from_object(columns, value, origin)
        }))?;
    }
    Ok(())
}

/// Reads a file that is one document; `records` takes it apart.
fn read_whole(
    path: &Path,
    columns: &Columns,
    sink: &mut Sink<'_>,
    records: impl Fn(&str) -> serde_json::Result<Vec<Value>>,
) -> Result<(), DataError> {
    let start = Origin::new(path, 1);
    let mut bytes = Vec::new();
    let read = open(path)?.take(MAX_ARRAY_BYTES + 1).read_to_end(&mut bytes).map_err(io_error(path))?;
    if read as u64 > MAX_ARRAY_BYTES {
        return Err(start.malformed(format!(
            "the document is larger than {MAX_ARRAY_BYTES} bytes; write one object a line into a .jsonl file instead"
        )));
    }
    let text = std::str::from_utf8(without_mark(&bytes)).map_err(|e| DataError::NotUtf8 {
        origin: start.at(1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() as u64),
    })?;
    let values = records(text).map_err(|e| {
        // A line of the file, unlike the elements below.
        start.at(e.line() as u64).malformed(format!("not JSON: {e}"))
    })?;
    let mut numbered = values.into_iter().zip(1..);
    numbered.try_for_each(|(value, element)| sink.take(from_object(columns, value, start.at(element))))
}

#[derive(Deserialize)]
struct Squad {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    #[serde(default)]
    title: Value,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: Value,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    id: Value,
    question: Value,
    #[serde(default)]
    answers: Value,
    /// Version 2; its plausible answers are none.
    #[serde(default)]
    is_impossible: bool,
}

/// An object for every question, with the columns that Hugging Face has for SQuAD.
fn questions(squad: Squad) -> Vec<Value> {
    let mut records = Vec::new();
    for Article { title, paragraphs } in squad.data {
        for Paragraph { context, qas } in paragraphs {
            records.extend(qas.into_iter().map(|Asked { id, question, answers, is_impossible }| {
                let answers = if is_impossible { json!([]) } else { answers };
                json!({"id": id, "title": title, "context": context, "question": question, "answers": answers})
            }));
        }
    }
    records
}

fn from_object(columns: &Columns, value: Value, origin: Origin) -> Result<Example, DataError> {
    let Value::Object(mut object) = value else {
        return Err(origin.malformed("expected an object with a member for every column"));
    };
    if let Some(missing) = columns.names().find(|name| !object.contains_key(*name)) {
        return Err(missing_column(&origin, missing, object.keys().map(String::as_str)));
    }
    // A site may be read off a column that is also the text.
    let site = columns.site.as_ref().map(|site| word(&object, site, &origin)).transpose()?;
    let label = columns.label.as_ref().map(|label| match object.get(label) {
        Some(value @ (Value::Array(_) | Value::Object(_))) if columns.structured => Ok(value.to_string()),
        _ => word(&object, label, &origin),
    });
    let label = label.transpose()?;
    let second = columns.second.as_ref().map(|second| word(&object, second, &origin)).transpose()?;
    let text = match object.remove(&columns.text) {
        Some(Value::String(text)) => text,
        Some(value @ (Value::Array(_) | Value::Object(_))) if columns.structured => value.to_string(),
        _ => return Err(origin.malformed(format!("`{}` is not a string", columns.text))),
    };
    Example { text, second, label: label.unwrap_or_default(), site, origin }.checked(columns)
}

/// A label or a site: a string, a whole number or a truth value.
fn word(object: &Map<String, Value>, column: &str, origin: &Origin) -> Result<String, DataError> {
    match object.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        Some(Value::Bool(truth)) => Ok(truth.to_string()),
        Some(Value::Null) => Err(DataError::EmptyValue { origin: origin.clone(), column: column.to_owned() }),
        _ => Err(origin.malformed(format!("`{column}` is neither a string nor a whole number"))),
    }
}
