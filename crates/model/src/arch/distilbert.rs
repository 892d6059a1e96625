//! DistilBERT (arXiv 1910.01108) as Hugging Face's `DistilBertForSequenceClassification` computes it; dropout is left
//! out.
//!
//! `sinusoidal_pos_embds` only says how training began: a checkpoint holds the positions as a table either way.

use super::Architecture;
use super::config::{SizeKeys, activation};
use super::encoder::{Config, Encoder, LayerNames, Layout, refuse_chunks};
use crate::Error;
use crate::head;
use crate::io::WeightSource;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    model_type: "distilbert",
    outline: |source| Ok(read(source)?.outline()),
    load: |source, format| Ok(Box::new(Encoder::load(source, &read(source)?, format)?)),
};

const LAYOUT: Layout = Layout {
    prefix: "distilbert.",
    classifier_class: "DistilBertForSequenceClassification",
    span_class: "DistilBertForQuestionAnswering",
    head: &head::DISTILBERT,
    pooler: None,
    unused: &[],
    layers: "transformer.layer",
    layer: &LayerNames {
        query: ("attention.q_lin", "q_lin"),
        key: ("attention.k_lin", "k_lin"),
        value: ("attention.v_lin", "v_lin"),
        attention_output: ("attention.out_lin", "out_lin"),
        attention_norm: "sa_layer_norm",
        inner: ("ffn.lin1", "lin1"),
        outer: ("ffn.lin2", "lin2"),
        output_norm: "output_layer_norm",
    },
    default_targets: &["q_lin", "k_lin", "v_lin", "out_lin"],
};

const KEYS: SizeKeys = SizeKeys {
    hidden: "dim",
    layers: "n_layers",
    heads: "n_heads",
    inner: "hidden_dim",
    inner_factor: None,
    positions: "max_position_embeddings",
};

/// No key has it.
const EPSILON: f32 = 1e-12;

fn read(source: &dyn WeightSource) -> Result<Config, Error> {
    refuse_chunks(source)?;
    Ok(Config {
        layout: &LAYOUT,
        sizes: KEYS.read(source)?,
        segments: None,
        padding: None,
        activation: activation(source, "activation", "gelu")?,
        epsilon: EPSILON,
    })
}
