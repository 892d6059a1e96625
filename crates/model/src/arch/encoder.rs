//! What post-norm encoders share: embeddings, layers over full attention, the state of the first token. An architecture
//! says what its weights are called and what it has beside them.

use super::config::{Sizes, refuse};
use super::weights::Weights;
use super::{Backbone, Outline};
use crate::Error;
use crate::data::SECOND_TEXT;
use crate::head::HeadLayout;
use crate::io::WeightSource;
use crate::nn::{Linear, together};
use crate::ops::{AttentionShape, NormWeights, Offsets, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight, WeightId};
use fedpipe_kernels::{Activation, FrozenMatrix};

/// What an architecture calls its parts.
pub(super) struct Layout {
    pub(super) prefix: &'static str,
    pub(super) classifier_class: &'static str,
    pub(super) span_class: &'static str,
    pub(super) head: &'static HeadLayout,
    /// A frozen layer over the first token's state, followed by tanh.
    pub(super) pooler: Option<&'static str>,
    /// As [`Outline::unused`].
    pub(super) unused: &'static [&'static str],
    /// In front of a layer's number.
    pub(super) layers: &'static str,
    pub(super) layer: &'static LayerNames,
    pub(super) default_targets: &'static [&'static str],
}

/// The modules of a layer; with a linear one goes the kind by which users target it.
pub(super) struct LayerNames {
    pub(super) query: (&'static str, &'static str),
    pub(super) key: (&'static str, &'static str),
    pub(super) value: (&'static str, &'static str),
    pub(super) attention_output: (&'static str, &'static str),
    pub(super) attention_norm: &'static str,
    pub(super) inner: (&'static str, &'static str),
    pub(super) outer: (&'static str, &'static str),
    pub(super) output_norm: &'static str,
}

/// What a configuration says.
pub(super) struct Config {
    pub(super) layout: &'static Layout,
    pub(super) sizes: Sizes,
    /// Rows of the segment table, if there is one; tokens without [`SECOND_TEXT`] are in the first segment.
    pub(super) segments: Option<usize>,
    /// The padding token, where positions are counted from the one after its id.
    pub(super) padding: Option<u32>,
    pub(super) activation: Activation,
    pub(super) epsilon: f32,
}

/// Refuses a feed-forward part that is computed in pieces.
pub(super) fn refuse_chunks(source: &dyn WeightSource) -> Result<(), Error> {
    const KEY: &str = "chunk_size_feed_forward";
    match source.config_optional_usize(KEY)? {
        None | Some(0) => Ok(()),
        Some(size) => refuse(source, KEY, format!("is {size}; only 0 is supported")),
    }
}

impl Config {
    /// The linear weights of a layer: path below the layer, kind, columns, rows.
    fn layer_weights(&self) -> [(&'static str, &'static str, usize, usize); 6] {
        let (h, i, names) = (self.sizes.hidden, self.sizes.inner, self.layout.layer);
        let of = |(path, kind), inputs, outputs| (path, kind, inputs, outputs);
        [
            of(names.query, h, h),
            of(names.key, h, h),
            of(names.value, h, h),
            of(names.attention_output, h, h),
            of(names.inner, h, i),
            of(names.outer, i, h),
        ]
    }

    pub(super) fn outline(&self) -> Outline {
        let Sizes { hidden: h, layers, vocabulary, positions, .. } = self.sizes;
        let layout = self.layout;
        let mut matrices = vec![(vocabulary, h), (positions, h)];
        matrices.extend(self.segments.map(|segments| (segments, h)));
        matrices.extend(layout.pooler.map(|_| (h, h)));
        let mut candidates = Vec::new();
        for layer in 0..layers {
            for (path, kind, inputs, outputs) in self.layer_weights() {
                matrices.push((outputs, inputs));
                let id = WeightId::new(format!("{}{}.{layer}.{path}", layout.prefix, layout.layers));
                candidates.push(CandidateWeight { id, layer, kind: kind.to_string(), inputs, outputs });
            }
        }
        let layer_vectors = self.layer_weights().iter().map(|weight| weight.3).sum::<usize>() + 4 * h;
        let pooler_vector = if layout.pooler.is_some() { h } else { 0 };
        Outline {
            layers,
            hidden: h,
            vocabulary,
            max_positions: self.padding.map_or(positions, |padding| positions - padding as usize - 1),
            candidates,
            default_targets: layout.default_targets,
            matrices,
            vector_values: layers * layer_vectors + 2 * h + pooler_vector,
            head: layout.head,
            prefix: layout.prefix,
            unused: layout.unused,
            classifier_class: layout.classifier_class,
            span_class: Some(layout.span_class),
            causal: None,
            transposed: false,
            segments: self.segments.is_some_and(|segments| segments > 1),
        }
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: NormWeights,
    inner: Linear,
    outer: Linear,
    output_norm: NormWeights,
    activation: Activation,
}

/// Which tokens' outputs a layer computes.
enum Outputs<'a> {
    All,
    /// The tokens `rows`; those of sequence i are `queries[i]..queries[i + 1]` of them.
    Some {
        rows: &'a Offsets,
        queries: &'a Offsets,
    },
}

impl Layer {
    fn load(weights: &mut Weights<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let at = |path: &str| format!("{}.{layer}.{path}", config.layout.layers);
        let mut linear = |(path, _, inputs, outputs): (&str, _, _, _)| weights.linear(&at(path), inputs, outputs, true);
        let [query, key, value, attention_output, inner, outer] = config.layer_weights().map(&mut linear);
        let (names, h) = (config.layout.layer, config.sizes.hidden);
        Ok(Self {
            query: query?,
            key: key?,
            value: value?,
            attention_output: attention_output?,
            attention_norm: weights.layer_norm(&at(names.attention_norm), h, config.epsilon)?,
            inner: inner?,
            outer: outer?,
            output_norm: weights.layer_norm(&at(names.output_norm), h, config.epsilon)?,
            activation: config.activation,
        })
    }

    /// x `[tokens, hidden]` to the outputs of the tokens that are asked for, `[outputs, hidden]`.
    fn forward<'a>(
        &'a self,
        ops: &mut dyn Ops<'a>,
        x: &Value,
        offsets: &Offsets,
        shape: AttentionShape,
        outputs: Outputs<'_>,
    ) -> Result<Value, Error> {
        let (q, k, v, residual, queries) = match outputs {
            Outputs::All => {
                let [q, k, v] = together(ops, x, [&self.query, &self.key, &self.value])?;
                (q, k, v, x.clone(), offsets)
            }
            Outputs::Some { rows, queries } => {
                let [k, v] = together(ops, x, [&self.key, &self.value])?;
                let residual = ops.select(x, rows)?;
                (self.query.forward(ops, &residual)?, k, v, residual, queries)
            }
        };
        let context = ops.attention([&q, &k, &v], queries, offsets, shape)?;
        drop((q, k, v));
        let attended = self.attention_output.forward(ops, &context)?;
        drop(context);
        let attended = ops.norm(&attended, Some(&residual), &self.attention_norm)?;
        drop(residual);
        let inner = self.inner.forward(ops, &attended)?;
        let inner = ops.activation(&inner, self.activation)?;
        let output = self.outer.forward(ops, &inner)?;
        drop(inner);
        ops.norm(&output, Some(&attended), &self.output_norm)
    }
}

/// An encoder, with its pooler if it has one.
pub(super) struct Encoder {
    words: FrozenMatrix,
    positions: FrozenMatrix,
    segments: Option<FrozenMatrix>,
    norm: NormWeights,
    layers: Vec<Layer>,
    pooler: Option<Linear>,
    padding: Option<u32>,
    shape: AttentionShape,
    format: BaseFormat,
    bytes: u64,
}

impl Encoder {
    pub(super) fn load(source: &dyn WeightSource, config: &Config, format: BaseFormat) -> Result<Self, Error> {
        let Sizes { hidden: h, layers, heads, vocabulary, positions, .. } = config.sizes;
        let mut weights = Weights::new(source, format, config.layout.prefix, "embeddings.word_embeddings.weight");
        let words = weights.matrix("embeddings.word_embeddings", vocabulary, h)?;
        let positions = weights.matrix("embeddings.position_embeddings", positions, h)?;
        let segments = config.segments.map(|rows| weights.matrix("embeddings.token_type_embeddings", rows, h));
        Ok(Self {
            words,
            positions,
            segments: segments.transpose()?,
            norm: weights.layer_norm("embeddings.LayerNorm", h, config.epsilon)?,
            layers: (0..layers).map(|layer| Layer::load(&mut weights, config, layer)).collect::<Result<_, _>>()?,
            pooler: config.layout.pooler.map(|module| weights.linear(module, h, h, true)).transpose()?,
            padding: config.padding,
            shape: AttentionShape::full(heads, h / heads),
            format,
            bytes: weights.bytes(),
        })
    }

    /// The row of the position table for every token.
    fn positions(&self, ids: &[u32], offsets: &Offsets) -> Vec<u32> {
        let Some(padding) = self.padding else {
            return offsets.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as u32).collect();
        };
        let mut positions = Vec::with_capacity(ids.len());
        for pair in offsets.windows(2) {
            let mut last = padding;
            // A padding token that a text spells out has a place of its own and is not counted.
            positions.extend(ids[pair[0]..pair[1]].iter().map(|&id| {
                last += u32::from(id != padding);
                if id == padding { padding } else { last }
            }));
        }
        positions
    }
}

impl Backbone for Encoder {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn hidden(&self) -> usize {
        self.words.columns()
    }

    /// Sum of the word, position and segment embeddings, normalised.
    fn embed<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error> {
        let of_tokens: Vec<u32> = ids.iter().map(|id| u32::from(id & SECOND_TEXT != 0)).collect();
        let ids: Vec<u32> = ids.iter().map(|id| id & !SECOND_TEXT).collect();
        let positions = self.positions(&ids, offsets);
        let mut tables = vec![(&self.words, ids.as_slice()), (&self.positions, &positions)];
        tables.extend(self.segments.as_ref().map(|segments| (segments, of_tokens.as_slice())));
        let sum = ops.embed(&tables)?;
        ops.norm(&sum, None, &self.norm)
    }

    fn layer<'a>(&'a self, ops: &mut dyn Ops<'a>, layer: usize, x: &Value, offsets: &Offsets) -> Result<Value, Error> {
        self.layers[layer].forward(ops, x, offsets, self.shape, Outputs::All)
    }

    /// Of the last layer only the output of every sequence's first token is read.
    fn pool<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, offsets: &Offsets) -> Result<Value, Error> {
        let sequences = offsets.len().saturating_sub(1);
        let rows: Offsets = offsets[..sequences].into();
        let queries: Offsets = (0..=sequences).collect();
        let outputs = Outputs::Some { rows: &rows, queries: &queries };
        let first = self.layers[self.layers.len() - 1].forward(ops, x, offsets, self.shape, outputs)?;
        match &self.pooler {
            None => Ok(first),
            Some(pooler) => {
                let pooled = pooler.forward(ops, &first)?;
                ops.tanh(&pooled)
            }
        }
    }

    fn format(&self) -> BaseFormat {
        self.format
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
