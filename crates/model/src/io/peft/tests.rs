use super::*;
use fedpipe_core::{Adapter, LowRank, Matrix};
use proptest::prelude::*;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

fn factors(rank: usize, inputs: usize, outputs: usize) -> LowRank {
    let a = Matrix::from_fn(rank, inputs, |i, j| (i as f32 - j as f32) / 8.0);
    let b = Matrix::from_fn(outputs, rank, |i, j| (i * j) as f32 / 16.0 + 0.1);
    LowRank::new(a, b).unwrap()
}

/// Three ranks over four weights, one of which has none, and a head.
fn adapter() -> Adapter {
    let name = |layer, kind| format!("bert.encoder.layer.{layer}.attention.self.{kind}").as_str().into();
    Adapter {
        scaling: 2.0,
        factors: [
            (name(0, "query"), factors(3, 6, 4)),
            (name(1, "query"), factors(3, 6, 4)),
            (name(1, "value"), factors(10, 6, 4)),
            (name(0, "value"), factors(1, 6, 4)),
        ]
        .into(),
        head: [
            ("classifier.weight".to_string(), Matrix::from_fn(2, 4, |i, j| (i + j) as f32)),
            ("classifier.bias".to_string(), Matrix::from_fn(1, 2, |_, j| j as f32)),
        ]
        .into(),
    }
}

fn info() -> AdapterInfo {
    AdapterInfo {
        base_model: "sentence-transformers/all-MiniLM-L6-v2".into(),
        base_fingerprint: "ab".repeat(32),
        labels: vec!["acq".into(), "earn".into()],
        max_length: 128,
        task: AdapterTask::Classification,
        reading: None,
        chat: None,
        fan_in_fan_out: false,
    }
}

fn language_model() -> AdapterInfo {
    AdapterInfo { task: AdapterTask::CausalLm, labels: vec![], ..info() }
}

/// [`adapter`] without its head.
fn served() -> Adapter {
    Adapter { head: Default::default(), ..adapter() }
}

fn written(adapter: &Adapter) -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("adapter");
    write_adapter(&folder, adapter, &info()).unwrap();
    (root, folder)
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    for scaling in [2.0, 1.0 / 3.0, 0.7] {
        let adapter = Adapter { scaling, ..adapter() };
        let (_root, folder) = written(&adapter);
        let saved = read_adapter(&folder).unwrap();
        assert_eq!(saved, SavedAdapter { adapter, base_model: Some(info().base_model), info: Some(info()) });
    }
}

#[test]
fn the_folder_is_what_peft_expects() {
    let (_root, folder) = written(&adapter());
    let config = read_json(&folder.join(CONFIG)).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(3), &json!(6)));
    let value = |layer| format!("bert.encoder.layer.{layer}.attention.self.value");
    assert_eq!(config["rank_pattern"], json!({value(0): 1, value(1): 10}));
    assert_eq!(config["alpha_pattern"], json!({value(0): 2, value(1): 20}));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 4);
    assert_eq!(config["modules_to_save"], json!(["classifier"]));
    assert_eq!((&config["task_type"], &config["peft_type"]), (&json!("SEQ_CLS"), &json!("LORA")));

    let file = crate::io::TensorFile::open(&folder.join(WEIGHTS)).unwrap();
    let key = "base_model.model.bert.encoder.layer.1.attention.self.value.lora_A.weight";
    assert_eq!(file.shape(key).unwrap(), [10, 6]);
    assert_eq!(file.shape("base_model.model.classifier.bias").unwrap(), [2]);
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let card = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model: \"sentence-transformers/all-MiniLM-L6-v2\"\n"), "{card}");
    assert_eq!(read_json(&folder.join(INFO)).unwrap()["id2label"], json!({"0": "acq", "1": "earn"}));
}

#[test]
fn a_weight_without_rank_is_left_out_and_a_head_alone_is_an_adapter() {
    let mut adapter = adapter();
    adapter.factors = [("bert.x".into(), factors(0, 6, 4))].into();
    let (_root, folder) = written(&adapter);
    assert_eq!(read_json(&folder.join(CONFIG)).unwrap()["target_modules"], NO_TARGETS);
    let saved = read_adapter(&folder).unwrap().adapter;
    assert_eq!((saved.factors.len(), saved.head), (0, adapter.head));
}

/// `crates/testkit/fixtures/bert-tiny/peft-adapter`, written by PEFT: rank 3 and alpha 6, but rank 5 and alpha 10 for
/// `attention.output.dense`.
#[test]
fn an_adapter_of_pefts_own_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/fixtures/bert-tiny/peft-adapter");
    let saved = read_adapter(folder.as_ref()).unwrap();
    assert_eq!((saved.adapter.scaling, saved.info), (2.0, None));
    let ranks: Vec<usize> = saved.adapter.factors.values().map(LowRank::rank).collect();
    assert_eq!(ranks, [5, 3, 3, 5, 3, 3]);
    assert_eq!(saved.adapter.head.keys().collect::<Vec<_>>(), ["classifier.bias", "classifier.weight"]);
}

#[test]
fn a_language_model_s_adapter_has_its_task_and_no_head() {
    let root = tempfile::tempdir().unwrap();
    let headless = served();
    let info = AdapterInfo { fan_in_fan_out: true, ..language_model() };
    let faithful = root.path().join("a");
    write_adapter(&faithful, &headless, &info).unwrap();
    let config = read_json(&faithful.join(CONFIG)).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("CAUSAL_LM"), &json!(null)));
    assert_eq!(config["fan_in_fan_out"], json!(true));
    assert!(fs::read_to_string(faithful.join("README.md")).unwrap().contains("AutoModelForCausalLM.from_pretrained("));
    assert_eq!(read_adapter(&faithful).unwrap().info, Some(info));
}

#[test]
fn scalings_that_differ_are_folded_into_b() {
    let (_root, folder) = written(&adapter());
    let mut config = read_json(&folder.join(CONFIG)).unwrap();
    // Without its alpha the weight of rank 10 has scale 6 / 10, as PEFT computes it, and the one of rank 1 has 6.
    config.remove("alpha_pattern");
    fs::write(folder.join(CONFIG), Value::Object(config).to_string()).unwrap();
    let saved = read_adapter(&folder).unwrap().adapter;
    assert_eq!(saved.scaling, 2.0);
    for (weight, factors) in &saved.factors {
        let ratio = match factors.rank() {
            10 => 0.3,
            1 => 3.0,
            _ => 1.0,
        };
        let original = &adapter().factors[weight];
        assert_eq!(factors.a(), original.a());
        for (folded, b) in factors.b().data().iter().zip(original.b().data()) {
            assert!((folded - ratio * b).abs() < 1e-6, "{weight}: {folded} is not {ratio} * {b}");
        }
    }
}

#[test]
fn the_serving_copy_has_one_rank_and_the_same_components_under_the_same_scaling() {
    for (scaling, alpha) in [(2.0, json!(32)), (0.75, json!(12)), (0.7, json!(f64::from(0.7f32) * 16.0))] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("adapter-serving");
        let trained = Adapter { scaling, ..served() };
        write_serving(&folder, &trained, &language_model()).unwrap();
        let config = read_json(&folder.join(CONFIG)).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(16), &alpha));
        assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("CAUSAL_LM"), &json!(null)));
        assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})));
        let saved = read_adapter(&folder).unwrap().adapter;
        assert_eq!((saved.scaling, saved.head.len()), (scaling, 0));
        for (weight, factors) in &trained.factors {
            let (served, rank) = (&saved.factors[weight], factors.rank());
            assert_eq!(served.components(0..rank), *factors);
            let padding = served.components(rank..16);
            assert!(padding.a().data().iter().chain(padding.b().data()).all(|&v| v == 0.0), "{weight}");
        }
    }
}

#[test]
fn what_cannot_be_served_says_why() {
    let root = tempfile::tempdir().unwrap();
    let refuse = |adapter: &Adapter, info: &AdapterInfo| {
        write_serving(&root.path().join("s"), adapter, info).unwrap_err().to_string()
    };
    assert!(refuse(&adapter(), &info()).contains("SGLang take no head with an adapter; export the merged"));
    let gpt2 = AdapterInfo { fan_in_fan_out: true, ..language_model() };
    assert!(refuse(&served(), &gpt2).contains("no adapters for GPT-2"));
    let serve = |adapter: &Adapter| refuse(adapter, &language_model());
    let mut wide = served();
    wide.factors.insert("bert.x".into(), factors(65, 3, 3));
    assert!(serve(&wide).contains("a weight has rank 65, but servers load ranks up to 64"));
    wide.factors.clear();
    assert!(serve(&wide).contains("there are no factors to serve"));
    assert_eq!(root.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_broken_folder_is_refused_with_the_file() {
    let (_root, folder) = written(&adapter());
    let message = || read_adapter(&folder).unwrap_err().to_string().replace(&folder.display().to_string(), "A");
    let weights = fs::read(folder.join(WEIGHTS)).unwrap();
    fs::write(folder.join(WEIGHTS), &weights[..weights.len() - 1]).unwrap();
    assert!(message().starts_with("A/adapter_model.safetensors: not a whole safetensors file ("));
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    assert!(message().starts_with("A/adapter_model.safetensors: "));

    let foreign = Matrix::zeros(1, 1);
    let lone = |name: &str, matrix: &Matrix| {
        let tensor = (name.to_string(), from_matrix(name, matrix.clone()));
        crate::io::write_tensors(&folder.join(WEIGHTS), [tensor]).unwrap();
        message()
    };
    assert!(lone("base_model.model.x.lora_A.weight", &foreign).ends_with("x: factor lora_B is missing"));
    assert!(
        lone("base_model.model.x.lora_magnitude_vector", &foreign).contains("is neither a LoRA factor nor the head")
    );
    let nan = Matrix::from_fn(1, 1, |_, _| f32::NAN);
    assert!(
        lone("base_model.model.classifier.weight", &nan).ends_with("`base_model.model.classifier.weight` holds NaN")
    );

    lone_info(&folder, json!({"version": 2}));
    fs::write(folder.join(WEIGHTS), &weights).unwrap();
    assert_eq!(message(), "A/fedpipe.json: `version` is not 1; it was written by another version of fedpipe");
    fs::remove_file(folder.join(CONFIG)).unwrap();
    assert_eq!(message(), "A: there is no adapter_config.json, so it is no adapter");
}

fn lone_info(folder: &Path, info: Value) {
    fs::write(folder.join(INFO), info.to_string()).unwrap();
}

#[test]
fn a_head_that_peft_would_not_find_is_refused() {
    let mut adapter = adapter();
    adapter.head.insert("pooler.dense.bias".into(), Matrix::zeros(1, 2));
    let root = tempfile::tempdir().unwrap();
    let error = write_adapter(&root.path().join("a"), &adapter, &info()).unwrap_err().to_string();
    assert!(error.contains("`pooler.dense.bias` is not part of a head that PEFT knows"), "{error}");
}

proptest! {
    #[test]
    fn no_folder_of_random_bytes_panics(config in ".{0,80}", key in "[a-z_]{1,20}", value in any::<i64>(), bytes: Vec<u8>) {
        let (_root, folder) = written(&adapter());
        let mut object = read_json(&folder.join(CONFIG)).unwrap();
        let names: Vec<String> = object.keys().cloned().collect();
        object[&names[value.unsigned_abs() as usize % names.len()]] = json!([value, key]);
        fs::write(folder.join(CONFIG), Value::Object(object).to_string()).unwrap();
        let _ = read_adapter(&folder);
        fs::write(folder.join(CONFIG), config).unwrap();
        let _ = read_adapter(&folder);
        fs::write(folder.join(WEIGHTS), bytes).unwrap();
        let _ = read_adapter(&folder);
    }
}
