//! What is wrong with a user's input is said with what, where and what to do; nothing is lost and nothing panics.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{World, assets};
use std::fs;

/// Every message names all of `parts`.
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn a_broken_model_folder() {
    let world = World::new();
    let weights = world.path("model/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["model.safetensors"]);
    fs::remove_file(&weights).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["model.safetensors"]);
    fs::write(&weights, &whole).unwrap();

    let config = fs::read_to_string(world.path("model/config.json")).unwrap();
    let other = config.replace("\"model_type\": \"bert\"", "\"model_type\": \"mamba\"");
    assert_ne!(config, other);
    fs::write(world.path("model/config.json"), other).unwrap();
    says(&world.refuse(&["inspect", "model"]), &["mamba", "bert", "config.json"]);
    fs::write(world.path("model/config.json"), config.replace("\"gelu\"", "\"relu\"")).unwrap();
    says(&world.refuse(&["inspect", "model"]), &["hidden_act", "relu"]);
    fs::write(world.path("model/config.json"), config).unwrap();

    fs::remove_file(world.path("model/tokenizer.json")).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["tokenizer.json"]);
    assert!(!world.path("runs").exists(), "a refused run left a folder");
}

#[test]
fn broken_data() {
    let world = World::new();
    let test = |content: &[u8]| {
        fs::write(world.path("test.tsv"), content).unwrap();
        world.refuse(&["run", "run.toml"])
    };
    says(&test(b"label\tbody\na\tb\n"), &["test.tsv", "`text`", "body"]);
    says(&test(b""), &["test.tsv"]);
    says(&test(b"label\ttext\n"), &["test.tsv"]);
    says(&test(b"label\ttext\ntopic9\tw5\n"), &["topic9", "test.tsv:2"]);
    says(&test(b"label\ttext\ntopic0\tw\xff5\n"), &["test.tsv:2", "UTF-8"]);
    fs::remove_file(world.path("test.tsv")).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["test.tsv"]);
    assert!(!world.path("runs").exists(), "a refused run left a folder");
}

#[test]
fn silos_that_cannot_be() {
    let world = World::new();
    let config = fs::read_to_string(world.path("run.toml")).unwrap();
    let none = config.split("[[silos]]").next().unwrap();
    fs::write(world.path("none.toml"), none).unwrap();
    says(&world.refuse(&["run", "none.toml"]), &["silos"]);

    let many: String = (0..300).map(|i| format!("[[silos]]\nname = \"s{i}\"\nmemory_mib = 64\n")).collect();
    fs::write(world.path("many.toml"), format!("{none}{many}")).unwrap();
    says(&world.refuse(&["run", "many.toml"]), &["300 silos", "240 examples"]);

    let forty: String = (0..40).map(|i| format!("[[silos]]\nname = \"s{i}\"\nmemory_mib = 64\n")).collect();
    fs::write(world.path("forty.toml"), format!("{none}{forty}")).unwrap();
    let lopsided = ["run", "forty.toml", "--set", "federation.partition={kind=\"dirichlet\",alpha=0.001}"];
    says(&world.refuse(&lopsided), &["no Dirichlet draw", "alpha"]);

    let column = ["run", "run.toml", "--set", "federation.partition={kind=\"column\",name=\"region\"}"];
    says(&world.refuse(&column), &["region"]);
}

#[test]
fn a_configuration_with_a_misspelt_key() {
    let world = World::new();
    let config = fs::read_to_string(world.path("run.toml")).unwrap();
    fs::write(world.path("run.toml"), config.replace("local_steps", "local_stpes")).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["run.toml:", "local_stpes", "local_steps"]);
    says(&world.refuse(&["run", "absent.toml"]), &["absent.toml"]);
}

#[test]
fn a_folder_that_holds_another_run() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet", "--set", "federation.rounds=1"]);
    let before = fs::read(world.path("runs/a/adapter/adapter_model.safetensors")).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["runs/a", "--resume", "--output"]);
    assert_eq!(fs::read(world.path("runs/a/adapter/adapter_model.safetensors")).unwrap(), before);
}

#[test]
fn data_or_a_seed_that_changed_under_a_run() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet", "--set", "federation.rounds=1", "--set", "federation.seed=7"]);
    let config = fs::read_to_string(world.path("runs/a/config.toml")).unwrap();
    fs::write(world.path("runs/a/config.toml"), config.replace("seed = 7", "seed = 8")).unwrap();
    says(&world.refuse(&["run", "--resume", "runs/a"]), &["federation.seed changed since this run began"]);
    fs::write(world.path("runs/a/config.toml"), config).unwrap();
    let train = fs::read_to_string(world.path("train.tsv")).unwrap();
    fs::write(world.path("train.tsv"), train.lines().take(200).collect::<Vec<_>>().join("\n")).unwrap();
    says(&world.refuse(&["run", "--resume", "runs/a"]), &["data changed since this run began"]);
}

#[test]
fn an_adapter_of_another_model() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet", "--set", "federation.rounds=1"]);
    let config = fs::read_to_string(world.path("model/config.json")).unwrap();
    fs::write(world.path("model/config.json"), config.replace("\"id2label\"", "\"id2labels\"")).unwrap();
    says(&world.refuse(&["predict", "runs/a", "--text", "w5"]), &["another base model"]);
    says(&world.refuse(&["predict", "nowhere", "--text", "w5"]), &["nowhere"]);
}

/// Results are not trained over because somebody tidied up the checkpoints.
#[test]
fn a_finished_run_without_its_checkpoints() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet", "--set", "federation.rounds=1"]);
    fs::remove_dir_all(world.path("runs/a/checkpoints")).unwrap();
    says(&world.refuse(&["run", "--resume", "runs/a"]), &["runs/a", "checkpoints are gone"]);
    assert!(world.path("runs/a/adapter/adapter_model.safetensors").is_file());
}

/// By how much the smallest plan misses the budget, on the real model.
#[test]
fn a_memory_budget_that_nothing_fits() {
    let Some(assets) = assets() else { return };
    let world = World::new();
    let model = format!("model.path=\"{}\"", assets.join("models/all-MiniLM-L6-v2").display());
    let message = world.refuse(&["run", "run.toml", "--set", &model, "--set", "silos.south.memory_mib=8"]);
    says(&message, &["south", "8 MiB", "MiB"]);
    assert!(!world.path("runs/a").exists(), "a run that cannot be planned left a folder");
}

/// A file that is no table, or one that was made to take all memory.
#[test]
fn a_line_without_an_end() {
    let world = World::new();
    for (name, begin) in [("long.tsv", "label\ttext\n"), ("long.csv", "label,text\n"), ("long.jsonl", "")] {
        let mut content = begin.as_bytes().to_vec();
        content.resize(200 << 20, b'a');
        fs::write(world.path(name), content).unwrap();
        let line = if begin.is_empty() { "long.jsonl:1" } else { &format!("{name}:2") };
        let message = world.refuse(&["run", "run.toml", "--set", &format!("data.test=[\"{name}\"]")]);
        says(&message, &[line, "longer than 16777216 bytes"]);
        fs::remove_file(world.path(name)).unwrap();
    }
}

#[test]
fn a_chat_template_that_was_made_to_harm() {
    let world = World::of_prompts();
    let run = ["run", "run.toml", "--set", "task.template=\"chat\""];
    let nest = "{% set ns = namespace(l=[]) %}{% for a in range(9999) %}{% for b in range(10) %}{% set ns.l = [ns.l] %}\
                {% endfor %}{% endfor %}{{ ns.l }}";
    for (template, said) in [
        (nest, "chat template was stopped"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "chat template was stopped"),
        ("{{ open('/etc/passwd') }}", "unknown function"),
    ] {
        fs::write(world.path("model/chat_template.jinja"), template).unwrap();
        says(&world.refuse(&run), &[said]);
    }
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model() {
    let world = World::new();
    let path = world.path("model/tokenizer.json");
    let tokenizer = fs::read_to_string(&path).unwrap();
    let more = tokenizer.replace("\"w95\":95", "\"w95\":95,\"w96\":96");
    assert_ne!(tokenizer, more);
    fs::write(&path, more).unwrap();
    let test = fs::read_to_string(world.path("test.tsv")).unwrap();
    fs::write(world.path("test.tsv"), test.replacen("w1", "w96 w1", 1)).unwrap();
    says(&world.refuse(&["run", "run.toml"]), &["the tokenizer gives token 96", "the model knows 96 tokens"]);
}
