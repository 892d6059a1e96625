//! What a person types.

use crate::config::names::TEMPLATES;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fedpipe_core::BaseFormat;
use fedpipe_model::metrics::{Metric, MetricError};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    anything that is not the user's to mend
  2    the user's input was wrong
  130  ended at once by a second Ctrl-C";

/// Fine-tune a language model on data that stays where it is, with a plan made for every site.
#[derive(Debug, Parser)]
#[command(name = "fedpipe", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune: enrol the silos, plan, train and merge round by round, export
    Run(RunArgs),
    /// Stop after planning, and show what every silo would do and why
    Plan(PlanArgs),
    /// Measure this machine with a run's model and texts, and show what plans are made from
    Profile(ProfileArgs),
    /// Measure a trained model on a file of labelled texts
    Evaluate(EvaluateArgs),
    /// Label texts with a trained model
    Predict(PredictArgs),
    /// Write texts with a language model, fine-tuned or not
    Generate(GenerateArgs),
    /// Write a run's adapter, or the merged model, to a folder
    Export(ExportArgs),
    /// Show what a base model is made of: adaptable weights, memory at each base format
    Inspect(InspectArgs),
}

/// `fedpipe run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe run examples/r8.toml
  fedpipe run examples/r8.toml --set federation.rounds=3 --set silos.clinic.memory_mib=2048
  fedpipe run --resume runs/r8

Ctrl-C ends after the current step and leaves a run that --resume goes on with; a second one ends at once (exit code 130).")]
pub struct RunArgs {
    /// The run's configuration, a TOML file
    #[arg(required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// Set one value of the configuration; silos go by their name
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// The run's folder, instead of output.dir
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on with the run in this folder from its last checkpoint
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "set", "output"])]
    pub resume: Option<PathBuf>,
    /// Say nothing but warnings and errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// `fedpipe plan`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe plan examples/r8.toml
  fedpipe plan examples/r8.toml --set silos.edge.memory_mib=300 --json
  fedpipe plan examples/r8.toml --what-if silos.edge.memory_mib=128 --what-if silos.edge.speed=0.5
  fedpipe plan examples/r8.toml --svg plan.svg")]
pub struct PlanArgs {
    /// The run's configuration, a TOML file
    pub config: PathBuf,
    /// Set one value of the configuration; silos go by their name
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Show what this value would change: memory, speed, bandwidth or data cap of a silo, deadline, ranks
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub what_if: Vec<String>,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    /// Draw importance and ranks as heat maps to this file, too; with --what-if the ranks that it would give
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `fedpipe profile`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe profile examples/r8.toml
  fedpipe profile examples/r8.toml --again     # the machine was busy the last time

A profile is kept in the user's cache folder and used again while model, formats, lengths and release are the same.")]
pub struct ProfileArgs {
    /// The run's configuration, a TOML file
    pub config: PathBuf,
    /// Set one value of the configuration; silos go by their name
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Measure anew, and keep that
    #[arg(long)]
    pub again: bool,
    /// Print the profile as JSON
    #[arg(long)]
    pub json: bool,
}

/// A trained model on disk.
#[derive(Debug, Args)]
pub struct TrainedArgs {
    /// A run's folder, or a PEFT adapter's
    #[arg(value_name = "RUN_OR_ADAPTER")]
    pub trained: PathBuf,
    /// The base model's folder or hub repository, instead of the one that the run or the adapter names
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
}

/// `fedpipe evaluate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe evaluate runs/r8 --data assets/data/reuters-r8-test.tsv
  fedpipe evaluate runs/r8/adapter --model assets/models/all-MiniLM-L6-v2 --data test.jsonl --json
  fedpipe evaluate runs/e2e --data testset_w_refs.csv --metrics bleu,rouge-l --compare --samples 3")]
pub struct EvaluateArgs {
    #[command(flatten)]
    /// What is measured.
    pub trained: TrainedArgs,
    /// Texts with their labels, or prompts with their completions: .tsv, .csv, .jsonl or .parquet
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Measure on so many texts (or prompts, with all their completions), evenly spread over the file
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub examples: Option<usize>,
    /// Write a completion for every prompt and hold it against those of the file: bleu, nist, rouge-l, exact-match, …
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = metric)]
    pub metrics: Vec<Metric>,
    /// With --metrics or --samples of a model that writes: tokens of a completion at most; 128 if not given
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_new_tokens: Option<usize>,
    /// Measure the base model without the adapter, too
    #[arg(long)]
    pub compare: bool,
    /// Print so many completions beside what they should be
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub samples: usize,
    /// Format of the frozen weights: f32, bf16, int8, nf8, nf4, nf3 or nf2
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    pub base: BaseFormat,
    /// Print the metrics as JSON
    #[arg(long)]
    pub json: bool,
}

/// `fedpipe predict`
#[derive(Debug, Args)]
#[command(after_help = "\
Prints the label and its probability, separated by a tab, a line for every text, in the order of the texts.
With neither --text nor --data every line of standard input is a text.

Examples:
  fedpipe predict runs/r8 --text \"profits rose in the second quarter\"
  fedpipe predict runs/r8 --data assets/data/reuters-r8-test.tsv --limit 10 --json --logits
  cut -f2 news.tsv | fedpipe predict runs/r8/adapter")]
pub struct PredictArgs {
    #[command(flatten)]
    /// What labels.
    pub trained: TrainedArgs,
    /// One text
    #[arg(long, conflicts_with = "data")]
    pub text: Option<String>,
    /// The second text of a pair
    #[arg(long, value_name = "TEXT", requires = "text")]
    pub text_pair: Option<String>,
    /// Texts: .tsv, .csv, .jsonl, .parquet or .txt
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Stop after so many texts
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print a line of JSON for every text: {"label": …, "probability": …}
    #[arg(long)]
    pub json: bool,
    /// Add the logits of all labels to the lines of JSON
    #[arg(long, requires = "json")]
    pub logits: bool,
}

/// `fedpipe generate`
#[derive(Debug, Args)]
#[command(after_help = "\
Prints what the model writes, and nothing else: after a single prompt as it comes, else a text for every prompt in their
order. With neither --prompt nor --data every line of standard input is a prompt. The most probable token is taken, unless
--temperature, --top-k or --top-p ask for draws, or --beams for a search.

Examples:
  fedpipe generate assets/models/SmolLM2-135M-Instruct-GGUF --prompt \"Why is the sky blue?\"
  fedpipe generate model.gguf --template plain --prompt \"The capital of France is\" --max-new-tokens 8
  fedpipe generate runs/e2e --data test.csv --limit 5 --json
  fedpipe generate runs/e2e --no-adapter --prompt \"name[Alimentum], area[city centre]\" --temperature 0.7 --seed 1")]
pub struct GenerateArgs {
    /// A model's folder, GGUF file or hub repository, a run's folder, or a PEFT adapter's
    #[arg(value_name = "MODEL_OR_RUN_OR_ADAPTER")]
    pub model: String,
    /// The base model, instead of the one that the run or the adapter names
    #[arg(long, value_name = "MODEL", alias = "model")]
    pub base_model: Option<String>,
    /// Leave the adapter out
    #[arg(long)]
    pub no_adapter: bool,
    /// One prompt
    #[arg(long, conflicts_with = "data")]
    pub prompt: Option<String>,
    /// Prompts: .tsv, .csv, .jsonl or .parquet; their column is `prompt`, or what the run's configuration says
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Stop after so many prompts
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Prompts as questions in a chat, or plainly; auto is a chat where the model has a template for one
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(TEMPLATES))]
    pub template: String,
    /// Tokens of a text at most
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Draw tokens; below 1 likely ones become likelier
    #[arg(long, value_name = "T", conflicts_with = "beams")]
    pub temperature: Option<f32>,
    /// Draw from the K most probable tokens only
    #[arg(long, value_name = "K", conflicts_with = "beams")]
    pub top_k: Option<usize>,
    /// Draw from the most probable tokens that together have the probability P
    #[arg(long, value_name = "P", conflicts_with = "beams")]
    pub top_p: Option<f32>,
    /// Follow so many texts at a time and take the most probable
    #[arg(long, value_name = "N")]
    pub beams: Option<usize>,
    /// With --beams: above 0 favours long texts
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, requires = "beams")]
    pub length_penalty: f32,
    /// Make tokens that occurred less likely; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Let no run of N tokens occur twice
    #[arg(long, value_name = "N")]
    pub no_repeat_ngram: Option<usize>,
    /// End a text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Where the draws start
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Format of the frozen weights: f32, bf16, int8, nf8, nf4, nf3 or nf2
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    pub base: BaseFormat,
    /// Print a line of JSON for every prompt: {"prompt": …, "completion": …}
    #[arg(long)]
    pub json: bool,
}

fn at_least_one(count: &str) -> Result<usize, String> {
    match count.parse() {
        Ok(0) => Err("choose at least 1".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

fn metric(name: &str) -> Result<Metric, MetricError> {
    Metric::try_from(name.to_string())
}

/// `fedpipe export`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe export runs/r8 --to my-adapter
  fedpipe export runs/r8 --to my-model --format merged
  fedpipe export model.gguf --to my-model --format merged")]
pub struct ExportArgs {
    /// A run's folder; for `merged` also a model's, or a GGUF file
    pub run: PathBuf,
    /// The folder to write; it must not exist yet, or be empty
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = ExportFormat::Peft)]
    pub format: ExportFormat,
}

/// What `fedpipe export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The adapter as Hugging Face PEFT loads it
    Peft,
    /// A language model's adapter at one rank, as vLLM, TGI and SGLang load it
    Serving,
    /// The whole model with the adapter merged into its weights, as transformers loads it; of a base model the model itself
    Merged,
    /// A language model's adapter in a file adapter.gguf, as llama.cpp loads it beside the model's
    Gguf,
}

/// `fedpipe inspect`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fedpipe inspect assets/models/all-MiniLM-L6-v2
  fedpipe inspect sentence-transformers/all-MiniLM-L6-v2 --json")]
pub struct InspectArgs {
    /// A Hugging Face folder, or a repository of the hub
    pub model: String,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_reads_well() {
        let mut cli = Cli::command().term_width(100);
        let mut pages = vec![cli.render_long_help().to_string()];
        let names: Vec<String> = cli.get_subcommands().map(|c| c.get_name().to_string()).collect();
        for name in names {
            let page = cli.find_subcommand_mut(&name).unwrap().render_long_help();
            pages.push(format!("======== fedpipe {name}\n{page}"));
        }
        insta::assert_snapshot!(pages.join("\n"));
    }

    #[test]
    fn a_run_needs_a_configuration_or_a_run_to_resume() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["fedpipe", "run"], args].concat());
        assert!(parse(&[]).is_err());
        assert!(parse(&["a.toml", "--resume", "runs/a"]).is_err());
        assert!(parse(&["--resume", "runs/a", "--set", "a.b=1"]).is_err());
        assert!(parse(&["--resume", "runs/a", "--quiet"]).is_ok());
        let set = parse(&["a.toml", "--set", "a.b=1", "--set", "c.d=2"]).unwrap().command;
        assert!(matches!(set, Command::Run(RunArgs { set, .. }) if set == ["a.b=1", "c.d=2"]));
    }
}
