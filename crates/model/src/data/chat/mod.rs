//! Conversations: chat templates, and which tokens of one the model is to learn.

mod answers;
mod confined;
mod error;
mod functions;
mod template;

#[cfg(test)]
mod tests;

pub use answers::{AnswerTokens, Conversation};
pub use error::ChatError;
pub use template::{ChatTemplate, Message, Prompt};
