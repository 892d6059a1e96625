//! Architectures: one file each, one row each in [`ARCHITECTURES`].

mod bert;

use crate::Error;
use crate::adapter::Adapters;
use crate::io::HfFolder;
use crate::ops::Ops;
use candle_core::Tensor;
use fedpipe_core::{BaseFormat, CandidateWeight};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A way to read one kind of Hugging Face model.
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What the model consists of, from `config.json` alone.
    pub outline: fn(&HfFolder) -> Result<Outline, Error>,
    /// The model with its frozen weights in a format.
    pub load: Load,
}

/// How an architecture's model is loaded.
pub type Load = fn(&HfFolder, BaseFormat) -> Result<Box<dyn Encoder>, Error>;

/// Every architecture.
pub const ARCHITECTURES: &[Architecture] = &[bert::ARCHITECTURE];

/// The row of the folder's `model_type`.
///
/// # Errors
/// When there is none, by name, with those that there are.
pub fn of(folder: &HfFolder) -> Result<&'static Architecture, Error> {
    let model_type = folder.config_str("model_type")?;
    ARCHITECTURES.iter().find(|a| a.model_type == model_type).ok_or_else(|| Error::UnsupportedArchitecture {
        path: folder.config_path(),
        model_type: model_type.to_string(),
        supported: ARCHITECTURES.iter().map(|a| a.model_type).collect::<Vec<_>>().join(", "),
    })
}

/// What a model consists of.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Number of layers.
    pub layers: usize,
    /// Width of a token's state.
    pub hidden: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Most tokens in a text.
    pub max_positions: usize,
    /// Weights that may be adapted, from the embeddings upwards.
    pub candidates: Vec<CandidateWeight>,
    /// Kinds of weights that are adapted when the user names none.
    pub default_targets: &'static [&'static str],
    /// Rows and columns of every frozen matrix; each is stored in the base format.
    pub matrices: Vec<(usize, usize)>,
    /// Values in frozen vectors, always `f32`.
    pub vector_values: usize,
    /// Module of the classification head (`classifier`), a linear layer over the pooled state.
    pub head_module: &'static str,
    /// Prefix of the base model's weights in a model with a head (`bert.`).
    pub prefix: &'static str,
    /// Class that Hugging Face loads with a classification head.
    pub classifier_class: &'static str,
}

impl Outline {
    /// All values of the frozen weights.
    pub fn parameters(&self) -> u64 {
        self.matrices.iter().map(|&(rows, cols)| (rows * cols) as u64).sum::<u64>() + self.vector_values as u64
    }

    /// Bytes of the frozen weights at rest.
    pub fn base_bytes(&self, format: BaseFormat) -> u64 {
        self.matrices.iter().map(|&(rows, cols)| crate::quant::bytes(format, rows, cols)).sum::<u64>()
            + 4 * self.vector_values as u64
    }

    /// Rows and columns of the tensors of a classification head.
    pub fn head_shapes(&self, classes: usize) -> BTreeMap<String, (usize, usize)> {
        [
            (format!("{}.weight", self.head_module), (classes, self.hidden)),
            (format!("{}.bias", self.head_module), (1, classes)),
        ]
        .into()
    }
}

/// A frozen model that turns texts into vectors.
pub trait Encoder: Send + Sync {
    /// One vector a sequence `[sequences, hidden]`, for the head of a classifier; `ids` `[tokens]` holds the
    /// sequences end to end, sequence i at `offsets[i]..offsets[i + 1]`, none empty.
    ///
    /// # Errors
    /// When candle fails.
    fn pooled(&self, ops: Ops, ids: &[u32], offsets: &Arc<[usize]>, adapters: &Adapters)
    -> candle_core::Result<Tensor>;

    /// Bytes that the frozen weights take.
    fn bytes(&self) -> u64;
}
