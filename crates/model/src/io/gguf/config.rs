//! The metadata as a Hugging Face configuration.

use super::container::Container;
use super::metadata::Metadata;
use super::names::{EMBEDDING, Family, OUTPUT, ROPE_FACTORS};
use serde_json::{Map, Value, json};

/// The parameters of Llama 3's rotary scaling but for its factor; all its releases have the same.
const LLAMA3_ROPE: (f64, f64, f64) = (1.0, 4.0, 8192.0);

/// The configuration of a model, by the names of Hugging Face's `config.json`.
pub(super) fn config(
    family: &Family,
    container: &Container,
    metadata: &Metadata<'_>,
) -> Result<Map<String, Value>, String> {
    let key = |name: &str| format!("{}.{name}", family.architecture);
    let size = |name: &str| metadata.positive(&key(name));
    let hidden = size("embedding_length")?;
    let heads = size("attention.head_count")?;
    let kv_heads = metadata.optional_positive(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let head_dim = match metadata.optional_positive(&key("attention.key_length"))? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(format!("{hidden} hidden values cannot be split among {heads} heads")),
    };
    let values = metadata.optional_positive(&key("attention.value_length"))?.unwrap_or(head_dim);
    let rotated = metadata.optional_positive(&key("rope.dimension_count"))?.unwrap_or(head_dim);
    if values != head_dim || rotated != head_dim || !head_dim.is_multiple_of(2) {
        return Err(format!(
            "its heads have keys of {head_dim} and values of {values}, of which {rotated} are rotated; these have to be equal and even"
        ));
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} heads cannot share {kv_heads} heads of keys"));
    }
    if metadata.optional_positive(&key("expert_count"))?.is_some() {
        return Err("a mixture of experts, which is not supported".into());
    }
    let vocabulary = vocabulary(container, hidden)?;
    if let Some(stated) = metadata.optional_positive(&key("vocab_size"))?.filter(|&stated| stated != vocabulary) {
        return Err(format!("it claims {stated} tokens, but has embeddings for {vocabulary}"));
    }
    let theta = metadata.optional_f64(&key("rope.freq_base"))?.unwrap_or(10_000.0);

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.into(), value);
    set("architectures", json!([family.class]));
    set("model_type", json!(family.model_type));
    set("vocab_size", json!(vocabulary));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(size("feed_forward_length")?));
    set("num_hidden_layers", json!(size("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    set("max_position_embeddings", json!(size("context_length")?));
    set("rms_norm_eps", json!(metadata.f64(&key("attention.layer_norm_rms_epsilon"))?));
    set("rope_theta", json!(theta));
    set("rope_scaling", rope_scaling(metadata, &key, theta, head_dim)?);
    set("hidden_act", json!("silu"));
    set("attention_bias", json!(container.tensors.contains_key("blk.0.attn_q.bias")));
    set("mlp_bias", json!(container.tensors.contains_key("blk.0.ffn_up.bias")));
    set("tie_word_embeddings", json!(!container.tensors.contains_key(OUTPUT)));
    if let Some(window) = metadata.optional_positive(&key("attention.sliding_window"))? {
        set("sliding_window", json!(window));
        // Of the families, Mistral's alone has a window in every layer; it is stored as a Llama.
        if family.model_type == "llama" {
            set("model_type", json!("mistral"));
            set("architectures", json!(["MistralForCausalLM"]));
        }
    }
    for (name, stored) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        if let Some(id) = metadata.optional_usize(&format!("tokenizer.ggml.{stored}_token_id"))? {
            set(name, json!(id));
        }
    }
    Ok(config)
}

fn vocabulary(container: &Container, hidden: usize) -> Result<usize, String> {
    match container.tensors.get(EMBEDDING).map(|tensor| tensor.shape.as_slice()) {
        Some(&[tokens, columns]) if columns == hidden => Ok(tokens),
        Some(shape) => {
            Err(format!("the tensor `{EMBEDDING}` is {shape:?}, but embeddings of {hidden} values are needed"))
        }
        None => Err(format!("there is no tensor `{EMBEDDING}`, so it holds no language model")),
    }
}

/// `rope_scaling` of the configuration.
fn rope_scaling(
    metadata: &Metadata<'_>,
    key: &dyn Fn(&str) -> String,
    theta: f64,
    head_dim: usize,
) -> Result<Value, String> {
    let factor = metadata.optional_f64(&key("rope.scaling.factor"))?;
    let kind = metadata.optional_text(&key("rope.scaling.type"))?;
    if let Some(factors) = metadata.tensor(ROPE_FACTORS)? {
        return llama3_scaling(&factors, theta, head_dim);
    }
    match (kind, factor) {
        (None | Some("none"), None) => Ok(Value::Null),
        (Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (Some("yarn"), Some(factor)) => {
            let original = metadata.positive(&key("rope.scaling.original_context_length"))?;
            Ok(json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}))
        }
        (kind, factor) => Err(format!("its rotary scaling (type {kind:?}, factor {factor:?}) is not supported")),
    }
}

/// Llama 3's scaling is stored as its result, a divisor for each frequency: the factor is the largest of them, and with
/// it the known recipe has to give all others (transformers, `modeling_rope_utils.py`).
pub(super) fn llama3_scaling(divisors: &[f32], theta: f64, head_dim: usize) -> Result<Value, String> {
    let (low, high, original) = LLAMA3_ROPE;
    let factor = f64::from(divisors.iter().copied().fold(0.0, f32::max));
    let divisor = |pair: usize| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let fits = |(pair, &stored): (usize, &f32)| (f64::from(stored) / divisor(pair) - 1.0).abs() < 1e-4;
    if divisors.len() != head_dim / 2 || !divisors.iter().enumerate().all(fits) {
        return Err(format!(
            "the tensor `{ROPE_FACTORS}` follows no recipe that is known; only Llama 3's is supported"
        ));
    }
    if factor == 1.0 {
        return Ok(Value::Null);
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}
