//! BERT (arXiv 1810.04805) as Hugging Face's `BertForSequenceClassification` computes it; dropout is left out.

use super::config::{MAX_LAYERS, MAX_ROWS, MAX_WIDTH, check_sizes, refuse, require_off, require_text};
use super::weights::Weights;
use super::{Architecture, Backbone, Outline};
use crate::Error;
use crate::io::WeightSource;
use crate::nn::{Linear, together};
use crate::ops::{AttentionShape, NormWeights, Offsets, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight, WeightId};
use fedpipe_kernels::{Activation, FrozenMatrix};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "bert",
    outline: |source| Ok(Config::read(source)?.outline()),
    load: |source, format| Ok(Box::new(Bert::load(source, format)?)),
};

const PREFIX: &str = "bert.";

struct Config {
    hidden: usize,
    layers: usize,
    heads: usize,
    intermediate: usize,
    vocabulary: usize,
    positions: usize,
    segments: usize,
    epsilon: f32,
}

impl Config {
    fn read(source: &dyn WeightSource) -> Result<Self, Error> {
        let config = Self {
            hidden: source.config_usize("hidden_size")?,
            layers: source.config_usize("num_hidden_layers")?,
            heads: source.config_usize("num_attention_heads")?,
            intermediate: source.config_usize("intermediate_size")?,
            vocabulary: source.config_usize("vocab_size")?,
            positions: source.config_usize("max_position_embeddings")?,
            segments: source.config_usize("type_vocab_size")?,
            epsilon: source.config_f64("layer_norm_eps")? as f32,
        };
        require_text(source, "hidden_act", "gelu")?;
        require_text(source, "position_embedding_type", "absolute")?;
        require_off(source, &["is_decoder", "add_cross_attention"], "only encoders are supported")?;
        check_sizes(
            source,
            &[
                ("num_hidden_layers", config.layers, MAX_LAYERS),
                ("hidden_size", config.hidden, MAX_WIDTH),
                ("intermediate_size", config.intermediate, MAX_WIDTH),
                ("vocab_size", config.vocabulary, MAX_ROWS),
                ("max_position_embeddings", config.positions, MAX_ROWS),
                ("type_vocab_size", config.segments, MAX_ROWS),
            ],
        )?;
        if config.heads == 0 || !config.hidden.is_multiple_of(config.heads) {
            let reason = format!("is {}, which does not divide hidden_size {}", config.heads, config.hidden);
            return refuse(source, "num_attention_heads", reason);
        }
        Ok(config)
    }

    /// The linear weights of a layer: path below the layer, columns, rows.
    fn layer_weights(&self) -> [(&'static str, usize, usize); 6] {
        let (h, i) = (self.hidden, self.intermediate);
        [
            ("attention.self.query", h, h),
            ("attention.self.key", h, h),
            ("attention.self.value", h, h),
            ("attention.output.dense", h, h),
            ("intermediate.dense", h, i),
            ("output.dense", i, h),
        ]
    }

    fn outline(&self) -> Outline {
        let h = self.hidden;
        let mut matrices = vec![(self.vocabulary, h), (self.positions, h), (self.segments, h), (h, h)];
        let mut candidates = Vec::new();
        for layer in 0..self.layers {
            for (path, inputs, outputs) in self.layer_weights() {
                matrices.push((outputs, inputs));
                let kind = path.strip_prefix("attention.self.").unwrap_or(path).to_string();
                candidates.push(CandidateWeight { id: weight_id(layer, path), layer, kind, inputs, outputs });
            }
        }
        let layer_vectors = self.layer_weights().iter().map(|&(_, _, outputs)| outputs).sum::<usize>() + 4 * h;
        Outline {
            layers: self.layers,
            hidden: h,
            vocabulary: self.vocabulary,
            max_positions: self.positions,
            candidates,
            default_targets: &["query", "key", "value", "attention.output.dense"],
            matrices,
            vector_values: self.layers * layer_vectors + 3 * h,
            head_module: "classifier",
            head_bias: true,
            prefix: PREFIX,
            classifier_class: "BertForSequenceClassification",
            causal: None,
            transposed: false,
        }
    }
}

fn weight_id(layer: usize, path: &str) -> WeightId {
    WeightId::new(format!("{PREFIX}encoder.layer.{layer}.{path}"))
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: NormWeights,
    intermediate: Linear,
    output: Linear,
    output_norm: NormWeights,
}

impl Layer {
    fn load(weights: &mut Weights<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let at = |path: &str| format!("encoder.layer.{layer}.{path}");
        let (h, i) = (config.hidden, config.intermediate);
        Ok(Self {
            query: weights.linear(&at("attention.self.query"), h, h, true)?,
            key: weights.linear(&at("attention.self.key"), h, h, true)?,
            value: weights.linear(&at("attention.self.value"), h, h, true)?,
            attention_output: weights.linear(&at("attention.output.dense"), h, h, true)?,
            attention_norm: weights.layer_norm(&at("attention.output.LayerNorm"), h, config.epsilon)?,
            intermediate: weights.linear(&at("intermediate.dense"), h, i, true)?,
            output: weights.linear(&at("output.dense"), i, h, true)?,
            output_norm: weights.layer_norm(&at("output.LayerNorm"), h, config.epsilon)?,
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
        let inner = self.intermediate.forward(ops, &attended)?;
        let inner = ops.activation(&inner, Activation::Gelu)?;
        let output = self.output.forward(ops, &inner)?;
        drop(inner);
        ops.norm(&output, Some(&attended), &self.output_norm)
    }
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

/// The encoder with its pooler.
struct Bert {
    words: FrozenMatrix,
    positions: FrozenMatrix,
    segments: FrozenMatrix,
    norm: NormWeights,
    layers: Vec<Layer>,
    pooler: Linear,
    shape: AttentionShape,
    format: BaseFormat,
    bytes: u64,
}

impl Bert {
    fn load(source: &dyn WeightSource, format: BaseFormat) -> Result<Self, Error> {
        let config = Config::read(source)?;
        let mut weights = Weights::new(source, format, PREFIX, "embeddings.word_embeddings.weight");
        let h = config.hidden;
        Ok(Self {
            words: weights.matrix("embeddings.word_embeddings", config.vocabulary, h)?,
            positions: weights.matrix("embeddings.position_embeddings", config.positions, h)?,
            segments: weights.matrix("embeddings.token_type_embeddings", config.segments, h)?,
            norm: weights.layer_norm("embeddings.LayerNorm", h, config.epsilon)?,
            layers: (0..config.layers)
                .map(|layer| Layer::load(&mut weights, &config, layer))
                .collect::<Result<_, _>>()?,
            pooler: weights.linear("pooler.dense", h, h, true)?,
            shape: AttentionShape::full(config.heads, h / config.heads),
            format,
            bytes: weights.bytes(),
        })
    }
}

impl Backbone for Bert {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn hidden(&self) -> usize {
        self.words.columns()
    }

    /// Sum of the word, position and first segment embeddings, normalised.
    fn embed<'a>(&'a self, ops: &mut dyn Ops<'a>, ids: &[u32], offsets: &Offsets) -> Result<Value, Error> {
        let positions: Vec<u32> = offsets.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as u32).collect();
        let segments = vec![0u32; ids.len()];
        let sum = ops.embed(&[(&self.words, ids), (&self.positions, &positions), (&self.segments, &segments)])?;
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
        let pooled = self.pooler.forward(ops, &first)?;
        ops.tanh(&pooled)
    }

    fn format(&self) -> BaseFormat {
        self.format
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
