//! Adapter folders as Hugging Face PEFT reads and writes them (peft 0.20 and later).
//!
//! Besides PEFT's own two files an adapter that FedPipe writes has `fedpipe.json`: the labels, the length that texts are
//! cut to, and which base model it was trained on.

mod config;
mod read;
mod write;

pub use read::{SavedAdapter, read_adapter};
pub(super) use write::from_matrix;
pub use write::{serving_rank, write_adapter, write_serving};

use super::{IoError, read_json};
use crate::data::Reading;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const INFO: &str = "fedpipe.json";
const INFO_VERSION: u64 = 1;

/// In front of every name in an adapter's file.
const PREFIX: &str = "base_model.model.";

/// PEFT's marker for an adapter that targets no module.
const NO_TARGETS: &str = "dummy-target-modules";

/// What FedPipe notes beside an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterInfo {
    /// The base model: a path, or a repository of the hub.
    pub base_model: String,
    /// [`super::HfFolder::fingerprint`] of the base model.
    pub base_fingerprint: String,
    /// The labels in the order of the classifier's rows.
    pub labels: Vec<String>,
    /// Tokens that a text is cut to.
    pub max_length: usize,
    /// What it was trained for.
    #[serde(default)]
    pub task: AdapterTask,
    /// Whether prompts were put as questions in a chat; none where texts are labelled.
    #[serde(default)]
    pub chat: Option<bool>,
    /// How passages are read; only for answering questions.
    #[serde(default)]
    pub reading: Option<Reading>,
    /// Whether the base stores adapted weights as `[inputs, outputs]`.
    #[serde(default)]
    pub fan_in_fan_out: bool,
}

/// What an adapter was trained for, as PEFT's `task_type` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterTask {
    /// Classes of texts, by a head of its own.
    #[default]
    Classification,
    /// Where in a passage an answer stands, by a head of its own.
    QuestionAnswering,
    /// The next token, by the base model's own head.
    CausalLm,
}

/// `id2label` and `label2id` as `config.json` and `fedpipe.json` have them.
pub(super) fn label_maps(labels: &[String]) -> (Value, Value) {
    let by_id = labels.iter().enumerate().map(|(id, label)| (id.to_string(), Value::from(label.as_str()))).collect();
    let by_label = labels.iter().enumerate().map(|(id, label)| (label.clone(), Value::from(id))).collect();
    (Value::Object(by_id), Value::Object(by_label))
}

fn info_json(info: &AdapterInfo) -> Value {
    serde_json::json!({
        "version": INFO_VERSION,
        "base_model": info.base_model,
        "base_fingerprint": info.base_fingerprint,
        "labels": info.labels,
        "id2label": label_maps(&info.labels).0,
        "max_length": info.max_length,
        "task": info.task,
        "chat": info.chat,
        "reading": info.reading,
        "fan_in_fan_out": info.fan_in_fan_out,
    })
}

fn read_info(path: &Path) -> Result<AdapterInfo, IoError> {
    let object = read_json(path)?;
    match object.get("version").and_then(Value::as_u64) {
        Some(INFO_VERSION) => {}
        _ => {
            let reason = format!("is not {INFO_VERSION}; it was written by another version of fedpipe");
            return Err(IoError::key(path, "version", reason));
        }
    }
    serde_json::from_value(Value::Object(object))
        .map_err(|e| IoError::Json { path: path.into(), reason: e.to_string() })
}

#[cfg(test)]
mod tests;
