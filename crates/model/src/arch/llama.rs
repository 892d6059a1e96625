//! Llama and the models of its shape: Mistral, Qwen2, Qwen3, as Hugging Face's `transformers` computes them; dropout is
//! left out.
//!
//! A layer is `x + Attention(RMSNorm(x))`, then `x + W_down(silu(W_gate·RMSNorm(x)) · W_up·RMSNorm(x))`, with rotary
//! positions on queries and keys and fewer key heads than query heads.

use super::config::{MAX_LAYERS, MAX_ROWS, MAX_WIDTH, check_sizes, refuse, require_text};
use super::decoder::{Decoder, DecoderLayer, Projected, Tokens};
use super::rotary::{Rotary, inverse_frequencies};
use super::weights::Weights;
use super::{Architecture, CausalHead, Outline};
use crate::Error;
use crate::head::SCORE;
use crate::io::WeightSource;
use crate::nn::{Linear, together};
use crate::ops::{AttentionShape, NormWeights, Ops, Value};
use fedpipe_core::{BaseFormat, CandidateWeight, WeightId};
use fedpipe_kernels::{Activation, Mask};
use serde_json::Value as Json;
use std::sync::Arc;

/// What tells the members of the family apart.
struct Family {
    classifier_class: &'static str,
    causal_class: &'static str,
    biases: Biases,
    /// Whether every head of queries and keys is normalised.
    head_norms: bool,
    window: Window,
    /// Whether the configuration may leave out what the class fills in from other sizes.
    defaults: bool,
}

/// Which projections have a bias.
enum Biases {
    None,
    /// Queries, keys and values.
    Inputs,
    /// All four of the attention and the three of the feed-forward part, as `attention_bias` and `mlp_bias` say.
    Configured,
}

/// In which layers a query sees only the nearest keys.
enum Window {
    Nowhere,
    /// In all; `sliding_window` wide, 4096 where the key is missing.
    Everywhere,
    /// Where `use_sliding_window` is true: in those that `layer_types` names, or from `max_window_layers` on.
    Configured,
}

const LLAMA_FAMILY: Family = Family {
    classifier_class: "LlamaForSequenceClassification",
    causal_class: "LlamaForCausalLM",
    biases: Biases::Configured,
    head_norms: false,
    window: Window::Nowhere,
    defaults: true,
};

const MISTRAL_FAMILY: Family = Family {
    classifier_class: "MistralForSequenceClassification",
    causal_class: "MistralForCausalLM",
    biases: Biases::None,
    head_norms: false,
    window: Window::Everywhere,
    defaults: false,
};

const QWEN2_FAMILY: Family = Family {
    classifier_class: "Qwen2ForSequenceClassification",
    causal_class: "Qwen2ForCausalLM",
    biases: Biases::Inputs,
    head_norms: false,
    window: Window::Configured,
    defaults: false,
};

const QWEN3_FAMILY: Family = Family {
    classifier_class: "Qwen3ForSequenceClassification",
    causal_class: "Qwen3ForCausalLM",
    biases: Biases::Configured,
    head_norms: true,
    window: Window::Configured,
    defaults: false,
};

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    outline: |source| Ok(Config::read(source, &LLAMA_FAMILY)?.outline()),
    load: |source, format| Ok(Box::new(load(source, &LLAMA_FAMILY, format)?)),
};

pub(super) const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    outline: |source| Ok(Config::read(source, &MISTRAL_FAMILY)?.outline()),
    load: |source, format| Ok(Box::new(load(source, &MISTRAL_FAMILY, format)?)),
};

pub(super) const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    outline: |source| Ok(Config::read(source, &QWEN2_FAMILY)?.outline()),
    load: |source, format| Ok(Box::new(load(source, &QWEN2_FAMILY, format)?)),
};

pub(super) const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    outline: |source| Ok(Config::read(source, &QWEN3_FAMILY)?.outline()),
    load: |source, format| Ok(Box::new(load(source, &QWEN3_FAMILY, format)?)),
};

const PREFIX: &str = "model.";
const OUTPUT_HEAD: &str = "lm_head.weight";

struct Config {
    family: &'static Family,
    hidden: usize,
    shape: AttentionShape,
    /// Which keys the queries of each layer see.
    masks: Vec<Mask>,
    intermediate: usize,
    vocabulary: usize,
    positions: usize,
    epsilon: f32,
    tied: bool,
    /// Biases of queries, keys and values, of the attention's output, of the feed-forward part.
    biases: [bool; 3],
    inverse_frequencies: Vec<f64>,
}

impl Config {
    fn read(source: &dyn WeightSource, family: &'static Family) -> Result<Self, Error> {
        require_text(source, "hidden_act", "silu")?;
        let hidden = source.config_usize("hidden_size")?;
        let heads = source.config_usize("num_attention_heads")?;
        let kv_heads = match source.config_optional_usize("num_key_value_heads")? {
            None if family.defaults => heads,
            Some(kv_heads) => kv_heads,
            None => source.config_usize("num_key_value_heads")?,
        };
        let head_dim = match source.config_optional_usize("head_dim")? {
            Some(head_dim) => head_dim,
            // What Qwen3's class fills in does not follow from its other sizes.
            None if family.head_norms => source.config_usize("head_dim")?,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return refuse(source, "num_attention_heads", format!("is {heads}, which does not divide {hidden}"));
            }
        };
        let (layers, intermediate) =
            (source.config_usize("num_hidden_layers")?, source.config_usize("intermediate_size")?);
        let (vocabulary, positions) =
            (source.config_usize("vocab_size")?, source.config_usize("max_position_embeddings")?);
        check_sizes(
            source,
            &[
                ("num_hidden_layers", layers, MAX_LAYERS),
                ("hidden_size", hidden, MAX_WIDTH),
                ("num_attention_heads", heads, MAX_WIDTH),
                ("num_key_value_heads", kv_heads, heads),
                ("head_dim", head_dim, MAX_WIDTH / heads.max(1)),
                ("intermediate_size", intermediate, MAX_WIDTH),
                ("vocab_size", vocabulary, MAX_ROWS),
                ("max_position_embeddings", positions, MAX_ROWS),
            ],
        )?;
        if !heads.is_multiple_of(kv_heads) {
            return refuse(source, "num_key_value_heads", format!("is {kv_heads}, which does not divide {heads}"));
        }
        if !head_dim.is_multiple_of(2) {
            return refuse(source, "head_dim", format!("is {head_dim}; rotary positions turn pairs"));
        }
        let flag = |key: &str| Ok::<bool, Error>(source.config_bool(key)?.unwrap_or(false));
        let biases = match family.biases {
            Biases::None => [false; 3],
            Biases::Inputs => [true, false, false],
            Biases::Configured => {
                let attention = flag("attention_bias")?;
                [attention, attention, flag("mlp_bias")?]
            }
        };
        Ok(Self {
            family,
            hidden,
            shape: AttentionShape { heads, kv_heads, head_dim, mask: Mask::Causal },
            masks: masks(source, family, layers)?,
            intermediate,
            vocabulary,
            positions,
            epsilon: source.config_f64("rms_norm_eps")? as f32,
            tied: flag("tie_word_embeddings")?,
            biases,
            inverse_frequencies: inverse_frequencies(source, head_dim)?,
        })
    }

    /// The linear weights of a layer: path below the layer, columns, rows, bias.
    fn layer_weights(&self) -> [(&'static str, usize, usize, bool); 7] {
        let (h, i) = (self.hidden, self.intermediate);
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let [inputs, output, feed_forward] = self.biases;
        [
            ("self_attn.q_proj", h, heads * head_dim, inputs),
            ("self_attn.k_proj", h, kv_heads * head_dim, inputs),
            ("self_attn.v_proj", h, kv_heads * head_dim, inputs),
            ("self_attn.o_proj", heads * head_dim, h, output),
            ("mlp.gate_proj", h, i, feed_forward),
            ("mlp.up_proj", h, i, feed_forward),
            ("mlp.down_proj", i, h, feed_forward),
        ]
    }

    fn outline(&self) -> Outline {
        let layers = self.masks.len();
        let mut matrices = vec![(self.vocabulary, self.hidden)];
        let mut candidates = Vec::new();
        let mut layer_vectors = 2 * self.hidden + if self.family.head_norms { 2 * self.shape.head_dim } else { 0 };
        layer_vectors += self.layer_weights().iter().filter(|w| w.3).map(|w| w.2).sum::<usize>();
        for layer in 0..layers {
            for (path, inputs, outputs, _) in self.layer_weights() {
                matrices.push((outputs, inputs));
                let kind = path.rsplit('.').next().unwrap_or(path).to_string();
                let id = WeightId::new(format!("{PREFIX}{}", at(layer, path)));
                candidates.push(CandidateWeight { id, layer, kind, inputs, outputs });
            }
        }
        Outline {
            layers,
            hidden: self.hidden,
            vocabulary: self.vocabulary,
            max_positions: self.positions,
            candidates,
            default_targets: &["q_proj", "k_proj", "v_proj", "o_proj"],
            matrices,
            vector_values: layers * layer_vectors + self.hidden,
            head: &SCORE,
            prefix: PREFIX,
            unused: &[],
            classifier_class: self.family.classifier_class,
            span_class: None,
            causal: Some(CausalHead {
                class: self.family.causal_class,
                tensor: (!self.tied).then_some(OUTPUT_HEAD),
                shape: (self.vocabulary, self.hidden),
            }),
            transposed: false,
            segments: false,
        }
    }
}

/// Which keys the queries of each layer see.
fn masks(source: &dyn WeightSource, family: &Family, layers: usize) -> Result<Vec<Mask>, Error> {
    const MISTRAL_DEFAULT: usize = 4096;
    const QWEN_DEFAULT_LAYERS: usize = 28;
    let (key, config) = ("sliding_window", source.config());
    let width = match family.window {
        Window::Nowhere => None,
        Window::Everywhere if !config.contains_key(key) => Some(MISTRAL_DEFAULT),
        Window::Configured if !source.config_bool("use_sliding_window")?.unwrap_or(false) => None,
        Window::Everywhere | Window::Configured => source.config_optional_usize(key)?,
    };
    if width == Some(0) {
        return refuse(source, key, "is 0; a token sees itself at least".into());
    }
    let windowed = match (&family.window, config.get("layer_types").and_then(Json::as_array)) {
        (_, Some(types)) => layer_types(source, family, types, layers, width)?,
        (Window::Configured, None) => {
            let full = source.config_optional_usize("max_window_layers")?.unwrap_or(QWEN_DEFAULT_LAYERS);
            (0..layers).map(|layer| layer >= full).collect()
        }
        (Window::Nowhere | Window::Everywhere, None) => vec![true; layers],
    };
    let mask = |windowed: bool| width.filter(|_| windowed).map_or(Mask::Causal, Mask::Window);
    Ok(windowed.into_iter().map(mask).collect())
}

/// Which layers `layer_types` gives a window; it has to be one that the family has.
fn layer_types(
    source: &dyn WeightSource,
    family: &Family,
    types: &[Json],
    layers: usize,
    width: Option<usize>,
) -> Result<Vec<bool>, Error> {
    let key = "layer_types";
    if types.len() != layers {
        return refuse(source, key, format!("has {} entries for {layers} layers", types.len()));
    }
    let everywhere = matches!(family.window, Window::Everywhere);
    let windowed = |kind: &Json| match kind.as_str() {
        Some("full_attention") if !(everywhere && width.is_some()) => Ok(false),
        Some("sliding_attention") if width.is_some() => Ok(true),
        Some("full_attention") => {
            refuse(source, key, "has full_attention, but this model's windows are in every layer".into())
        }
        Some("sliding_attention") => refuse(source, key, "has sliding_attention, but the model has no window".into()),
        _ => refuse(source, key, format!("has {kind}, which is not supported")),
    };
    types.iter().map(windowed).collect()
}

fn at(layer: usize, path: &str) -> String {
    format!("layers.{layer}.{path}")
}

struct Layer {
    shape: AttentionShape,
    input_norm: NormWeights,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries and keys.
    head_norms: Option<[NormWeights; 2]>,
    output: Linear,
    feed_forward_norm: NormWeights,
    gate: Linear,
    up: Linear,
    down: Linear,
    rotary: Arc<Rotary>,
}

impl Layer {
    fn load(weights: &mut Weights<'_>, config: &Config, layer: usize, rotary: &Arc<Rotary>) -> Result<Self, Error> {
        let (h, eps, dim) = (config.hidden, config.epsilon, config.shape.head_dim);
        let mut linears = Vec::with_capacity(7);
        for (path, inputs, outputs, bias) in config.layer_weights() {
            linears.push(weights.linear(&at(layer, path), inputs, outputs, bias)?);
        }
        let linears: [Linear; 7] =
            linears.try_into().map_err(|_| Error::shape("a layer of seven linear weights".into()))?;
        let [query, key, value, output, gate, up, down] = linears;
        let mut norm = |path: &str, width| weights.rms_norm(&at(layer, path), width, eps);
        let head_norms = match config.family.head_norms {
            true => Some([norm("self_attn.q_norm", dim)?, norm("self_attn.k_norm", dim)?]),
            false => None,
        };
        Ok(Self {
            shape: AttentionShape { mask: config.masks[layer], ..config.shape },
            input_norm: norm("input_layernorm", h)?,
            feed_forward_norm: norm("post_attention_layernorm", h)?,
            head_norms,
            query,
            key,
            value,
            output,
            gate,
            up,
            down,
            rotary: rotary.clone(),
        })
    }
}

impl DecoderLayer for Layer {
    fn shape(&self) -> AttentionShape {
        self.shape
    }

    fn project<'a>(&'a self, ops: &mut dyn Ops<'a>, x: &Value, tokens: &Tokens) -> Result<Projected, Error> {
        let normed = ops.norm(x, None, &self.input_norm)?;
        let residual = tokens.select(ops, x)?;
        let [mut q, mut k, v] = if tokens.tail.is_none() {
            together(ops, &normed, [&self.query, &self.key, &self.value])?
        } else {
            let [k, v] = together(ops, &normed, [&self.key, &self.value])?;
            let normed = tokens.select(ops, &normed)?;
            [self.query.forward(ops, &normed)?, k, v]
        };
        drop(normed);
        if let Some([query_norm, key_norm]) = &self.head_norms {
            (q, k) = (ops.norm(&q, None, query_norm)?, ops.norm(&k, None, key_norm)?);
        }
        let table = self.rotary.table(tokens.length());
        q = ops.rotary(&q, &table, tokens.query_positions())?;
        k = ops.rotary(&k, &table, &tokens.positions)?;
        Ok(Projected { qkv: [q, k, v], residual })
    }

    fn finish<'a>(&'a self, ops: &mut dyn Ops<'a>, context: &Value, residual: &Value) -> Result<Value, Error> {
        let attended = self.output.forward(ops, context)?;
        let [sum, normed] = ops.sum_and_norm(&attended, residual, &self.feed_forward_norm)?;
        drop(attended);
        let [gate, up] = together(ops, &normed, [&self.gate, &self.up])?;
        drop(normed);
        let inner = ops.gate(&gate, &up, Activation::Silu)?;
        drop((gate, up));
        let output = self.down.forward(ops, &inner)?;
        drop(inner);
        ops.add(&output, &sum)
    }
}

fn load(source: &dyn WeightSource, family: &'static Family, format: BaseFormat) -> Result<Decoder<Layer>, Error> {
    let config = Config::read(source, family)?;
    let mut weights = Weights::new(source, format, PREFIX, "embed_tokens.weight");
    let rotary = Arc::new(Rotary::new(config.inverse_frequencies.clone()));
    Ok(Decoder {
        words: Arc::new(weights.matrix("embed_tokens", config.vocabulary, config.hidden)?),
        places: None,
        layers: (0..config.masks.len())
            .map(|layer| Layer::load(&mut weights, &config, layer, &rotary))
            .collect::<Result<_, _>>()?,
        norm: weights.rms_norm("norm", config.hidden, config.epsilon)?,
        max_positions: config.positions,
        tied: config.tied,
        format,
        bytes: weights.bytes(),
    })
}
