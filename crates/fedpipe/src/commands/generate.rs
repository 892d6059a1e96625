//! `fedpipe generate`

use crate::cli::GenerateArgs;
use crate::config::{ModelSource, chat};
use crate::error::AppError;
use crate::run_dir::RunDir;
use crate::setup::open_model;
use crate::task::{Task, prompt_template};
use crate::trained::Trained;
use crate::writing::Writing;
use fedpipe_core::{Adapter, Seed};
use fedpipe_model::BaseModel;
use fedpipe_model::data::{Columns, Example, Exchange, InstructionFormat, Instructions, PromptTemplate, read};
use fedpipe_model::generate::sampling::{Beams, Decoding, Sampling, Strategy};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A model that writes, from whatever was named.
struct Model {
    base: BaseModel,
    adapter: Adapter,
    instructions: Instructions,
    /// Whether a prompt is text to go on with, as it is.
    as_is: bool,
    /// Where the prompts are in a file.
    columns: Columns,
}

#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a str,
    completion: &'a str,
}

/// Prints what the model writes after every prompt, in order; after a single one as it comes.
pub fn generate(args: &GenerateArgs) -> Result<(), AppError> {
    let decoding = decoding(args);
    decoding.validate().map_err(|e| AppError::user(format!("--{}", e.to_string().replace('_', "-"))))?;
    let model = Model::open(args)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let (prompts, texts): (Vec<String>, Vec<String>) = match (&args.prompt, &args.data) {
        (Some(prompt), _) => vec![(prompt.clone(), model.text(prompt)?)],
        (None, Some(file)) => {
            let examples = read(file, &model.columns)?.into_iter().take(limit);
            examples.map(|example| model.exchange(&example)).collect::<Result<_, _>>()?
        }
        (None, None) => super::predict::lines()
            .take(limit)
            .map(|line| line.and_then(|line| Ok((line.clone(), model.text(&line)?))))
            .collect::<Result<_, _>>()?,
    }
    .into_iter()
    .unzip();
    let encoder = model.base.text_encoder(model.base.outline().max_positions)?;
    let ids = texts.iter().map(|text| encoder.written(text)).collect::<Result<Vec<_>, _>>()?;
    let shown = prompts.len() == 1 && !args.json;
    let mut trouble = None;
    let (base, adapter) = (&model.base, &model.adapter);
    let writing = Writing { base, adapter, format: args.base, decoding: &decoding, seed: Seed(args.seed) };
    let texts = writing.texts(&ids, &encoder, &mut |_, piece| {
        trouble = trouble.take().or_else(|| if shown { show(piece).err() } else { None });
        trouble.is_none()
    })?;
    if let Some(error) = trouble {
        return Err(error);
    }
    let mut out = std::io::stdout().lock();
    for (prompt, completion) in prompts.iter().zip(&texts) {
        let line = match (args.json, shown) {
            (true, _) => serde_json::to_string(&Line { prompt, completion }).map_err(AppError::other)?,
            (false, true) => String::new(),
            (false, false) => completion.clone(),
        };
        writeln!(out, "{line}").map_err(AppError::output)?;
    }
    Ok(())
}

fn show(text: &str) -> Result<(), AppError> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(AppError::output)
}

fn decoding(args: &GenerateArgs) -> Decoding {
    let strategy = if let Some(beams) = args.beams {
        Strategy::Beam(Beams { beams, length_penalty: args.length_penalty, ..Beams::default() })
    } else if args.temperature.is_some() || args.top_k.is_some() || args.top_p.is_some() {
        Strategy::Sample(Sampling {
            temperature: args.temperature.unwrap_or(1.0),
            top_k: args.top_k,
            top_p: args.top_p.unwrap_or(1.0),
        })
    } else {
        Strategy::Greedy
    };
    Decoding {
        strategy,
        max_new_tokens: args.max_new_tokens,
        min_new_tokens: 0,
        repetition_penalty: args.repetition_penalty,
        no_repeat_ngram: args.no_repeat_ngram,
        stop: args.stop.clone(),
    }
}

impl Model {
    fn open(args: &GenerateArgs) -> Result<Self, AppError> {
        let path = Path::new(&args.model);
        let trained = RunDir::holds_run(path) || path.join("adapter_config.json").exists();
        let chat = chat(&args.template);
        let of_prompt = Columns::of_text("prompt");
        if !trained {
            let base = open_model(&ModelSource::named(&args.model))?;
            let template = prompt_template(&base, chat)?;
            let adapter = Adapter { scaling: 1.0, factors: BTreeMap::new(), head: BTreeMap::new() };
            let as_is = matches!(template, PromptTemplate::Plain { .. });
            let instructions = Instructions { format: InstructionFormat::Completion, template };
            return Ok(Self { base, adapter, instructions, as_is, columns: of_prompt });
        }
        let Trained { base, mut adapter, task, config, .. } = Trained::open(path, args.base_model.as_deref())?;
        if args.no_adapter {
            adapter.factors.clear();
        }
        let template = prompt_template(&base, chat.or(task.chat()))?;
        let (as_is, format) = match &task {
            Task::Instruct(instructions) => (false, instructions.format),
            Task::Lm { .. } => (chat != Some(true), InstructionFormat::Completion),
            Task::Classification(_) | Task::SpanQa(_) => {
                let what = format!("{} labels texts or points at answers, it does not write", path.display());
                return Err(AppError::user(what).hint("use `fedpipe predict`"));
            }
        };
        let columns = match config {
            Some(config) if !as_is => Columns { label: None, ..config.data.columns.columns() },
            _ => of_prompt,
        };
        Ok(Self { base, adapter, instructions: Instructions { format, template }, as_is, columns })
    }

    /// What the model reads of a prompt.
    fn text(&self, prompt: &str) -> Result<String, AppError> {
        match self.as_is {
            true => Ok(prompt.to_string()),
            false => self.instructions.template.prompt(prompt).map_err(AppError::user),
        }
    }

    /// The prompt of a record, and what the model reads of it.
    fn exchange(&self, example: &Example) -> Result<(String, String), AppError> {
        if self.as_is {
            return Ok((example.text.clone(), example.text.clone()));
        }
        let Exchange { question, prompt, .. } = self.instructions.exchange(example)?;
        Ok((question, prompt))
    }
}
