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
use fedpipe_model::data::{Dataset, Example, Origin, Reading, Span, Targets};
use fedpipe_model::head::{HeadKind, SPAN};
use fedpipe_model::io::{MergedLayout, ModelFiles, read_adapter, write_merged};
use fedpipe_model::ops::{HeadTargets, Offsets, OpsKind, Pass, Workspace};
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
        let head = self
            .base
            .outline()
            .head_shapes(HeadKind::Classes(3))
            .into_keys()
            .map(|name| (name.clone(), matrix(&self.model[&name])));
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
            let found = ops.classify(&pooled, layers, HeadTargets::Classes(&golden.labels)).unwrap();
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

/// A head that finds answers: logits, loss and gradients, and the logits of an adapter that PEFT wrote.
#[test]
fn answers_agree_with_transformers() {
    for name in MODELS {
        let golden = Golden::of(name);
        let tensors = safetensors(fixture(name).join("qa.safetensors"));
        let values = |name: &str| flat(&tensors[name]);
        let spans = tensors["spans"].to_vec2::<i64>().unwrap();
        let places: Vec<[u32; 2]> = spans.iter().map(|span| [span[0] as u32, span[1] as u32]).collect();
        let targets = HeadTargets::Spans { offsets: &golden.offsets, places: &places };
        let encoder = golden.base.encoder(BaseFormat::F32).unwrap();
        let mut parameters = Parameters::default();
        let (adapters, probes) = probes(candidates(&golden.base), &mut parameters);
        let head = ["weight", "bias"].map(|part| {
            let id = parameters.add(matrix(&tensors[&format!("head.{part}")]));
            (format!("qa_outputs.{part}"), id)
        });
        let layers = SPAN.parameters(&BTreeMap::from(head.clone())).unwrap();
        for (kind, workspace) in workspaces() {
            let what = format!("{name}, {kind}");
            let mut gradients = Gradients::new(&parameters);
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Training).unwrap();
            let x = encoder.embed(&mut *ops, &golden.ids, &golden.offsets).unwrap();
            let states = encoder.states_from(&mut *ops, 0, x, &golden.offsets).unwrap();
            let found = ops.classify(&states, layers, targets).unwrap();
            assert_close(&what, &found.logits, &values("logits"), TOLERANCE);
            assert_close(&what, &[found.loss.unwrap() as f32], &values("loss"), TOLERANCE);
            ops.backward(&mut gradients).unwrap();
            let weights = probes.iter().map(|(id, b)| (format!("{id}.weight"), *b));
            let all: Vec<_> = weights.chain(head.clone()).collect();
            assert_eq!(all.len(), tensors.keys().filter(|key| key.starts_with("grad.")).count());
            for (weight, id) in all {
                let expected = values(&format!("grad.{weight}"));
                if weight == "qa_outputs.bias" {
                    // A softmax does not see a constant: zero, but for rounding.
                    assert!(gradients.get(id).unwrap().iter().chain(&expected).all(|slope| slope.abs() < 1e-6));
                    continue;
                }
                assert_close(&format!("{what}: {weight}"), gradients.get(id).unwrap(), &expected, TOLERANCE);
            }
        }
        let saved = read_adapter(&fixture(name).join("peft-qa")).unwrap();
        golden.base.check_adapter(&saved.adapter, HeadKind::Span).unwrap();
        let (adapters, mut parameters) = (Adapters::constant(&saved.adapter), Parameters::default());
        let head = saved.adapter.head.iter().map(|(name, values)| (name.clone(), parameters.add(values.clone())));
        let head = SPAN.parameters(&head.collect()).unwrap();
        let workspace = Workspace::new(OpsKind::Fast, BaseFormat::F32, false);
        let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference).unwrap();
        let x = encoder.embed(&mut *ops, &golden.ids, &golden.offsets).unwrap();
        let states = encoder.states_from(&mut *ops, 0, x, &golden.offsets).unwrap();
        let found = ops.classify(&states, head, HeadTargets::None).unwrap();
        assert_close(name, &found.logits, &values("lora.logits"), TOLERANCE);
    }
}

/// Questions with long passages become the windows of `transformers`, and their answers the places that its example
/// gives them; read back, they say what was answered.
#[test]
fn passages_are_cut_as_transformers_does() {
    for name in MODELS {
        let base = BaseModel::open(&fixture(name)).unwrap();
        let cases = std::fs::read(fixture(name).join("windows.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_slice(&cases).unwrap();
        let mut read_back = 0;
        for case in &cases {
            let text = |key: &str| case[key].as_str().unwrap().to_string();
            let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
            let example = Example {
                text: text("question"),
                second: Some(text("passage")),
                label: case["answers"].to_string(),
                site: None,
                origin: Origin::new("windows.json".as_ref(), 1),
            };
            let reading = Reading { stride: number(&case["stride"]), unanswerable: false };
            // More than the fixture's positions, which tokens alone do not need.
            let encoder = base.text_encoder(number(&case["max_length"])).unwrap();
            let found = encoder.questions(&[example], reading).unwrap();
            let Targets::Spans(spans) = &found.targets else { panic!("no spans") };
            let questions = spans.questions.as_ref().unwrap();
            let windows = case["windows"].as_array().unwrap();
            assert_eq!(found.len(), windows.len(), "{name}: {case}");
            for (i, (window, span)) in windows.iter().zip(&spans.places).enumerate() {
                assert_eq!(serde_json::json!(found.text(i)), window["ids"], "{name}: {case}");
                assert_eq!(serde_json::json!([span.start, span.end]), window["span"], "{name}: {case}");
                if let [first, end] = window["passage"].as_array().unwrap().as_slice() {
                    assert_eq!(questions.passage_tokens(span.window), number(first)..number(end), "{name}: {case}");
                }
                if span.end > 0 {
                    let answer = case["answers"][0]["text"].as_str().unwrap();
                    assert!(questions.text(*span).contains(answer), "{name}: {:?}", questions.text(*span));
                    read_back += 1;
                } else {
                    assert_eq!(questions.text(*span), "");
                }
            }
        }
        assert!(read_back >= 3, "{name}: {read_back} answers were found in a window");
    }
}

/// Tokens that hold the space before their word say the word alone, whole: as the tokenizer writes them, without the space.
#[test]
fn byte_level_tokens_read_back_without_their_space() {
    let passage = "oil or of dearer wheat [ordered] on or off";
    let example = Example {
        text: "what?".into(),
        second: Some(passage.into()),
        label: "[]".into(),
        site: None,
        origin: Origin::new("passage".as_ref(), 1),
    };
    let encoder = BaseModel::open(&fixture("roberta")).unwrap().text_encoder(128).unwrap();
    let found = encoder.questions(&[example], Reading { stride: 8, unanswerable: true }).unwrap();
    let Targets::Spans(spans) = &found.targets else { panic!("no spans") };
    let questions = spans.questions.as_ref().unwrap();
    let mut spaced = 0;
    for place in questions.passage_tokens(0) {
        let token = Span { start: place as u32, end: place as u32, ..spans.places[0] };
        let written = encoder.whole().decode(&found.text(0)[place..=place], false).unwrap();
        assert_eq!(questions.text(token), written.trim_start(), "token {place}");
        spaced += usize::from(written.len() > 1 && written.starts_with(' '));
    }
    assert!(spaced >= 5, "{spaced} tokens begin with a space");
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
        let expected = bare.len() + outline.head_shapes(HeadKind::Classes(3)).len();
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
        golden.base.check_adapter(&saved.adapter, HeadKind::Classes(3)).unwrap();
        let found = found_logits(&fixture(name), &golden, &saved.adapter);
        assert_close(name, &found, &golden.values("lora.logits"), TOLERANCE);
    }
}

/// What `fedpipe run` does on a silo, over formats of the base and activations.
#[test]
fn encoders_train() {
    for name in MODELS {
        let base = BaseModel::open(&fixture(name)).unwrap();
        assert_eq!(
            base.spec(&[], HeadKind::Classes(2)).unwrap().candidates.len(),
            2 * 4,
            "attention's weights of two layers"
        );
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
