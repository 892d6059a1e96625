//! The main job as a person meets it: seeds, kills, interrupts, exports.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::World;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const RESULTS: [&str; 2] = ["adapter/adapter_model.safetensors", "plan.json"];

fn results(run: &Path) -> Vec<Vec<u8>> {
    RESULTS.iter().map(|file| fs::read(run.join(file)).unwrap()).collect()
}

#[test]
fn one_seed_gives_the_same_bits_and_another_does_not() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet"]);
    world.succeed(&["run", "run.toml", "--quiet", "--output", "runs/b"]);
    world.succeed(&["run", "run.toml", "--quiet", "--output", "runs/c", "--set", "federation.seed=8"]);
    let [a, b, c] = ["runs/a", "runs/b", "runs/c"].map(|run| results(&world.path(run)));
    assert!(a == b, "one seed gave two results");
    assert!(a[0] != c[0], "two seeds gave one result");
}

#[test]
fn a_profile_is_completed_by_the_formats_that_it_lacks_and_else_stays() {
    let world = World::new();
    let times = |format: &str| -> Value {
        let formats = format!("plan.base_formats=[\"{format}\"]");
        world.succeed(&["profile", "run.toml", "--set", &formats]);
        let mut files = fs::read_dir(world.path("cache/profiles")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none(), "one machine and one model have one profile");
        serde_json::from_slice::<Value>(&fs::read(file).unwrap()).unwrap()["profile"]["time"].clone()
    };
    let first = times("f32");
    let both = times("nf4");
    assert_eq!(both["f32"], first["f32"]);
    assert!(first.get("nf4").is_none() && both.get("nf4").is_some());
    assert_eq!(times("f32"), both);
}

#[test]
fn settings_that_are_left_to_fedpipe_are_found_out_with_reasons() {
    let world = World::new();
    let keys = [
        "training.max_length",
        "adapter.target_modules",
        "federation.server_rank",
        "training.local_steps",
        "training.warmup_ratio",
        "adapter.scaling",
        "training.learning_rate",
    ];
    let auto: Vec<String> = keys.iter().flat_map(|key| ["--set".into(), format!("{key}=auto")]).collect();
    let run = |output: &'static str| {
        let auto = auto.iter().map(String::as_str);
        world.succeed(&["run", "run.toml", "--quiet", "--output", output].into_iter().chain(auto).collect::<Vec<_>>());
    };
    run("runs/a");
    let plan = world.json("runs/a/plan.json");
    let chosen = plan["chosen"].as_array().unwrap();
    assert_eq!(chosen.iter().map(|c| c["key"].as_str().unwrap()).collect::<Vec<_>>(), keys);
    assert!(
        chosen.iter().all(|c| !c["value"].as_str().unwrap().is_empty() && c["reason"].as_str().unwrap().len() > 20)
    );
    let state = world.json("runs/a/checkpoints/round-004/state.json");
    assert_eq!(chosen[2]["value"].as_str().unwrap(), plan["server_rank"].to_string());
    assert_eq!(chosen[3]["value"].as_str().unwrap(), plan["local_steps"].to_string());
    assert_eq!(chosen[6]["value"].as_str().unwrap().parse::<f64>().unwrap(), state["learning_rate"].as_f64().unwrap());
    let page = fs::read_to_string(world.path("runs/a/report.html")).unwrap();
    assert!(keys.iter().all(|key| page.contains(key)) && page.contains("Settings left to FedPipe"));
    run("runs/b");
    assert!(results(&world.path("runs/a")) == results(&world.path("runs/b")));
}

/// Waits for a file that a running process writes.
fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_run_resumes_to_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    let long = ["--set", "federation.rounds=8", "--set", "training.local_steps=60"];
    world.succeed(&[&["run", "run.toml", "--quiet"], &long[..]].concat());
    let mut child =
        world.command(&[&["run", "run.toml", "--quiet", "--output", "runs/b"], &long[..]].concat()).spawn().unwrap();
    wait_for(&world.path("runs/b/checkpoints/round-002"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!world.path("runs/b/adapter").exists(), "the run was over before it was killed");
    world.succeed(&["run", "--resume", "runs/b", "--quiet"]);
    assert!(results(&world.path("runs/a")) == results(&world.path("runs/b")));

    // Everything but the clock on the wall is the same in the last checkpoints, too.
    let state = |run: &str| -> Value {
        let mut state = world.json(&format!("{run}/checkpoints/round-008/state.json"));
        strip_real_time(&mut state);
        state
    };
    assert_eq!(state("runs/a"), state("runs/b"));
}

fn strip_real_time(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["wall_s", "compute_s", "peak_bytes", "cache"] {
                map.remove(key);
            }
            map.values_mut().for_each(strip_real_time);
        }
        Value::Array(values) => values.iter_mut().for_each(strip_real_time),
        _ => {}
    }
}

/// Every update of both rounds is late: nothing is written as if it had been learnt.
#[test]
fn a_run_that_learnt_nothing_says_so_and_exports_nothing() {
    let world = World::new();
    let slow = |silo| format!("silos.{silo}.slows_down={{ round = 1, speed = 0.001 }}");
    let options = [slow("north"), slow("south"), "federation.rounds=2".into()];
    let options: Vec<&str> = options.iter().flat_map(|option| ["--set", option]).collect();
    world.give_times(&options);
    let output = world.fedpipe(&[&["run", "run.toml", "--quiet"], &options[..]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("error: none of the 2 rounds had enough updates to be merged"), "{told}");
    assert!(told.contains("silo north in round 2"), "{told}");
    assert!(!world.path("runs/a/adapter").exists() && world.path("runs/a/checkpoints/round-002").exists());
}

/// A rehearsal: from round 3 on south is charged as if it were slower than it enrolled. It is late twice, gets a smaller plan
/// that keeps the deadline, and delivers again; importance is looked at again meanwhile. A run that goes on from the middle
/// ends the same.
#[test]
fn a_silo_that_slows_down_is_planned_again_and_a_resumed_run_ends_alike() {
    let world = World::new();
    let options = [
        "federation.rounds=7",
        "federation.refresh_importance=3",
        "plan.own_importance=0.5",
        "plan.batch_sizes=[4, 64]",
        "silos.south.speed=1.0",
        "silos.south.bandwidth_mbps=100",
        "silos.south.slows_down={ round = 3, speed = 0.6 }",
        "output.keep_checkpoints=8",
    ];
    let options: Vec<&str> = options.into_iter().flat_map(|option| ["--set", option]).collect();
    world.give_times(&options);
    world.succeed(&[&["run", "run.toml", "--quiet"], &options[..]].concat());

    let state = world.json("runs/a/checkpoints/round-007/state.json");
    let late: Vec<&Value> =
        state["history"].as_array().unwrap().iter().flat_map(|r| r["failures"].as_array().unwrap()).collect();
    let late: Vec<(&Value, &Value, &Value)> = late.iter().map(|f| (&f["round"], &f["silo"], &f["kind"])).collect();
    let (south, kind) = (&Value::from("south"), &Value::from("late"));
    assert_eq!(late, [(&3.into(), south, kind), (&4.into(), south, kind)], "{state}");
    let changes: Vec<(&Value, &Value)> =
        state["plan_changes"].as_array().unwrap().iter().map(|c| (&c["round"], &c["silo"])).collect();
    assert_eq!(changes, [(&3.into(), &Value::Null), (&4.into(), south), (&6.into(), &Value::Null)]);
    let learned = state["slowness"]["south"]["planned"].as_f64().unwrap();
    assert!((1.5..=1.0 / 0.6 + 1e-9).contains(&learned), "{learned}");
    assert_eq!(state["slowness"]["north"]["recent"], serde_json::json!([1.0, 1.0]));
    assert_eq!(state["profiles"]["south"]["speed"], 1.0);

    let events = fs::read_to_string(world.path("runs/a/events.jsonl")).unwrap();
    assert_eq!(
        events.lines().filter(|line| line.contains(r#""event":"replanned","round":4,"silo":"south""#)).count(),
        1
    );
    let time = |plan: &Value, silo: &str| -> f64 {
        plan["silos"][silo]["time"].as_object().unwrap().values().map(|seconds| seconds.as_f64().unwrap()).sum()
    };
    let (first, last) = (world.json("runs/a/plan.json"), world.json("runs/a/plan-final.json"));
    assert!(time(&last, "south") / learned < 0.9 * time(&first, "south"), "a smaller plan");
    assert_eq!(last["deadline_s"], first["deadline_s"]);
    let told = fs::read_to_string(world.path("runs/a/plan-final.md")).unwrap();
    assert!(told.contains("- after round 4, silo south: its last rounds took 1."), "{told}");
    let summary = world.json("runs/a/summary.json");
    let summary = &summary["silos"]["south"];
    assert_eq!(
        (&summary["rounds_delivered"], &summary["failures"], &summary["plan_changes"]),
        (&5.into(), &2.into(), &3.into())
    );
    assert!(fs::read_to_string(world.path("runs/a/report.html")).unwrap().contains("Plans that changed"));

    // As if the run had been killed after round 4, and after round 3.
    for (run, rounds) in [("runs/b", 4), ("runs/c", 3)] {
        fs::create_dir_all(world.path(run).join("checkpoints")).unwrap();
        for file in ["config.toml", "plan.json", "plan.md"] {
            fs::copy(world.path("runs/a").join(file), world.path(run).join(file)).unwrap();
        }
        let checkpoint = format!("checkpoints/round-{rounds:03}");
        fs::create_dir(world.path(run).join(&checkpoint)).unwrap();
        for file in ["state.json", "adapter.safetensors"] {
            let of = |run: &str| world.path(run).join(&checkpoint).join(file);
            fs::copy(of("runs/a"), of(run)).unwrap();
        }
        world.succeed(&["run", "--resume", run, "--quiet"]);
        assert!(results(&world.path("runs/a")) == results(&world.path(run)), "{run}");
        for file in ["checkpoints/round-007/state.json", "plan-final.json"] {
            let [a, b] = ["runs/a", run].map(|run| {
                let mut value = world.json(&format!("{run}/{file}"));
                strip_real_time(&mut value);
                value
            });
            assert_eq!(a, b, "{run}/{file}");
        }
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_after_the_step_and_leaves_a_run_to_resume() {
    let world = World::new();
    let long = ["--set", "federation.rounds=6", "--set", "training.local_steps=500"];
    let child = world
        .command(&[&["run", "run.toml"], &long[..]].concat())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&world.path("runs/a/checkpoints/round-000"));
    std::thread::sleep(Duration::from_millis(300));
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("go on with: fedpipe run --resume runs/a"), "{said}");
    let events = fs::read_to_string(world.path("runs/a/events.jsonl")).unwrap();
    assert!(events.contains(r#""stopped":true"#), "{events}");
    world.succeed(&["run", "--resume", "runs/a", "--quiet"]);
    assert_eq!(world.json("runs/a/summary.json")["rounds"], 6);
}

#[test]
fn a_finished_run_leaves_everything_that_it_promises_and_learns() {
    let world = World::new();
    let options = ["--set", "training.local_steps=60"];
    world.give_times(&options);
    world.succeed(&[&["run", "run.toml", "--quiet"], &options[..]].concat());
    for file in [
        "config.toml",
        "plan.json",
        "plan.md",
        "plan.svg",
        "events.jsonl",
        "summary.json",
        "report.html",
        "checkpoints/round-004/state.json",
        "adapter/adapter_config.json",
    ] {
        assert!(world.path("runs/a").join(file).is_file(), "{file} is missing");
    }
    assert_eq!(fs::read_dir(world.path("runs/a/tensorboard")).unwrap().count(), 1);

    let summary = world.json("runs/a/summary.json");
    assert!(summary["accuracy"].as_f64().unwrap() > 0.8, "{summary}");
    for silo in ["north", "south"] {
        let silo = &summary["silos"][silo];
        for side in ["predicted", "measured"] {
            assert!(silo[side]["memory_mib"].as_f64().unwrap() > 0.0, "{silo}");
            assert!(silo[side]["round_seconds"].as_f64().unwrap() > 0.0, "{silo}");
        }
    }

    let evaluated: Value =
        serde_json::from_str(&world.succeed(&["evaluate", "runs/a", "--data", "test.tsv", "--json"])).unwrap();
    assert_eq!(evaluated["accuracy"], summary["accuracy"]);
    let from_adapter: Value = serde_json::from_str(&world.succeed(&[
        "evaluate",
        "runs/a/adapter",
        "--model",
        "model",
        "--data",
        "test.tsv",
        "--json",
    ]))
    .unwrap();
    assert_eq!(from_adapter, evaluated);
}

#[test]
fn predictions_come_in_input_order_as_text_and_as_json() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet"]);
    let lines = world.succeed(&["predict", "runs/a", "--data", "test.tsv", "--limit", "5", "--json", "--logits"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    let texts = fs::read_to_string(world.path("test.tsv")).unwrap();
    for (line, text) in lines.iter().zip(texts.lines().skip(1)) {
        let alone = world.succeed(&["predict", "runs/a", "--text", text.split('\t').nth(1).unwrap()]);
        let (label, probability) = alone.trim().split_once('\t').unwrap();
        assert_eq!(line["label"], label);
        let difference = line["probability"].as_f64().unwrap() - probability.parse::<f64>().unwrap();
        assert!(difference.abs() < 1e-4, "{line} and alone {alone}");
        assert_eq!(line["logits"].as_array().unwrap().len(), 3);
    }
    let refused = world.refuse(&["predict", "runs/a", "--text", "w5", "--text-pair", "w6"]);
    assert!(refused.contains("takes single texts"), "{refused}");
    let refused = world.refuse(&["evaluate", "runs/a", "--data", "test.tsv", "--examples", "0"]);
    assert!(refused.contains("choose at least 1"), "{refused}");
    // Before a file is read.
    let refused = world.refuse(&["evaluate", "runs/a", "--data", "nowhere.tsv", "--max-new-tokens", "8"]);
    assert!(refused.contains("nothing is completed here"), "{refused}");
}

/// Their heads have a layer before the output, as wide as the model.
#[test]
fn adapters_that_peft_wrote_predict_without_a_file_of_ours() {
    let world = World::new();
    for name in ["roberta", "distilbert"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/encoders").join(name);
        let (adapter, model) = (model.join("peft-adapter").display().to_string(), model.display().to_string());
        let line =
            world.succeed(&["predict", &adapter, "--model", &model, "--text", "oil prices rose", "--json", "--logits"]);
        let found: Value = serde_json::from_str(&line).unwrap();
        assert!(found["label"].as_str().unwrap().starts_with("LABEL_"), "{line}");
        assert_eq!(found["logits"].as_array().unwrap().len(), 3, "{line}");
    }
}

#[test]
fn a_merged_model_is_a_model_folder_that_is_never_overwritten() {
    let world = World::new();
    world.succeed(&["run", "run.toml", "--quiet"]);
    world.succeed(&["export", "runs/a", "--to", "merged", "--format", "merged"]);
    let inspected: Value = serde_json::from_str(&world.succeed(&["inspect", "merged", "--json"])).unwrap();
    assert_eq!(inspected["architecture"], "bert");
    assert!(world.path("merged/tokenizer.json").is_file());
    assert!(world.refuse(&["export", "runs/a", "--to", "merged", "--format", "merged"]).contains("merged"));
    // A classifier's head fits into neither; both say what to do.
    for format in ["serving", "gguf"] {
        let message = world.refuse(&["export", "runs/a", "--to", "x", "--format", format]);
        assert!(message.contains("head") && message.contains("merged"), "{message}");
        assert!(!world.path("x").exists());
    }
}

#[test]
fn a_language_model_s_adapter_is_exported_in_every_format() {
    let world = World::of_prompts();
    world.succeed(&["run", "run.toml", "--quiet", "--set", "federation.rounds=1"]);
    for (format, files) in [
        ("peft", &["adapter_config.json", "adapter_model.safetensors", "fedpipe.json", "README.md"][..]),
        ("serving", &["adapter_config.json", "adapter_model.safetensors"]),
        ("merged", &["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
        ("gguf", &["adapter.gguf"]),
    ] {
        world.succeed(&["export", "runs/a", "--to", format, "--format", format]);
        let mut found: Vec<_> = fs::read_dir(world.path(format)).unwrap().map(|e| e.unwrap().file_name()).collect();
        let mut expected = files.to_vec();
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{format}");
    }
    // The first is the default, and a run leaves the first two behind.
    world.succeed(&["export", "runs/a", "--to", "default"]);
    let weights = |folder: &str| fs::read(world.path(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("default"), weights("peft"));
    assert_eq!(weights("runs/a/adapter"), weights("peft"));
    assert_eq!(weights("runs/a/adapter-serving"), weights("serving"));
    let config = world.json("serving/adapter_config.json");
    assert_eq!((&config["task_type"], &config["rank_pattern"]), (&"CAUSAL_LM".into(), &serde_json::json!({})));
}

#[test]
fn planning_writes_nothing() {
    let world = World::new();
    let plan: Value = serde_json::from_str(&world.succeed(&["plan", "run.toml", "--json"])).unwrap();
    assert!(plan["silos"]["north"]["batch_size"].as_u64().is_some());
    let text = world.succeed(&["plan", "run.toml"]);
    assert!(text.contains("north") && text.contains("% below the best there can be"), "{text}");
    let text = world.succeed(&["plan", "run.toml", "--what-if", "adapter.ranks=[2]"]);
    assert!(text.starts_with("Deadline of a round: ") && text.contains("→ 2"), "{text}");
    let smaller = world.succeed(&["plan", "run.toml", "--what-if", "adapter.ranks=[2]", "--json"]);
    let smaller: Value = serde_json::from_str(&smaller).unwrap();
    let told = |plan: &Value, key: &str| -> Vec<Value> {
        let chosen = plan["chosen"].as_array().unwrap().iter();
        chosen.filter(|chosen| chosen["key"] == key).map(|chosen| chosen["value"].clone()).collect()
    };
    let (rank, steps) = ("federation.server_rank", "training.local_steps");
    assert_eq!(told(&plan, rank), [plan["server_rank"].to_string()]);
    assert_eq!((told(&smaller, rank), &smaller["server_rank"]), (vec![Value::from("2")], &Value::from(2)));
    let open = ["--set", "training.local_steps='auto'", "--json"];
    let open: Value = serde_json::from_str(&world.succeed(&[&["plan", "run.toml"], &open[..]].concat())).unwrap();
    assert_eq!(told(&open, steps), [open["local_steps"].to_string()]);
    // A search for the learning rate would train for rounds.
    let text = world.succeed(&["plan", "run.toml", "--set", "training.learning_rate='auto'"]);
    assert!(text.contains("training.learning_rate = auto: found when the run begins, by training at 0.0003"), "{text}");
    // What was left to the planner is given, and the other way round.
    let given = ["--set", "training.local_steps='auto'", "--what-if", "training.local_steps=7", "--json"];
    let given: Value = serde_json::from_str(&world.succeed(&[&["plan", "run.toml"], &given[..]].concat())).unwrap();
    assert_eq!((told(&given, steps), &given["local_steps"]), (vec![], &Value::from(7)));
    let opened = ["plan", "run.toml", "--what-if", "training.local_steps='auto'", "--json"];
    let opened: Value = serde_json::from_str(&world.succeed(&opened)).unwrap();
    assert_eq!((told(&opened, steps), &opened["local_steps"]), (told(&open, steps), &open["local_steps"]));
    let text = world.succeed(&["plan", "run.toml", "--what-if", "silos.north.memory_mib=4096"]);
    assert!(text.contains("As before: "), "{text}");
    let text = world.succeed(&["plan", "run.toml", "--what-if", "plan.never_tune=[\"*\"]"]);
    assert!(text.contains("→ none"), "{text}");
    let text = world.succeed(&["plan", "run.toml", "--what-if", "federation.finish_within_h=1000"]);
    assert!(text.contains("As before: north, south."), "{text}");
    let capped = ["--set", "silos.north.data_cap_mib=1000", "--set", "plan.always_tune=[\"query\"]"];
    let text = world.succeed(&[&["plan", "run.toml"], &capped[..]].concat());
    assert!(
        text.contains("MiB sent and received") && text.contains("decided beforehand by plan.always_tune: "),
        "{text}"
    );
    let refused = world.refuse(&["plan", "run.toml", "--what-if", "silos.north.data_cap_mib=0.001"]);
    assert!(refused.contains("silo north: the smallest plan (head only) moves up to "), "{refused}");
    let refused = world.refuse(&["plan", "run.toml", "--set", "plan.never_tune=[\"querry\"]"]);
    assert!(
        refused.contains("plan.never_tune: no weight that may be adapted matches `querry`; there are"),
        "{refused}"
    );
    let refused = world.refuse(&["plan", "run.toml", "--what-if", "training.max_length=8"]);
    assert!(refused.contains("--what-if changes something that is measured or learnt anew"), "{refused}");
    assert!(!world.path("runs").exists());
    let text = world.succeed(&["plan", "run.toml", "--svg", "plan.svg"]);
    assert!(text.contains("Ranks by silo, layer and kind of weight") && !text.contains('\u{1b}'), "{text}");
    let drawing = fs::read_to_string(world.path("plan.svg")).unwrap();
    assert!(drawing.starts_with("<svg xmlns=") && drawing.contains("north"), "{drawing}");
    let refused = world.refuse(&["plan", "run.toml", "--svg", "nowhere/plan.svg"]);
    assert!(refused.contains("nowhere/plan.svg: "), "{refused}");
}

#[test]
fn a_cap_on_threads_has_a_profile_of_its_own() {
    let world = World::new();
    let profile =
        |threads: &str| world.succeed(&["profile", "run.toml", "--set", &format!("training.threads={threads}")]);
    assert!(profile("1").contains(", 1 threads, "));
    let kept = || fs::read_dir(world.path("cache/profiles")).unwrap().count();
    assert_eq!((kept(), profile("1").len() > 1, kept()), (1, true, 1));
    let all = world.succeed(&["profile", "run.toml"]);
    assert_eq!(kept(), if all.contains(", 1 threads, ") { 1 } else { 2 });
}

#[test]
fn a_column_or_files_of_their_own_can_give_silos_their_data() {
    let world = World::new();
    let column = ["--set", "federation.partition={kind=\"column\",name=\"site\"}", "--set", "federation.rounds=1"];
    world.succeed(&[&["run", "run.toml", "--quiet"], &column[..]].concat());
    assert_eq!(world.json("runs/a/summary.json")["silos"]["north"]["examples"], 120);
    let own = ["--output", "runs/b", "--set", "silos.north.data=[\"test.tsv\"]", "--set", "federation.rounds=1"];
    world.succeed(&[&["run", "run.toml", "--quiet"], &own[..]].concat());
    let silos = world.json("runs/b/summary.json")["silos"].clone();
    assert_eq!((&silos["north"]["examples"], &silos["south"]["examples"]), (&60.into(), &240.into()));
}
