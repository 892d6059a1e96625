//! The tiny decoders of `crates/testkit/fixtures/decoders` against what `transformers` computed for them
//! (`scripts/golden_decoders.py`), over both kinds of operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use candle_core::Tensor;
use common::{
    TOLERANCE, assert_close, candidates, check_training, flat, message_with, probes, safetensors, workspaces,
};
use fedpipe_core::{BaseFormat, Matrix, WeightId};
use fedpipe_kernels::FrozenMatrix;
use fedpipe_model::adapter::Adapters;
use fedpipe_model::arch::Backbone;
use fedpipe_model::data::{Dataset, Targets};
use fedpipe_model::head::HeadKind;
use fedpipe_model::io::read_adapter;
use fedpipe_model::ops::{ClassifierHead, HeadTargets, IGNORED, KvCache, Offsets, OpsKind, Pass, Workspace};
use fedpipe_model::parameters::{Gradients, ParameterId, Parameters};
use fedpipe_model::{BaseModel, logits};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

const MODELS: [&str; 7] = ["gpt2", "llama", "llama-linear", "llama3", "mistral", "qwen2", "qwen3"];

fn fixture(name: &str) -> PathBuf {
    common::fixture("decoders").join(name)
}

struct Golden {
    tensors: HashMap<String, Tensor>,
    base: BaseModel,
    ids: Vec<u32>,
    offsets: Offsets,
    targets: Vec<u32>,
    labels: Vec<u32>,
}

impl Golden {
    fn of(name: &str) -> Self {
        let tensors = safetensors(fixture(name).join("golden.safetensors"));
        let integers = |name: &str| tensors[name].to_vec1::<i64>().unwrap();
        Self {
            ids: integers("input_ids").iter().map(|&v| v as u32).collect(),
            offsets: integers("offsets").iter().map(|&v| v as usize).collect(),
            targets: integers("targets").iter().map(|&v| u32::try_from(v).unwrap_or(IGNORED)).collect(),
            labels: integers("labels").iter().map(|&v| v as u32).collect(),
            base: BaseModel::open(&fixture(name)).unwrap(),
            tensors,
        }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        flat(&self.tensors[name])
    }

    fn head(&self, model: &dyn Backbone) -> Arc<FrozenMatrix> {
        let head = self.base.outline().causal.clone().unwrap();
        head.load(self.base.files().weights(), model.format(), model.language().unwrap()).unwrap()
    }

    fn check_gradients(&self, what: &str, task: &str, probes: &[(WeightId, ParameterId)], gradients: &Gradients) {
        assert_eq!(probes.len(), self.tensors.keys().filter(|k| k.starts_with("lm.grad.")).count());
        for (id, b) in probes {
            let name = format!("{task}.grad.{id}.weight");
            let mut expected = self.tensors[&name].clone();
            if self.base.outline().transposed {
                expected = expected.t().unwrap();
            }
            assert_close(&format!("{what}: {name}"), gradients.get(*b).unwrap(), &flat(&expected), TOLERANCE);
        }
    }
}

#[test]
fn language_models_agree_with_transformers() {
    for name in MODELS {
        let golden = Golden::of(name);
        let model = golden.base.encoder(BaseFormat::F32).unwrap();
        let head = golden.head(&*model);
        let mut parameters = Parameters::default();
        let (adapters, probes) = probes(candidates(&golden.base), &mut parameters);
        // All states, and those of the later half of every sequence, outside of which no target counts.
        let all = golden.offsets.clone();
        let halves: Vec<usize> = all.windows(2).map(|pair| (pair[1] - pair[0]) - (pair[1] - pair[0]) / 2).collect();
        let half: Offsets = std::iter::once(0)
            .chain(halves.iter().scan(0, |sum, h| {
                *sum += h;
                Some(*sum)
            }))
            .collect();
        let late = |i: usize| all[i + 1] - halves[i]..all[i + 1];
        let late_targets: Vec<u32> = (0..halves.len()).flat_map(|i| golden.targets[late(i)].to_vec()).collect();
        for (kind, workspace) in workspaces() {
            for (queries, targets) in [(&all, &golden.targets), (&half, &late_targets)] {
                let what = format!("{name}, {kind}, {} states", targets.len());
                let mut gradients = Gradients::new(&parameters);
                let mut ops = workspace.ops(&parameters, &adapters, Pass::Training).unwrap();
                let x = model.embed(&mut *ops, &golden.ids, &golden.offsets).unwrap();
                let states = model.tail_from(&mut *ops, 0, x, &golden.offsets, queries).unwrap();
                if targets.len() == golden.targets.len() {
                    let found = ops.logits(&states, &head).unwrap();
                    assert_close(&what, &found, &golden.values("lm.logits"), TOLERANCE);
                }
                let loss = ops.token_loss(&states, &head, targets).unwrap();
                assert_eq!(loss.counted, golden.targets.iter().filter(|&&t| t != IGNORED).count());
                assert_close(&what, &[loss.mean as f32], &golden.values("lm.loss"), TOLERANCE);
                ops.backward(&mut gradients).unwrap();
                golden.check_gradients(&what, "lm", &probes, &gradients);
            }
        }
    }
}

#[test]
fn classifiers_agree_with_transformers() {
    for name in MODELS {
        let golden = Golden::of(name);
        let model = golden.base.encoder(BaseFormat::F32).unwrap();
        let mut parameters = Parameters::default();
        let (adapters, probes) = probes(candidates(&golden.base), &mut parameters);
        let (rows, columns) = golden.tensors["score.weight"].dims2().unwrap();
        let weight = parameters.add(Matrix::new(rows, columns, golden.values("score.weight")).unwrap());
        let head = ClassifierHead::linear(weight, None);
        for (kind, workspace) in workspaces() {
            let what = format!("{name}, {kind}");
            let mut gradients = Gradients::new(&parameters);
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Training).unwrap();
            let pooled = model.pooled(&mut *ops, &golden.ids, &golden.offsets).unwrap();
            let found = ops.classify(&pooled, head, HeadTargets::Classes(&golden.labels)).unwrap();
            assert_close(&what, &found.logits, &golden.values("cls.logits"), TOLERANCE);
            assert_close(&what, &[found.loss.unwrap() as f32], &golden.values("cls.loss"), TOLERANCE);
            ops.backward(&mut gradients).unwrap();
            golden.check_gradients(&what, "cls", &probes, &gradients);
            let expected = golden.values("cls.grad.score.weight");
            assert_close(&what, gradients.get(weight).unwrap(), &expected, TOLERANCE);
        }
    }
}

/// The prompt at once, then token by token, some sequences ending before others: the logits of the whole sequence.
#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole() {
    for name in MODELS {
        let golden = Golden::of(name);
        let expected = golden.values("lm.logits");
        let vocabulary = golden.base.outline().vocabulary;
        let (parameters, none) = (Parameters::default(), Adapters::none());
        for (format, kind, tolerance) in [
            (BaseFormat::F32, OpsKind::Reference, TOLERANCE),
            (BaseFormat::F32, OpsKind::Fast, TOLERANCE),
            (BaseFormat::Bf16, OpsKind::Fast, 0.1),
        ] {
            let model = golden.base.encoder(format).unwrap();
            let (head, language) = (golden.head(&*model), model.language().unwrap());
            let workspace = Workspace::new(kind, format, false);
            let mut cache = KvCache::new(golden.labels.len(), model.layers());
            let whole = |i: usize| golden.offsets[i]..golden.offsets[i + 1];
            let mut at_once = 3;
            while (0..golden.labels.len()).any(|i| cache.lengths()[i] < whole(i).len()) {
                let (mut ids, mut offsets, mut rows) = (vec![], vec![0], vec![]);
                for i in 0..golden.labels.len() {
                    let first = whole(i).start + cache.lengths()[i];
                    let new = first..whole(i).end.min(first + at_once);
                    ids.extend_from_slice(&golden.ids[new.clone()]);
                    offsets.push(ids.len());
                    rows.extend((!new.is_empty()).then(|| new.end - 1));
                }
                let mut ops = workspace.ops(&parameters, &none, Pass::Inference).unwrap();
                let found = language.next_logits(&mut *ops, &head, &ids, &offsets.into(), &mut cache).unwrap();
                for (found, row) in found.chunks_exact(vocabulary).zip(rows) {
                    let expected = &expected[row * vocabulary..][..vocabulary];
                    assert_close(&format!("{name}, {kind:?}, {format}, token {row}"), found, expected, tolerance);
                }
                at_once = 1;
            }
        }
    }
}

/// What `fedpipe run` does on a silo, over every format of the base and activation.
#[test]
fn decoders_train_as_classifiers() {
    for name in MODELS {
        check_training(name, &BaseModel::open(&fixture(name)).unwrap(), 30);
    }
}

/// What cannot be computed as it is meant is refused by the key that asks for it.
#[test]
fn unsupported_configurations_are_refused_by_name() {
    let refused = |model: &str, key: &str, value| message_with(&format!("decoders/{model}"), key, value);
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4});
    for (model, key, value, expected) in [
        ("llama", "hidden_act", "gelu".into(), "hidden_act is \"gelu\""),
        ("llama", "rope_parameters", yarn, "is of type \"yarn\"; default, linear and llama3"),
        ("llama", "rope_parameters", serde_json::json!({"rope_type": "linear"}), "has factor null"),
        (
            "llama",
            "rope_parameters",
            serde_json::json!({"full_attention": {}}),
            "angles of their own for full_attention",
        ),
        ("llama", "rope_parameters", 3.into(), "rope_parameters is 3; it must be an object"),
        ("llama", "rope_parameters", serde_json::json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        ("llama", "num_key_value_heads", 3.into(), "num_key_value_heads is 3, which does not divide 4"),
        ("llama", "num_attention_heads", 0.into(), "num_attention_heads is 0"),
        ("llama", "hidden_size", (1u64 << 40).into(), "hidden_size is 1099511627776"),
        ("llama", "head_dim", 3.into(), "head_dim is 3"),
        ("llama", "rope_interleaved", true.into(), "rope_interleaved is true"),
        ("qwen2", "layer_types", serde_json::json!(["full_attention", "linear_attention"]), "has \"linear_attention\""),
        ("mistral", "sliding_window", 0.into(), "sliding_window is 0"),
        (
            "mistral",
            "layer_types",
            serde_json::json!(["full_attention", "full_attention"]),
            "windows are in every layer",
        ),
        ("qwen3", "layer_types", serde_json::json!(["sliding_attention"]), "layer_types has 1 entries for 2 layers"),
        ("qwen3", "use_sliding_window", false.into(), "has sliding_attention, but the model has no window"),
        (
            "llama",
            "layer_types",
            serde_json::json!(["sliding_attention", "sliding_attention"]),
            "the model has no window",
        ),
        ("qwen3", "head_dim", serde_json::Value::Null, "`head_dim` is missing"),
        ("gpt2", "activation_function", "relu".into(), "activation_function is \"relu\""),
        ("gpt2", "scale_attn_by_inverse_layer_idx", true.into(), "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", "scale_attn_weights", false.into(), "scale_attn_weights is false"),
        ("gpt2", "n_head", 5.into(), "n_head is 5, which does not divide n_embd 16"),
    ] {
        let message = refused(model, key, value);
        assert!(message.contains(expected) && message.contains("config.json"), "{key}: {message}");
    }
    assert_eq!(refused("llama", "rope_parameters", serde_json::Value::Null), "");
}

/// Adapters that PEFT wrote: over linear layers, and over GPT-2's transposed ones.
#[test]
fn peft_adapters_give_the_same_logits() {
    for name in ["llama", "gpt2"] {
        let golden = Golden::of(name);
        let saved = read_adapter(&fixture(name).join("peft-adapter")).unwrap();
        golden.base.check_adapter(&saved.adapter, HeadKind::Classes(3)).unwrap();
        let model = golden.base.encoder(BaseFormat::F32).unwrap();
        let texts: Vec<&[u32]> = golden.offsets.windows(2).map(|pair| &golden.ids[pair[0]..pair[1]]).collect();
        let data = Dataset::pack(&texts, Targets::Classes(golden.labels.clone()));
        let found = logits(&*model, golden.base.outline().head, &saved.adapter, &data).unwrap().concat();
        assert_close(name, &found, &golden.values("lora.cls.logits"), TOLERANCE);
    }
}
