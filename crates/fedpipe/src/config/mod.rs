//! The configuration of a run: typed, every default resolved, unknown keys refused.
//!
//! ```
//! use fedpipe::config::Config;
//!
//! let text = r#"
//!     model.path = "assets/models/all-MiniLM-L6-v2"
//!     data = { train = ["train.tsv"], test = ["test.tsv"] }
//!     output.dir = "runs/first"
//!     [[silos]]
//!     name = "clinic"
//!     memory_mib = 700
//! "#;
//! let config = Config::parse("first.toml".as_ref(), text, &["federation.rounds=3".into()])?;
//! assert_eq!((config.federation.rounds, config.silos[0].speed), (3, 1.0));
//! # Ok::<(), fedpipe::config::ConfigError>(())
//! ```

pub mod names;
mod problem;
mod read;
mod resolve;
mod source;
#[cfg(test)]
mod tests;

pub use problem::ConfigError;
pub use resolve::QUESTION_LENGTH;

use fedpipe_core::{BaseFormat, Schedule};
use fedpipe_model::data::{Columns, InstructionFormat, OnBadRecord};
use problem::Sources;
use read::Problems;
use serde::{Serialize, Serializer};
use std::path::{Path, PathBuf};

/// Bytes of the largest configuration that is read.
const MAX_BYTES: u64 = 1 << 20;

/// All that a person decides about a run. Paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The base model.
    pub model: ModelSource,
    /// What is learnt.
    pub task: TaskConfig,
    /// The texts.
    pub data: DataConfig,
    /// The rounds and how they are merged.
    pub federation: FederationConfig,
    /// What is trained.
    pub adapter: AdapterConfig,
    /// What the planner may choose from.
    pub plan: PlanConfig,
    /// The importance probe.
    pub probe: ProbeConfig,
    /// Local training.
    pub training: TrainingConfig,
    /// Measuring the federation's model.
    pub evaluation: EvaluationConfig,
    /// What the run leaves behind.
    pub output: OutputConfig,
    /// The sites.
    pub silos: Vec<SiloConfig>,
}

/// Where the base model comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelSource {
    /// A Hugging Face folder or a GGUF file on disk.
    Path {
        /// The folder or the file.
        path: PathBuf,
    },
    /// A repository of the Hugging Face hub.
    Hub {
        /// `owner/name`.
        hub: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// A folder when there is one of that name, else a repository of the hub if it looks like one (`owner/name`).
    pub fn named(name: &str) -> Self {
        let is_repository = !Path::new(name).exists() && name.split('/').filter(|part| !part.is_empty()).count() == 2;
        match is_repository && !name.starts_with(['.', '/']) {
            true => Self::Hub { hub: name.into(), revision: "main".into() },
            false => Self::Path { path: name.into() },
        }
    }
}

/// `[task]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskConfig {
    /// One of [`names::TASKS`].
    pub kind: String,
    /// How records hold instructions, one of [`names::FORMATS`]; only for those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// How prompts and completions become texts, one of [`names::TEMPLATES`]; only for instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Tokens that one window of a passage shares with the next; only for questions about passages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
}

impl TaskConfig {
    /// How records hold instructions.
    pub fn instruction_format(&self) -> InstructionFormat {
        match self.format.as_deref() {
            Some("messages") => InstructionFormat::Messages,
            Some("alpaca") => InstructionFormat::Alpaca,
            _ => InstructionFormat::Completion,
        }
    }

    /// Whether a chat template is asked for; none leaves it to the model.
    pub fn chat(&self) -> Option<bool> {
        self.template.as_deref().and_then(chat)
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataConfig {
    /// Files that are split over the silos without files of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub train: Vec<PathBuf>,
    /// Files that the server evaluates on.
    pub test: Vec<PathBuf>,
    /// What is done with a record that cannot be used.
    pub on_bad_record: OnBadRecord,
    /// Whether tokens of large data are kept in this user's cache folder for the next run.
    pub keep_tokens: bool,
    /// Where in them the texts are.
    #[serde(flatten)]
    pub columns: DataColumns,
}

/// Whether one of [`names::TEMPLATES`] asks for a chat; none leaves it to the model.
pub fn chat(template: &str) -> Option<bool> {
    match template {
        "chat" => Some(true),
        "plain" => Some(false),
        _ => None,
    }
}

/// The columns that a task reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum DataColumns {
    /// Texts with labels.
    Labelled {
        /// Column of the text.
        text: String,
        /// Column of the label.
        label: String,
    },
    /// Pairs of texts with labels.
    Paired {
        /// Column of the first text.
        text: String,
        /// Column of the second text.
        text_pair: String,
        /// Column of the label.
        label: String,
    },
    /// Questions about passages.
    Questions {
        /// Column of the question.
        question: String,
        /// Column of the passage.
        context: String,
        /// Column of the answers.
        answers: String,
    },
    /// Prompts with what is to be written after them.
    Completed {
        /// Column of the prompt.
        prompt: String,
        /// Column of the completion.
        completion: String,
    },
    /// Conversations.
    Messages {
        /// Column of the messages.
        messages: String,
    },
    /// Alpaca's instructions.
    Alpaca {
        /// Column of the instruction.
        instruction: String,
        /// Column of what it is about, which may be empty.
        input: String,
        /// Column of the answer.
        output: String,
    },
    /// Texts alone.
    Texts {
        /// Column of the text.
        text: String,
    },
}

impl DataColumns {
    /// What is read of a file.
    pub fn columns(&self) -> Columns {
        let labelled = |text: &str, label: &String| Columns { label: Some(label.clone()), ..Columns::of_text(text) };
        match self {
            Self::Labelled { text, label } => labelled(text, label),
            Self::Paired { text, text_pair, label } => {
                Columns { second: Some(text_pair.clone()), ..labelled(text, label) }
            }
            Self::Questions { question, context, answers } => {
                Columns { second: Some(context.clone()), structured: true, ..labelled(question, answers) }
            }
            Self::Completed { prompt, completion } => labelled(prompt, completion),
            Self::Messages { messages } => Columns { structured: true, ..Columns::of_text(messages) },
            Self::Alpaca { instruction, input, output } => {
                Columns { second: Some(input.clone()), ..labelled(instruction, output) }
            }
            Self::Texts { text } => Columns::of_text(text),
        }
    }
}

/// `[federation]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FederationConfig {
    /// One of [`names::METHODS`].
    pub method: String,
    /// Number of rounds.
    pub rounds: u32,
    /// Where all randomness starts.
    pub seed: u64,
    /// One of [`names::IMPORTANCES`].
    pub importance: String,
    /// One of [`names::AGGREGATIONS`].
    pub aggregation: String,
    /// One of [`names::CODECS`].
    pub codec: String,
    /// Share of the silos that takes part in a round.
    pub cohort: f64,
    /// Share of the cohort that has to deliver for a round to count.
    pub quorum: f64,
    /// Seconds that a round may last, or as the planner chooses.
    pub deadline_s: Auto<f64>,
    /// Hours on the run's clock within which all rounds must end: each may last an equal part of them at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_within_h: Option<f64>,
    /// Largest rank of the merged factors, or that of the ranks that the planner chooses.
    pub server_rank: Auto<usize>,
    /// Updates of a larger Frobenius norm are refused.
    pub max_update_norm: f64,
    /// Rounds from one estimate of importance from the adapters in training to the next; 0 leaves it at the probe.
    pub refresh_importance: u32,
    /// How `data.train` is split over the silos.
    pub partition: Partition,
}

/// A value that a person gave, or FedPipe's own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// `"auto"`.
    Auto,
    /// The value.
    Given(T),
}

impl<T> Auto<T> {
    /// The value, if there is one.
    pub fn given(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Given(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Given(value) => value.serialize(serializer),
        }
    }
}

/// Written where FedPipe shall choose.
const AUTO: &str = "auto";

/// How one data set is split over the silos.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Partition {
    /// Every label's examples by shares drawn from a Dirichlet distribution; a small `alpha` is very uneven.
    Dirichlet {
        /// Concentration.
        alpha: f64,
    },
    /// At random, in equal parts.
    Iid,
    /// By a column that names the silo.
    Column {
        /// The column.
        name: String,
        /// What of its value counts: the first group of this regular expression, or what all of it matches.
        #[serde(skip_serializing_if = "Option::is_none")]
        pattern: Option<String>,
    },
}

/// `[adapter]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterConfig {
    /// Weights that may be adapted.
    pub target_modules: TargetModules,
    /// Ranks that the planner may give to a weight.
    pub ranks: Vec<usize>,
    /// alpha / r, one for every rank.
    pub scaling: Auto<f64>,
    /// Dropout on the input of the adapters.
    pub dropout: f64,
}

/// Weights that may be adapted.
#[derive(Debug, Clone, PartialEq)]
pub enum TargetModules {
    /// Those of attention.
    Attention,
    /// All linear layers of the encoder or decoder.
    AllLinear,
    /// The kinds among all linear layers that the importance probe finds worth their size.
    Auto,
    /// Those of these kinds, each the end of a weight's path.
    Kinds(Vec<String>),
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Attention => serializer.serialize_str(names::ATTENTION),
            Self::AllLinear => serializer.serialize_str(names::ALL_LINEAR),
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Kinds(kinds) => kinds.serialize(serializer),
        }
    }
}

/// `[plan]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanConfig {
    /// Batch sizes that the planner may choose from.
    pub batch_sizes: Vec<usize>,
    /// How many times `training.local_steps` the planner may let a silo make in a round, of the smallest batch.
    pub step_multiples: Vec<usize>,
    /// Formats of the frozen weights that the planner may choose from.
    pub base_formats: Vec<BaseFormat>,
    /// How many silos should train each of the weights that hold half of all importance.
    pub coverage: usize,
    /// What a silo's own scores count for in its plan, from 0 to 1; the federation's count for the rest.
    pub own_importance: f64,
    /// Weights that every silo trains: kinds, whole names, or names with `*` for any letters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub always_tune: Vec<String>,
    /// Weights that no silo trains, named likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub never_tune: Vec<String>,
}

/// `[probe]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeConfig {
    /// Training steps on every silo.
    pub steps: usize,
    /// Triplets on every weight.
    pub rank: usize,
    /// Texts in a batch.
    pub batch_size: usize,
    /// Learning rate.
    pub learning_rate: f64,
}

/// `[training]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingConfig {
    /// Optimizer steps of a silo in a round.
    pub local_steps: Auto<usize>,
    /// AdamW's highest learning rate.
    pub learning_rate: Auto<f64>,
    /// One of [`names::SCHEDULERS`].
    pub lr_scheduler_type: String,
    /// Share of all steps in which the learning rate rises to its highest.
    pub warmup_ratio: Auto<f64>,
    /// Texts are cut to so many tokens.
    pub max_length: Auto<usize>,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Whether the inside of adapted layers is computed again in the backward pass instead of being kept.
    pub recompute: Auto<bool>,
    /// Most threads to compute with; without it as many as `RAYON_NUM_THREADS` says, or as the machine has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Whether a silo keeps the output of its frozen lower layers, in the memory that its plan leaves.
    pub activation_cache: bool,
    /// MiB of the disk that each silo may take for it beside that; 0 for none.
    pub activation_cache_disk_mib: u64,
}

impl TrainingConfig {
    /// How the learning rate goes on after its warm-up.
    pub fn schedule(&self) -> Schedule {
        let [(_, first), ..] = names::SCHEDULES;
        let named = names::SCHEDULES.into_iter().find(|(name, _)| *name == self.lr_scheduler_type);
        // Whatever was read has one of the names.
        named.map_or(first, |(_, schedule)| schedule)
    }
}

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationConfig {
    /// Rounds from one evaluation to the next; 0 leaves only the one at the end.
    pub every: u32,
    /// Test examples of an evaluation between rounds, over bf16 weights.
    pub examples: usize,
    /// Test examples of the evaluation at the end, over f32 weights; 0 takes all.
    pub final_examples: usize,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputConfig {
    /// The run's folder.
    pub dir: PathBuf,
    /// Checkpoints that are kept, the last ones.
    pub keep_checkpoints: usize,
}

/// One `[[silos]]` entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiloConfig {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// Memory that training may take, in MiB.
    pub memory_mib: u64,
    /// Speed relative to this machine.
    pub speed: f64,
    /// Bandwidth of its link in Mbit/s, the same both ways.
    pub bandwidth_mbps: f64,
    /// MiB that it may send and receive in a round together; without it any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_cap_mib: Option<f64>,
    /// Files of its own; without any it gets a part of `data.train`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// A rehearsal: the silo becomes slower than it enrolled, and nobody tells the planner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slows_down: Option<SlowsDownConfig>,
}

/// `slows_down` of a silo.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SlowsDownConfig {
    /// The first round at the new speed.
    pub round: u32,
    /// The new speed relative to this machine.
    pub speed: f64,
}

impl Config {
    /// Reads `file` and lays the `table.key=value` options over it.
    ///
    /// # Errors
    /// When the file cannot be read, is larger than 1 MiB, or holds or lacks what [`Config::parse`] refuses.
    pub fn load(file: &Path, options: &[String]) -> Result<Self, ConfigError> {
        let size = std::fs::metadata(file).map_err(|e| ConfigError::of_file(file, e))?.len();
        if size > MAX_BYTES {
            return Err(ConfigError::of_file(file, format_args!("{size} bytes are too many for a configuration")));
        }
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError::of_file(file, e))?;
        Self::parse(file, &text, options)
    }

    /// The configuration that `text` (shown as `file` in errors) and the options describe.
    ///
    /// # Errors
    /// On anything that is not TOML, an unknown or missing key, a wrong type, a value out of range, and values that
    /// contradict each other; all of them at once, each with its line.
    pub fn parse(file: &Path, text: &str, options: &[String]) -> Result<Self, ConfigError> {
        let sources = Sources::new(file, text.to_string(), options);
        let root = source::parse(&sources)?;
        let problems = Problems::default();
        let config = resolve::config(root, &problems);
        match problems.into_inner() {
            none if none.is_empty() => Ok(config),
            some => Err(ConfigError::of(&sources, some)),
        }
    }

    /// The configuration with every default written out; [`Config::parse`] reads it back to the same value.
    ///
    /// # Errors
    /// When a path is not valid Unicode.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let body = toml::to_string(self)?;
        Ok(format!("# The configuration of this run with every default written out.\n\n{body}"))
    }
}
