//! What can be wrong with a chat template or a conversation.

use crate::io::IoError;

/// A chat template or a conversation that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Files that cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A template that is none.
    #[error("the chat template cannot be read: {reason}")]
    Template {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The template itself refuses the conversation, by `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template fails.
    #[error("the chat template fails: {reason}")]
    Render {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The template does too much.
    #[error("the chat template was stopped: one conversation may take {fuel} steps (64 bytes of text count as one)")]
    TooMuchWork {
        /// What it may use.
        fuel: u64,
    },
    /// The template writes the beginning of a conversation in another way when more follows.
    #[error(
        "message {message} (of the role {role}): the chat template writes what comes before in another way once more \
         follows, so the answer cannot be told apart; use another template, or split the conversation after each answer"
    )]
    NoPrefix {
        /// Which message, from 1.
        message: usize,
        /// Its role.
        role: String,
    },
    /// A conversation without an answer.
    #[error("the conversation has no message of the role `assistant`, so there is nothing to learn from it")]
    NoAnswer,
    /// A conversation that only a chat template can write.
    #[error(
        "{messages} messages before an answer take a chat template; set task.template = \"chat\", with a model that has one"
    )]
    NotPlain {
        /// How many.
        messages: usize,
    },
    /// The tokenizer refuses the text.
    #[error("the tokenizer refuses the conversation: {reason}")]
    Tokenizer {
        /// Why.
        reason: String,
    },
}
