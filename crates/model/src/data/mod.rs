//! Data: files of labelled texts, labels, conversations, tokens, and ragged batches of them.

mod batches;
mod chat;
mod dataset;
mod encode;
mod error;
mod labels;
mod prompt;
mod read;

pub use batches::Batches;
pub use chat::{AnswerTokens, ChatError, ChatTemplate, Conversation, Message, Prompt};
pub use dataset::{Batch, Dataset, Targets};
pub use encode::TextEncoder;
pub use error::DataError;
pub use labels::Labels;
pub use prompt::PromptTemplate;
pub use read::{
    COMPRESSIONS, Columns, EXTENSIONS, Example, MAX_RECORD_BYTES, OnBadRecord, Origin, Records, read, read_all,
    read_records,
};
