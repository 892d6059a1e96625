//! Data: files of labelled texts, labels, conversations, tokens, and ragged batches of them.

mod batches;
mod chat;
mod dataset;
mod encode;
mod error;
mod instruct;
mod kept;
mod labels;
mod questions;
mod read;

pub use batches::Batches;
pub use chat::{AnswerTokens, ChatError, ChatTemplate, Conversation, Message, Prompt};
pub use dataset::{Batch, Dataset, SECOND_TEXT, Targets, spread};
pub use encode::TextEncoder;
pub use error::DataError;
pub use instruct::{Exchange, InstructionFormat, Instructions, PromptTemplate};
pub use labels::Labels;
pub use questions::{Question, Questions, Reading, Span, Spans, has_answer};
pub use read::{
    COMPRESSIONS, Columns, EXTENSIONS, Example, MAX_RECORD_BYTES, OnBadRecord, Origin, Records, read, read_records,
};
