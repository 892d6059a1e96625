//! One function an operation. Models are written against [`Ops`] only.
//!
//! Every operation exists twice. `Reference` is composed of candle operations and differentiated by candle, on any
//! device. `Fast` runs `fedpipe-kernels` on the CPU: a tape of its own records for every operation what its gradient
//! needs and nothing more, keeps it in bf16 where the base format is not f32, can recompute a layer instead of keeping its
//! inside, and reuses its buffers from step to step. The conformance tests hold the two together, forward and backward.
//!
//! Sequences are packed end to end: a batch is `[tokens, width]` with offsets, never padded.

mod attention;
mod cached;
mod classify;
mod elementwise;
mod fast;
mod linear;
mod norm;
mod pool;
mod reference;
mod rotary;
mod rows;
mod split;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use cached::KvCache;
pub use fedpipe_kernels::{IGNORED, TokenLoss};

use crate::Error;
use crate::adapter::Adapters;
use crate::nn::Linear;
use crate::parameters::{Gradients, ParameterId, Parameters};
use fast::Fast;
use fedpipe_core::{ActivationFormat, BaseFormat};
use fedpipe_kernels::{Activation, FrozenMatrix, Mask, RotaryTable};
use half::bf16;
use pool::Pool;
use reference::Reference;
use std::any::Any;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// First rows of packed sequences and, last, the number of rows.
pub type Offsets = Arc<[usize]>;

/// The place of every token in its sequence, from 0.
pub type Positions = Arc<[u32]>;

/// Which implementation of the operations to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpsKind {
    /// Composed of candle's operations.
    Reference,
    /// Over the kernels, with its own backward pass; CPU only.
    #[default]
    Fast,
}

/// A tensor `[rows, columns]` of the [`Ops`] that made it. Cheap to clone; its memory is free for the next operation once
/// the last clone is gone and no gradient needs it.
#[derive(Clone)]
pub struct Value {
    rows: usize,
    columns: usize,
    tensor: Rc<dyn Any>,
}

impl Value {
    fn new(rows: usize, columns: usize, tensor: Rc<dyn Any>) -> Self {
        Self { rows, columns, tensor }
    }

    /// Rows: tokens, or sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    fn downcast<T: 'static>(&self) -> Result<Rc<T>, Error> {
        self.tensor.clone().downcast().map_err(|_| Error::shape("a value goes to the operations that made it".into()))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value[{}, {}]", self.rows, self.columns)
    }
}

/// Heads of an attention layer, with `scale = 1/√head_dim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Which keys a query sees; positions are counted from the sequence's end.
    pub mask: Mask,
}

impl AttentionShape {
    /// One key head for each query head, every query sees every key.
    pub fn full(heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads: heads, head_dim, mask: Mask::Full }
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Frozen weights of a norm.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// γ `[width]`.
    pub scale: Arc<[f32]>,
    /// What is computed.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub epsilon: f32,
}

/// Kinds of norms.
#[derive(Debug, Clone)]
pub enum NormKind {
    /// Layer norm (arXiv 1607.06450): `γ·(s − mean(s))/√(var(s) + ε) + β`.
    Layer {
        /// β `[width]`.
        shift: Arc<[f32]>,
    },
    /// RMS norm (arXiv 1910.07467): `γ·s/√(mean(s²) + ε)`.
    Rms,
}

/// A classification head among the parameters: `output(inner(x))`, or `output(x)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierHead {
    /// A layer before the output, and what follows it.
    pub inner: Option<(TrainedLinear, HeadActivation)>,
    /// Its outputs are the classes.
    pub output: TrainedLinear,
}

impl ClassifierHead {
    /// One layer, to the classes.
    pub fn linear(weight: ParameterId, bias: Option<ParameterId>) -> Self {
        Self { inner: None, output: TrainedLinear { weight, bias } }
    }
}

/// A linear layer that trains whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainedLinear {
    /// `[outputs, inputs]`.
    pub weight: ParameterId,
    /// `[1, outputs]`, if it has one.
    pub bias: Option<ParameterId>,
}

/// Activations inside of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadActivation {
    /// tanh.
    Tanh,
    /// max(x, 0).
    Relu,
}

/// What the outputs of a head are held against.
#[derive(Debug, Clone, Copy)]
pub enum HeadTargets<'t> {
    /// Nothing: there is no loss.
    None,
    /// The right one of each row's outputs, `[rows]`.
    Classes(&'t [u32]),
    /// The rows of each sequence where its span begins and ends; of the head's two outputs the first tells the one, the
    /// second the other, among the rows of the sequence.
    Spans {
        /// Sequence i has the rows `offsets[i]..offsets[i + 1]`.
        offsets: &'t Offsets,
        /// `[sequences]`, counted from the sequence's first row.
        places: &'t [[u32; 2]],
    },
}

/// What a head made of states.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// `[rows, outputs]`, row-major.
    pub logits: Vec<f32>,
    /// Mean cross-entropy in nats, where there were targets; of a span that of its ends, averaged.
    pub loss: Option<f64>,
}

/// A part of a model, as a function of its input: what [`Ops::block`] may run twice.
pub type Block<'a> = Rc<dyn Fn(&mut dyn Ops<'a>, &Value) -> Result<Value, Error> + 'a>;

/// The operations that models are written in, over weights that live for `'a`.
pub trait Ops<'a> {
    /// Σ over tables of the row that each token names, `[tokens, hidden]`.
    ///
    /// # Errors
    /// When an index reaches past a table.
    fn embed(&mut self, tables: &[(&'a FrozenMatrix, &[u32])]) -> Result<Value, Error>;

    /// `y = x·Wᵀ + bias` and what the adapters hold for the weight, for several layers over one `x` `[tokens, in]`.
    ///
    /// # Errors
    /// When the widths disagree.
    fn linears(&mut self, x: &Value, layers: &[&'a Linear]) -> Result<Vec<Value>, Error>;

    /// The norm of x + residual, every `width` columns of a row by themselves: a whole row, or each head of a row.
    ///
    /// # Errors
    /// When the shapes disagree.
    fn norm(&mut self, x: &Value, residual: Option<&Value>, weights: &'a NormWeights) -> Result<Value, Error>;

    /// x + residual and the norm of this sum: what a pre-norm block carries on, and what it goes on with.
    ///
    /// # Errors
    /// When the shapes disagree.
    fn sum_and_norm(&mut self, x: &Value, residual: &Value, weights: &'a NormWeights) -> Result<[Value; 2], Error>;

    /// x + y, of one shape.
    ///
    /// # Errors
    /// When the shapes disagree.
    fn add(&mut self, x: &Value, y: &Value) -> Result<Value, Error>;

    /// An activation, element by element.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn activation(&mut self, x: &Value, kind: Activation) -> Result<Value, Error>;

    /// A gated linear unit, `f(gate) · up` element by element.
    ///
    /// # Errors
    /// When the shapes disagree.
    fn gate(&mut self, gate: &Value, up: &Value, kind: Activation) -> Result<Value, Error>;

    /// Turns every head of x `[tokens, heads · head_dim]` by the angles of its token's position.
    ///
    /// # Errors
    /// When the shapes disagree or a position is beyond the table.
    fn rotary(&mut self, x: &Value, table: &Arc<RotaryTable>, positions: &Positions) -> Result<Value, Error>;

    /// The columns of x as values of these widths, from left to right.
    ///
    /// # Errors
    /// When x is not as wide as they are together.
    fn split(&mut self, x: &Value, widths: &[usize]) -> Result<Vec<Value>, Error>;

    /// tanh, element by element.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn tanh(&mut self, x: &Value) -> Result<Value, Error>;

    /// softmax(q·kᵀ/√d)·v within every sequence and head: q `[queries, heads · head_dim]`, k and v
    /// `[keys, kv_heads · head_dim]`; sequence i is the rows `queries[i]..queries[i + 1]` of q and
    /// `keys[i]..keys[i + 1]` of k and v.
    ///
    /// # Errors
    /// When the shapes and the offsets disagree.
    fn attention(
        &mut self,
        qkv: [&Value; 3],
        queries: &Offsets,
        keys: &Offsets,
        shape: AttentionShape,
    ) -> Result<Value, Error>;

    /// Causal attention of new tokens to themselves and to those in `cache`, where their keys and values go: sequence i
    /// is the rows `offsets[i]..offsets[i + 1]`, which may be none. Forward only.
    ///
    /// # Errors
    /// When the shapes, the offsets and the cache disagree, or a parameter led to a value.
    fn cached_attention(
        &mut self,
        qkv: [&Value; 3],
        offsets: &Offsets,
        cache: (&mut KvCache, usize),
        shape: AttentionShape,
    ) -> Result<Value, Error>;

    /// The rows `rows` of x, in that order.
    ///
    /// # Errors
    /// When a row is not there.
    fn select(&mut self, x: &Value, rows: &Offsets) -> Result<Value, Error>;

    /// Logits of a head over x `[rows, hidden]`; with targets, the mean cross-entropy too, which [`Ops::backward`]
    /// starts from. In f32.
    ///
    /// # Errors
    /// When the shapes disagree, a label is no class or a place no row.
    fn classify(&mut self, x: &Value, head: ClassifierHead, targets: HeadTargets<'_>) -> Result<Classified, Error>;

    /// The mean cross-entropy of `softmax(x · headᵀ)` against `targets`, over the tokens whose target is not [`IGNORED`]:
    /// x `[tokens, hidden]`, head `[vocabulary, hidden]`. [`Ops::backward`] starts from it. The logits are never held
    /// whole.
    ///
    /// # Errors
    /// When the shapes disagree or a target is not in the vocabulary.
    fn token_loss(&mut self, x: &Value, head: &FrozenMatrix, targets: &[u32]) -> Result<TokenLoss, Error>;

    /// The logits of every token over a vocabulary, `[tokens, vocabulary]` row-major, in f32: for the few tokens that
    /// another is drawn after.
    ///
    /// # Errors
    /// When the widths disagree.
    fn logits(&mut self, x: &Value, head: &FrozenMatrix) -> Result<Vec<f32>, Error>;

    /// Runs a part of a model. Where recomputation is on and something in it trains, only x is kept for backward, which
    /// runs the part again.
    ///
    /// # Errors
    /// Those of the block.
    fn block(&mut self, x: &Value, block: &Block<'a>) -> Result<Value, Error>;

    /// A constant `[rows, columns]` from the bytes that [`Ops::bytes`] gave.
    ///
    /// # Errors
    /// When their number is wrong.
    fn constant(&mut self, rows: usize, columns: usize, bytes: &[u8]) -> Result<Value, Error>;

    /// The bytes of a value in its element type; equal bytes are equal values.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn bytes(&self, x: &Value) -> Result<Vec<u8>, Error>;

    /// The elements of a value, row-major.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn read(&self, x: &Value) -> Result<Vec<f32>, Error>;

    /// Adds the gradient of the loss of [`Ops::classify`] or [`Ops::token_loss`] by every parameter to `gradients`. Nothing is left to go back
    /// over afterwards.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn backward(&mut self, gradients: &mut Gradients) -> Result<(), Error>;

    /// A parameter as a value, so that tests see the gradient of an operation's input.
    #[cfg(test)]
    fn leaf(&mut self, id: ParameterId) -> Result<Value, Error>;

    /// [`Ops::backward`] from values whose gradients are `upstream`.
    #[cfg(test)]
    fn backward_from(&mut self, ys: &[Value], upstream: &[Vec<f32>], gradients: &mut Gradients) -> Result<(), Error>;
}

/// Whether a pass records for backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Forward alone.
    Inference,
    /// Forward and backward.
    Training,
}

/// What operations need from step to step: their buffers, and how they are to work.
pub struct Workspace {
    kind: OpsKind,
    activations: ActivationFormat,
    recompute: bool,
    pools: (Rc<Pool<f32>>, Rc<Pool<bf16>>),
}

impl Workspace {
    /// For a base model in `format`: activations are f32 over f32 weights, else bf16. `recompute` makes
    /// [`Ops::block`] keep nothing but its input.
    pub fn new(kind: OpsKind, format: BaseFormat, recompute: bool) -> Self {
        Self { kind, activations: format.activations(), recompute, pools: Default::default() }
    }

    /// For a model that does not train, over a base in any format: activations are f32, since none are kept. Rounding them
    /// would move the logits further than a base in bf16 does.
    pub fn inference() -> Self {
        Self::new(OpsKind::Fast, BaseFormat::F32, false)
    }

    /// Bytes of an activation.
    pub fn element_bytes(&self) -> usize {
        if self.kind == OpsKind::Reference || self.activations == ActivationFormat::F32 { 4 } else { 2 }
    }

    /// Operations for one pass.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn ops<'a>(
        &self,
        parameters: &'a Parameters,
        adapters: &'a Adapters,
        pass: Pass,
    ) -> Result<Box<dyn Ops<'a> + 'a>, Error> {
        let (floats, halves) = &self.pools;
        Ok(match self.kind {
            OpsKind::Reference => Box::new(Reference::new(parameters, adapters)?),
            OpsKind::Fast if self.activations == ActivationFormat::F32 => {
                let pools = fast::Pools { elements: floats.clone(), floats: floats.clone() };
                Box::new(Fast::<f32>::new(parameters, adapters, pools, pass, self.recompute))
            }
            OpsKind::Fast => {
                let pools = fast::Pools { elements: halves.clone(), floats: floats.clone() };
                Box::new(Fast::<bf16>::new(parameters, adapters, pools, pass, self.recompute))
            }
        })
    }
}
