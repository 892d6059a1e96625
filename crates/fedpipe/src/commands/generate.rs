//! `fedpipe generate`

use crate::cli::GenerateArgs;
use crate::config::{ModelSource, chat};
use crate::error::AppError;
use crate::run_dir::RunDir;
use crate::setup::open_model;
use crate::task::prompt_template;
use crate::trained::Trained;
use fedpipe_core::{Adapter, Seed};
use fedpipe_model::BaseModel;
use fedpipe_model::data::{Columns, PromptTemplate, TextEncoder, read};
use fedpipe_model::generate::sampling::{Beams, Decoding, Sampling, Strategy, TextStream};
use fedpipe_model::generate::{Request, Writer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A model that writes, from whatever was named.
struct Model {
    base: BaseModel,
    adapter: Adapter,
    template: PromptTemplate,
    /// Column of the prompts in a file.
    column: String,
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
    let prompts = match (&args.prompt, &args.data) {
        (Some(prompt), _) => vec![prompt.clone()],
        (None, Some(file)) => {
            let columns = Columns { text: model.column.clone(), label: None, site: None };
            let limit = args.limit.unwrap_or(usize::MAX);
            read(file, &columns)?.into_iter().take(limit).map(|example| example.text).collect()
        }
        (None, None) => super::predict::lines().take(args.limit.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?,
    };
    let max_positions = model.base.outline().max_positions;
    let encoder = model.base.text_encoder(max_positions)?;
    let ids = prompts.iter().map(|prompt| model.ids(&encoder, prompt)).collect::<Result<Vec<_>, AppError>>()?;
    let ends = model.base.files().end_tokens()?;
    let request = Request { decoding: &decoding, ends: &ends, max_positions, seed: Seed(args.seed) };
    let layers = model.base.encoder(args.base)?;
    let head = model.base.output_head(args.base)?;
    let writer = Writer::new(&*layers, &head, &model.adapter)?;

    let mut streams: Vec<_> = ids.iter().map(|_| TextStream::new(encoder.whole(), &decoding.stop)).collect();
    let mut texts = vec![String::new(); prompts.len()];
    let shown = prompts.len() == 1 && !args.json;
    let mut trouble = None;
    writer.write(&ids, request, &mut |prompt, token| match streams[prompt].push(token) {
        Ok(piece) => {
            texts[prompt].push_str(&piece.text);
            if shown && let Err(error) = show(&piece.text) {
                trouble = Some(error);
            }
            trouble.is_none() && !piece.stopped
        }
        Err(error) => {
            trouble = Some(AppError::other(error));
            false
        }
    })?;
    if let Some(error) = trouble {
        return Err(error);
    }
    for (stream, text) in streams.into_iter().zip(&mut texts) {
        let rest = stream.finish().map_err(AppError::other)?.text;
        if shown {
            show(&rest)?;
        }
        text.push_str(&rest);
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
        let (base, mut adapter, config) = if trained {
            let Trained { base, adapter, config, .. } = Trained::open(path, args.base_model.as_deref())?;
            (base, adapter, config)
        } else {
            let none = Adapter { scaling: 1.0, factors: BTreeMap::new(), head: BTreeMap::new() };
            (open_model(&ModelSource::named(&args.model))?, none, None)
        };
        if args.no_adapter {
            adapter.factors.clear();
        }
        let chat = chat(&args.template).or_else(|| config.as_ref().and_then(|config| config.task.chat()));
        let template = prompt_template(&base, chat)?;
        let column = config.map_or("prompt".into(), |config| config.data.columns.names().0.to_string());
        Ok(Self { base, adapter, template, column })
    }

    fn ids(&self, encoder: &TextEncoder, prompt: &str) -> Result<Vec<u32>, AppError> {
        let text = match &self.template {
            // Text to go on with, as it is.
            PromptTemplate::Plain { .. } => prompt.to_string(),
            chat => chat.prompt(prompt).map_err(AppError::user)?,
        };
        Ok(encoder.written(&text)?)
    }
}
