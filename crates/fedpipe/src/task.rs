//! What a model is fine-tuned for, and how files become texts for it.

use crate::config::TaskConfig;
use crate::error::AppError;
use fedpipe_model::BaseModel;
use fedpipe_model::data::{Dataset, Example, Labels, PromptTemplate, TextEncoder};
use fedpipe_model::io::AdapterTask;

/// A task with what it takes to read its texts.
pub enum Task {
    /// A label for every text.
    Classification(Labels),
    /// A completion for every prompt.
    Instruct(Box<PromptTemplate>),
}

impl Task {
    /// The task of a configuration, over these training examples.
    ///
    /// # Errors
    /// When there are too few labels, or the model cannot write or lacks the template that is asked for.
    pub fn of<'a>(
        config: &TaskConfig,
        base: &BaseModel,
        examples: impl IntoIterator<Item = &'a Example>,
    ) -> Result<Self, AppError> {
        match config.kind.as_str() {
            "instruct" => Self::instruct(base, config.chat()),
            _ => Ok(Self::Classification(Labels::of(examples)?)),
        }
    }

    /// Completing prompts, with a chat template or without; none leaves it to the model.
    ///
    /// # Errors
    /// As [`prompt_template`].
    pub fn instruct(base: &BaseModel, chat: Option<bool>) -> Result<Self, AppError> {
        Ok(Self::Instruct(Box::new(prompt_template(base, chat)?)))
    }

    /// The texts with what is to be learnt of them.
    ///
    /// # Errors
    /// When an example has an unknown label, or nothing of its completion fits.
    pub fn texts(&self, encoder: &TextEncoder, examples: &[Example]) -> Result<Dataset, AppError> {
        Ok(match self {
            Self::Classification(labels) => encoder.examples(examples, labels)?,
            Self::Instruct(template) => encoder.completions(examples, template)?,
        })
    }

    /// The labels; none where texts are written.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Classification(labels) => labels.names(),
            Self::Instruct(_) => &[],
        }
    }

    /// The number of classes, where there are some.
    pub fn classes(&self) -> Option<usize> {
        match self {
            Self::Classification(labels) => Some(labels.len()),
            Self::Instruct(_) => None,
        }
    }

    /// What an adapter of this task says of itself.
    pub fn of_adapter(&self) -> AdapterTask {
        match self {
            Self::Classification(_) => AdapterTask::Classification,
            Self::Instruct(_) => AdapterTask::CausalLm,
        }
    }
}

/// How a model that writes reads prompts.
///
/// # Errors
/// When the model cannot write, or lacks the chat template that is asked for.
pub fn prompt_template(base: &BaseModel, chat: Option<bool>) -> Result<PromptTemplate, AppError> {
    if base.outline().causal.is_none() {
        let what = format!("a {} model cannot write, so it cannot complete prompts", base.model_type());
        return Err(AppError::user(what).hint("take a decoder such as Llama, or task.kind = \"classification\""));
    }
    Ok(base.files().prompt_template(chat)?)
}
