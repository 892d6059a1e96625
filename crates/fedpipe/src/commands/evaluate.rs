//! `fedpipe evaluate`

use crate::cli::EvaluateArgs;
use crate::config::DataColumns;
use crate::error::AppError;
use crate::task::Task;
use crate::trained::Trained;
use crate::writing::Writing;
use fedpipe_core::{Adapter, Metrics, Seed};
use fedpipe_model::answers;
use fedpipe_model::data::{Columns, Dataset, Example, Exchange, Instructions, Question, Spans, Targets, read, spread};
use fedpipe_model::generate::sampling::Decoding;
use fedpipe_model::metrics::{Metric, TextScores};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// How good a model is.
#[derive(Serialize)]
struct Quality {
    #[serde(flatten)]
    metrics: Metrics,
    /// Those of written texts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    scores: BTreeMap<&'static str, f64>,
}

/// Tokens of a completion at most, where nobody says.
const MAX_NEW_TOKENS: usize = 128;

/// What was written after a prompt, and what should have been.
#[derive(Serialize)]
struct Sample {
    prompt: String,
    references: Vec<String>,
    /// By the model without the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    written: String,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    quality: Quality,
    /// Without the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Quality>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    samples: Vec<Sample>,
}

/// A prompt with everything that may follow it.
struct Prompt {
    /// What people see of it.
    question: String,
    /// What the model reads.
    text: String,
    references: Vec<String>,
}

/// Prints the quality on a file of texts with their labels, or of prompts with their completions.
pub fn evaluate(args: &EvaluateArgs) -> Result<(), AppError> {
    let trained = Trained::open(&args.trained.trained, args.trained.model.as_deref())?;
    let writes = !args.metrics.is_empty() || args.samples > 0;
    check_options(args, &trained.task, writes)?;
    let scores = TextScores::new(&args.metrics).map_err(AppError::user)?;
    let examples = chosen(read(&args.data, &columns(&trained))?, args.examples);
    let data = trained.task.packed(trained.task.texts(&trained.encoder, &examples)?, &trained.encoder);
    let prompts = match &trained.task {
        Task::Instruct(instructions) if writes => prompts(&examples, instructions)?,
        Task::SpanQa(_) if writes => asked(&data),
        _ => vec![],
    };
    let bench = Bench { args, trained: &trained, data: &data, prompts: &prompts, scores };

    let (quality, texts) = bench.measure(&trained.adapter)?;
    let base = Adapter { factors: BTreeMap::new(), ..trained.adapter.clone() };
    let base = if args.compare { Some(bench.measure(&base)?) } else { None };
    let (base, base_texts) = base.map_or((None, None), |(quality, texts)| (Some(quality), Some(texts)));
    let samples = spread(texts.len(), args.samples).map(|i| Sample {
        prompt: prompts[i].question.clone(),
        references: prompts[i].references.clone(),
        base: base_texts.as_ref().map(|texts| texts[i].clone()),
        written: texts[i].clone(),
    });
    let report = Report { quality, base, samples: samples.collect() };
    let text = match args.json {
        true => serde_json::to_string(&report).map_err(AppError::other)?,
        false => report.to_string(),
    };
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).map_err(AppError::output)
}

/// Refuses options that say nothing of the model's task, before its file is read.
fn check_options(args: &EvaluateArgs, task: &Task, writes: bool) -> Result<(), AppError> {
    if writes && matches!(task, Task::Classification(_) | Task::Lm { .. }) {
        let what = "--metrics and --samples are for models that follow instructions or answer questions; this one was \
                    trained otherwise";
        return Err(AppError::user(what).hint("leave them out: the metrics of its task are shown"));
    }
    if args.max_new_tokens.is_some() && !(writes && matches!(task, Task::Instruct(_))) {
        let what =
            "--max-new-tokens is for the completions of --metrics and --samples, of models that follow instructions";
        return Err(AppError::user(what).hint("leave it out: nothing is completed here"));
    }
    if args.compare && matches!(task, Task::Classification(_) | Task::SpanQa(_)) {
        return Err(AppError::user("--compare is for models that write: without its adapter a head knows nothing"));
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a EvaluateArgs,
    trained: &'a Trained,
    data: &'a Dataset,
    /// What is to be completed.
    prompts: &'a [Prompt],
    /// With nothing added yet.
    scores: TextScores,
}

impl Bench<'_> {
    /// The quality of the model with an adapter, and what it writes.
    fn measure(&self, adapter: &Adapter) -> Result<(Quality, Vec<String>), AppError> {
        let Trained { base, encoder, .. } = self.trained;
        let format = self.args.base;
        let objective = base.objective(&self.data.targets, format)?;
        let metrics = fedpipe_model::evaluate(&*base.encoder(format)?, &objective, adapter, self.data)?;
        let mut scores = self.scores.clone();
        let mut texts = Vec::new();
        if let (false, Task::SpanQa(reading)) = (self.prompts.is_empty(), &self.trained.task) {
            let found = answers(&*base.encoder(format)?, adapter, self.data, reading.unanswerable)?;
            texts = found.into_iter().map(|answer| answer.text).collect();
        } else if !self.prompts.is_empty() {
            let ids = self.prompts.iter().map(|prompt| encoder.written(&prompt.text)).collect::<Result<Vec<_>, _>>()?;
            let decoding =
                Decoding { max_new_tokens: self.args.max_new_tokens.unwrap_or(MAX_NEW_TOKENS), ..Decoding::default() };
            let writing = Writing { base, adapter, format, decoding: &decoding, seed: Seed(0) };
            texts = writing.texts(&ids, encoder, &mut |_, _| true)?;
            texts.iter_mut().for_each(|text| *text = text.trim().to_string());
        }
        for (prompt, text) in self.prompts.iter().zip(&texts) {
            scores.add(text, &prompt.references.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let scores = scores.values().map(|(metric, value)| (metric.name(), value)).collect();
        Ok((Quality { metrics, scores }, texts))
    }
}

impl Quality {
    /// Names and values, in the order that they are shown in.
    fn rows(&self) -> Vec<(&'static str, f64)> {
        let Metrics { macro_f1, matthews, exact_match, loss, .. } = self.metrics;
        let others = [(Metric::MacroF1, macro_f1), (Metric::Matthews, matthews), (Metric::ExactMatch, exact_match)];
        let others = others.map(|(metric, value)| (metric.name(), value));
        let others = others.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let scores = self.scores.iter().map(|(&name, &value)| (name, value));
        std::iter::once(self.metrics.headline()).chain(others).chain([("loss", loss)]).chain(scores).collect()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.base.is_some() {
            writeln!(f, "{:<15} {:>10} {:>10}", "", "base", "adapted")?;
        }
        let base = self.base.as_ref().map(Quality::rows).unwrap_or_default();
        for (i, (name, value)) in self.quality.rows().into_iter().enumerate() {
            write!(f, "{name:<15}")?;
            if let Some((_, value)) = base.get(i) {
                write!(f, " {value:>10.4}")?;
            }
            writeln!(f, " {value:>10.4}")?;
        }
        writeln!(f, "{:<15} {:>10}", "examples", self.quality.metrics.examples)?;
        for sample in &self.samples {
            writeln!(f, "\nprompt     {}", sample.prompt)?;
            for reference in sample.references.iter().take(1) {
                writeln!(f, "reference  {reference}")?;
            }
            if let Some(base) = &sample.base {
                writeln!(f, "base       {}", on_a_line(base))?;
            }
            writeln!(f, "adapted    {}", on_a_line(&sample.written))?;
        }
        Ok(())
    }
}

fn on_a_line(text: &str) -> String {
    if text.is_empty() { "(nothing)".into() } else { text.replace('\n', " ⏎ ") }
}

/// Prompts in their order, each once, with all their answers.
fn prompts(examples: &[Example], instructions: &Instructions) -> Result<Vec<Prompt>, AppError> {
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut places = BTreeMap::new();
    for example in examples {
        let Exchange { question, prompt, answer } = instructions.exchange(example)?;
        let place = *places.entry(prompt.clone()).or_insert_with(|| {
            prompts.push(Prompt { question, text: prompt, references: vec![] });
            prompts.len() - 1
        });
        prompts[place].references.extend(answer);
    }
    Ok(prompts)
}

/// The questions with the answers of people.
fn asked(data: &Dataset) -> Vec<Prompt> {
    let Targets::Spans(Spans { questions: Some(questions), .. }) = &data.targets else { return vec![] };
    let prompt = |Question { question, answers, .. }: &Question| Prompt {
        question: question.clone(),
        text: question.clone(),
        references: answers.clone(),
    };
    questions.iter().map(prompt).collect()
}

/// The examples of so many texts, evenly spread; all of them without a number.
fn chosen(examples: Vec<Example>, count: Option<usize>) -> Vec<Example> {
    let Some(count) = count else { return examples };
    let mut seen = BTreeSet::new();
    let texts: Vec<&str> = examples.iter().map(|example| &*example.text).filter(|&text| seen.insert(text)).collect();
    let kept: BTreeSet<String> = spread(texts.len(), count).map(|i| texts[i].to_string()).collect();
    examples.into_iter().filter(|example| kept.contains(&example.text)).collect()
}

/// The columns of the run, or the usual ones.
pub(super) fn columns(trained: &Trained) -> Columns {
    let asked =
        || DataColumns::Questions { question: "question".into(), context: "context".into(), answers: "answers".into() };
    let completed = || DataColumns::Completed { prompt: "prompt".into(), completion: "completion".into() };
    match (&trained.config, &trained.task) {
        (Some(config), _) => config.data.columns.columns(),
        (None, Task::Classification(_)) => Columns::default(),
        (None, Task::SpanQa(_)) => asked().columns(),
        (None, Task::Instruct(_)) => completed().columns(),
        (None, Task::Lm { .. }) => Columns::of_text("text"),
    }
}
