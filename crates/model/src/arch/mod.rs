//! Architectures: one file each, one row each in [`ARCHITECTURES`].

mod bert;
mod config;
mod decoder;
mod distilbert;
mod encoder;
mod gpt2;
mod llama;
mod rotary;
mod weights;

use crate::Error;
use crate::head::{HeadKind, HeadLayout, SPAN};
use crate::io::WeightSource;
use crate::ops::{Block, KvCache, Offsets, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight};
use fedpipe_kernels::FrozenMatrix;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A way to read one kind of Hugging Face model.
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What the model consists of, from `config.json` alone.
    pub outline: fn(&dyn WeightSource) -> Result<Outline, Error>,
    /// The model with its frozen weights in a format.
    pub load: Load,
}

/// How an architecture's model is loaded.
pub type Load = fn(&dyn WeightSource, BaseFormat) -> Result<Box<dyn Backbone>, Error>;

/// Every architecture.
pub const ARCHITECTURES: &[Architecture] = &[
    bert::BERT,
    bert::ROBERTA,
    distilbert::ARCHITECTURE,
    gpt2::ARCHITECTURE,
    llama::LLAMA,
    llama::MISTRAL,
    llama::QWEN2,
    llama::QWEN3,
];

/// The row of a model's `model_type`.
///
/// # Errors
/// When there is none, by name, with those that there are.
pub fn of(source: &dyn WeightSource) -> Result<&'static Architecture, Error> {
    let model_type = source.config_str("model_type")?;
    ARCHITECTURES.iter().find(|a| a.model_type == model_type).ok_or_else(|| Error::UnsupportedArchitecture {
        path: source.config_path(),
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
    /// The classification head over the pooled state.
    pub head: &'static HeadLayout,
    /// Prefix of the base model's weights in a model with a head (`bert.`).
    pub prefix: &'static str,
    /// What a checkpoint may hold behind that prefix although a classifier has none (`pooler.`).
    pub unused: &'static [&'static str],
    /// Class that Hugging Face loads with a classification head.
    pub classifier_class: &'static str,
    /// Class that Hugging Face loads with a head that finds answers; `None` for decoders.
    pub span_class: Option<&'static str>,
    /// What makes it a language model; `None` for encoders.
    pub causal: Option<CausalHead>,
    /// Whether files hold its linear weights as `[inputs, outputs]`.
    pub transposed: bool,
    /// Whether the two texts of a pair have embeddings that tell them apart ([`SECOND_TEXT`](crate::data::SECOND_TEXT)).
    pub segments: bool,
}

/// The output head of a language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalHead {
    /// Class that Hugging Face loads with it.
    pub class: &'static str,
    /// Its weight's name; `None` when the word embeddings are used again.
    pub tensor: Option<&'static str>,
    /// Rows and columns of the weight: vocabulary and hidden width.
    pub shape: (usize, usize),
}

impl CausalHead {
    /// Bytes that it takes beside the other weights.
    pub fn bytes(&self, format: BaseFormat) -> u64 {
        self.tensor.map_or(0, |_| crate::quant::bytes(format, self.shape.0, self.shape.1))
    }

    /// Reads it; the word embeddings of `model` where they are the head too.
    ///
    /// # Errors
    /// When the weight is missing, broken or of the wrong shape.
    pub fn load(
        &self,
        source: &dyn WeightSource,
        format: BaseFormat,
        model: &dyn LanguageModel,
    ) -> Result<Arc<FrozenMatrix>, Error> {
        match (self.tensor, model.tied_head()) {
            (None, Some(words)) => Ok(words),
            (name, _) => {
                let name = name.unwrap_or_default();
                let values = source.tensor_f32(name, &[self.shape.0, self.shape.1])?;
                Ok(Arc::new(weights::frozen(source, format, name, self.shape, &values)?))
            }
        }
    }
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

    /// Rows and columns of the tensors of a head that trains.
    pub fn head_shapes(&self, kind: HeadKind) -> BTreeMap<String, (usize, usize)> {
        match kind {
            HeadKind::Classes(classes) => self.head.shapes(self.hidden, classes),
            HeadKind::Span => SPAN.shapes(self.hidden, 2),
            HeadKind::Vocabulary => BTreeMap::new(),
        }
    }
}

/// A frozen model that turns texts into vectors. A batch is `ids` `[tokens]`, the sequences end to end, sequence i at
/// `offsets[i]..offsets[i + 1]`, none empty.
pub trait Backbone: Send + Sync {
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

    /// The model as one of language; `None` for encoders.
    fn language(&self) -> Option<&dyn LanguageModel> {
        None
    }

    /// Format of the frozen matrices.
    fn format(&self) -> BaseFormat;

    /// Bytes that the frozen weights take.
    fn bytes(&self) -> u64;
}

impl dyn Backbone + '_ {
    /// One vector a sequence, for the head of a classifier.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn pooled<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error> {
        let x = self.embed(ops, ids, offsets)?;
        self.pooled_from(ops, 0, x, offsets)
    }

    /// `pooled`, from what layer `first` reads.
    ///
    /// # Errors
    /// When an operation fails.
    pub fn pooled_from<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        first: usize,
        x: Value,
        offsets: &Offsets,
    ) -> Result<Value, Error> {
        let x = self.up_to_last(ops, first, x, offsets)?;
        let offsets = offsets.clone();
        let block: Block<'a> = Rc::new(move |ops, x| self.pool(ops, x, &offsets));
        ops.block(&x, &block)
    }

    /// The final state of every token of an encoder, `[tokens, hidden]`, from what layer `first` reads.
    ///
    /// # Errors
    /// When the model is a language model or an operation fails.
    pub fn states_from<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        first: usize,
        x: Value,
        offsets: &Offsets,
    ) -> Result<Value, Error> {
        if self.language().is_some() {
            return Err(Error::shape("a language model is not asked for the states of all tokens".into()));
        }
        let x = self.up_to_last(ops, first, x, offsets)?;
        let (last, offsets) = (self.layers() - 1, offsets.clone());
        let block: Block<'a> = Rc::new(move |ops, x| self.layer(ops, last, x, &offsets));
        ops.block(&x, &block)
    }

    /// Runs the layers from `first` to the last but one, each as a block of its own.
    fn up_to_last<'a>(
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
        Ok(x)
    }

    /// The final states of the last tokens of every sequence, for the output head of a language model: `[queries,
    /// hidden]`, of which `queries[i]..queries[i + 1]` are those of sequence i. From what layer `first` reads.
    ///
    /// # Errors
    /// When the model is no language model or an operation fails.
    pub fn tail_from<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        first: usize,
        x: Value,
        offsets: &Offsets,
        queries: &Offsets,
    ) -> Result<Value, Error> {
        let model = self.language().ok_or_else(|| Error::shape("an encoder has no output head".into()))?;
        let x = self.up_to_last(ops, first, x, offsets)?;
        let (offsets, queries) = (offsets.clone(), queries.clone());
        let block: Block<'a> = Rc::new(move |ops, x| model.tail(ops, x, &offsets, &queries));
        ops.block(&x, &block)
    }
}

/// A frozen model that predicts the next token from those before it. Its output head lies beside it
/// ([`CausalHead::load`]), since a classifier does without.
pub trait LanguageModel: Send + Sync {
    /// Number of layers, one at least.
    fn layers(&self) -> usize;

    /// The final states of the last tokens of every sequence, from what the last layer reads, which is run for these
    /// alone: `[queries, hidden]`, of which `queries[i]..queries[i + 1]` are those of sequence i.
    ///
    /// # Errors
    /// When a sequence has fewer tokens, or an operation fails.
    fn tail<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        x: &Value,
        offsets: &Offsets,
        queries: &Offsets,
    ) -> Result<Value, Error>;

    /// The word embeddings `[vocabulary, hidden]`, where they are the output head too.
    fn tied_head(&self) -> Option<Arc<FrozenMatrix>>;

    /// What the first layer reads of new tokens, which follow those in `cache`.
    ///
    /// # Errors
    /// When a sequence becomes too long or an operation fails.
    fn embed_next<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        ids: &[u32],
        offsets: &Offsets,
        cache: &KvCache,
    ) -> Result<Value, Error>;

    /// One layer over new tokens, whose keys and values go to `cache`.
    ///
    /// # Errors
    /// When an operation fails.
    fn layer_next<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        layer: usize,
        x: &Value,
        offsets: &Offsets,
        cache: &mut KvCache,
    ) -> Result<Value, Error>;

    /// The norm after the last layer.
    ///
    /// # Errors
    /// When an operation fails.
    fn final_norm<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value) -> Result<Value, Error>;
}

impl dyn LanguageModel + '_ {
    /// Reads new tokens, `ids[offsets[i]..offsets[i + 1]]` of sequence i, after those in `cache`, and gives the logits of
    /// what follows each sequence that got any, `[sequences with new tokens, vocabulary]` row-major.
    ///
    /// # Errors
    /// When the offsets and the cache disagree, a sequence becomes too long, or an operation fails. The cache then
    /// counts none of the new tokens.
    pub fn next_logits<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        head: &FrozenMatrix,
        ids: &[u32],
        offsets: &Offsets,
        cache: &mut KvCache,
    ) -> Result<Vec<f32>, Error> {
        let mut x = self.embed_next(ops, ids, offsets, cache)?;
        for layer in 0..self.layers() {
            x = self.layer_next(ops, layer, &x, offsets, cache)?;
        }
        let last: Offsets = offsets.windows(2).filter(|pair| pair[1] > pair[0]).map(|pair| pair[1] - 1).collect();
        let states = ops.select(&x, &last)?;
        let states = self.final_norm(ops, &states)?;
        let logits = ops.logits(&states, head)?;
        cache.advance(offsets);
        Ok(logits)
    }
}
