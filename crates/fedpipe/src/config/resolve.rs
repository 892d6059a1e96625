//! From the tree to the typed configuration: every key with its default and its range, section by section.

use super::problem::Problem;
use super::read::{Problems, Section};
use super::source::{Node, Value};
use super::{
    AUTO, AdapterConfig, Auto, Config, DataColumns, DataConfig, EvaluationConfig, FederationConfig, ModelSource,
    OutputConfig, Partition, PlanConfig, ProbeConfig, SiloConfig, SlowsDownConfig, TargetModules, TaskConfig,
    TrainingConfig, names,
};
use fedpipe_core::BaseFormat;
use fedpipe_model::data::{InstructionFormat, OnBadRecord, Reading};
use regex::Regex;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// The smallest value of a number that has to be above zero.
const TINY: f64 = 1e-12;

/// Tokens of a window of question and passage where the length is left to FedPipe: what SQuAD is usually read with.
pub const QUESTION_LENGTH: usize = 384;

const MAX_SILOS: usize = 10_000;
const MAX_RANK: usize = 256;
const MAX_BATCH: usize = 4096;
const SPEEDS: RangeInclusive<f64> = 1e-4..=1e4;
const MAX_THREADS: i64 = 4096;

pub(super) fn config(root: Node, problems: &Problems) -> Config {
    let mut root = Section::new(problems, "the configuration".into(), Some(root));
    let adapter = adapter(root.section("adapter"));
    let silos = silos(&mut root);
    let training = training(root.section("training"));
    let task = task(root.section("task"), training.max_length);
    let config = Config {
        model: model(root.section("model")),
        data: data(root.section("data"), &silos, &task),
        task,
        federation: federation(root.section("federation"), &adapter),
        adapter,
        plan: plan(root.section("plan")),
        probe: probe(root.section("probe")),
        training,
        evaluation: evaluation(root.section("evaluation")),
        output: output(root.section("output")),
        silos,
    };
    root.finish();
    config
}

fn model(mut section: Section<'_>) -> ModelSource {
    let path = section.optional("path");
    let hub: Option<String> = section.optional("hub");
    let revision_at = section.place_of("revision");
    let revision = section.optional("revision");
    if hub.is_none()
        && let Some(at) = revision_at
    {
        section.problems().add(Problem::new("`revision` goes with `hub`, not with `path`", at));
    }
    let source = match (path, hub) {
        (Some(path), None) => ModelSource::Path { path },
        (None, Some(hub)) => ModelSource::Hub { hub, revision: revision.unwrap_or_else(|| "main".into()) },
        (path, _) => {
            let title = match path {
                Some(_) => "[model] takes either `path` or `hub`, not both",
                None => "[model] needs `path` (a Hugging Face folder or a GGUF file) or `hub` (`owner/name`)",
            };
            section.conflict(title);
            ModelSource::Path { path: PathBuf::new() }
        }
    };
    section.finish();
    source
}

fn task(mut section: Section<'_>, max_length: Auto<usize>) -> TaskConfig {
    let max_length = max_length.given().unwrap_or(QUESTION_LENGTH);
    let kind = section.choice("kind", names::TASKS);
    let instruct = kind == "instruct";
    let format = instruct.then(|| section.choice("format", names::FORMATS).into());
    let template = instruct.then(|| section.choice("template", names::TEMPLATES).into());
    let usual = Reading::usual(max_length).stride;
    let stride = (kind == "span-qa").then(|| section.count("stride", usual, 0..=max_length));
    section.finish();
    TaskConfig { kind: kind.into(), format, template, stride }
}

fn data(mut section: Section<'_>, silos: &[SiloConfig], task: &TaskConfig) -> DataConfig {
    let every_silo_has_its_own = !silos.is_empty() && silos.iter().all(|silo| !silo.data.is_empty());
    let train_at = section.place_of("train");
    let train = paths(&mut section, "train");
    if every_silo_has_its_own && !train.is_empty() {
        section.problems().add(Problem::new("train is of no use: every silo has data of its own", train_at));
    } else if !every_silo_has_its_own && train.is_empty() {
        section.conflict("[data] needs `train`, a list of files, for the silos without data of their own");
    }
    let test = paths(&mut section, "test");
    if test.is_empty() {
        section.conflict("[data] needs `test`, a list of files");
    }
    let on_bad_record = match section.choice("on_bad_record", names::ON_BAD_RECORD) {
        "skip" => OnBadRecord::Skip,
        _ => OnBadRecord::Error,
    };
    let keep_tokens = section.optional("keep_tokens").unwrap_or(true);
    let mut column = |name: &'static str| section.optional(name).unwrap_or_else(|| name.into());
    let columns = match (task.kind.as_str(), task.instruction_format()) {
        ("instruct", InstructionFormat::Completion) => {
            DataColumns::Completed { prompt: column("prompt"), completion: column("completion") }
        }
        ("instruct", InstructionFormat::Messages) => DataColumns::Messages { messages: column("messages") },
        ("instruct", InstructionFormat::Alpaca) => {
            DataColumns::Alpaca { instruction: column("instruction"), input: column("input"), output: column("output") }
        }
        ("pair", _) => {
            DataColumns::Paired { text: column("text"), text_pair: column("text_pair"), label: column("label") }
        }
        ("span-qa", _) => DataColumns::Questions {
            question: column("question"),
            context: column("context"),
            answers: column("answers"),
        },
        ("lm", _) => DataColumns::Texts { text: column("text") },
        _ => DataColumns::Labelled { text: column("text"), label: column("label") },
    };
    section.finish();
    DataConfig { train, test, on_bad_record, keep_tokens, columns }
}

fn paths(section: &mut Section<'_>, key: &'static str) -> Vec<PathBuf> {
    section.list(key).unwrap_or_default().into_iter().map(|(path, _)| path).collect()
}

fn federation(mut section: Section<'_>, adapter: &AdapterConfig) -> FederationConfig {
    let server_rank_at = section.place_of("server_rank");
    let largest = adapter.ranks.last().copied().unwrap_or(1);
    let config = FederationConfig {
        method: section.choice("method", names::METHODS).into(),
        rounds: section.count("rounds", 8, 1..=100_000) as u32,
        seed: section.number("seed", 42, 0..=i64::MAX).unsigned_abs(),
        importance: section.choice("importance", names::IMPORTANCES).into(),
        aggregation: section.choice("aggregation", names::AGGREGATIONS).into(),
        codec: section.choice("codec", names::CODECS).into(),
        cohort: section.number("cohort", 1.0, TINY..=1.0),
        quorum: section.number("quorum", 0.5, TINY..=1.0),
        deadline_s: section.auto_number("deadline_s", Auto::Auto, 1e-3..=1e9),
        finish_within_h: section.optional_number("finish_within_h", 1e-6..=1e6),
        server_rank: section.auto_count("server_rank", Auto::Auto, 1..=MAX_RANK),
        max_update_norm: section.number("max_update_norm", 1e3, TINY..=1e9),
        refresh_importance: section.count("refresh_importance", 0, 0..=100_000) as u32,
        partition: partition(&mut section),
    };
    if let Some(server_rank) = config.server_rank.given().filter(|&rank| rank < largest) {
        let title = format!("server_rank {server_rank} is below {largest}, the largest of adapter.ranks");
        section.problems().add(Problem::new(title, server_rank_at));
    }
    section.finish();
    config
}

fn partition(parent: &mut Section<'_>) -> Partition {
    let mut section = parent.section("partition");
    let partition = match section.choice("kind", names::PARTITIONS) {
        "iid" => Partition::Iid,
        "column" => Partition::Column { name: section.required("name"), pattern: pattern(&mut section) },
        _ => Partition::Dirichlet { alpha: section.number("alpha", 0.5, 1e-3..=1e6) },
    };
    section.finish();
    partition
}

fn pattern(section: &mut Section<'_>) -> Option<String> {
    let at = section.place_of("pattern");
    let pattern: String = section.optional("pattern")?;
    match Regex::new(&pattern) {
        Ok(_) => Some(pattern),
        Err(error) => {
            let reason = error.to_string().lines().last().unwrap_or_default().to_string();
            section.problems().add(Problem::new(format!("pattern is no regular expression: {reason}"), at));
            None
        }
    }
}

fn adapter(mut section: Section<'_>) -> AdapterConfig {
    let config = AdapterConfig {
        target_modules: target_modules(&mut section),
        ranks: section.counts("ranks", &[2, 4, 8, 16], 1..=MAX_RANK),
        scaling: section.auto_number("scaling", Auto::Given(2.0), TINY..=1e3),
        dropout: section.number("dropout", 0.0, 0.0..=0.9),
    };
    section.finish();
    config
}

fn target_modules(section: &mut Section<'_>) -> TargetModules {
    const KEY: &str = "target_modules";
    if let Some(Value::Array(_)) = section.peek(KEY) {
        let kinds = section.list(KEY).unwrap_or_default();
        return TargetModules::Kinds(kinds.into_iter().map(|(kind, _)| kind).collect());
    }
    let Some(Node { value, at }) = section.take(KEY) else { return TargetModules::Attention };
    match value {
        Value::String(text) if text == names::ATTENTION => return TargetModules::Attention,
        Value::String(text) if text == names::ALL_LINEAR => return TargetModules::AllLinear,
        Value::String(text) if text == AUTO => return TargetModules::Auto,
        _ => {}
    }
    let problem = Problem::new("target_modules must be \"attention\", \"all-linear\", \"auto\" or a list of kinds", at);
    section.problems().add(problem.help("for example [\"query\", \"value\"]"));
    TargetModules::Attention
}

fn plan(mut section: Section<'_>) -> PlanConfig {
    const FORMATS: &str = "base_formats";
    let batch_sizes = section.counts("batch_sizes", &[4, 8, 16, 32], 1..=MAX_BATCH);
    let step_multiples = section.counts("step_multiples", &[1, 2, 3, 4, 6, 8], 1..=1000);
    let base_formats = match section.list::<String>(FORMATS) {
        None => BaseFormat::ALL.to_vec(),
        Some(items) => {
            let format =
                |(name, at): (String, _)| section.one_of("base format", &name, names::BASE_FORMATS, &at)?.parse().ok();
            let mut formats: Vec<BaseFormat> = items.into_iter().filter_map(format).collect();
            formats.sort_unstable();
            formats.dedup();
            formats
        }
    };
    let coverage = section.count("coverage", 2, 0..=MAX_SILOS);
    let own_importance = section.number("own_importance", 0.0, 0.0..=1.0);
    let (always_tune, never_tune) = (section.strings("always_tune"), section.strings("never_tune"));
    section.finish();
    PlanConfig { batch_sizes, step_multiples, base_formats, coverage, own_importance, always_tune, never_tune }
}

fn probe(mut section: Section<'_>) -> ProbeConfig {
    let config = ProbeConfig {
        steps: section.count("steps", 8, 1..=100_000),
        rank: section.count("rank", 4, 1..=MAX_RANK),
        batch_size: section.count("batch_size", 8, 1..=MAX_BATCH),
        learning_rate: section.number("learning_rate", 1e-3, TINY..=10.0),
    };
    section.finish();
    config
}

fn training(mut section: Section<'_>) -> TrainingConfig {
    let config = TrainingConfig {
        local_steps: section.auto_count("local_steps", Auto::Given(20), 1..=1_000_000),
        learning_rate: section.auto_number("learning_rate", Auto::Given(1e-3), TINY..=10.0),
        lr_scheduler_type: section.choice("lr_scheduler_type", names::SCHEDULERS).into(),
        warmup_ratio: section.auto_number("warmup_ratio", Auto::Given(0.0), 0.0..=1.0),
        max_length: section.auto_count("max_length", Auto::Given(128), 2..=1 << 20),
        weight_decay: section.number("weight_decay", 0.01, 0.0..=10.0),
        max_grad_norm: section.number("max_grad_norm", 1.0, TINY..=1e9),
        recompute: section.auto("recompute", Auto::Auto),
        threads: section.optional_number("threads", 1..=MAX_THREADS).and_then(|threads| usize::try_from(threads).ok()),
        activation_cache: section.optional("activation_cache").unwrap_or(true),
        activation_cache_disk_mib: section.count("activation_cache_disk_mib", 2048, 0..=1 << 24) as u64,
    };
    section.finish();
    config
}

fn evaluation(mut section: Section<'_>) -> EvaluationConfig {
    let config = EvaluationConfig {
        every: section.count("every", 1, 0..=100_000) as u32,
        examples: section.count("examples", 512, 1..=1 << 30),
        final_examples: section.count("final_examples", 0, 0..=1 << 30),
    };
    section.finish();
    config
}

fn output(mut section: Section<'_>) -> OutputConfig {
    // No folder is there under an empty name, but files would land in the current one, among somebody else's.
    if matches!(section.peek("dir"), Some(Value::String(dir)) if dir.is_empty()) {
        let problem = Problem::new("dir must not be empty", section.place_of("dir"));
        section.problems().add(problem.help("name a folder, for example \"runs/a\""));
    }
    let config = OutputConfig {
        dir: section.required("dir"),
        keep_checkpoints: section.count("keep_checkpoints", 3, 1..=100_000),
    };
    section.finish();
    config
}

fn silos(root: &mut Section<'_>) -> Vec<SiloConfig> {
    let entries = match root.take("silos") {
        Some(Node { value: Value::Array(entries), .. }) => entries,
        Some(Node { at, .. }) => {
            root.problems().add(Problem::new("silos must be a list of tables: [[silos]]", at));
            return Vec::new();
        }
        None => Vec::new(),
    };
    if entries.is_empty() {
        root.problems().add(Problem::new("a federation needs at least one [[silos]] entry", None));
    }
    if entries.len() > MAX_SILOS {
        let title = format!("{} silos are more than the {MAX_SILOS} that a run may have", entries.len());
        root.problems().add(Problem::new(title, None));
    }
    let mut silos: Vec<SiloConfig> = Vec::new();
    for entry in entries {
        let silo = silo(Section::new(root.problems(), "[[silos]]".into(), Some(entry)), &silos);
        silos.push(silo);
    }
    silos
}

fn silo(mut section: Section<'_>, others: &[SiloConfig]) -> SiloConfig {
    let name_at = section.place_of("name");
    let name: String = section.required("name");
    if name_at.is_some() {
        let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if name.is_empty() || name.len() > 64 || !letters {
            let title = "a silo's name must be 1 to 64 letters, digits, `-` or `_`: files are named after it";
            section.problems().add(Problem::new(title, name_at));
        } else if others.iter().any(|other| other.name == name) {
            section.problems().add(Problem::new(format!("two silos are named `{name}`"), name_at));
        }
    }
    if !section.has("memory_mib") {
        section.miss("memory_mib");
    }
    let silo = SiloConfig {
        name,
        memory_mib: section.count("memory_mib", 0, 1..=1 << 24) as u64,
        speed: section.number("speed", 1.0, SPEEDS),
        bandwidth_mbps: section.number("bandwidth_mbps", 100.0, 1e-3..=1e6),
        data_cap_mib: section.optional_number("data_cap_mib", 1e-3..=1e9),
        data: paths(&mut section, "data"),
        slows_down: slows_down(&mut section),
    };
    section.finish();
    silo
}

fn slows_down(silo: &mut Section<'_>) -> Option<SlowsDownConfig> {
    let asked = silo.has("slows_down");
    let mut section = silo.section("slows_down");
    if !asked {
        return None;
    }
    for key in ["round", "speed"] {
        if !section.has(key) {
            section.miss(key);
        }
    }
    let (round, speed) = (section.count("round", 1, 1..=100_000) as u32, section.number("speed", 1.0, SPEEDS));
    section.finish();
    Some(SlowsDownConfig { round, speed })
}
