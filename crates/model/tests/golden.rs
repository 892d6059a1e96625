//! The tiny BERT of `crates/testkit/fixtures/bert-tiny` against what `transformers` and `peft` computed for it
//! (`scripts/golden_bert.py`), and the real MiniLM against `scripts/golden_minilm.py`, over both kinds of operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use candle_core::Tensor;
use common::{NoMeter, Unheard, assert_close, candidates, fixture, flat, matrix, probes, safetensors, workspaces};
use fedpipe_core::{
    Adapter, BaseFormat, CandidateWeight, DeviceProfile, LowRank, Matrix, Outcome, ProbeScore, ProbeWork, Seed, Stop,
    Task, Trainer, WeightId, Work,
};
use fedpipe_model::adapter::{Adapters, Trainable};
use fedpipe_model::data::{Dataset, SECOND_TEXT, Targets};
use fedpipe_model::ops::{ClassifierHead, HeadTargets, Offsets, OpsKind, Pass, Workspace};
use fedpipe_model::parameters::{Gradients, Parameters};
use fedpipe_model::{BaseModel, SiloSettings, SiloTrainer};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

fn golden() -> HashMap<String, Tensor> {
    safetensors(fixture("bert-tiny/golden.safetensors"))
}

struct Batch {
    ids: Vec<u32>,
    offsets: Offsets,
    labels: Vec<u32>,
}

fn batch(golden: &HashMap<String, Tensor>) -> Batch {
    let integers = |name: &str| golden[name].to_vec1::<i64>().unwrap();
    Batch {
        ids: integers("input_ids").iter().map(|&v| v as u32).collect(),
        offsets: integers("offsets").iter().map(|&v| v as usize).collect(),
        labels: integers("labels").iter().map(|&v| v as u32).collect(),
    }
}

#[test]
fn logits_loss_and_base_gradients_agree_with_transformers() {
    let golden = golden();
    let batch = batch(&golden);
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let model = safetensors(fixture("bert-tiny/model.safetensors"));
    let mut weights = candidates(&base);
    weights.push((WeightId::from("bert.pooler.dense"), 32, 32));
    for (kind, workspace) in workspaces() {
        let mut parameters = Parameters::default();
        let head = ["classifier.weight", "classifier.bias"].map(|name| (name, parameters.add(matrix(&model[name]))));
        let classifier = ClassifierHead::linear(head[0].1, Some(head[1].1));
        let (adapters, probes) = probes(weights.clone(), &mut parameters);
        let mut gradients = Gradients::new(&parameters);
        let mut ops = workspace.ops(&parameters, &adapters, Pass::Training).unwrap();
        let pooled = encoder.pooled(&mut *ops, &batch.ids, &batch.offsets).unwrap();
        assert_close("pooled", &ops.read(&pooled).unwrap(), &flat(&golden["base.pooled"]), 1e-4);
        let found = ops.classify(&pooled, classifier, HeadTargets::Classes(&batch.labels)).unwrap();
        assert_close("logits", &found.logits, &flat(&golden["base.logits"]), 1e-4);
        assert_close("loss", &[found.loss.unwrap() as f32], &flat(&golden["base.loss"]), 1e-4);
        ops.backward(&mut gradients).unwrap();
        for (id, b) in probes {
            let name = format!("base.grad.{id}.weight");
            assert_close(&format!("{kind} {name}"), gradients.get(b).unwrap(), &flat(&golden[&name]), 1e-4);
        }
        for (name, id) in head {
            let expected = flat(&golden[&format!("base.grad.{name}")]);
            assert_close(&format!("{kind} {name}"), gradients.get(id).unwrap(), &expected, 1e-4);
        }
    }
}

/// The norm of what `transformers` computes, estimated from 1,024 random projections: within 2·√(2/1024) of it by far the
/// most often, since the estimate's square varies by no more than √(2/rank) of itself.
#[test]
fn the_gradient_probe_scores_a_weight_by_the_norm_of_its_gradient() {
    let golden = golden();
    let Batch { ids, offsets, labels } = batch(&golden);
    let texts: Vec<&[u32]> = offsets.windows(2).map(|of| &ids[of[0]..of[1]]).collect();
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let candidates = base.outline().candidates.clone();
    let model = safetensors(fixture("bert-tiny/model.safetensors"));
    let head = ["classifier.weight", "classifier.bias"].map(|name| (name.to_string(), matrix(&model[name])));
    let settings = SiloSettings {
        silo: "a".into(),
        memory_mib: 100,
        speed: 1.0,
        bandwidth_mbps: 1.0,
        data_cap_mib: None,
        cache: None,
    };
    let device = DeviceProfile {
        device: String::new(),
        memory: BTreeMap::new(),
        time: BTreeMap::new(),
        adapter_s_per_token_rank: 0.0,
        step_overhead_s: 0.0,
    };
    let silo = SiloTrainer::new(
        settings,
        Arc::new(base),
        candidates.clone(),
        Dataset::pack(&texts, Targets::Classes(labels)),
        Arc::new(device),
        Arc::new(NoMeter),
    );
    let work = Work::Probe(ProbeWork {
        score: ProbeScore::GradientNorm,
        rank: 1024,
        steps: 1,
        batch_size: texts.len(),
        base_format: BaseFormat::F32,
        head: head.into(),
    });
    let task = Task { round: 0, silo: "a".into(), seed: Seed(7), work };
    let Outcome::Scores(scores) = silo.run(&task, &Unheard, &Stop::default()).unwrap().outcome else { panic!() };
    let norms = candidates.iter().map(|weight| {
        let gradient = flat(&golden[&format!("base.grad.{}.weight", weight.id)]);
        gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
    });
    let norms: Vec<f64> = norms.collect();
    let total: f64 = norms.iter().sum();
    for (weight, norm) in candidates.iter().zip(norms) {
        let (found, expected) = (scores[&weight.id], norm / total);
        assert!((found / expected - 1.0).abs() < 0.09, "{}: {found}, transformers has {expected}", weight.id);
    }
}

#[test]
fn the_second_text_of_a_pair_is_told_apart_as_in_transformers() {
    let golden = golden();
    let Batch { ids, offsets, .. } = batch(&golden);
    let kinds = golden["token_type_ids"].to_vec1::<i64>().unwrap();
    let marked: Vec<u32> =
        ids.iter().zip(kinds).map(|(&id, kind)| if kind == 1 { id | SECOND_TEXT } else { id }).collect();
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let model = safetensors(fixture("bert-tiny/model.safetensors"));
    for (_, workspace) in workspaces() {
        let mut parameters = Parameters::default();
        let [weight, bias] = ["classifier.weight", "classifier.bias"].map(|name| parameters.add(matrix(&model[name])));
        let adapters = Adapters::none();
        let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference).unwrap();
        let pooled = encoder.pooled(&mut *ops, &marked, &offsets).unwrap();
        let found = ops.classify(&pooled, ClassifierHead::linear(weight, Some(bias)), HeadTargets::None).unwrap();
        assert_close("logits", &found.logits, &flat(&golden["base.segments.logits"]), 1e-4);
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
        tensors.insert(name.strip_prefix(PREFIX).unwrap().to_string(), matrix(&tensor));
    }
    let adapter = Adapter::from_tensors(2.0, tensors).unwrap();
    for (kind, workspace) in workspaces() {
        let trainable = Trainable::new(&adapter);
        let adapters = trainable.attached(&BTreeMap::new());
        let head = base.outline().head.parameters(trainable.head()).unwrap();
        let mut gradients = Gradients::new(&trainable.parameters);
        let mut ops = workspace.ops(&trainable.parameters, &adapters, Pass::Training).unwrap();
        let pooled = encoder.pooled(&mut *ops, &batch.ids, &batch.offsets).unwrap();
        let found = ops.classify(&pooled, head, HeadTargets::Classes(&batch.labels)).unwrap();
        assert_close("logits", &found.logits, &flat(&golden["lora.logits"]), 1e-4);
        assert_close("loss", &[found.loss.unwrap() as f32], &flat(&golden["lora.loss"]), 1e-4);
        ops.backward(&mut gradients).unwrap();
        let mut parts = Vec::new();
        for (id, factors) in trainable.factors() {
            parts.push((format!("{id}.lora_A.weight"), factors.a));
            parts.push((format!("{id}.lora_B.weight"), factors.b));
        }
        parts.extend(trainable.head().iter().map(|(name, &id)| (name.clone(), id)));
        for (name, id) in &parts {
            let expected = flat(&golden[&format!("lora.grad.{PREFIX}{name}")]);
            assert_close(&format!("{kind} {name}"), gradients.get(*id).unwrap(), &expected, 1e-4);
        }
        assert_eq!(parts.len(), golden.keys().filter(|k| k.starts_with("lora.grad.")).count());
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
    let tokens = base.text_encoder(max_length).unwrap();
    // `scripts/golden_minilm.py` sets the head to weight[i, j] = sin(1 + 384·i + j), bias 0, 4 labels.
    let mut parameters = Parameters::default();
    let weight = Matrix::from_fn(4, 384, |i, j| (1.0 + (384 * i + j) as f64).sin() as f32);
    let head = ClassifierHead::linear(parameters.add(weight), Some(parameters.add(Matrix::zeros(1, 4))));
    let encoder = base.encoder(BaseFormat::F32).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let batch = tokens.texts(&texts.iter().map(|text| (*text, None)).collect::<Vec<_>>()).unwrap();
    let none = Adapters::none();
    let workspace = Workspace::new(OpsKind::Fast, BaseFormat::F32, false);
    let mut ops = workspace.ops(&parameters, &none, Pass::Inference).unwrap();
    let pooled = encoder.pooled(&mut *ops, &batch.ids, &batch.offsets.clone().into()).unwrap();
    let logits = ops.classify(&pooled, head, HeadTargets::None).unwrap().logits;
    let pooled = ops.read(&pooled).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let numbers = |key: &str| -> Vec<f32> {
            case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let ids: Vec<u32> = case["input_ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
        assert_eq!(batch.text(i), ids, "{}", texts[i]);
        assert_close("pooled", &pooled[i * 384..][..8], &numbers("pooled_first_8"), 1e-4);
        assert_close("logits", &logits[i * 4..][..4], &numbers("logits"), 1e-4);
    }
}

/// Dropout is drawn for what trains: factors that are only applied stay whole.
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
    for kind in [OpsKind::Reference, OpsKind::Fast] {
        let pooled = |trained: &[CandidateWeight], fixed: &[CandidateWeight], dropout: f64| {
            let factors_of = |weights: &[CandidateWeight]| weights.iter().map(factors).collect();
            let trainable =
                Trainable::new(&Adapter { scaling: 2.0, factors: factors_of(trained), head: BTreeMap::new() });
            let mut adapters = trainable.attached(&factors_of(fixed));
            adapters.set_dropout(dropout, Seed(3));
            let workspace = Workspace::new(kind, BaseFormat::F32, false);
            let mut ops = workspace.ops(&trainable.parameters, &adapters, Pass::Training).unwrap();
            let pooled = encoder.pooled(&mut *ops, &batch.ids, &batch.offsets).unwrap();
            ops.read(&pooled).unwrap()
        };
        let (whole, dropped) = (pooled(&[], weights, 0.0), pooled(&[], weights, 0.5));
        assert_eq!(whole, dropped);
        assert_eq!(pooled(weights, &[], 0.0), whole);
        assert_ne!(pooled(weights, &[], 0.5), whole);
    }
}
