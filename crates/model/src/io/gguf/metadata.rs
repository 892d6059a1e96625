//! Metadata by key and type.

use super::container::Container;
use super::value::{Number, Value};
use std::ops::Range;

/// The metadata of a file, with the bytes that they lie in. Errors name the key.
pub(super) struct Metadata<'a> {
    file: &'a [u8],
    container: &'a Container,
}

impl<'a> Metadata<'a> {
    /// `container` was read from `file`.
    pub(super) fn new(file: &'a [u8], container: &'a Container) -> Self {
        Self { file, container }
    }

    fn number<T>(&self, key: &str, kind: &str, read: impl Fn(Number) -> Option<T>) -> Result<Option<T>, String> {
        match self.container.metadata.get(key) {
            None => Ok(None),
            Some(value) => match self.common(value).and_then(read) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("the metadata `{key}` must be {kind}")),
            },
        }
    }

    /// A number, or the number that all values of an array are: files of models whose layers may differ have arrays.
    fn common(&self, value: &Value) -> Option<Number> {
        match value {
            Value::Number(number) => Some(*number),
            Value::Array { kind, bytes, .. } => {
                let width = kind.width()?;
                let mut numbers = self.bytes(bytes).chunks_exact(width).map(|bytes| kind.number(bytes));
                let first = numbers.next()??;
                numbers.all(|number| number == Some(first)).then_some(first)
            }
            Value::Text(_) => None,
        }
    }

    pub(super) fn optional_usize(&self, key: &str) -> Result<Option<usize>, String> {
        self.number(key, "a whole number, the same for every layer", Number::as_usize)
    }

    /// A number of things, if the key is there and not zero.
    pub(super) fn optional_positive(&self, key: &str) -> Result<Option<usize>, String> {
        Ok(self.optional_usize(key)?.filter(|&number| number > 0))
    }

    pub(super) fn positive(&self, key: &str) -> Result<usize, String> {
        self.optional_positive(key)?.ok_or_else(|| format!("the metadata `{key}` is missing or zero"))
    }

    /// A number that is finite and above zero.
    pub(super) fn optional_f64(&self, key: &str) -> Result<Option<f64>, String> {
        let positive = |number: Number| number.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        self.number(key, "a number above zero", positive)
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64, String> {
        self.optional_f64(key)?.ok_or_else(|| format!("the metadata `{key}` is missing"))
    }

    pub(super) fn optional_bool(&self, key: &str) -> Result<Option<bool>, String> {
        let truth = |number| if let Number::Bool(truth) = number { Some(truth) } else { None };
        self.number(key, "true or false", truth)
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.container.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => match str::from_utf8(self.bytes(range)) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(format!("the metadata `{key}` is not UTF-8")),
            },
            Some(_) => Err(format!("the metadata `{key}` must be a text")),
        }
    }

    /// The texts of an array, read from the file one after the other.
    pub(super) fn optional_texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        let Some(value) = self.container.metadata.get(key) else { return Ok(None) };
        let Value::Array { kind: super::value::Kind::Text, bytes, .. } = value else {
            return Err(format!("the metadata `{key}` must be an array of texts"));
        };
        let mut rest = self.bytes(bytes);
        let mut texts = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let length = usize::try_from(u64::from_le_bytes(*length)).ok();
            let Some((text, after)) = length.and_then(|length| after.split_at_checked(length)) else { break };
            let number = texts.len();
            texts.push(
                str::from_utf8(text).map_err(|_| format!("value {number} of the metadata `{key}` is not UTF-8"))?,
            );
            rest = after;
        }
        Ok(Some(texts))
    }

    /// The numbers of an array.
    pub(super) fn optional_numbers(&self, key: &str) -> Result<Option<Vec<Number>>, String> {
        let numbers = match self.container.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array { kind, bytes, .. }) => kind.width().and_then(|width| {
                self.bytes(bytes).chunks_exact(width).map(|bytes| kind.number(bytes)).collect::<Option<Vec<_>>>()
            }),
            Some(_) => None,
        };
        numbers.map(Some).ok_or_else(|| format!("the metadata `{key}` must be an array of numbers"))
    }

    /// The values of a tensor, by its name in the file.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        let Some(tensor) = self.container.tensors.get(name) else { return Ok(None) };
        let values = tensor.format.dequantise(self.bytes(&tensor.bytes));
        values.map(Some).map_err(|e| format!("the tensor `{name}` cannot be read: {e}"))
    }

    fn bytes(&self, range: &Range<usize>) -> &'a [u8] {
        &self.file[range.clone()]
    }
}
