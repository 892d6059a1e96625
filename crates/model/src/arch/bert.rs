//! BERT (arXiv 1810.04805) as Hugging Face's `BertForSequenceClassification` computes it; dropout is left out.

use super::{Architecture, Encoder, Outline};
use crate::Error;
use crate::adapter::Adapters;
use crate::io::HfFolder;
use crate::nn::{Embedding, LayerNorm, Linear};
use crate::ops::{AttentionShape, NormWeights, Ops};
use crate::quant;
use candle_core::{Device, Tensor};
use fedpipe_core::{BaseFormat, CandidateWeight, WeightId};
use std::sync::Arc;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "bert",
    outline: |folder| Ok(Config::read(folder)?.outline()),
    load: |folder, format| Ok(Box::new(Bert::load(folder, format)?)),
};

const PREFIX: &str = "bert.";

// Far above any model of this architecture, and small enough that no product of two overflows.
const MAX_LAYERS: usize = 1 << 10;
const MAX_WIDTH: usize = 1 << 17;
const MAX_ROWS: usize = 1 << 24;

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
    fn read(folder: &HfFolder) -> Result<Self, Error> {
        let config = Self {
            hidden: folder.config_usize("hidden_size")?,
            layers: folder.config_usize("num_hidden_layers")?,
            heads: folder.config_usize("num_attention_heads")?,
            intermediate: folder.config_usize("intermediate_size")?,
            vocabulary: folder.config_usize("vocab_size")?,
            positions: folder.config_usize("max_position_embeddings")?,
            segments: folder.config_usize("type_vocab_size")?,
            epsilon: folder.config_f64("layer_norm_eps")? as f32,
        };
        let refuse = |key: &str, reason: String| {
            Err(Error::UnsupportedConfig { path: folder.config_path(), key: key.to_string(), reason })
        };
        for (key, supported) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
            match folder.config_optional_str(key)? {
                Some(value) if value != supported => {
                    return refuse(key, format!("is {value:?}; only {supported:?} is supported"));
                }
                _ => {}
            }
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if folder.config_bool(key)?.unwrap_or(false) {
                return refuse(key, "is true; only encoders are supported".into());
            }
        }
        let sizes = [
            ("num_hidden_layers", config.layers, MAX_LAYERS),
            ("hidden_size", config.hidden, MAX_WIDTH),
            ("intermediate_size", config.intermediate, MAX_WIDTH),
            ("vocab_size", config.vocabulary, MAX_ROWS),
            ("max_position_embeddings", config.positions, MAX_ROWS),
            ("type_vocab_size", config.segments, MAX_ROWS),
        ];
        for (key, size, largest) in sizes {
            if !(1..=largest).contains(&size) {
                return refuse(key, format!("is {size}; sizes from 1 to {largest} are supported"));
            }
        }
        if config.heads == 0 || !config.hidden.is_multiple_of(config.heads) {
            let reason = format!("is {}, which does not divide hidden_size {}", config.heads, config.hidden);
            return refuse("num_attention_heads", reason);
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
            prefix: PREFIX,
            classifier_class: "BertForSequenceClassification",
        }
    }
}

fn weight_id(layer: usize, path: &str) -> WeightId {
    WeightId::new(format!("{PREFIX}encoder.layer.{layer}.{path}"))
}

/// Reads the weights of a folder, whose names may or may not begin with `bert.`.
struct Weights<'a> {
    folder: &'a HfFolder,
    format: BaseFormat,
    prefix: &'static str,
    bytes: u64,
}

impl Weights<'_> {
    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<fedpipe_kernels::FrozenMatrix, Error> {
        let name = format!("{}{module}.weight", self.prefix);
        let values = self.folder.tensor_f32(&name, &[rows, cols])?;
        let frozen = quant::frozen(self.format, rows, cols, &values).map_err(|source| Error::Quantization {
            path: self.folder.config_path(),
            tensor: name,
            source,
        })?;
        self.bytes += frozen.bytes() as u64;
        Ok(frozen)
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Arc<[f32]>, Error> {
        self.bytes += 4 * length as u64;
        Ok(self.folder.tensor_f32(&format!("{}{name}", self.prefix), &[length])?.into())
    }

    fn embedding(&mut self, module: &str, rows: usize, cols: usize) -> Result<Embedding, Error> {
        Ok(Embedding(Arc::new(self.matrix(&format!("embeddings.{module}"), rows, cols)?)))
    }

    fn linear(&mut self, module: &str, inputs: usize, outputs: usize) -> Result<Linear, Error> {
        let weight = self.matrix(module, outputs, inputs)?;
        let bias = self.vector(&format!("{module}.bias"), outputs)?;
        Ok(Linear::new(WeightId::new(format!("{PREFIX}{module}")), weight, Some(bias)))
    }

    fn layer_norm(&mut self, module: &str, config: &Config) -> Result<LayerNorm, Error> {
        Ok(LayerNorm(NormWeights {
            scale: self.vector(&format!("{module}.weight"), config.hidden)?,
            shift: self.vector(&format!("{module}.bias"), config.hidden)?,
            epsilon: config.epsilon,
        }))
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn load(weights: &mut Weights<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let at = |path: &str| format!("encoder.layer.{layer}.{path}");
        let (h, i) = (config.hidden, config.intermediate);
        Ok(Self {
            query: weights.linear(&at("attention.self.query"), h, h)?,
            key: weights.linear(&at("attention.self.key"), h, h)?,
            value: weights.linear(&at("attention.self.value"), h, h)?,
            attention_output: weights.linear(&at("attention.output.dense"), h, h)?,
            attention_norm: weights.layer_norm(&at("attention.output.LayerNorm"), config)?,
            intermediate: weights.linear(&at("intermediate.dense"), h, i)?,
            output: weights.linear(&at("output.dense"), i, h)?,
            output_norm: weights.layer_norm(&at("output.LayerNorm"), config)?,
        })
    }

    /// x `[tokens, hidden]` to the same shape.
    fn forward(
        &self,
        ops: Ops,
        x: &Tensor,
        offsets: &Arc<[usize]>,
        shape: AttentionShape,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let context = ops.attention(
            &self.query.forward(ops, x, adapters)?,
            &self.key.forward(ops, x, adapters)?,
            &self.value.forward(ops, x, adapters)?,
            offsets,
            shape,
        )?;
        let attended = self.attention_norm.forward(ops, &self.attention_output.forward(ops, &context, adapters)?, x)?;
        let inner = ops.gelu(&self.intermediate.forward(ops, &attended, adapters)?)?;
        self.output_norm.forward(ops, &self.output.forward(ops, &inner, adapters)?, &attended)
    }
}

/// The encoder with its pooler.
struct Bert {
    words: Embedding,
    positions: Embedding,
    segments: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Linear,
    hidden: usize,
    shape: AttentionShape,
    bytes: u64,
}

impl Bert {
    fn load(folder: &HfFolder, format: BaseFormat) -> Result<Self, Error> {
        let config = Config::read(folder)?;
        let first = "embeddings.word_embeddings.weight";
        let prefix = if folder.has_tensor(&format!("{PREFIX}{first}")) { PREFIX } else { "" };
        let mut weights = Weights { folder, format, prefix, bytes: 0 };
        let h = config.hidden;
        Ok(Self {
            words: weights.embedding("word_embeddings", config.vocabulary, h)?,
            positions: weights.embedding("position_embeddings", config.positions, h)?,
            segments: weights.embedding("token_type_embeddings", config.segments, h)?,
            norm: weights.layer_norm("embeddings.LayerNorm", &config)?,
            layers: (0..config.layers)
                .map(|layer| Layer::load(&mut weights, &config, layer))
                .collect::<Result<_, _>>()?,
            pooler: weights.linear("pooler.dense", h, h)?,
            hidden: h,
            shape: AttentionShape { heads: config.heads, head_dim: h / config.heads },
            bytes: weights.bytes,
        })
    }

    /// Sum of the word, position and first segment embeddings `[tokens, hidden]`, normalised.
    fn embed(&self, ops: Ops, ids: &[u32], offsets: &[usize]) -> candle_core::Result<Tensor> {
        let (mut sum, mut row) = (vec![0.0; ids.len() * self.hidden], vec![0.0; self.hidden]);
        let positions = offsets.windows(2).flat_map(|pair| 0..pair[1] - pair[0]);
        for ((to, &id), position) in sum.chunks_exact_mut(self.hidden).zip(ids).zip(positions) {
            self.words.add_row(id as usize, &mut row, to);
            self.positions.add_row(position, &mut row, to);
            self.segments.add_row(0, &mut row, to);
        }
        let sum = Tensor::from_vec(sum, (ids.len(), self.hidden), &Device::Cpu)?;
        self.norm.forward(ops, &sum, &sum.zeros_like()?)
    }
}

impl Encoder for Bert {
    fn pooled(
        &self,
        ops: Ops,
        ids: &[u32],
        offsets: &Arc<[usize]>,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let mut x = self.embed(ops, ids, offsets)?;
        for layer in &self.layers {
            x = layer.forward(ops, &x, offsets, self.shape, adapters)?;
        }
        let sequences = offsets.len().saturating_sub(1);
        let first: Vec<u32> = offsets[..sequences].iter().map(|&start| start as u32).collect();
        let first = x.index_select(&Tensor::from_vec(first, sequences, &Device::Cpu)?, 0)?;
        self.pooler.forward(ops, &first, adapters)?.tanh()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
