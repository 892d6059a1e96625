//! The tiny RoBERTa and DistilBERT of `crates/testkit/fixtures/encoders` against what `transformers` and `peft` computed
//! for them (`scripts/golden_encoders.py`), over both kinds of operations.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use candle_core::Tensor;
use common::{
    TOLERANCE, assert_close, candidates, check_training, flat, matrix, message_with, probes, safetensors, workspaces,
};
use fedpipe_core::{Adapter, BaseFormat};
use fedpipe_model::adapter::Adapters;
use fedpipe_model::data::{Dataset, Targets};
use fedpipe_model::io::{MergedLayout, ModelFiles, read_adapter, write_merged};
use fedpipe_model::ops::{Offsets, OpsKind, Pass, Workspace};
use fedpipe_model::parameters::{Gradients, Parameters};
use fedpipe_model::{BaseModel, logits};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const MODELS: [&str; 2] = ["roberta", "distilbert"];

fn fixture(name: &str) -> PathBuf {
    common::fixture("encoders").join(name)
}

struct Golden {
    tensors: HashMap<String, Tensor>,
    model: HashMap<String, Tensor>,
    base: BaseModel,
    ids: Vec<u32>,
    offsets: Offsets,
    labels: Vec<u32>,
}

impl Golden {
    fn of(name: &str) -> Self {
        let tensors = safetensors(fixture(name).join("golden.safetensors"));
        let integers = |name: &str| tensors[name].to_vec1::<i64>().unwrap();
        Self {
            ids: integers("input_ids").iter().map(|&v| v as u32).collect(),
            offsets: integers("offsets").iter().map(|&v| v as usize).collect(),
            labels: integers("labels").iter().map(|&v| v as u32).collect(),
            base: BaseModel::open(&fixture(name)).unwrap(),
            model: safetensors(fixture(name).join("model.safetensors")),
            tensors,
        }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        flat(&self.tensors[name])
    }

    fn data(&self) -> Dataset {
        let texts: Vec<&[u32]> = self.offsets.windows(2).map(|pair| &self.ids[pair[0]..pair[1]]).collect();
        Dataset::pack(&texts, Targets::Classes(self.labels.clone()))
    }

    /// An adapter that is the head of the fixture's own model.
    fn head(&self) -> Adapter {
        let head =
            self.base.outline().head_shapes(3).into_keys().map(|name| (name.clone(), matrix(&self.model[&name])));
        Adapter { scaling: 1.0, factors: BTreeMap::new(), head: head.collect() }
    }
}

#[test]
fn logits_loss_and_gradients_agree_with_transformers() {
    for name in MODELS {
        let golden = Golden::of(name);
        let encoder = golden.base.encoder(BaseFormat::F32).unwrap();
        assert_eq!(encoder.bytes(), golden.base.outline().base_bytes(BaseFormat::F32), "{name}");
        let mut parameters = Parameters::default();
        let (adapters, probes) = probes(candidates(&golden.base), &mut parameters);
        let head: BTreeMap<_, _> =
            golden.head().head.into_iter().map(|(name, values)| (name, parameters.add(values))).collect();
        let layers = golden.base.outline().head.parameters(&head).unwrap();
        for (kind, workspace) in workspaces() {
            let what = format!("{name}, {kind}");
            let mut gradients = Gradients::new(&parameters);
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Training).unwrap();
            let pooled = encoder.pooled(&mut *ops, &golden.ids, &golden.offsets).unwrap();
            assert_close(&what, &ops.read(&pooled).unwrap(), &golden.values("cls.pooled"), TOLERANCE);
            let found = ops.classify(&pooled, layers, Some(&golden.labels)).unwrap();
            assert_close(&what, &found.logits, &golden.values("cls.logits"), TOLERANCE);
            assert_close(&what, &[found.loss.unwrap() as f32], &golden.values("cls.loss"), TOLERANCE);
            ops.backward(&mut gradients).unwrap();
            let weights = probes.iter().map(|(id, b)| (format!("{id}.weight"), *b));
            let all: Vec<_> = weights.chain(head.iter().map(|(name, &id)| (name.clone(), id))).collect();
            assert_eq!(all.len(), golden.tensors.keys().filter(|key| key.starts_with("cls.grad.")).count());
            for (weight, id) in all {
                let expected = golden.values(&format!("cls.grad.{weight}"));
                assert_close(&format!("{what}: {weight}"), gradients.get(id).unwrap(), &expected, TOLERANCE);
            }
        }
    }
}

/// A checkpoint of the encoder alone has its names without the prefix; one of pre-training has a pooler that is not used.
#[test]
fn bare_encoders_are_read_and_merged() {
    for name in MODELS {
        let golden = Golden::of(name);
        let outline = golden.base.outline();
        let folder = tempfile::tempdir().unwrap();
        let mut bare: HashMap<String, Tensor> = HashMap::new();
        for (name, tensor) in &golden.model {
            if let Some(name) = name.strip_prefix(outline.prefix) {
                bare.insert(name.into(), tensor.clone());
            }
        }
        let expected = bare.len() + outline.head_shapes(3).len();
        if outline.unused.contains(&"pooler.") {
            let pooler = bare["embeddings.word_embeddings.weight"].narrow(0, 0, outline.hidden).unwrap();
            bare.insert("pooler.dense.weight".into(), pooler);
        }
        candle_core::safetensors::save(&bare, folder.path().join("model.safetensors")).unwrap();
        std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let found = found_logits(folder.path(), &golden, &golden.head());
        assert_close(name, &found, &golden.values("cls.logits"), TOLERANCE);

        let merged = folder.path().join("merged");
        let (class, prefix, unused) = (outline.classifier_class, outline.prefix, outline.unused);
        let layout = MergedLayout { class, prefix, unused, transposed: false, head: None };
        let adapter = read_adapter(&fixture(name).join("peft-adapter")).unwrap().adapter;
        let labels = ["a", "b", "c"].map(String::from);
        write_merged(&merged, &ModelFiles::open(folder.path()).unwrap(), &adapter, &labels, &layout).unwrap();
        assert_eq!(safetensors(merged.join("model.safetensors")).len(), expected, "{name}");
        let found = found_logits(&merged, &golden, &Adapter { factors: BTreeMap::new(), ..adapter });
        assert_close(name, &found, &golden.values("lora.logits"), TOLERANCE);
    }
}

fn found_logits(folder: &Path, golden: &Golden, adapter: &Adapter) -> Vec<f32> {
    let base = BaseModel::open(folder).unwrap();
    logits(&*base.encoder(BaseFormat::F32).unwrap(), base.outline().head, adapter, &golden.data()).unwrap().concat()
}

/// PEFT saves RoBERTa's whole head as one module, DistilBERT's as two.
#[test]
fn peft_adapters_give_the_same_logits() {
    for name in MODELS {
        let golden = Golden::of(name);
        let saved = read_adapter(&fixture(name).join("peft-adapter")).unwrap();
        golden.base.check_adapter(&saved.adapter, Some(3)).unwrap();
        let found = found_logits(&fixture(name), &golden, &saved.adapter);
        assert_close(name, &found, &golden.values("lora.logits"), TOLERANCE);
    }
}

/// What `fedpipe run` does on a silo, over formats of the base and activations.
#[test]
fn encoders_train() {
    for name in MODELS {
        let base = BaseModel::open(&fixture(name)).unwrap();
        assert_eq!(base.spec(&[], Some(2)).unwrap().candidates.len(), 2 * 4, "attention's weights of two layers");
        check_training(name, &base, 60);
    }
}

/// Special tokens come of the tokenizer's own post-processor, and those that a text spells out are taken for what they
/// are, as `transformers` does both.
#[test]
fn texts_become_the_tokens_of_transformers() {
    for name in MODELS {
        let base = BaseModel::open(&fixture(name)).unwrap();
        let bytes = std::fs::read(fixture(name).join("tokens.json")).unwrap();
        let expected: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let cases = expected["cases"].as_array().unwrap();
        let texts: Vec<_> = cases.iter().map(|case| (case["text"].as_str().unwrap(), None)).collect();
        let encoder = base.text_encoder(expected["max_length"].as_u64().unwrap() as usize).unwrap();
        let found = encoder.texts(&texts).unwrap();
        for (i, case) in cases.iter().enumerate() {
            let ids: Vec<u64> = found.text(i).iter().map(|&id| u64::from(id)).collect();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name}: {}", texts[i].0);
        }
    }
}

/// RoBERTa's positions begin after the id of its padding token.
#[test]
fn the_longest_text_fills_the_position_table() {
    for (name, longest) in [("roberta", 22), ("distilbert", 24)] {
        let base = BaseModel::open(&fixture(name)).unwrap();
        assert_eq!(base.outline().max_positions, longest);
        let encoder = base.encoder(BaseFormat::F32).unwrap();
        let (parameters, none) = (Parameters::default(), Adapters::none());
        let workspace = Workspace::new(OpsKind::Fast, BaseFormat::F32, false);
        let of = |tokens: usize| {
            let mut ops = workspace.ops(&parameters, &none, Pass::Inference).unwrap();
            encoder.pooled(&mut *ops, &vec![5; tokens], &vec![0, tokens].into()).map(|_| ())
        };
        assert!(of(longest).is_ok() && of(longest + 1).is_err(), "{name}");
    }
}

/// What cannot be computed as it is meant is refused by the key that asks for it.
#[test]
fn unsupported_configurations_are_refused_by_name() {
    for (model, key, value, expected) in [
        ("roberta", "hidden_act", serde_json::json!("relu"), "hidden_act is \"relu\"; supported are gelu, gelu_new"),
        ("roberta", "position_embedding_type", "relative_key".into(), "position_embedding_type is \"relative_key\""),
        ("roberta", "is_decoder", true.into(), "is_decoder is true; only encoders"),
        ("roberta", "add_cross_attention", true.into(), "add_cross_attention is true"),
        ("roberta", "chunk_size_feed_forward", 8.into(), "chunk_size_feed_forward is 8; only 0 is supported"),
        ("roberta", "pad_token_id", 23.into(), "pad_token_id is 23; positions are counted from the one after it"),
        ("roberta", "pad_token_id", u64::MAX.into(), "pad_token_id is 18446744073709551615"),
        ("roberta", "num_attention_heads", 3.into(), "num_attention_heads is 3, which does not divide hidden_size 16"),
        ("roberta", "type_vocab_size", 0.into(), "type_vocab_size is 0"),
        ("roberta", "max_position_embeddings", 0.into(), "max_position_embeddings is 0"),
        ("roberta", "vocab_size", (1u64 << 40).into(), "vocab_size is 1099511627776"),
        ("roberta", "layer_norm_eps", serde_json::Value::Null, "`layer_norm_eps` is missing"),
        ("distilbert", "activation", "relu".into(), "activation is \"relu\""),
        ("distilbert", "n_heads", 0.into(), "n_heads is 0, which does not divide dim 16"),
        ("distilbert", "chunk_size_feed_forward", 1.into(), "chunk_size_feed_forward is 1"),
        ("distilbert", "hidden_dim", "wide".into(), "`hidden_dim` is \"wide\"; it must be a whole number"),
        ("distilbert", "n_layers", 0.into(), "n_layers is 0"),
    ] {
        let message = message_with(&format!("encoders/{model}"), key, value);
        assert!(message.contains(expected) && message.contains("config.json"), "{key}: {message}");
    }
    assert_eq!(message_with("encoders/roberta", "chunk_size_feed_forward", 0.into()), "");
    assert_eq!(message_with("encoders/roberta", "pad_token_id", serde_json::Value::Null), "");
}
