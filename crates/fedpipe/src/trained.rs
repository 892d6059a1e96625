//! A trained model: a run's folder or a PEFT adapter's, with the base model that it belongs to.

use crate::config::{self, Config};
use crate::error::AppError;
use crate::run_dir::RunDir;
use crate::setup::{check_length, open_model};
use crate::task::Task;
use fedpipe_core::{Adapter, BaseFormat, Matrix};
use fedpipe_model::arch::Backbone;
use fedpipe_model::data::{Dataset, Labels, Reading, TextEncoder};
use fedpipe_model::head::SPAN;
use fedpipe_model::io::{AdapterInfo, AdapterTask, read_adapter};
use fedpipe_model::{BaseModel, Prediction, predict};
use std::path::Path;
use std::sync::Arc;

/// Everything that using it takes.
pub struct Trained {
    /// The base model.
    pub base: BaseModel,
    /// The adapter, head included.
    pub adapter: Adapter,
    /// What it was trained for.
    pub task: Task,
    /// How the texts become tokens.
    pub encoder: TextEncoder,
    /// The configuration of the run, when it is one.
    pub config: Option<Config>,
}

impl Trained {
    /// Opens a run or an adapter; `model` overrides the base model that it names.
    ///
    /// # Errors
    /// When it is neither, or its base model cannot be found, or the two do not fit.
    pub fn open(path: &Path, model: Option<&str>) -> Result<Self, AppError> {
        let (folder, config) = if RunDir::holds_run(path) {
            let run = RunDir::open(path)?;
            (run.adapter(), Some(run.config()?))
        } else {
            (path.to_path_buf(), None)
        };
        if config.is_some() && !folder.exists() {
            let what = format!("{} has not finished: it has no adapter yet", path.display());
            return Err(AppError::user(what).hint(format!("go on with: fedpipe run --resume {}", path.display())));
        }
        let saved = read_adapter(&folder)?;
        let source = match (model, &config, &saved.base_model) {
            (Some(model), _, _) => config::ModelSource::named(model),
            (None, Some(config), _) => config.model.clone(),
            (None, None, Some(name)) => config::ModelSource::named(name),
            (None, None, None) => {
                let what = format!("{} names no base model", path.display());
                return Err(AppError::user(what).hint("name it with --model"));
            }
        };
        if let config::ModelSource::Path { path: folder } = &source
            && !folder.exists()
        {
            let what = format!("{}: there is no base model at {}", path.display(), folder.display());
            return Err(AppError::user(what).hint("name the base model's folder or hub repository with --model"));
        }
        let base = open_model(&source)?;
        if let Some(info) = &saved.info
            && info.base_fingerprint != base.files().fingerprint()?
        {
            let folder = base.files().path().display();
            let what = format!("{} was trained over another base model than {folder}", path.display());
            return Err(AppError::user(what).hint("name the right folder with --model DIR"));
        }
        let max_length = saved.info.as_ref().map_or(base.outline().max_positions, |info| info.max_length);
        let format = config.as_ref().map(|config| config.task.instruction_format()).unwrap_or_default();
        let task = match (&saved.info, classes(&base, &saved.adapter)) {
            (Some(AdapterInfo { task: AdapterTask::CausalLm, chat: None, .. }), _) => Task::lm(&base)?,
            (Some(AdapterInfo { task: AdapterTask::CausalLm, chat, .. }), _) => Task::instruct(&base, format, *chat)?,
            (Some(AdapterInfo { task: AdapterTask::QuestionAnswering, reading, max_length, .. }), _) => {
                Task::span_qa(&base, reading.unwrap_or_else(|| Reading::usual(*max_length)))?
            }
            (None, _) if saved.adapter.head.keys().any(|name| name.starts_with(SPAN.output)) => {
                Task::span_qa(&base, Reading::usual(max_length))?
            }
            (None, 0) => Task::instruct(&base, format, None)?,
            (Some(info), _) => Task::Classification(Labels::from_names(info.labels.clone())),
            (None, classes) => {
                let names = (0..classes).map(|class| format!("LABEL_{class}"));
                Task::Classification(Labels::from_names(names.collect()))
            }
        };
        base.check_adapter(&saved.adapter, task.head())?;
        check_length(&base, max_length)?;
        let encoder = base.text_encoder(max_length)?;
        Ok(Self { base, adapter: saved.adapter, task, encoder, config })
    }

    /// The base weights in full precision.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn weights(&self) -> Result<Arc<dyn Backbone>, AppError> {
        Ok(self.base.encoder(BaseFormat::F32)?)
    }

    /// The most probable class of every text.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn predict(&self, texts: &Dataset) -> Result<Vec<Prediction>, AppError> {
        Ok(predict(&*self.weights()?, self.base.outline().head, &self.adapter, texts)?)
    }
}

/// Rows of the head's output, if there is one; a head that the model does not have is refused by its shapes.
fn classes(base: &BaseModel, adapter: &Adapter) -> usize {
    let output = adapter.head.get(&format!("{}.weight", base.outline().head.output));
    output.or(adapter.head.values().next()).map_or(0, Matrix::rows)
}
