use super::*;

const MINIMAL: &str = r#"
[model]
path = "models/tiny"
[data]
train = ["train.tsv"]
test = ["test.tsv"]
[output]
dir = "runs/a"
[[silos]]
name = "clinic"
memory_mib = 700
"#;

fn parse(text: &str, options: &[&str]) -> Result<Config, ConfigError> {
    let options: Vec<String> = options.iter().map(ToString::to_string).collect();
    Config::parse("run.toml".as_ref(), text, &options)
}

fn error(text: &str, options: &[&str]) -> String {
    parse(text, options).unwrap_err().to_string()
}

/// `MINIMAL` with `line` appended to the section of that header.
fn with(header: &str, line: &str) -> String {
    assert!(MINIMAL.contains(header));
    MINIMAL.replace(header, &format!("{header}\n{line}"))
}

#[test]
fn every_default_is_written_out() {
    insta::assert_snapshot!(parse(MINIMAL, &[]).unwrap().to_toml().unwrap());
}

#[test]
fn the_resolved_configuration_reads_back_to_itself() {
    let full = r#"
        model = { hub = "sentence-transformers/all-MiniLM-L6-v2", revision = "v1" }
        data = { test = ["t.csv"], text = "body", label = "topic" }
        output = { dir = "runs/b", keep_checkpoints = 1 }
        evaluation = { every = 0, examples = 7 }
        [federation]
        rounds = 3
        seed = 9_000_000_000_000_000_000
        importance = "uniform"
        aggregation = "zero-pad"
        codec = "bf16"
        cohort = 0.25
        deadline_s = 30
        finish_within_h = 0.5
        server_rank = 32
        partition = { kind = "column", name = "site" }
        [adapter]
        target_modules = ["query", "value"]
        ranks = [1, 32]
        [plan]
        base_formats = ["nf4", "f32"]
        always_tune = ["query", "*.layer.5.*"]
        never_tune = []
        [training]
        threads = 2
        learning_rate = 0.1234567890123456
        recompute = true
        activation_cache = false
        activation_cache_disk_mib = 0
        [[silos]]
        name = "a"
        memory_mib = 1
        speed = 0.1
        data_cap_mib = 8
        data = ["a.jsonl", "with \\"quotes\\".tsv"]
        slows_down = { round = 4, speed = 0.2 }
    "#;
    for text in [MINIMAL, &full.replace("\\\\", "\\")] {
        let config = parse(text, &[]).unwrap();
        assert_eq!(parse(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }
}

#[test]
fn options_override_the_file_in_their_order() {
    let options = [
        "federation.rounds=3",
        "federation.rounds = 4",
        "federation.importance=uniform",
        "federation.partition={kind=\"iid\"}",
        "silos.clinic.memory_mib=2048",
        "data.test=[\"a.tsv\", \"b.tsv\"]",
        "adapter.target_modules=auto",
        "training.recompute=false",
        "plan.never_tune=[\"key\"]",
        "plan.always_tune=[]",
        "silos.clinic.data_cap_mib=8",
        "federation.finish_within_h=1.5",
        "training.threads=3",
    ];
    let config = parse(&with("[model]", ""), &options).unwrap();
    assert_eq!((config.federation.rounds, config.silos[0].memory_mib), (4, 2048));
    assert_eq!(config.federation.partition, Partition::Iid);
    assert_eq!((config.federation.importance.as_str(), config.data.test.len()), ("uniform", 2));
    assert_eq!(config.adapter.target_modules, TargetModules::Auto);
    assert_eq!(config.training.recompute, Auto::Given(false));
    assert_eq!((config.plan.always_tune.len(), config.plan.never_tune.as_slice()), (0, &["key".to_string()][..]));
    assert_eq!((config.silos[0].data_cap_mib, config.federation.finish_within_h), (Some(8.0), Some(1.5)));
    assert_eq!(config.training.threads, Some(3));
}

#[test]
fn every_scheduler_that_can_be_named_gives_its_schedule() {
    for (name, schedule) in names::SCHEDULES {
        let config = parse(MINIMAL, &[&format!("training.lr_scheduler_type={name}")]).unwrap();
        assert_eq!(config.training.schedule(), schedule, "{name}");
    }
    assert_eq!(parse(MINIMAL, &[]).unwrap().training.schedule(), Schedule::Linear);
}

#[test]
fn a_silo_with_its_own_files_needs_no_common_ones() {
    let own = with("[[silos]]", "data = [\"clinic.tsv\"]").replace("train = [\"train.tsv\"]\n", "");
    assert!(parse(&own, &[]).unwrap().data.train.is_empty());
}

/// Every message as a person sees it. A change here is a change of the interface: read it before accepting it.
#[test]
fn errors_show_the_line_and_what_to_do() {
    let cases: &[(&str, String, &[&str])] = &[
        ("unknown key", with("[output]", "keep_checkpoint = 3"), &[]),
        ("unknown table", format!("{MINIMAL}\n[trainning]\nlocal_steps = 3"), &[]),
        ("key without a likeness", with("[output]", "zzz = 3"), &[]),
        ("misspelt required key", MINIMAL.replace("memory_mib", "memory_mb"), &[]),
        ("missing required key", MINIMAL.replace("memory_mib = 700", ""), &[]),
        (
            "wrong type, range, list",
            format!("{MINIMAL}\n[training]\nlearning_rate = \"fast\"\nlocal_steps = 0\n[adapter]\nranks = [4, 2]"),
            &[],
        ),
        ("item of a list", MINIMAL.replace("[\"train.tsv\"]", "[\"train.tsv\", 7]"), &[]),
        ("empty list", format!("{MINIMAL}\n[plan]\nbase_formats = []\nbatch_sizes = []"), &[]),
        ("not a number", format!("{MINIMAL}\n[adapter]\nscaling = nan"), &[]),
        ("too large for an integer", format!("{MINIMAL}\n[federation]\nseed = 99999999999999999999"), &[]),
        ("unknown names", format!("{MINIMAL}\n[federation]\ncodec = \"fp16\"\nimportance = \"svd\""), &[]),
        ("key of another partition", format!("{MINIMAL}\n[federation.partition]\nkind = \"iid\"\nalpha = 1"), &[]),
        ("both sources of a model", with("[model]", "hub = \"a/b\""), &[]),
        ("revision without a hub", with("[model]", "revision = \"v1\""), &[]),
        ("recompute", format!("{MINIMAL}\n[training]\nrecompute = \"always\""), &[]),
        ("neither true nor false", format!("{MINIMAL}\n[training]\nactivation_cache = \"yes\""), &[]),
        ("deadline", format!("{MINIMAL}\n[federation]\ndeadline_s = \"soon\""), &[]),
        (
            "patterns, cap, end and threads",
            MINIMAL.replace("memory_mib = 700", "memory_mib = 700\ndata_cap_mib = 0")
                + "\n[plan]\nalways_tune = \"query\"\nnever_tune = [5]\n[federation]\nfinish_within_h = -1\n[training]\nthreads = 0",
            &[],
        ),
        ("target modules", format!("{MINIMAL}\n[adapter]\ntarget_modules = \"query\""), &[]),
        ("server rank", format!("{MINIMAL}\n[federation]\nserver_rank = 8"), &[]),
        ("output without a name", MINIMAL.replace("runs/a", ""), &[]),
        ("silo's name", MINIMAL.replace("\"clinic\"", "\"../clinic\""), &[]),
        ("silo twice", format!("{MINIMAL}\n[[silos]]\nname = \"clinic\"\nmemory_mib = 1"), &[]),
        ("what slows down", with("[[silos]]", "slows_down = { round = 0, sped = 0.2 }"), &[]),
        ("own importance", format!("{MINIMAL}\n[plan]\nown_importance = 1.5"), &[]),
        ("train unused", with("[[silos]]", "data = [\"clinic.tsv\"]"), &[]),
        ("not TOML", "[model]\npath = 1 2".into(), &[]),
        ("empty file", String::new(), &[]),
        ("option: unknown key", MINIMAL.into(), &["federation.ronds=3"]),
        ("option: unknown name", MINIMAL.into(), &["federation.method=fedpip"]),
        ("option: unknown silo", MINIMAL.into(), &["silos.clinc.memory_mib=3"]),
        ("option: a whole silo", MINIMAL.into(), &["silos.clinic=3"]),
        ("option: out of range", MINIMAL.into(), &["silos.clinic.memory_mib=-3"]),
        ("option: not TOML", MINIMAL.into(), &["adapter.ranks=[3"]),
        ("option: no value", MINIMAL.into(), &["adapter.ranks="]),
        ("option: no equals sign", MINIMAL.into(), &["rounds"]),
        ("option: no key", MINIMAL.into(), &["federation.=3"]),
        ("option: through a number", MINIMAL.into(), &["silos.clinic.memory_mib.x=3"]),
    ];
    let document: Vec<String> =
        cases.iter().map(|(name, text, options)| format!("## {name}\n{}\n", error(text, options))).collect();
    insta::assert_snapshot!(document.join("\n"));
}

#[test]
fn every_example_can_be_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let examples: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(!examples.is_empty());
    for example in examples {
        Config::load(&example, &[]).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn many_problems_are_counted_not_listed() {
    let lines: String = (0..30).map(|i| format!("unknown_{i} = 1\n")).collect();
    let message = error(&with("[output]", &lines), &[]);
    assert!(message.ends_with("… and 20 more"), "{message}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = Config::load("no/such.toml".as_ref(), &[]).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read no/such.toml: "), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large.toml");
    std::fs::write(&large, vec![b'#'; MAX_BYTES as usize + 1]).unwrap();
    let message = Config::load(&large, &[]).unwrap_err().to_string();
    assert!(message.contains("bytes are too many"), "{message}");
}
