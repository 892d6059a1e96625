//! Architectures: one file each, one row each in [`ARCHITECTURES`].

mod bert;

use crate::Error;
use crate::io::HfFolder;
use crate::ops::{Block, Offsets, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight};
use std::collections::BTreeMap;
use std::rc::Rc;

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

/// A frozen model that turns texts into vectors. A batch is `ids` `[tokens]`, the sequences end to end, sequence i at
/// `offsets[i]..offsets[i + 1]`, none empty.
pub trait Encoder: Send + Sync {
    /// Number of layers, one at least.
    fn layers(&self) -> usize;

    /// Width of a token's state.
    fn hidden(&self) -> usize;

    /// What the first layer reads, `[tokens, hidden]`.
    ///
    /// # Errors
    /// When an operation fails.
    fn embed<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error>;

    /// One layer, `[tokens, hidden]` to the same shape.
    ///
    /// # Errors
    /// When an operation fails.
    fn layer<'a>(&'a self, ops: &mut dyn Ops<'a>, layer: usize, x: &Value, offsets: &Offsets) -> Result<Value, Error>;

    /// One vector a sequence `[sequences, hidden]`, from what the last layer reads. Where the vector depends on some
    /// tokens only, the last layer is run for these alone.
    ///
    /// # Errors
    /// When an operation fails.
    fn pool<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, offsets: &Offsets) -> Result<Value, Error>;

    /// Format of the frozen matrices.
    fn format(&self) -> BaseFormat;

    /// Bytes that the frozen weights take.
    fn bytes(&self) -> u64;
}

impl dyn Encoder + '_ {
    /// One vector a sequence, for the head of a classifier.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn pooled<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error> {
        let x = self.embed(ops, ids, offsets)?;
        self.pooled_from(ops, 0, x, offsets)
    }

    /// [`Encoder::pooled`](trait.Encoder.html), from what layer `first` reads.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn pooled_from<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        first: usize,
        mut x: Value,
        offsets: &Offsets,
    ) -> Result<Value, Error> {
        for layer in first..self.layers() - 1 {
            let offsets = offsets.clone();
            let block: Block<'a> = Rc::new(move |ops, x| self.layer(ops, layer, x, &offsets));
            x = ops.block(&x, &block)?;
        }
        let offsets = offsets.clone();
        let block: Block<'a> = Rc::new(move |ops, x| self.pool(ops, x, &offsets));
        ops.block(&x, &block)
    }
}
