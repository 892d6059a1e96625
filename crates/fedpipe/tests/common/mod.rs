//! A small federation over a tiny model of the fixtures, and the binary that runs it.
#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses a part of this")]

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder with a model, data and a configuration, and a cache of its own.
pub struct World {
    folder: TempDir,
}

impl World {
    /// Labelled texts and a BERT.
    pub fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.write_model("bert-tiny", 96);
        world.write_data();
        fs::write(world.path("run.toml"), CONFIG).unwrap();
        world
    }

    /// With a tiny Llama in place of the BERT; its words are `w4` to `w63`.
    pub fn with_decoder() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.write_decoder();
        fs::write(world.path("run.toml"), CONFIG).unwrap();
        world
    }

    /// Prompts with completions and a tiny Llama.
    pub fn of_prompts() -> Self {
        let world = Self::with_decoder();
        for (name, count) in [("train.jsonl", 120u32), ("test.jsonl", 20)] {
            let record =
                |i: u32| json!({"prompt": format!("w{} w{}", 4 + i % 30, 8 + i % 20), "completion": "w40 w41"});
            let lines: Vec<String> = (0..count).map(|i| record(i).to_string()).collect();
            fs::write(world.path(name), lines.join("\n")).unwrap();
        }
        let config = CONFIG.replace(".tsv", ".jsonl");
        fs::write(world.path("run.toml"), format!("task = {{ kind = \"instruct\", template = \"plain\" }}\n{config}"))
            .unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary, run in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedpipe"));
        command.args(args).current_dir(self.folder.path()).env("FEDPIPE_CACHE_DIR", self.path("cache"));
        command
    }

    pub fn fedpipe(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs and gives standard output; fails with standard error when the exit code is not 0.
    pub fn succeed(&self, args: &[&str]) -> String {
        let output = self.fedpipe(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fedpipe {args:?}: {:?}\n{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must be refused as the user's error, and gives standard error.
    pub fn refuse(&self, args: &[&str]) -> String {
        let output = self.fedpipe(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "fedpipe {args:?}\n{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        errors
    }

    /// Measures what a run with these arguments needs and puts a desk machine's times in its place, so that plans and the
    /// run's clock are the same on every machine, busy or not.
    pub fn give_times(&self, arguments: &[&str]) {
        self.succeed(&[&["profile", "run.toml"], arguments].concat());
        let file = fs::read_dir(self.path("cache/profiles")).unwrap().next().unwrap().unwrap().path();
        let mut stored: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let profile = &mut stored["profile"];
        for time in profile["time"].as_object_mut().unwrap().values_mut() {
            *time = json!({"forward_s_per_token_layer": 3e-6, "backward_s_per_token_layer": 4e-6});
        }
        profile["adapter_s_per_token_rank"] = 3e-7.into();
        profile["step_overhead_s"] = 6e-5.into();
        fs::write(file, stored.to_string()).unwrap();
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// A model of the fixtures with a tokenizer of so many words, from the fifth on `w4`, `w5`, …
    fn write_model(&self, fixture: &str, vocabulary: u32) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures").join(fixture);
        fs::create_dir(self.path("model")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(file), self.path("model").join(file)).unwrap();
        }
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
        let mut tokenizer = tokenizer(special, vocabulary);
        let token = |content: &str, id: u32| json!({"id": content, "ids": [id], "tokens": [content]});
        tokenizer["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": token("[CLS]", 2), "[SEP]": token("[SEP]", 3)}});
        fs::write(self.path("model/tokenizer.json"), tokenizer.to_string()).unwrap();
    }

    /// The Llama of the fixtures, its embeddings enlarged so that it can become sure of a token, with a chat template.
    fn write_decoder(&self) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/decoders/llama");
        fs::create_dir(self.path("model")).unwrap();
        fs::copy(fixture.join("config.json"), self.path("model/config.json")).unwrap();
        let bytes = fs::read(fixture.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let enlarged: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(name, tensor)| {
                let factor = if name.contains("embed_tokens") { 12.0 } else { 1.0 };
                let values = tensor.data().chunks_exact(4).map(|b| factor * f32::from_le_bytes(b.try_into().unwrap()));
                (name, tensor.shape().to_vec(), values.flat_map(f32::to_le_bytes).collect())
            })
            .collect();
        let views = enlarged
            .iter()
            .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        fs::write(self.path("model/model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let mut tokenizer = tokenizer(["<pad>", "<unk>", "<end>", "<user>"], 64);
        tokenizer["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
        fs::write(self.path("model/tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}\
                        {% if add_generation_prompt %}<assistant> {% endif %}";
        let config = json!({"chat_template": template, "eos_token": "<end>"});
        fs::write(self.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    }

    /// Texts of 4 to 13 words, each of their label's own.
    fn write_data(&self) {
        for (name, count) in [("train.tsv", 240u32), ("test.tsv", 60)] {
            let mut text = String::from("label\ttext\tsite\n");
            for i in 0..count {
                let label = i % 3;
                let words: Vec<String> =
                    (0..4 + i % 10).map(|j| format!("w{}", 10 + 20 * label + (i * 7 + j * 3) % 20)).collect();
                text += &format!("topic{label}\t{}\t{}\n", words.join(" "), ["north", "south"][(i as usize / 3) % 2]);
            }
            fs::write(self.path(name), text).unwrap();
        }
    }
}

/// Words `w4`, `w5` and so on after the special tokens.
fn tokenizer(special: [&str; 4], vocabulary: u32) -> Value {
    let words = special.iter().map(|s| s.to_string()).chain((4..vocabulary).map(|i| format!("w{i}")));
    let vocabulary: serde_json::Map<String, Value> = words.zip(0..).map(|(w, i): (_, u32)| (w, i.into())).collect();
    let added = special.iter().zip(0u32..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null, "post_processor": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": special[1]}
    })
}

const CONFIG: &str = r#"
model.path = "model"
data = { train = ["train.tsv"], test = ["test.tsv"] }
output.dir = "runs/a"

[federation]
rounds = 4
seed = 7
partition = { kind = "iid" }

[adapter]
ranks = [2, 4]

[plan]
batch_sizes = [4, 8]
base_formats = ["f32", "nf4"]

[training]
local_steps = 12
learning_rate = 1e-2
max_length = 16

[[silos]]
name = "north"
memory_mib = 64

[[silos]]
name = "south"
memory_mib = 64
speed = 0.5
bandwidth_mbps = 10
"#;

/// The folder that `make assets` fills, when it is there.
pub fn assets() -> Option<PathBuf> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let there = assets.join("models/all-MiniLM-L6-v2/model.safetensors").is_file();
    if !there {
        eprintln!("SKIPPED: assets/ is not there; `make assets` fetches it");
    }
    there.then(|| assets.canonicalize().unwrap())
}
