//! The tiny BERT of `crates/testkit/fixtures/bert-tiny` against what `transformers` and `peft` computed for it
//! (`scripts/golden_bert.py`), and the real MiniLM against `scripts/golden_minilm.py`, over both kinds of operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use candle_core::{Device, Tensor, Var};
use fedpipe_core::{Adapter, BaseFormat, CandidateWeight, LowRank, Matrix, Seed, WeightId};
use fedpipe_model::BaseModel;
use fedpipe_model::adapter::{Adapters, Attached, Trainable};
use fedpipe_model::data::TextEncoder;
use fedpipe_model::ops::{LoraFactors, Ops, cross_entropy};
use fedpipe_model::task::ClassificationHead;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures").join(name)
}

fn golden() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("bert-tiny/golden.safetensors"), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Relative to the largest value of the expected tensor.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let (found, expected) = (flat(found), flat(expected));
    assert_eq!(found.len(), expected.len(), "{what}: shape");
    let size = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance * size, "{what}: {worst} off at values up to {size}");
}

struct Batch {
    ids: Vec<u32>,
    offsets: Arc<[usize]>,
    labels: Tensor,
}

fn batch(golden: &HashMap<String, Tensor>) -> Batch {
    let integers = |name: &str| golden[name].to_vec1::<i64>().unwrap();
    let labels: Vec<u32> = integers("labels").iter().map(|&v| v as u32).collect();
    Batch {
        ids: integers("input_ids").iter().map(|&v| v as u32).collect(),
        offsets: integers("offsets").iter().map(|&v| v as usize).collect::<Vec<_>>().into(),
        labels: Tensor::new(labels, &Device::Cpu).unwrap(),
    }
}

fn safetensors(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

#[test]
fn logits_loss_and_base_gradients_agree_with_transformers() {
    let golden = golden();
    let batch = batch(&golden);
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let model = safetensors(fixture("bert-tiny/model.safetensors"));
    let head: BTreeMap<String, Var> = ["classifier.weight", "classifier.bias"]
        .map(|name| (name.to_string(), Var::from_tensor(&model[name]).unwrap()))
        .into();
    let tensors = head.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
    let classifier = ClassificationHead::new("classifier", &tensors).unwrap();

    // The gradient of a frozen W is read off a low-rank path with A = I and B = 0: dB = dyᵀ·x = dW.
    let mut weights: Vec<(WeightId, usize, usize)> =
        base.outline().candidates.iter().map(|c| (c.id.clone(), c.inputs, c.outputs)).collect();
    weights.push((WeightId::from("bert.pooler.dense"), 32, 32));
    for ops in [Ops::Reference, Ops::Fast] {
        let mut adapters = Adapters::none();
        let mut probes = Vec::new();
        for (id, inputs, outputs) in &weights {
            let a = Tensor::eye(*inputs, candle_core::DType::F32, &Device::Cpu).unwrap();
            let b = Var::zeros((*outputs, *inputs), candle_core::DType::F32, &Device::Cpu).unwrap();
            probes.push((id, b.clone()));
            let lora = LoraFactors { a, b: b.as_tensor().clone(), fixed: None, scaling: 1.0 };
            adapters.insert(id.clone(), Attached::Lora(lora));
        }
        let pooled = encoder.pooled(ops, &batch.ids, &batch.offsets, &adapters).unwrap();
        assert_close("pooled", &pooled, &golden["base.pooled"], 1e-4);
        let logits = classifier.logits(&pooled).unwrap();
        assert_close("logits", &logits, &golden["base.logits"], 1e-4);
        let loss = cross_entropy(&logits, &batch.labels).unwrap();
        assert_close("loss", &loss, &golden["base.loss"], 1e-4);
        let gradients = loss.backward().unwrap();
        for (id, b) in probes {
            let name = format!("base.grad.{id}.weight");
            assert_close(&format!("{ops:?} {name}"), gradients.get(&b).unwrap(), &golden[&name], 1e-4);
        }
        for (name, variable) in &head {
            let expected = &golden[&format!("base.grad.{name}")];
            assert_close(&format!("{ops:?} {name}"), gradients.get(variable).unwrap(), expected, 1e-4);
        }
    }
}

#[test]
fn a_peft_adapter_gives_the_same_logits_loss_and_gradients() {
    const PREFIX: &str = "base_model.model.";
    let golden = golden();
    let batch = batch(&golden);
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in safetensors(fixture("bert-tiny/peft-adapter/adapter_model.safetensors")) {
        let tensor = if tensor.rank() == 1 { tensor.unsqueeze(0).unwrap() } else { tensor };
        let (rows, cols) = tensor.dims2().unwrap();
        let matrix = Matrix::new(rows, cols, flat(&tensor)).unwrap();
        tensors.insert(name.strip_prefix(PREFIX).unwrap().to_string(), matrix);
    }
    let adapter = Adapter::from_tensors(2.0, tensors).unwrap();
    for ops in [Ops::Reference, Ops::Fast] {
        let trainable = Trainable::new(&adapter).unwrap();
        let adapters = trainable.attached(&BTreeMap::new()).unwrap();
        let head = trainable.head().iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect();
        let pooled = encoder.pooled(ops, &batch.ids, &batch.offsets, &adapters).unwrap();
        let logits = ClassificationHead::new("classifier", &head).unwrap().logits(&pooled).unwrap();
        assert_close("logits", &logits, &golden["lora.logits"], 1e-4);
        let loss = cross_entropy(&logits, &batch.labels).unwrap();
        assert_close("loss", &loss, &golden["lora.loss"], 1e-4);
        let gradients = loss.backward().unwrap();
        let mut checked = 0;
        for (id, attached) in adapter.factors.keys().map(|id| (id, adapters.get(id).unwrap())) {
            let Attached::Lora(factors) = attached else { panic!("{id} is not a low-rank adapter") };
            for (tensor, part) in [(&factors.a, "lora_A"), (&factors.b, "lora_B")] {
                let expected = &golden[&format!("lora.grad.{PREFIX}{id}.{part}.weight")];
                let found = gradients.get(tensor).unwrap();
                assert_close(&format!("{ops:?} {id} {part}"), found, expected, 1e-4);
                checked += 1;
            }
        }
        for (name, variable) in trainable.head() {
            let expected = &golden[&format!("lora.grad.{PREFIX}{name}")];
            assert_close(&format!("{ops:?} {name}"), gradients.get(variable).unwrap(), expected, 1e-4);
            checked += 1;
        }
        assert_eq!(checked, golden.keys().filter(|k| k.starts_with("lora.grad.")).count());
    }
}

/// The real model over its own tokenizer: token ids, pooled states and logits of eight texts.
#[test]
fn the_real_minilm_agrees_with_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/all-MiniLM-L6-v2");
    if !folder.join("model.safetensors").is_file() {
        eprintln!("SKIPPED: assets/ is not there; `make assets` fetches it");
        return;
    }
    let fixture: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture("minilm.json")).unwrap()).unwrap();
    let base = BaseModel::open(&folder).unwrap();
    let max_length = fixture["max_length"].as_u64().unwrap() as usize;
    let tokens = TextEncoder::open(&folder, max_length, base.outline().vocabulary).unwrap();
    // `scripts/golden_minilm.py` sets the head to weight[i, j] = sin(1 + 384·i + j), bias 0, 4 labels.
    let weight: Vec<f32> = (0..4 * 384).map(|k| (1.0 + f64::from(k)).sin() as f32).collect();
    let head = [
        ("classifier.weight".to_string(), Tensor::from_vec(weight, (4, 384), &Device::Cpu).unwrap()),
        ("classifier.bias".to_string(), Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap()),
    ];
    let classifier = ClassificationHead::new("classifier", &head.into()).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let batch = tokens.texts(&texts).unwrap();
    let pooled = encoder.pooled(Ops::Fast, &batch.ids, &batch.offsets.clone().into(), &Adapters::none()).unwrap();
    let logits = classifier.logits(&pooled).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let numbers = |key: &str| -> Vec<f32> {
            case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let ids: Vec<u32> = case["input_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        assert_eq!(batch.text(i), ids, "{}", texts[i]);
        let expected = |key: &str| Tensor::new(numbers(key), &Device::Cpu).unwrap();
        assert_close("pooled", &pooled.get(i).unwrap().narrow(0, 0, 8).unwrap(), &expected("pooled_first_8"), 1e-4);
        assert_close("logits", &logits.get(i).unwrap(), &expected("logits"), 1e-4);
    }
}

/// Dropout is drawn for what trains: factors that are only applied stay whole, and have no gradient.
#[test]
fn dropout_spares_what_does_not_train() {
    let golden = golden();
    let batch = batch(&golden);
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let weights = &base.outline().candidates[..2];
    let factors = |c: &CandidateWeight| {
        let filled = |rows, cols| Matrix::from_fn(rows, cols, |i, j| 0.05 * ((i * 7 + j * 3) as f32).sin());
        (c.id.clone(), LowRank::new(filled(2, c.inputs), filled(c.outputs, 2)).unwrap())
    };
    let pooled = |trained: &[CandidateWeight], fixed: &[CandidateWeight], dropout: f64| {
        let adapter = Adapter { scaling: 2.0, factors: trained.iter().map(factors).collect(), head: BTreeMap::new() };
        let trainable = Trainable::new(&adapter).unwrap();
        let mut adapters = trainable.attached(&fixed.iter().map(factors).collect()).unwrap();
        adapters.set_dropout(dropout, Seed(3));
        encoder.pooled(Ops::Fast, &batch.ids, &batch.offsets, &adapters).unwrap()
    };
    let (whole, dropped) = (pooled(&[], weights, 0.0), pooled(&[], weights, 0.5));
    assert_eq!(flat(&whole), flat(&dropped));
    assert!(!whole.track_op(), "constants were recorded for backward");
    assert_eq!(flat(&pooled(weights, &[], 0.0)), flat(&whole));
    assert_ne!(flat(&pooled(weights, &[], 0.5)), flat(&whole));
}
