//! GPT-2 as Hugging Face's `GPT2LMHeadModel` and `GPT2ForSequenceClassification` compute it; dropout is left out.
//!
//! Its linear weights are stored `[inputs, outputs]`, and queries, keys and values come of one of them.

use super::config::{SizeKeys, Sizes, activation, refuse, require_off};
use super::decoder::{Decoder, DecoderLayer, Projected, Tokens};
use super::weights::Weights;
use super::{Architecture, CausalHead, Outline};
use crate::Error;
use crate::head::SCORE;
use crate::io::WeightSource;
use crate::nn::Linear;
use crate::ops::{AttentionShape, NormWeights, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight, WeightId};
use fedpipe_kernels::{Activation, Mask};
use std::sync::Arc;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "gpt2",
    outline: |source| Ok(Config::read(source)?.outline()),
    load: |source, format| Ok(Box::new(load(source, format)?)),
};

const PREFIX: &str = "transformer.";
const OUTPUT_HEAD: &str = "lm_head.weight";

const KEYS: SizeKeys = SizeKeys {
    hidden: "n_embd",
    layers: "n_layer",
    heads: "n_head",
    inner: "n_inner",
    inner_factor: Some(4),
    positions: "n_positions",
};

struct Config {
    sizes: Sizes,
    epsilon: f32,
    activation: Activation,
    tied: bool,
}

impl Config {
    fn read(source: &dyn WeightSource) -> Result<Self, Error> {
        require_off(source, &["add_cross_attention"], "only decoders by themselves are supported")?;
        require_off(source, &["scale_attn_by_inverse_layer_idx"], "scores are scaled alike in every layer")?;
        if source.config_bool("scale_attn_weights")? == Some(false) {
            return refuse(source, "scale_attn_weights", "is false; scores are scaled by 1/√head_dim".into());
        }
        Ok(Self {
            sizes: KEYS.read(source)?,
            epsilon: source.config_f64("layer_norm_epsilon")? as f32,
            activation: activation(source, "activation_function", "gelu_new")?,
            // The class ties them where the configuration does not say.
            tied: source.config_bool("tie_word_embeddings")?.unwrap_or(true),
        })
    }

    /// The linear weights of a layer: path below the layer, kind, columns, rows.
    fn layer_weights(&self) -> [(&'static str, &'static str, usize, usize); 4] {
        let (h, i) = (self.sizes.hidden, self.sizes.inner);
        [
            ("attn.c_attn", "c_attn", h, 3 * h),
            ("attn.c_proj", "attn.c_proj", h, h),
            ("mlp.c_fc", "c_fc", h, i),
            ("mlp.c_proj", "mlp.c_proj", i, h),
        ]
    }

    fn outline(&self) -> Outline {
        let Sizes { hidden: h, layers, vocabulary, positions, .. } = self.sizes;
        let mut matrices = vec![(vocabulary, h), (positions, h)];
        let mut candidates = Vec::new();
        for layer in 0..layers {
            for (path, kind, inputs, outputs) in self.layer_weights() {
                matrices.push((outputs, inputs));
                let id = WeightId::new(format!("{PREFIX}{}", at(layer, path)));
                candidates.push(CandidateWeight { id, layer, kind: kind.to_string(), inputs, outputs });
            }
        }
        let layer_vectors = self.layer_weights().iter().map(|w| w.3).sum::<usize>() + 4 * h;
        Outline {
            layers,
            hidden: h,
            vocabulary,
            max_positions: positions,
            candidates,
            default_targets: &["c_attn"],
            matrices,
            vector_values: layers * layer_vectors + 2 * h,
            head: &SCORE,
            prefix: PREFIX,
            unused: &[],
            classifier_class: "GPT2ForSequenceClassification",
            span_class: None,
            causal: Some(CausalHead {
                class: "GPT2LMHeadModel",
                tensor: (!self.tied).then_some(OUTPUT_HEAD),
                shape: (vocabulary, h),
            }),
            transposed: true,
            segments: false,
        }
    }
}

fn at(layer: usize, path: &str) -> String {
    format!("h.{layer}.{path}")
}

struct Layer {
    input_norm: NormWeights,
    shape: AttentionShape,
    attention: Linear,
    output: Linear,
    feed_forward_norm: NormWeights,
    inner: Linear,
    outer: Linear,
    activation: Activation,
}

impl Layer {
    fn load(weights: &mut Weights<'_>, config: &Config, layer: usize) -> Result<Self, Error> {
        let Sizes { hidden: h, heads, .. } = config.sizes;
        let eps = config.epsilon;
        let mut linear = |path: &str, inputs, outputs| weights.transposed(&at(layer, path), inputs, outputs);
        let [attention, output, inner, outer] = config.layer_weights().map(|(path, _, i, o)| linear(path, i, o));
        Ok(Self {
            shape: AttentionShape { mask: Mask::Causal, ..AttentionShape::full(heads, h / heads) },
            attention: attention?,
            output: output?,
            inner: inner?,
            outer: outer?,
            input_norm: weights.layer_norm(&at(layer, "ln_1"), h, eps)?,
            feed_forward_norm: weights.layer_norm(&at(layer, "ln_2"), h, eps)?,
            activation: config.activation,
        })
    }
}

impl DecoderLayer for Layer {
    fn shape(&self) -> AttentionShape {
        self.shape
    }

    fn project<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, tokens: &Tokens) -> Result<Projected, Error> {
        let normed = ops.norm(x, None, &self.input_norm)?;
        let fused = self.attention.forward(ops, &normed)?;
        drop(normed);
        let parts = ops.split(&fused, &[x.columns(); 3])?;
        let [q, k, v]: [Value; 3] =
            parts.try_into().map_err(|_| Error::shape("queries, keys and values of one layer".into()))?;
        Ok(Projected { qkv: [tokens.select(ops, &q)?, k, v], residual: tokens.select(ops, x)? })
    }

    fn finish<'a>(&'a self, ops: &mut dyn Ops<'a>, context: &Value, residual: &Value) -> Result<Value, Error> {
        let attended = self.output.forward(ops, context)?;
        let [sum, normed] = ops.sum_and_norm(&attended, residual, &self.feed_forward_norm)?;
        drop(attended);
        let inner = self.inner.forward(ops, &normed)?;
        drop(normed);
        let inner = ops.activation(&inner, self.activation)?;
        let output = self.outer.forward(ops, &inner)?;
        drop(inner);
        ops.add(&output, &sum)
    }
}

fn load(source: &dyn WeightSource, format: BaseFormat) -> Result<Decoder<Layer>, Error> {
    let config = Config::read(source)?;
    let Sizes { hidden, layers, vocabulary, positions, .. } = config.sizes;
    let mut weights = Weights::new(source, format, PREFIX, "wte.weight");
    Ok(Decoder {
        words: Arc::new(weights.matrix("wte", vocabulary, hidden)?),
        places: Some(weights.matrix("wpe", positions, hidden)?),
        layers: (0..layers).map(|layer| Layer::load(&mut weights, &config, layer)).collect::<Result<_, _>>()?,
        norm: weights.layer_norm("ln_f", hidden, config.epsilon)?,
        max_positions: positions,
        tied: config.tied,
        format,
        bytes: weights.bytes(),
    })
}
