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
    let settings = files.iter().map(String::as_str).chain(settings.iter().copied());
    let settings: Vec<&str> = settings.flat_map(|setting| ["--set", setting]).collect();
    world.give_times(&settings);
    world.succeed(&[&["run", "run.toml", "--quiet"], &settings[..]].concat());
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
    let refused = world.refuse(&["evaluate", "runs/a", "--data", "a.csv", "--max-new-tokens", "8"]);
    assert!(refused.contains("nothing is completed here"), "{refused}");
    let refused = world.refuse(&["generate", "runs/a", "--prompt", "w10 w30", "--length-penalty", "2"]);
    assert!(refused.contains("--beams"), "{refused}");
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
        "training.local_steps=40",
        "federation.deadline_s=60",
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

/// The answer is the one word of a long passage from `w60` on; the passage is cut into windows, and some have none.
fn asked(count: u32) -> String {
    let mut jsonl = String::new();
    for i in 0..count {
        let mut words: Vec<String> = (0..16).map(|j| format!("w{}", 10 + (i * 5 + j * 3) % 40)).collect();
        let answer = format!("w{}", 60 + i % 20);
        let place = (i * 7 % 16) as usize;
        words[place] = answer.clone();
        let passage = words.join(" ");
        let start = words[..place].iter().map(|word| word.len() + 1).sum::<usize>();
        let answers = match i % 8 {
            0 => serde_json::json!({"text": [], "answer_start": []}),
            _ => serde_json::json!({"text": [answer], "answer_start": [start]}),
        };
        let passage = if i % 8 == 0 { passage.replace(&answer, "w9") } else { passage };
        jsonl += &serde_json::json!({"question": "w4 w5", "context": passage, "answers": answers}).to_string();
        jsonl.push('\n');
    }
    jsonl
}

#[test]
fn questions_about_passages() {
    let world = World::new();
    let toml = fs::read_to_string(world.path("run.toml")).unwrap();
    fs::write(world.path("run.toml"), toml.replace("local_steps = 12", "local_steps = 60")).unwrap();
    let settings = ["task.kind=span-qa", "task.stride=4", "training.max_length=14", "training.learning_rate=0.02"];
    let (summary, first) = learned(&world, "a.jsonl", &asked(160), &settings);
    let figure = |name: &str| summary[name].as_f64().unwrap();
    assert!(figure("loss") < 0.7 * first, "after the first round {first}, at the end {summary}");
    assert!(figure("exact_match") > 60.0 && figure("answer_f1") >= figure("exact_match"), "{summary}");
    assert!(summary["accuracy"].is_null() && summary["perplexity"].is_null(), "{summary}");

    let passage = "w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20 w64 w21 w22";
    let found = world.succeed(&["predict", "runs/a", "--text", "w4 w5", "--text-pair", passage]);
    assert!(found.starts_with("w64\t"), "{found}");
    let found = world.succeed(&["predict", "runs/a", "--data", "a.jsonl", "--limit", "2", "--json"]);
    assert!(found.lines().count() == 2 && found.starts_with("{\"answer\":\"\""), "{found}");
    let report = world.succeed(&["evaluate", "runs/a", "--data", "a.jsonl", "--metrics", "rouge-1", "--samples", "2"]);
    assert!(
        report.starts_with("answer-f1") && report.contains("exact-match") && report.contains("rouge-1"),
        "{report}"
    );
    assert_eq!(report.matches("\nadapted ").count(), 2, "{report}");

    let refused = world.refuse(&["predict", "runs/a", "--text", "w4 w5"]);
    assert!(refused.contains("--text and --text-pair"), "{refused}");
    let config = world.json("runs/a/adapter/adapter_config.json");
    assert_eq!(
        (&config["task_type"], &config["modules_to_save"]),
        (&"QUESTION_ANS".into(), &vec!["qa_outputs"].into())
    );
    assert!(!world.path("runs/a/adapter-serving").exists());
    // An adapter alone answers as the run does, and so does the merged model's folder take its head along.
    let adapter = ["predict", "runs/a/adapter", "--model", "model", "--text", "w4 w5", "--text-pair", passage];
    assert!(world.succeed(&adapter).starts_with("w64\t"));
    world.succeed(&["export", "runs/a", "--format", "merged", "--to", "merged"]);
    assert_eq!(world.json("merged/config.json")["architectures"], serde_json::json!(["BertForQuestionAnswering"]));

    let refused = world.refuse(&["generate", "runs/a", "--prompt", "w4"]);
    assert!(refused.contains("cannot write"), "{refused}");
    let refused = world.refuse(&["run", "run.toml", "--set", "task.kind=span-qa", "--set", "task.stride=40"]);
    assert!(refused.contains("stride"), "{refused}");
    fs::write(world.path("b.jsonl"), asked(8).replace("\"answer_start\":[", "\"answer_start\":[9")).unwrap();
    let refused = world.refuse(&["evaluate", "runs/a", "--data", "b.jsonl"]);
    assert!(refused.contains("b.jsonl:1: there are 0 answers and 1 places"), "{refused}");
}

/// Lines that cannot be used are counted and left out where that is asked for; else they stop the run.
#[test]
fn bad_records_are_skipped_where_that_is_asked_for() {
    let world = World::new();
    let text = fs::read_to_string(world.path("train.tsv")).unwrap();
    fs::write(world.path("train.tsv"), text.replacen("\nt", "\n\t\nt", 1) + "topic1\n").unwrap();
    let refused = world.refuse(&["plan", "run.toml"]);
    assert!(refused.contains("train.tsv:2"), "{refused}");
    let skipped = world.fedpipe(&["plan", "run.toml", "--set", "data.on_bad_record=skip"]);
    let errors = String::from_utf8_lossy(&skipped.stderr);
    assert!(skipped.status.success(), "{errors}");
    assert!(errors.contains("2 of 242 records are left out, the first because of this: train.tsv:2"), "{errors}");

    // What only shows when texts become tokens: an answer that does not stand where it is said to.
    let moved = asked(41).replacen("\"answer_start\":[", "\"answer_start\":[9", 2);
    let moved = moved.replacen("\"answer_start\":[9]", "\"answer_start\":[]", 1);
    fs::write(world.path("q.jsonl"), moved).unwrap();
    let sets = ["task.kind=span-qa", "data.train=[\"q.jsonl\"]", "data.test=[\"q.jsonl\"]", "data.on_bad_record=skip"];
    let arguments = ["plan", "run.toml"].into_iter().chain(sets.into_iter().flat_map(|set| ["--set", set]));
    let skipped = world.fedpipe(&arguments.collect::<Vec<_>>());
    let errors = String::from_utf8_lossy(&skipped.stderr);
    assert!(skipped.status.success(), "{errors}");
    let expected =
        "1 of 41 records are left out, the first because of this: q.jsonl:2: the answer \"w61\" does not stand";
    assert_eq!(errors.matches(expected).count(), 2, "of what is learnt and of what is measured on: {errors}");
}
