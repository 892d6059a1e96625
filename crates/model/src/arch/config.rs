//! What architectures read of a configuration, and refuse of it.

use crate::Error;
use crate::io::{IoError, WeightSource};
use serde_json::Value;

// Far above any model, and small enough that no product of two overflows.
pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_WIDTH: usize = 1 << 18;
pub(super) const MAX_ROWS: usize = 1 << 24;

/// Refuses something that would be computed wrongly, by its key.
pub(super) fn refuse<T>(source: &dyn WeightSource, key: &str, reason: String) -> Result<T, Error> {
    Err(Error::UnsupportedConfig { path: source.config_path(), key: key.to_string(), reason })
}

/// Refuses a text other than `supported`.
pub(super) fn require_text(source: &dyn WeightSource, key: &str, supported: &str) -> Result<(), Error> {
    match source.config_optional_str(key)? {
        Some(value) if value != supported => {
            refuse(source, key, format!("is {value:?}; only {supported:?} is supported"))
        }
        _ => Ok(()),
    }
}

/// Refuses keys that are true, with the reason.
pub(super) fn require_off(source: &dyn WeightSource, keys: &[&str], reason: &str) -> Result<(), Error> {
    for key in keys {
        if source.config_bool(key)?.unwrap_or(false) {
            return refuse(source, key, format!("is true; {reason}"));
        }
    }
    Ok(())
}

/// Refuses sizes outside of 1 to the largest.
pub(super) fn check_sizes(source: &dyn WeightSource, sizes: &[(&str, usize, usize)]) -> Result<(), Error> {
    for &(key, size, largest) in sizes {
        if !(1..=largest).contains(&size) {
            return refuse(source, key, format!("is {size}; sizes from 1 to {largest} are supported"));
        }
    }
    Ok(())
}

/// A number among the keys of an object of the configuration.
pub(super) fn number_of(source: &dyn WeightSource, object: &str, key: &str, value: &Value) -> Result<f64, Error> {
    let found = value.get(key);
    found.and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0).ok_or_else(|| {
        let reason = format!("has {key} {}; it must be a positive number", found.unwrap_or(&Value::Null));
        IoError::key(&source.config_path(), object, reason).into()
    })
}
