//! Adapter folders, written.

use super::{AdapterInfo, AdapterTask, CONFIG, INFO, NO_TARGETS, PREFIX, WEIGHTS, info_json};
use crate::head;
use crate::io::IoError;
use crate::io::folder::{write_folder, write_json, write_text};
use crate::io::tensors::{LazyTensor, write_tensors};
use fedpipe_core::{A_SUFFIX, Adapter, B_SUFFIX, Matrix, WeightId};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Ranks that servers set memory aside for.
const SERVING_RANKS: [usize; 4] = [8, 16, 32, 64];

/// The release of PEFT whose format this is.
const PEFT_VERSION: &str = "0.20.0";

/// Writes an adapter that PEFT loads as it was trained: every weight at its own rank, and the head.
///
/// # Errors
/// When `target` is there and not empty, the head is not one that PEFT would find, or the disk refuses.
pub fn write_adapter(target: &Path, adapter: &Adapter, info: &AdapterInfo) -> Result<(), IoError> {
    if let Some(name) = adapter.head.keys().find(|name| !head::is_head(name)) {
        let modules = head::module_names();
        let reason = format!("`{name}` is not part of a head that PEFT knows; its modules are {modules}");
        return Err(IoError::adapter(target, reason));
    }
    write_folder(target, |folder| {
        write_json(&folder.join(CONFIG), &faithful_config(adapter, info))?;
        write_weights(&folder.join(WEIGHTS), tensors(adapter))?;
        write_json(&folder.join(INFO), &info_json(info))?;
        write_text(&folder.join("README.md"), &model_card(adapter, info))
    })
}

/// The rank of the copy for servers: the least one of 8, 16, 32 and 64 that no weight exceeds.
///
/// # Errors
/// Why vLLM, TGI and SGLang cannot serve the adapter over a shared base model, and what to do.
pub fn serving_rank(adapter: &Adapter, info: &AdapterInfo) -> Result<usize, String> {
    if info.task != AdapterTask::CausalLm || !adapter.head.is_empty() {
        return Err("vLLM, TGI and SGLang take no head with an adapter; export the merged model".into());
    }
    if info.fan_in_fan_out {
        return Err("vLLM, TGI and SGLang take no adapters for GPT-2; export the merged model".into());
    }
    let highest = ranks(adapter).into_values().max().ok_or("there are no factors to serve")?;
    let largest = SERVING_RANKS[SERVING_RANKS.len() - 1];
    SERVING_RANKS.into_iter().find(|&rank| rank >= highest).ok_or_else(|| {
        format!("a weight has rank {highest}, but servers load ranks up to {largest}; export the merged model")
    })
}

/// Writes a language model's adapter for servers that know one rank for all weights: padded with zeros to
/// [`serving_rank`], under the same scaling, so that what it computes stays the same.
///
/// # Errors
/// When it cannot be served, `target` is there and not empty, or the disk refuses.
pub fn write_serving(target: &Path, adapter: &Adapter, info: &AdapterInfo) -> Result<(), IoError> {
    let rank = serving_rank(adapter, info).map_err(|reason| IoError::adapter(target, reason))?;
    let mut tensors = BTreeMap::new();
    for (weight, factors) in adapter.factors.iter().filter(|(_, f)| f.rank() > 0) {
        let (a, b) = (factors.a(), factors.b());
        let padded_a = Matrix::from_fn(rank, a.cols(), |i, j| if i < a.rows() { a.row(i)[j] } else { 0.0 });
        let padded_b = Matrix::from_fn(b.rows(), rank, |i, j| if j < b.cols() { b.row(i)[j] } else { 0.0 });
        tensors.insert(format!("{weight}{A_SUFFIX}"), padded_a);
        tensors.insert(format!("{weight}{B_SUFFIX}"), padded_b);
    }
    let uniform = Ranks { rank, others: Map::new() };
    let config = config(adapter, info, &uniform, Value::Null);
    write_folder(target, |folder| {
        write_json(&folder.join(CONFIG), &config)?;
        write_weights(&folder.join(WEIGHTS), tensors)
    })
}

/// The rank of every weight that has one.
fn ranks(adapter: &Adapter) -> BTreeMap<&WeightId, usize> {
    adapter.factors.iter().map(|(weight, factors)| (weight, factors.rank())).filter(|&(_, rank)| rank > 0).collect()
}

/// One rank for most weights, and the weights that have another, by their whole path.
///
/// PEFT takes such a key as a regular expression for a module's path or the end of it from a dot on. A whole path is
/// matched by itself alone: all paths begin at the model's root, and between two of them a dot never stands for
/// another character.
struct Ranks {
    rank: usize,
    others: Map<String, Value>,
}

impl Ranks {
    fn of(adapter: &Adapter) -> Self {
        let ranks = ranks(adapter);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for &rank in ranks.values() {
            *counts.entry(rank).or_default() += 1;
        }
        let rank = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
        let others = ranks.into_iter().filter(|&(_, r)| r != rank);
        Self { rank, others: others.map(|(weight, r)| (weight.to_string(), Value::from(r))).collect() }
    }
}

fn faithful_config(adapter: &Adapter, info: &AdapterInfo) -> Value {
    let ranks = Ranks::of(adapter);
    let mut heads: Vec<&str> = adapter.head.keys().filter_map(|name| name.split('.').next()).collect();
    heads.dedup();
    let saved = if heads.is_empty() { Value::Null } else { json!(heads) };
    config(adapter, info, &ranks, saved)
}

/// PEFT's scale of a module is alpha / rank, so a weight of another rank has another alpha, too.
fn config(adapter: &Adapter, info: &AdapterInfo, ranks: &Ranks, modules_to_save: Value) -> Value {
    let alpha = |rank: f64| number(f64::from(adapter.scaling) * rank);
    let alphas: Map<String, Value> =
        ranks.others.iter().map(|(key, rank)| (key.clone(), alpha(rank.as_f64().unwrap_or_default()))).collect();
    let weights: Vec<String> = self::ranks(adapter).keys().map(ToString::to_string).collect();
    let targets = if weights.is_empty() { json!(NO_TARGETS) } else { json!(weights) };
    let task = match info.task {
        AdapterTask::CausalLm => json!("CAUSAL_LM"),
        // With these PEFT insists on a head.
        _ if modules_to_save.is_null() => Value::Null,
        AdapterTask::Classification => json!("SEQ_CLS"),
        AdapterTask::QuestionAnswering => json!("QUESTION_ANS"),
    };
    json!({
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "task_type": task,
        "base_model_name_or_path": info.base_model,
        "revision": null,
        "inference_mode": true,
        "r": ranks.rank,
        "lora_alpha": alpha(ranks.rank as f64),
        "rank_pattern": ranks.others,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "modules_to_save": modules_to_save,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": info.fan_in_fan_out,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
    })
}

/// A whole number where possible, as people write alpha.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { json!(value as i64) } else { json!(value) }
}

/// All tensors; a weight without rank is left out, since it changes nothing and PEFT refuses rank 0.
fn tensors(adapter: &Adapter) -> BTreeMap<String, Matrix> {
    let factors = adapter.factors.iter().filter(|(_, f)| f.rank() > 0).map(|(w, f)| (w.clone(), f.clone()));
    Adapter { scaling: adapter.scaling, factors: factors.collect(), head: adapter.head.clone() }.to_tensors()
}

fn write_weights(path: &Path, tensors: BTreeMap<String, Matrix>) -> Result<(), IoError> {
    write_tensors(path, tensors.into_iter().map(|(name, m)| (format!("{PREFIX}{name}"), from_matrix(&name, m))))
}

/// A matrix as a tensor; a bias is a vector.
pub(in crate::io) fn from_matrix(name: &str, matrix: Matrix) -> LazyTensor<'static> {
    let is_vector = matrix.rows() == 1 && name.ends_with(".bias");
    let shape = if is_vector { vec![matrix.cols()] } else { vec![matrix.rows(), matrix.cols()] };
    LazyTensor { shape, values: Box::new(move || matrix.data().to_vec()) }
}

fn model_card(adapter: &Adapter, info: &AdapterInfo) -> String {
    let ranks = ranks(adapter);
    let base = Value::from(info.base_model.as_str());
    let span = match (ranks.values().min(), ranks.values().max()) {
        (Some(low), Some(high)) if low == high => format!("{} weights at rank {low}", ranks.len()),
        (Some(low), Some(high)) => format!("{} weights at ranks {low} to {high}", ranks.len()),
        _ => "no weights, only the head".into(),
    };
    let labels: Vec<String> = info.labels.iter().map(|label| format!("`{label}`")).collect();
    let (tag, what, class, classes, about) = match info.task {
        AdapterTask::Classification => (
            "text-classification",
            "text classification",
            "AutoModelForSequenceClassification",
            format!(", num_labels={}", labels.len()),
            format!("- Labels: {}\n- Texts are cut to {} tokens.\n", labels.join(", "), info.max_length),
        ),
        AdapterTask::QuestionAnswering => (
            "question-answering",
            "extractive question answering",
            "AutoModelForQuestionAnswering",
            String::new(),
            format!("- A question with a piece of its passage has at most {} tokens.\n", info.max_length),
        ),
        AdapterTask::CausalLm => (
            "text-generation",
            "text generation",
            "AutoModelForCausalLM",
            String::new(),
            format!("- Texts were cut to {} tokens.\n", info.max_length),
        ),
    };
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: {tag}\ntags: [lora, federated]\n---\n\n\
         # LoRA adapter for {what}\n\n\
         Fine-tuned with FedPipe across several sites without moving their data: {span}.\n\n\
         - Base model: {base} (SHA-256 {fingerprint})\n{about}\n\
         ```python\n\
         from peft import PeftModel\n\
         from transformers import {class}\n\n\
         base = {class}.from_pretrained({base}{classes})\n\
         model = PeftModel.from_pretrained(base, \"path/of/this/folder\").eval()\n\
         ```\n",
        fingerprint = info.base_fingerprint,
    )
}
