//! What a model is fine-tuned for, and how files become texts for it.

use crate::config::TaskConfig;
use crate::error::AppError;
use fedpipe_model::BaseModel;
use fedpipe_model::data::{
    Dataset, Example, InstructionFormat, Instructions, Labels, PromptTemplate, Reading, TextEncoder, has_answer,
};
use fedpipe_model::head::HeadKind;
use fedpipe_model::io::AdapterTask;

/// A task with what it takes to read its texts.
pub enum Task {
    /// A label for every text.
    Classification(Labels),
    /// The piece of a passage that answers a question.
    SpanQa(Reading),
    /// An answer for every instruction.
    Instruct(Box<Instructions>),
    /// The next token of plain text.
    Lm {
        /// The token that ends a document, if the model has one.
        end: Option<u32>,
    },
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
            "instruct" => Self::instruct(base, config.instruction_format(), config.chat()),
            "lm" => Self::lm(base),
            "span-qa" => {
                let unanswerable = examples.into_iter().any(|example| !has_answer(example));
                Self::span_qa(base, Reading { stride: config.stride.unwrap_or_default(), unanswerable })
            }
            _ => Ok(Self::Classification(Labels::of(examples)?)),
        }
    }

    /// Following instructions, with a chat template or without; none leaves it to the model.
    ///
    /// # Errors
    /// As [`prompt_template`].
    pub fn instruct(base: &BaseModel, format: InstructionFormat, chat: Option<bool>) -> Result<Self, AppError> {
        Ok(Self::Instruct(Box::new(Instructions { format, template: prompt_template(base, chat)? })))
    }

    /// Questions about passages.
    ///
    /// # Errors
    /// When the model is no encoder.
    pub fn span_qa(base: &BaseModel, reading: Reading) -> Result<Self, AppError> {
        if base.outline().span_class.is_some() {
            return Ok(Self::SpanQa(reading));
        }
        let what = format!("a {} model does not point at answers", base.model_type());
        Err(AppError::user(what)
            .hint("take an encoder such as BERT, or task.kind = \"instruct\" to have answers written"))
    }

    /// Plain text.
    ///
    /// # Errors
    /// When the model cannot write.
    pub fn lm(base: &BaseModel) -> Result<Self, AppError> {
        check_writes(base)?;
        Ok(Self::Lm { end: base.files().end_tokens()?.first().copied() })
    }

    /// The texts with what is to be learnt of them, one for every example; of a long passage several.
    ///
    /// # Errors
    /// When an example has an unknown label, nothing of its completion fits, or its answer is not in its passage.
    pub fn texts(&self, encoder: &TextEncoder, examples: &[Example]) -> Result<Dataset, AppError> {
        Ok(match self {
            Self::Classification(labels) => encoder.examples(examples, labels)?,
            Self::SpanQa(reading) => encoder.questions(examples, *reading)?,
            Self::Instruct(instructions) => encoder.instructions(examples, instructions)?,
            Self::Lm { end } => encoder.documents(examples, *end)?,
        })
    }

    /// All that its texts hang on, beside the model's tokenizer.
    pub fn identity(&self) -> String {
        match self {
            Self::Classification(labels) => format!("classification {:?}", labels.names()),
            Self::SpanQa(reading) => format!("span-qa {reading:?}"),
            Self::Instruct(instructions) => format!("instruct {}", instructions.identity()),
            Self::Lm { end } => format!("lm {end:?}"),
        }
    }

    /// The texts as they are learnt: documents are packed, all else stays as it is.
    pub fn packed(&self, data: Dataset, encoder: &TextEncoder) -> Dataset {
        match self {
            Self::Classification(_) | Self::SpanQa(_) | Self::Instruct(_) => data,
            Self::Lm { .. } => data.packed(encoder.max_length()),
        }
    }

    /// The labels; none but in a classification.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Classification(labels) => labels.names(),
            Self::SpanQa(_) | Self::Instruct(_) | Self::Lm { .. } => &[],
        }
    }

    /// What stands on the model's layers.
    pub fn head(&self) -> HeadKind {
        match self {
            Self::Classification(labels) => HeadKind::Classes(labels.len()),
            Self::SpanQa(_) => HeadKind::Span,
            Self::Instruct(_) | Self::Lm { .. } => HeadKind::Vocabulary,
        }
    }

    /// What an adapter of this task says of itself.
    pub fn of_adapter(&self) -> AdapterTask {
        match self {
            Self::Classification(_) => AdapterTask::Classification,
            Self::SpanQa(_) => AdapterTask::QuestionAnswering,
            Self::Instruct(_) | Self::Lm { .. } => AdapterTask::CausalLm,
        }
    }

    /// Whether prompts are put as questions in a chat; none where there are no instructions.
    pub fn chat(&self) -> Option<bool> {
        match self {
            Self::Instruct(instructions) => Some(matches!(instructions.template, PromptTemplate::Chat(_))),
            Self::Classification(_) | Self::SpanQa(_) | Self::Lm { .. } => None,
        }
    }

    /// How passages are read; none where there are none.
    pub fn reading(&self) -> Option<Reading> {
        match self {
            Self::SpanQa(reading) => Some(*reading),
            Self::Classification(_) | Self::Instruct(_) | Self::Lm { .. } => None,
        }
    }
}

/// How a model that writes reads prompts.
///
/// # Errors
/// When the model cannot write, or lacks the chat template that is asked for.
pub fn prompt_template(base: &BaseModel, chat: Option<bool>) -> Result<PromptTemplate, AppError> {
    check_writes(base)?;
    Ok(base.files().prompt_template(chat)?)
}

fn check_writes(base: &BaseModel) -> Result<(), AppError> {
    if base.outline().causal.is_some() {
        return Ok(());
    }
    let what = format!("a {} model cannot write", base.model_type());
    Err(AppError::user(what).hint("take a decoder such as Llama, or task.kind = \"classification\""))
}
