//! What pre-norm decoders share: embeddings, layers over causal attention, a last norm.

use super::{Backbone, LanguageModel};
use crate::Error;
use crate::ops::{AttentionShape, KvCache, NormWeights, Offsets, Ops, Positions, Value};
use fedpipe_core::BaseFormat;
use fedpipe_kernels::FrozenMatrix;
use std::sync::Arc;

/// A layer around its attention.
pub(super) trait DecoderLayer: Send + Sync {
    /// Its attention.
    fn shape(&self) -> AttentionShape;

    /// Queries of `outputs`, keys and values of all tokens, and what the attention's output is added to, from the
    /// layer's input.
    fn project<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, tokens: &Tokens) -> Result<Projected, Error>;

    /// The layer's output from that of the attention.
    fn finish<'a>(&'a self, ops: &mut dyn Ops<'a>, context: &Value, residual: &Value) -> Result<Value, Error>;
}

/// What attention reads, and what its output is added to.
pub(super) struct Projected {
    pub(super) qkv: [Value; 3],
    pub(super) residual: Value,
}

/// The tokens that a layer runs over, and those whose outputs it computes.
pub(super) struct Tokens {
    pub(super) offsets: Offsets,
    pub(super) positions: Positions,
    /// `None` for all.
    pub(super) tail: Option<Tail>,
}

/// The last tokens of every sequence.
pub(super) struct Tail {
    pub(super) rows: Offsets,
    pub(super) queries: Offsets,
    pub(super) positions: Positions,
}

impl Tokens {
    /// All tokens; sequence i begins at position `starts(i)`.
    fn all(offsets: &Offsets, starts: impl Fn(usize) -> usize) -> Self {
        let places = offsets.windows(2).enumerate().flat_map(|(i, pair)| {
            let start = starts(i);
            start..start + (pair[1] - pair[0])
        });
        Self { offsets: offsets.clone(), positions: places.map(|place| place as u32).collect(), tail: None }
    }

    /// The outputs of the last tokens of whole sequences: `queries[i]..queries[i + 1]` are those of sequence i.
    fn tail(offsets: &Offsets, queries: &Offsets) -> Result<Self, Error> {
        let all = Self::all(offsets, |_| 0);
        if queries.len() != offsets.len() {
            return Err(Error::shape(format!("{} tails of {} sequences", queries.len(), offsets.len())));
        }
        let mut rows = Vec::with_capacity(queries.last().copied().unwrap_or(0));
        for (wanted, pair) in queries.windows(2).zip(offsets.windows(2)) {
            let count = wanted[1].saturating_sub(wanted[0]);
            if count > pair[1] - pair[0] {
                return Err(Error::shape(format!("the last {count} of {} tokens", pair[1] - pair[0])));
            }
            rows.extend(pair[1] - count..pair[1]);
        }
        let positions = rows.iter().map(|&row| all.positions[row]).collect();
        Ok(Self { tail: Some(Tail { rows: rows.into(), queries: queries.clone(), positions }), ..all })
    }

    /// Positions of the tokens whose outputs are computed.
    pub(super) fn query_positions(&self) -> &Positions {
        self.tail.as_ref().map_or(&self.positions, |tail| &tail.positions)
    }

    /// The rows of x whose outputs are computed.
    pub(super) fn select<'a>(&self, ops: &mut dyn Ops<'a>, x: &Value) -> Result<Value, Error> {
        self.tail.as_ref().map_or_else(|| Ok(x.clone()), |tail| ops.select(x, &tail.rows))
    }

    /// One beyond the last position.
    pub(super) fn length(&self) -> usize {
        self.positions.iter().max().map_or(0, |&last| last as usize + 1)
    }
}

/// A decoder without its output head.
pub(super) struct Decoder<L> {
    pub(super) words: Arc<FrozenMatrix>,
    /// Learned positions, where the layers do not turn queries and keys instead.
    pub(super) places: Option<FrozenMatrix>,
    pub(super) layers: Vec<L>,
    pub(super) norm: NormWeights,
    /// Tokens of the longest sequence.
    pub(super) max_positions: usize,
    /// Whether the word embeddings are the output head too.
    pub(super) tied: bool,
    pub(super) format: BaseFormat,
    pub(super) bytes: u64,
}

impl<L: DecoderLayer> Decoder<L> {
    fn embed_at<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], tokens: &Tokens) -> Result<Value, Error> {
        if tokens.length() > self.max_positions {
            let (length, most) = (tokens.length(), self.max_positions);
            return Err(Error::shape(format!("a sequence of {length} tokens; the model takes {most} at most")));
        }
        match &self.places {
            None => ops.embed(&[(&self.words, ids)]),
            Some(places) => ops.embed(&[(&self.words, ids), (places, &tokens.positions)]),
        }
    }

    fn run<'a>(&'a self, ops: &mut dyn Ops<'a>, layer: usize, x: &Value, tokens: &Tokens) -> Result<Value, Error> {
        let this = &self.layers[layer];
        let Projected { qkv: [q, k, v], residual } = this.project(ops, x, tokens)?;
        let queries = tokens.tail.as_ref().map_or(&tokens.offsets, |tail| &tail.queries);
        let context = ops.attention([&q, &k, &v], queries, &tokens.offsets, this.shape())?;
        drop((q, k, v));
        this.finish(ops, &context, &residual)
    }
}

impl<L: DecoderLayer> Backbone for Decoder<L> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn hidden(&self) -> usize {
        self.words.columns()
    }

    fn embed<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error> {
        self.embed_at(ops, ids, &Tokens::all(offsets, |_| 0))
    }

    fn layer<'a>(&'a self, ops: &mut dyn Ops<'a>, layer: usize, x: &Value, offsets: &Offsets) -> Result<Value, Error> {
        self.run(ops, layer, x, &Tokens::all(offsets, |_| 0))
    }

    /// The last token has read all others.
    fn pool<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, offsets: &Offsets) -> Result<Value, Error> {
        self.tail(ops, x, offsets, &(0..offsets.len()).collect())
    }

    fn language(&self) -> Option<&dyn LanguageModel> {
        Some(self)
    }

    fn format(&self) -> BaseFormat {
        self.format
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<L: DecoderLayer> LanguageModel for Decoder<L> {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn tail<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        x: &Value,
        offsets: &Offsets,
        queries: &Offsets,
    ) -> Result<Value, Error> {
        let last = self.layers.len() - 1;
        let states = self.run(ops, last, x, &Tokens::tail(offsets, queries)?)?;
        ops.norm(&states, None, &self.norm)
    }

    fn tied_head(&self) -> Option<Arc<FrozenMatrix>> {
        self.tied.then(|| self.words.clone())
    }

    fn embed_next<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        ids: &[u32],
        offsets: &Offsets,
        cache: &KvCache,
    ) -> Result<Value, Error> {
        self.embed_at(ops, ids, &next(offsets, cache)?)
    }

    fn layer_next<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        layer: usize,
        x: &Value,
        offsets: &Offsets,
        cache: &mut KvCache,
    ) -> Result<Value, Error> {
        let tokens = next(offsets, cache)?;
        let this = &self.layers[layer];
        let Projected { qkv: [q, k, v], residual } = this.project(ops, x, &tokens)?;
        let context = ops.cached_attention([&q, &k, &v], offsets, (cache, layer), this.shape())?;
        this.finish(ops, &context, &residual)
    }

    fn final_norm<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value) -> Result<Value, Error> {
        ops.norm(x, None, &self.norm)
    }
}

/// New tokens after those in the cache.
fn next(offsets: &Offsets, cache: &KvCache) -> Result<Tokens, Error> {
    let lengths = cache.lengths();
    if offsets.len() != lengths.len() + 1 {
        let sequences = offsets.len().saturating_sub(1);
        return Err(Error::shape(format!("{sequences} sequences for a cache of {}", lengths.len())));
    }
    Ok(Tokens::all(offsets, |i| lengths[i]))
}
