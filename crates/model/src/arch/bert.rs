//! BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692), as Hugging Face's `BertForSequenceClassification` and
//! `RobertaForSequenceClassification` compute them; dropout is left out.

use super::Architecture;
use super::config::{MAX_ROWS, SizeKeys, activation, check_sizes, refuse, require_off, require_text};
use super::encoder::{Config, Encoder, LayerNames, Layout, refuse_chunks};
use crate::Error;
use crate::head;
use crate::io::WeightSource;

pub(super) const BERT: Architecture = Architecture {
    model_type: "bert",
    outline: |source| Ok(read(source, &BERT_LAYOUT)?.outline()),
    load: |source, format| Ok(Box::new(Encoder::load(source, &read(source, &BERT_LAYOUT)?, format)?)),
};

pub(super) const ROBERTA: Architecture = Architecture {
    model_type: "roberta",
    outline: |source| Ok(read_roberta(source)?.outline()),
    load: |source, format| Ok(Box::new(Encoder::load(source, &read_roberta(source)?, format)?)),
};

const BERT_LAYOUT: Layout = Layout {
    prefix: "bert.",
    classifier_class: "BertForSequenceClassification",
    span_class: "BertForQuestionAnswering",
    head: &head::POOLED,
    pooler: Some("pooler.dense"),
    unused: &[],
    layers: "encoder.layer",
    layer: &LAYER,
    default_targets: &["query", "key", "value", "attention.output.dense"],
};

const ROBERTA_LAYOUT: Layout = Layout {
    prefix: "roberta.",
    classifier_class: "RobertaForSequenceClassification",
    span_class: "RobertaForQuestionAnswering",
    head: &head::ROBERTA,
    pooler: None,
    // Checkpoints of pre-training have one.
    unused: &["pooler."],
    ..BERT_LAYOUT
};

const LAYER: LayerNames = LayerNames {
    query: ("attention.self.query", "query"),
    key: ("attention.self.key", "key"),
    value: ("attention.self.value", "value"),
    attention_output: ("attention.output.dense", "attention.output.dense"),
    attention_norm: "attention.output.LayerNorm",
    inner: ("intermediate.dense", "intermediate.dense"),
    outer: ("output.dense", "output.dense"),
    output_norm: "output.LayerNorm",
};

const KEYS: SizeKeys = SizeKeys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    inner: "intermediate_size",
    inner_factor: None,
    positions: "max_position_embeddings",
};

/// What RoBERTa's class fills in where the configuration has no `pad_token_id`.
const ROBERTA_PADDING: usize = 1;

fn read(source: &dyn WeightSource, layout: &'static Layout) -> Result<Config, Error> {
    require_text(source, "position_embedding_type", "absolute")?;
    require_off(source, &["is_decoder", "add_cross_attention"], "only encoders are supported")?;
    refuse_chunks(source)?;
    let segments = source.config_usize("type_vocab_size")?;
    check_sizes(source, &[("type_vocab_size", segments, MAX_ROWS)])?;
    Ok(Config {
        layout,
        sizes: KEYS.read(source)?,
        segments: Some(segments),
        padding: None,
        activation: activation(source, "hidden_act", "gelu")?,
        epsilon: source.config_f64("layer_norm_eps")? as f32,
    })
}

fn read_roberta(source: &dyn WeightSource) -> Result<Config, Error> {
    let config = read(source, &ROBERTA_LAYOUT)?;
    let padding = source.config_optional_usize("pad_token_id")?.unwrap_or(ROBERTA_PADDING);
    let positions = config.sizes.positions;
    if padding.saturating_add(1) >= positions {
        let reason = format!(
            "is {padding}; positions are counted from the one after it, of {positions} max_position_embeddings"
        );
        return refuse(source, "pad_token_id", reason);
    }
    Ok(Config { padding: Some(padding as u32), ..config })
}
