//! Adapter folders, read.

use super::config::Config;
use super::{AdapterInfo, CONFIG, INFO, PREFIX, WEIGHTS, read_info};
use crate::head::is_head;
use crate::io::{IoError, TensorFile};
use fedpipe_core::{A_SUFFIX, Adapter, B_SUFFIX, LowRank, Matrix, Tensors, WeightId};
use std::collections::BTreeMap;
use std::path::Path;

/// An adapter and what its folder says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedAdapter {
    /// The factors by module path and the head; a scaling that differs between modules is folded into B.
    pub adapter: Adapter,
    /// The base model by path or hub repository, as whoever wrote the adapter named it.
    pub base_model: Option<String>,
    /// FedPipe's own note; an adapter that PEFT wrote has none.
    pub info: Option<AdapterInfo>,
}

/// Reads an adapter of PEFT's or FedPipe's.
///
/// # Errors
/// When a file is missing or broken, or the adapter is of a kind that would be computed wrongly.
pub fn read_adapter(folder: &Path) -> Result<SavedAdapter, IoError> {
    if !folder.join(CONFIG).exists() {
        let what = format!("there is no {CONFIG}, so it is no adapter");
        return Err(IoError::Missing { path: folder.into(), what });
    }
    let config = Config::read(folder)?;
    let file = TensorFile::open(&folder.join(WEIGHTS))?;
    let adapter = Adapter::from_tensors(1.0, tensors(&file)?)
        .map_err(|e| IoError::adapter(file.path(), e.to_string()))
        .and_then(|adapter| scaled(adapter, &config))?;
    let info_path = folder.join(INFO);
    let info = info_path.exists().then(|| read_info(&info_path)).transpose()?;
    Ok(SavedAdapter { adapter, base_model: config.base_model, info })
}

/// All tensors under their names without PEFT's prefix; nothing but factors and the head may be there.
fn tensors(file: &TensorFile) -> Result<Tensors, IoError> {
    let mut tensors = Tensors::new();
    for stored in file.names() {
        let name = stored.strip_prefix(PREFIX).unwrap_or(&stored);
        let is_factor = name.ends_with(A_SUFFIX) || name.ends_with(B_SUFFIX);
        if !is_factor && !is_head(name) {
            return Err(IoError::adapter(
                file.path(),
                format!("the tensor `{stored}` is neither a LoRA factor nor the head"),
            ));
        }
        let (rows, columns) = match *file.shape(&stored)? {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            ref other => {
                let reason = format!("the tensor `{stored}` is {other:?}; only matrices and vectors are supported");
                return Err(IoError::adapter(file.path(), reason));
            }
        };
        let values = file.values(&stored)?;
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(IoError::adapter(file.path(), format!("the tensor `{stored}` holds {value}")));
        }
        let matrix = Matrix::new(rows, columns, values).map_err(|e| IoError::adapter(file.path(), e.to_string()))?;
        tensors.insert(name.to_string(), matrix);
    }
    Ok(tensors)
}

/// The adapter under one scaling: the one that most modules have, into which the others are folded through B.
fn scaled(adapter: Adapter, config: &Config) -> Result<Adapter, IoError> {
    let mut scalings: BTreeMap<WeightId, f64> = BTreeMap::new();
    for (weight, factors) in &adapter.factors {
        scalings.insert(weight.clone(), config.scaling(weight.as_str(), factors.rank())?);
    }
    let scaling = most_common(scalings.values().copied().filter(|&s| s != 0.0)).unwrap_or(1.0);
    let fold = |(weight, factors): (WeightId, LowRank)| {
        let ratio = scalings[&weight] / scaling;
        if ratio == 1.0 {
            return (weight, factors);
        }
        let b = Matrix::from_fn(factors.b().rows(), factors.rank(), |i, j| {
            (f64::from(factors.b().row(i)[j]) * ratio) as f32
        });
        // The shapes are those of the factors, so they agree.
        let folded = LowRank::new(factors.a().clone(), b).unwrap_or(factors);
        (weight, folded)
    };
    Ok(Adapter {
        scaling: scaling as f32,
        factors: adapter.factors.into_iter().map(fold).collect(),
        head: adapter.head,
    })
}

/// The value that occurs most often; of several, the one met first.
fn most_common(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut counts: Vec<(f64, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(v, _)| *v == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    counts.iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| *value)
}
