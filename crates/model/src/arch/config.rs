//! What architectures read of a configuration, and refuse of it.

use crate::Error;
use crate::io::{IoError, WeightSource};
use fedpipe_kernels::Activation;
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

/// What configurations call the activations that there are.
const ACTIVATIONS: [(&str, Activation); 3] =
    [("gelu", Activation::Gelu), ("gelu_new", Activation::GeluTanh), ("gelu_pytorch_tanh", Activation::GeluTanh)];

/// The activation that a key names; `default` is what the class fills in where the key is missing.
pub(super) fn activation(source: &dyn WeightSource, key: &str, default: &str) -> Result<Activation, Error> {
    let name = source.config_optional_str(key)?.unwrap_or(default);
    match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
        Some(&(_, activation)) => Ok(activation),
        None => {
            let known = ACTIVATIONS.map(|(known, _)| known).join(", ");
            refuse(source, key, format!("is {name:?}; supported are {known}"))
        }
    }
}

/// The sizes of a model whose heads share its width evenly.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// Width inside of the feed-forward part.
    pub(super) inner: usize,
    pub(super) vocabulary: usize,
    /// Rows of the position table.
    pub(super) positions: usize,
}

/// The keys of [`Sizes`].
pub(super) struct SizeKeys {
    pub(super) hidden: &'static str,
    pub(super) layers: &'static str,
    pub(super) heads: &'static str,
    pub(super) inner: &'static str,
    /// How many times `hidden` the class takes for `inner` where its key is missing; `None` where the key must be there.
    pub(super) inner_factor: Option<usize>,
    pub(super) positions: &'static str,
}

impl SizeKeys {
    /// Reads the sizes and refuses those that no model can have.
    pub(super) fn read(&self, source: &dyn WeightSource) -> Result<Sizes, Error> {
        const VOCABULARY: &str = "vocab_size";
        let hidden = source.config_usize(self.hidden)?;
        let sizes = Sizes {
            hidden,
            layers: source.config_usize(self.layers)?,
            heads: source.config_usize(self.heads)?,
            inner: match self.inner_factor {
                None => source.config_usize(self.inner)?,
                Some(factor) => {
                    source.config_optional_usize(self.inner)?.unwrap_or_else(|| hidden.saturating_mul(factor))
                }
            },
            vocabulary: source.config_usize(VOCABULARY)?,
            positions: source.config_usize(self.positions)?,
        };
        check_sizes(
            source,
            &[
                (self.layers, sizes.layers, MAX_LAYERS),
                (self.hidden, sizes.hidden, MAX_WIDTH),
                (self.inner, sizes.inner, MAX_WIDTH),
                (VOCABULARY, sizes.vocabulary, MAX_ROWS),
                (self.positions, sizes.positions, MAX_ROWS),
            ],
        )?;
        if sizes.heads == 0 || !sizes.hidden.is_multiple_of(sizes.heads) {
            let reason = format!("is {}, which does not divide {} {}", sizes.heads, self.hidden, sizes.hidden);
            return refuse(source, self.heads, reason);
        }
        Ok(sizes)
    }
}

/// A number among the keys of an object of the configuration.
pub(super) fn number_of(source: &dyn WeightSource, object: &str, key: &str, value: &Value) -> Result<f64, Error> {
    let found = value.get(key);
    found.and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0).ok_or_else(|| {
        let reason = format!("has {key} {}; it must be a positive number", found.unwrap_or(&Value::Null));
        IoError::key(&source.config_path(), object, reason).into()
    })
}
