//! Rotary position embeddings, as a configuration describes them.

use super::config::{number_of, refuse};
use crate::Error;
use crate::io::WeightSource;
use fedpipe_kernels::RotaryTable;
use serde_json::Value;
use std::f64::consts::TAU;
use std::sync::{Arc, PoisonError, RwLock};

/// θ of the paper (arXiv 2104.09864), which Hugging Face takes when a configuration has none.
const DEFAULT_THETA: f64 = 10_000.0;

/// The frequencies of a model, and the angles of as many positions as were asked for.
#[derive(Debug)]
pub(super) struct Rotary {
    inverse_frequencies: Vec<f64>,
    table: RwLock<Arc<RotaryTable>>,
}

impl Rotary {
    pub(super) fn new(inverse_frequencies: Vec<f64>) -> Self {
        let table = RotaryTable::from_inverse_frequencies(&inverse_frequencies, 0);
        Self { inverse_frequencies, table: RwLock::new(Arc::new(table)) }
    }

    /// Angles of `positions` positions at least. Tables of models with long contexts are large, so they grow with use.
    pub(super) fn table(&self, positions: usize) -> Arc<RotaryTable> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        if table.positions() >= positions {
            return table;
        }
        let longer = RotaryTable::from_inverse_frequencies(&self.inverse_frequencies, positions.next_power_of_two());
        let longer = Arc::new(longer);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = longer.clone();
        longer
    }
}

/// The frequencies for heads of `head_dim`: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of the
/// versions before it.
///
/// # Errors
/// When the scaling is of a kind that is not supported, by name, or lacks a number.
pub(super) fn inverse_frequencies(source: &dyn WeightSource, head_dim: usize) -> Result<Vec<f64>, Error> {
    let (key, parameters) = match source.config().get("rope_parameters") {
        None | Some(Value::Null) => ("rope_scaling", source.config().get("rope_scaling").unwrap_or(&Value::Null)),
        Some(parameters) => ("rope_parameters", parameters),
    };
    if !(parameters.is_null() || parameters.is_object()) {
        return refuse(source, key, format!("is {parameters}; it must be an object"));
    }
    if let Some((layers, _)) = parameters.as_object().and_then(|map| map.iter().find(|(_, value)| value.is_object())) {
        return refuse(source, key, format!("has angles of their own for {layers}; one kind for all is supported"));
    }
    for holder in [&Value::Object(source.config().clone()), parameters] {
        if let Some(share) = holder.get("partial_rotary_factor").filter(|v| !v.is_null() && v.as_f64() != Some(1.0)) {
            return refuse(source, "partial_rotary_factor", format!("is {share}; only whole heads are turned"));
        }
    }
    if source.config_bool("rope_interleaved")?.unwrap_or(false) {
        return refuse(
            source,
            "rope_interleaved",
            "is true; only halves that are turned together are supported".into(),
        );
    }
    let theta = match parameters.get("rope_theta") {
        Some(_) => number_of(source, key, "rope_theta", parameters)?,
        None => source.config_optional_f64("rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    if !(theta.is_finite() && theta > 0.0) {
        return refuse(source, "rope_theta", format!("is {theta}; it must be a positive number"));
    }
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let number = |name: &str| number_of(source, key, name, parameters);
    let kind = ["rope_type", "type"].iter().find_map(|name| parameters.get(name).filter(|kind| !kind.is_null()));
    match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => Ok(plain.collect()),
        Some("linear") => {
            let factor = number("factor")?;
            Ok(plain.map(|frequency| frequency / factor).collect())
        }
        Some("llama3") => {
            let scaling = Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                context: number("original_max_position_embeddings")?,
            };
            if scaling.high <= scaling.low {
                return refuse(source, key, "has a high_freq_factor that is not above its low_freq_factor".into());
            }
            Ok(plain.map(|frequency| scaling.of(frequency)).collect())
        }
        Some(_) => {
            let kind = kind.unwrap_or(&Value::Null);
            refuse(source, key, format!("is of type {kind}; default, linear and llama3 are supported"))
        }
    }
}

/// The scaling of Llama 3.1: long waves are slowed down by `factor`, short ones stay, those between are in between.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    fn of(&self, frequency: f64) -> f64 {
        let turns = self.context * frequency / TAU;
        let kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        (1.0 - kept) * frequency / self.factor + kept * frequency
    }
}
