//! Every kind of task that a decoder learns, from the file to the text that it writes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::World;
use serde_json::Value;
use std::fs;

/// A prompt of two words and the third that always follows them.
fn facts() -> impl Iterator<Item = (String, String)> {
    (0..90).map(|i| {
        let (a, b) = (10 + i % 6, 30 + i % 3);
        (format!("w{a} w{b}"), format!("w{}", 50 + i % 6))
    })
}

/// Runs a task over `train`, which is also what it is tested on, and gives the summary and the loss of the first round.
fn learned(world: &World, file: &str, content: &str, settings: &[&str]) -> (Value, f64) {
    fs::write(world.path(file), content).unwrap();
    let files = [format!("data.train=[\"{file}\"]"), format!("data.test=[\"{file}\"]")];
    let mut arguments = vec!["run", "run.toml", "--quiet"];
    for set in files.iter().map(String::as_str).chain(settings.iter().copied()) {
        arguments.extend(["--set", set]);
    }
    world.succeed(&arguments);
    let summary = world.json("runs/a/summary.json");
    let rounds = summary["rounds"].as_u64().unwrap();
    let state = world.json(&format!("runs/a/checkpoints/round-{rounds:03}/state.json"));
    let first = state.pointer("/history/0/metrics/loss").and_then(Value::as_f64);
    (summary, first.unwrap())
}

fn decoder_world() -> World {
    let world = World::with_decoder();
    let toml = fs::read_to_string(world.path("run.toml")).unwrap();
    // Enough for the facts, with the model's few weights.
    fs::write(world.path("run.toml"), toml.replace("local_steps = 12", "local_steps = 40")).unwrap();
    world
}

fn check_learned(summary: &Value, first: f64) {
    let (loss, perplexity) = (summary["loss"].as_f64().unwrap(), summary["perplexity"].as_f64().unwrap());
    assert!(loss < 0.7 * first, "after the first round {first}, at the end {loss}");
    assert!((perplexity - loss.exp()).abs() < 1e-6 * perplexity, "{summary}");
}

#[test]
fn prompts_and_completions() {
    let world = decoder_world();
    let mut csv = String::from("prompt,completion\n");
    facts().for_each(|(prompt, completion)| csv += &format!("{prompt},{completion}\n"));
    let (summary, first) = learned(&world, "a.csv", &csv, &["task.kind=instruct", "task.template=plain"]);
    check_learned(&summary, first);
    let evaluated = world.succeed(&["evaluate", "runs/a", "--data", "a.csv", "--metrics", "exact-match", "--json"]);
    let evaluated: Value = serde_json::from_str(&evaluated).unwrap();
    assert!((0.0..=100.0).contains(&evaluated["scores"]["exact-match"].as_f64().unwrap()), "{evaluated}");
    // Six facts, each told fifteen times.
    let side_by_side = ["--metrics", "exact-match,rouge-l", "--compare", "--samples", "2", "--examples", "3"];
    let text = world.succeed(&[&["evaluate", "runs/a", "--data", "a.csv"], &side_by_side[..]].concat());
    assert!(text.contains("base    adapted") && text.matches("reference  w").count() == 2, "{text}");
    let written = world.succeed(&["generate", "runs/a", "--prompt", "w10 w30"]);
    assert!(written.starts_with("w5"), "{written}");
    let adapter = world.succeed(&["generate", "runs/a/adapter", "--base-model", "model", "--prompt", "w10 w30"]);
    assert_eq!(adapter, written);
}

#[test]
fn conversations() {
    let world = decoder_world();
    let mut jsonl = String::new();
    for (prompt, completion) in facts() {
        jsonl += &format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{prompt}\"}}, \
             {{\"role\": \"assistant\", \"content\": \"{completion}\"}}]}}\n"
        );
    }
    let settings = ["task.kind=instruct", "task.format=messages"];
    let (summary, first) = learned(&world, "a.jsonl", &jsonl, &settings);
    check_learned(&summary, first);
    let written = world.succeed(&["generate", "runs/a", "--data", "a.jsonl", "--limit", "2", "--json"]);
    assert!(written.starts_with(r#"{"prompt":"w10 w30","completion":"w5"#), "{written}");
}

#[test]
fn alpacas_instructions() {
    let world = decoder_world();
    let records: Vec<Value> = facts()
        .map(|(prompt, completion)| {
            let (instruction, input) = prompt.split_once(' ').unwrap();
            serde_json::json!({"instruction": instruction, "input": input, "output": completion})
        })
        .collect();
    let settings = ["task.kind=instruct", "task.format=alpaca"];
    let (summary, first) = learned(&world, "a.json", &Value::from(records).to_string(), &settings);
    check_learned(&summary, first);
}

#[test]
fn plain_text() {
    let world = decoder_world();
    let text: String = facts().map(|(prompt, completion)| format!("{prompt} {completion}\n")).collect();
    let (summary, first) = learned(&world, "a.txt", &text, &["task.kind=lm"]);
    check_learned(&summary, first);
    let evaluated = world.succeed(&["evaluate", "runs/a", "--data", "a.txt", "--compare"]);
    assert!(evaluated.contains("perplexity"), "{evaluated}");
    let refused = world.refuse(&["evaluate", "runs/a", "--data", "a.txt", "--metrics", "bleu"]);
    assert!(refused.contains("models that follow instructions"), "{refused}");
}

#[test]
fn pairs_of_texts() {
    let world = World::new();
    let mut csv = String::from("premise,hypothesis,gold\n");
    for i in 0..240 {
        // Whether the second text repeats the first one's word.
        let (word, same) = (10 + i % 20, i % 2 == 0);
        let other = if same { word } else { 50 + i % 20 };
        csv += &format!("w{word} w{},w{other},{}\n", 70 + i % 7, if same { "same" } else { "other" });
    }
    fs::write(world.path("a.csv"), csv).unwrap();
    let sets = [
        "task.kind=pair",
        "data.train=[\"a.csv\"]",
        "data.test=[\"a.csv\"]",
        "data.text=premise",
        "data.text_pair=hypothesis",
        "data.label=gold",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    world.succeed(&[&["run", "run.toml", "--quiet"], &sets[..]].concat());
    let summary = world.json("runs/a/summary.json");
    assert!(summary["accuracy"].as_f64().unwrap() > 0.9, "{summary}");
    assert!(summary["matthews"].as_f64().unwrap() > 0.8, "{summary}");
    let label = world.succeed(&["predict", "runs/a", "--text", "w12 w71", "--text-pair", "w55"]);
    assert!(label.starts_with("other\t"), "{label}");
    let labels = world.succeed(&["predict", "runs/a", "--data", "a.csv", "--limit", "2"]);
    assert_eq!(labels.lines().count(), 2);
    let refused = world.refuse(&["predict", "runs/a"]);
    assert!(refused.contains("--text and --text-pair"), "{refused}");
}

#[test]
fn sites_are_told_apart_by_a_pattern() {
    let world = decoder_world();
    let mut csv = String::from("prompt,completion\n");
    facts().for_each(|(prompt, completion)| csv += &format!("{prompt},{completion}\n"));
    let settings = ["task.kind=instruct", "federation.rounds=1", "training.local_steps=1"];
    let partition = r#"federation.partition={kind="column", name="prompt", pattern='(w3\d)$'}"#;
    let (summary, _) = learned(&world, "a.csv", &csv, &[&settings[..], &[partition]].concat());
    // Three groups of thirty go to two silos whole.
    assert_eq!(summary["silos"]["north"]["examples"], 60);
    let run =
        ["run", "run.toml", "--output", "runs/b", "--set", "task.kind=instruct", "--set", "data.train=[\"a.csv\"]"];
    let refuse =
        |partition: &str| world.refuse(&[&run[..], &["--set", partition, "--set", "data.test=[\"a.csv\"]"]].concat());
    let message = refuse(r#"federation.partition={kind="column", name="prompt", pattern="name"}"#);
    assert!(message.contains("a.csv:2: federation.partition.pattern matches nothing of \"w10 w30\""), "{message}");
    let message = refuse(r#"federation.partition={kind="column", name="prompt", pattern="("}"#);
    assert!(message.contains("pattern is no regular expression"), "{message}");
}
