//! Where a model's weights come from, under the names and with the configuration that Hugging Face gives them.

use super::IoError;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A model on disk. An architecture reads it by Hugging Face's names, whatever the file calls its tensors.
pub trait WeightSource: Send + Sync {
    /// The configuration, as `config.json` has it.
    fn config(&self) -> &Map<String, Value>;

    /// The file that the configuration comes from, for messages.
    fn config_path(&self) -> PathBuf;

    /// Whether there is a tensor of that name.
    fn has_tensor(&self, name: &str) -> bool;

    /// The names of all tensors, sorted.
    fn tensor_names(&self) -> Vec<&str>;

    /// The shape of a tensor.
    ///
    /// # Errors
    /// When it is not there.
    fn tensor_shape(&self, name: &str) -> Result<&[usize], IoError>;

    /// The values of a tensor of a given shape, row by row.
    ///
    /// # Errors
    /// When it is not there, has another shape, or cannot be read as numbers.
    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, IoError>;

    /// A text of the configuration.
    ///
    /// # Errors
    /// When it is missing or no text.
    fn config_str(&self, key: &str) -> Result<&str, IoError> {
        self.config_optional_str(key)?.ok_or_else(|| missing(self, key))
    }

    /// A text of the configuration, if it is there and not null.
    ///
    /// # Errors
    /// When it is no text.
    fn config_optional_str(&self, key: &str) -> Result<Option<&str>, IoError> {
        read(self, key, "a text", Value::as_str)
    }

    /// A whole number of the configuration.
    ///
    /// # Errors
    /// When it is missing or no whole number.
    fn config_usize(&self, key: &str) -> Result<usize, IoError> {
        self.config_optional_usize(key)?.ok_or_else(|| missing(self, key))
    }

    /// A whole number of the configuration, if it is there and not null.
    ///
    /// # Errors
    /// When it is no whole number.
    fn config_optional_usize(&self, key: &str) -> Result<Option<usize>, IoError> {
        read(self, key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A number of the configuration.
    ///
    /// # Errors
    /// When it is missing or no number.
    fn config_f64(&self, key: &str) -> Result<f64, IoError> {
        self.config_optional_f64(key)?.ok_or_else(|| missing(self, key))
    }

    /// A number of the configuration, if it is there and not null.
    ///
    /// # Errors
    /// When it is no number.
    fn config_optional_f64(&self, key: &str) -> Result<Option<f64>, IoError> {
        read(self, key, "a number", Value::as_f64)
    }

    /// A truth value of the configuration, if it is there and not null.
    ///
    /// # Errors
    /// When it is something else.
    fn config_bool(&self, key: &str) -> Result<Option<bool>, IoError> {
        read(self, key, "true or false", Value::as_bool)
    }
}

fn missing(source: &(impl WeightSource + ?Sized), key: &str) -> IoError {
    IoError::key(&source.config_path(), key, "is missing")
}

fn read<'a, T>(
    source: &'a (impl WeightSource + ?Sized),
    key: &str,
    kind: &str,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, IoError> {
    match source.config().get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(IoError::key(&source.config_path(), key, format!("is {value}; it must be {kind}"))),
        },
    }
}
