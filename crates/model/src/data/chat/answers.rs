//! Which part of a conversation the model is to learn: its answers.

use super::error::ChatError;
use super::template::{ChatTemplate, Message, Prompt};
use std::ops::Range;
use tokenizers::Tokenizer;

/// The role whose messages are answers.
const ANSWERS: &str = "assistant";

/// A conversation as one text, and where in it the answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The whole text.
    pub text: String,
    /// The bytes of each answer, in their order: from behind the prompt to the end of the token that ends it.
    pub answers: Vec<Range<usize>>,
}

/// The tokens of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTokens {
    /// All tokens.
    pub ids: Vec<u32>,
    /// Of each token whether it belongs to an answer, so that its prediction counts in the loss.
    pub learned: Vec<bool>,
}

impl ChatTemplate {
    /// Renders a conversation and finds the answers in it: what the template adds for a message of the role `assistant`
    /// behind the prompt for it. What follows the end-of-sequence token, such as a line break, is no part of an answer.
    ///
    /// # Errors
    /// When there is no answer, the template fails, or it writes the beginning of a conversation in another way once more
    /// follows.
    pub fn conversation(&self, messages: &[Message]) -> Result<Conversation, ChatError> {
        let text = self.render(messages, Prompt::None)?;
        let mut answers: Vec<Range<usize>> = Vec::new();
        for (place, message) in messages.iter().enumerate().filter(|(_, message)| message.role == ANSWERS) {
            let unstable = || ChatError::NoPrefix { message: place + 1, role: message.role.clone() };
            let prompt = self.render(&messages[..place], Prompt::Answer)?;
            let whole = self.render(&messages[..=place], Prompt::None)?;
            let after_earlier = answers.last().is_none_or(|earlier| earlier.end <= prompt.len());
            if !after_earlier || !whole.starts_with(&prompt) || !text.starts_with(&whole) {
                return Err(unstable());
            }
            let answer = &whole[prompt.len()..];
            let end = self.eos().and_then(|eos| Some(answer.rfind(eos)? + eos.len()));
            let end = end.filter(|&end| answer[end..].trim().is_empty()).unwrap_or(answer.len());
            answers.push(prompt.len()..prompt.len() + end);
        }
        if answers.is_empty() {
            return Err(ChatError::NoAnswer);
        }
        Ok(Conversation { text, answers })
    }
}

impl Conversation {
    /// The tokens of the text. The template wrote the special tokens, so the tokenizer adds none.
    ///
    /// A token belongs to an answer when it begins within it.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<AnswerTokens, ChatError> {
        let encoding =
            tokenizer.encode(self.text.as_str(), false).map_err(|e| ChatError::Tokenizer { reason: e.to_string() })?;
        let within =
            |&(begin, end): &(usize, usize)| begin < end && self.answers.iter().any(|answer| answer.contains(&begin));
        Ok(AnswerTokens {
            ids: encoding.get_ids().to_vec(),
            learned: encoding.get_offsets().iter().map(within).collect(),
        })
    }
}
