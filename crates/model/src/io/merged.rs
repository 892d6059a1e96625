//! The base model with an adapter merged into it, as `transformers` saves a sequence classifier or a language model.

use super::folder::{write_folder, write_json};
use super::peft::{from_matrix, label_maps};
use super::tensors::{LazyTensor, write_tensors};
use super::{GgufFile, IoError, ModelFiles, SpecialToken, WeightSource};
use fedpipe_core::{Adapter, LowRank, WeightId};
use fedpipe_kernels::dense::{Matrix, Write, matmul};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How `transformers` lays out an architecture with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergedLayout {
    /// Its class, for example `BertForSequenceClassification`.
    pub class: &'static str,
    /// What stands before the names of the encoder's weights, for example `bert.`; the checkpoint of the encoder alone
    /// does without.
    pub prefix: &'static str,
    /// What stands behind that prefix in checkpoints, although the class has none of it.
    pub unused: &'static [&'static str],
    /// Whether adapted weights are stored `[inputs, outputs]`, as GPT-2's are.
    pub transposed: bool,
    /// The base's own output head, which a language model keeps.
    pub head: Option<&'static str>,
}

/// Index tensors of old checkpoints, which `transformers` makes anew.
const BUFFERS: [&str; 5] =
    ["embeddings.position_ids", "embeddings.token_type_ids", ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];

/// What makes up a tokenizer, whichever of them there are.
const TOKENIZER_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
];

/// Writes W + scaling · B·A for every adapted weight, all other base weights, the adapter's head, the configuration of
/// a classifier with these labels, and the tokenizer. All tensors are F32; no more than one is in memory at a time.
///
/// # Errors
/// When the adapter does not fit the base model, a base tensor cannot be read, `target` is there and not empty, or the
/// disk refuses.
pub fn write_merged(
    target: &Path,
    base: &ModelFiles,
    adapter: &Adapter,
    labels: &[String],
    layout: &MergedLayout,
) -> Result<(), IoError> {
    let (files, base) = (base, base.weights());
    let names = base_names(base, layout);
    check_fit(base, adapter, &names, layout)?;
    write_folder(target, |folder| {
        write_json(&folder.join("config.json"), &config(base, labels, layout))?;
        // A tensor is made inside the writer, which takes no error of ours: it is kept here until the writer returns.
        let failure = RefCell::new(None);
        let mut tensors: BTreeMap<String, LazyTensor<'_>> = BTreeMap::new();
        for (name, stored) in &names {
            let factors = name.strip_suffix(".weight").and_then(|module| adapter.factors.get(&WeightId::from(module)));
            let shape = base.tensor_shape(stored)?.to_vec();
            let (failure, count) = (&failure, shape.iter().product());
            let values = move || match merged(base, stored, factors, adapter.scaling, layout) {
                Ok(values) => values,
                Err(error) => {
                    failure.borrow_mut().get_or_insert(error);
                    vec![0.0; count]
                }
            };
            tensors.insert(name.clone(), LazyTensor { shape, values: Box::new(values) });
        }
        for (name, matrix) in &adapter.head {
            tensors.insert(name.clone(), from_matrix(name, matrix.clone()));
        }
        write_tensors(&folder.join("model.safetensors"), tensors)?;
        if let Some(error) = failure.take() {
            return Err(error);
        }
        match files {
            ModelFiles::Folder(base) => copy_tokenizer(base.path(), folder),
            ModelFiles::Gguf(base) => write_tokenizer(base, folder),
        }
    })
}

fn copy_tokenizer(base: &Path, folder: &Path) -> Result<(), IoError> {
    for file in TOKENIZER_FILES {
        let source = base.join(file);
        if source.exists() {
            fs::copy(&source, folder.join(file)).map_err(IoError::at(&source))?;
        }
    }
    Ok(())
}

/// The tokenizer of a GGUF file, in the files that transformers looks for.
fn write_tokenizer(base: &GgufFile, folder: &Path) -> Result<(), IoError> {
    let found = base.tokenizer()?;
    let path = folder.join("tokenizer.json");
    found.tokenizer.save(&path, false).map_err(|e| IoError::at(&path)(std::io::Error::other(e.to_string())))?;
    let text = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.text.clone());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(&found.bos),
        "eos_token": text(&found.eos),
        "pad_token": text(&found.pad),
        "unk_token": text(&found.unk),
        "chat_template": base.chat_template()?,
        "clean_up_tokenization_spaces": false,
    });
    write_json(&folder.join("tokenizer_config.json"), &config)
}

/// The model's tensors: the name in the merged model, and the one in the base. What lies beside its layers (the heads of
/// pre-training) stays behind, but for a language model's own head.
fn base_names(base: &dyn WeightSource, layout: &MergedLayout) -> BTreeMap<String, String> {
    let names = base.tensor_names();
    let is_used = |name: &str| !layout.unused.iter().any(|part| name.starts_with(part));
    let prefixed = names.iter().any(|name| name.starts_with(layout.prefix));
    let is_head = |name: &str| layout.head == Some(name);
    let kept = names.into_iter().filter(|name| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)));
    if prefixed {
        let kept = kept.filter(|name| name.strip_prefix(layout.prefix).map_or(is_head(name), is_used));
        kept.map(|name| (name.into(), name.into())).collect()
    } else {
        let prefix = |name: &str| if is_head(name) { "" } else { layout.prefix };
        kept.filter(|name| is_used(name)).map(|name| (format!("{}{name}", prefix(name)), name.into())).collect()
    }
}

fn check_fit(
    base: &dyn WeightSource,
    adapter: &Adapter,
    names: &BTreeMap<String, String>,
    layout: &MergedLayout,
) -> Result<(), IoError> {
    for (weight, factors) in &adapter.factors {
        let name = format!("{weight}.weight");
        let Some(stored) = names.get(&name) else {
            return Err(IoError::MissingTensor { path: base.config_path(), name });
        };
        let (mut expected, got) = ([factors.b().rows(), factors.a().cols()], base.tensor_shape(stored)?);
        if layout.transposed {
            expected.reverse();
        }
        if got != expected {
            let (path, expected, got) = (base.config_path(), expected.to_vec(), got.to_vec());
            return Err(IoError::Shape { path, name, expected, got });
        }
    }
    Ok(())
}

/// W + scaling · B·A, or the transposed of both; W alone without factors.
fn merged(
    base: &dyn WeightSource,
    stored: &str,
    factors: Option<&LowRank>,
    scaling: f32,
    layout: &MergedLayout,
) -> Result<Vec<f32>, IoError> {
    let shape = base.tensor_shape(stored)?;
    let mut values = base.tensor_f32(stored, shape)?;
    if let Some(factors) = factors.filter(|f| f.rank() > 0) {
        let (a, b) = (factors.a(), factors.b());
        let left = Matrix::new(b.rows(), b.cols(), b.data());
        let right = Matrix::new(a.rows(), a.cols(), a.data());
        let (left, right) = if layout.transposed { (right.transposed(), left.transposed()) } else { (left, right) };
        matmul(left, right, scaling, Write::Accumulate, &mut values);
    }
    Ok(values)
}

/// The base's configuration with the head's keys in place.
fn config(base: &dyn WeightSource, labels: &[String], layout: &MergedLayout) -> Map<String, Value> {
    let mut config = base.config().clone();
    if !labels.is_empty() {
        let (id2label, label2id) = label_maps(labels);
        config.insert("num_labels".into(), json!(labels.len()));
        config.insert("id2label".into(), id2label);
        config.insert("label2id".into(), label2id);
        config.insert("problem_type".into(), json!("single_label_classification"));
    } else {
        // Those of another head; transformers takes two outputs where nothing is said, as many as a span has ends.
        for key in ["num_labels", "id2label", "label2id", "problem_type"] {
            config.remove(key);
        }
    }
    for (key, value) in [
        ("architectures", json!([layout.class])),
        // The first is what transformers 5 reads, the second what 4 does.
        ("dtype", json!("float32")),
        ("torch_dtype", json!("float32")),
    ] {
        config.insert(key.into(), value);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{HfFolder, TensorFile};
    use fedpipe_core::Matrix as Dense;
    use tempfile::TempDir;

    const BERT: MergedLayout = MergedLayout {
        class: "BertForSequenceClassification",
        prefix: "bert.",
        unused: &["extra."],
        transposed: false,
        head: None,
    };

    fn base(names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("config.json"),
            r#"{"model_type": "bert", "architectures": ["BertModel"], "id2label": {"0": "a", "1": "b", "2": "c"}}"#,
        )
        .unwrap();
        fs::write(folder.path().join("tokenizer.json"), "{\"of\": \"the base\"}").unwrap();
        let tensors = names
            .iter()
            .map(|name| (name.to_string(), from_matrix(name, Dense::from_fn(2, 3, |i, j| (3 * i + j) as f32))));
        write_tensors(&folder.path().join("model.safetensors"), tensors).unwrap();
        folder
    }

    fn adapter(weight: &str, inputs: usize) -> Adapter {
        let a = Dense::from_fn(1, inputs, |_, j| j as f32);
        let b = Dense::from_fn(2, 1, |i, _| i as f32 + 1.0);
        Adapter {
            scaling: 2.0,
            factors: [(weight.into(), LowRank::new(a, b).unwrap())].into(),
            head: [
                ("classifier.weight".to_string(), Dense::from_fn(1, 2, |_, j| j as f32)),
                ("classifier.bias".to_string(), Dense::from_fn(1, 1, |_, _| 7.0)),
            ]
            .into(),
        }
    }

    fn merge(base: &TempDir, adapter: &Adapter) -> Result<TempDir, IoError> {
        let out = tempfile::tempdir().unwrap();
        let labels = ["acq".to_string(), "earn".to_string()];
        write_merged(out.path(), &ModelFiles::open(base.path())?, adapter, &labels, &BERT).map(|()| out)
    }

    #[test]
    fn the_product_is_added_and_the_names_are_those_of_transformers() {
        for names in [
            ["encoder.q.weight", "pooler.dense.bias", "embeddings.position_ids", "extra.dense.bias"],
            ["bert.encoder.q.weight", "bert.pooler.dense.bias", "cls.predictions.bias", "bert.extra.dense.bias"],
        ] {
            let out = merge(&base(&names), &adapter("bert.encoder.q", 3)).unwrap();
            let file = TensorFile::open(&out.path().join("model.safetensors")).unwrap();
            assert_eq!(
                file.names(),
                ["bert.encoder.q.weight", "bert.pooler.dense.bias", "classifier.bias", "classifier.weight"]
            );
            // W = [[0, 1, 2], [3, 4, 5]], and 2·B·A = 2·[1, 2]ᵀ[0, 1, 2].
            assert_eq!(file.values("bert.encoder.q.weight").unwrap(), [0.0, 3.0, 6.0, 3.0, 8.0, 13.0]);
            assert_eq!(file.values("bert.pooler.dense.bias").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
            assert_eq!(
                (file.shape("classifier.bias").unwrap(), file.shape("classifier.weight").unwrap()),
                ([1].as_slice(), [1, 2].as_slice())
            );
            assert_eq!(fs::read_to_string(out.path().join("tokenizer.json")).unwrap(), "{\"of\": \"the base\"}");
            let config = HfFolder::open(out.path()).unwrap();
            assert_eq!(config.config()["architectures"], json!(["BertForSequenceClassification"]));
            assert_eq!(config.config()["id2label"], json!({"0": "acq", "1": "earn"}));
            assert_eq!(config.config()["label2id"], json!({"acq": 0, "earn": 1}));
            assert_eq!(config.config_usize("num_labels").unwrap(), 2);
        }
    }

    #[test]
    fn a_transposed_weight_takes_the_transposed_product() {
        let base = base(&["h.0.attn.c_attn.weight", "h.0.attn.bias"]);
        // [inputs, outputs] = [2, 3]: A is [1, 2], B is [3, 1].
        let (a, b) = (Dense::from_fn(1, 2, |_, j| j as f32 + 1.0), Dense::from_fn(3, 1, |i, _| i as f32));
        let factors = [("transformer.h.0.attn.c_attn".into(), LowRank::new(a, b).unwrap())].into();
        let adapter = Adapter { scaling: 2.0, factors, head: Default::default() };
        let layout = MergedLayout { class: "G", prefix: "transformer.", unused: &[], transposed: true, head: None };
        let out = tempfile::tempdir().unwrap();
        write_merged(out.path(), &ModelFiles::open(base.path()).unwrap(), &adapter, &[], &layout).unwrap();
        let file = TensorFile::open(&out.path().join("model.safetensors")).unwrap();
        assert_eq!(file.names(), ["transformer.h.0.attn.c_attn.weight"]);
        // Without labels, those of the base's own head are no longer true.
        assert!(!HfFolder::open(out.path()).unwrap().config().contains_key("id2label"));
        // W = [[0, 1, 2], [3, 4, 5]], and (2·B·A)ᵀ = 2·[1, 2]ᵀ[0, 1, 2].
        assert_eq!(file.values("transformer.h.0.attn.c_attn.weight").unwrap(), [0.0, 3.0, 6.0, 3.0, 8.0, 13.0]);
    }

    #[test]
    fn an_adapter_that_does_not_fit_is_refused_and_leaves_nothing() {
        let base = base(&["encoder.q.weight"]);
        let error = merge(&base, &adapter("bert.encoder.k", 3)).unwrap_err().to_string();
        assert!(error.ends_with("there is no tensor `bert.encoder.k.weight`"), "{error}");
        let error = merge(&base, &adapter("bert.encoder.q", 4)).unwrap_err().to_string();
        assert!(error.ends_with("`bert.encoder.q.weight` is [2, 3], but [2, 4] is needed"), "{error}");
    }

    #[test]
    fn a_base_tensor_that_cannot_be_read_is_an_error_not_zeros() {
        let base = base(&["encoder.q.weight"]);
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1], &[0; 8]).unwrap();
        safetensors::serialize_to_file([("encoder.x", view)], None, &base.path().join("model.safetensors")).unwrap();
        let only_head = Adapter { factors: BTreeMap::new(), ..adapter("q", 3) };
        let error = merge(&base, &only_head).unwrap_err().to_string();
        assert!(error.contains("`encoder.x` holds I64"), "{error}");
    }
}
