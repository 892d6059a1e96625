//! Prompts and what is to be written after them.

use super::chat::{ChatError, ChatTemplate, Conversation, Message, Prompt};
use super::{DataError, Dataset, Example, Targets, TextEncoder};
use fedpipe_kernels::IGNORED;
use rayon::prelude::*;

/// How a prompt and its completion become one text.
#[derive(Debug, Clone)]
pub enum PromptTemplate {
    /// As a question of the user and the assistant's answer.
    Chat(Box<ChatTemplate>),
    /// The prompt, a line break, the completion and the model's end token, if it has one.
    Plain {
        /// The end token as text.
        end: Option<String>,
    },
}

impl PromptTemplate {
    /// The text of a prompt alone, as the model reads it before it writes.
    ///
    /// # Errors
    /// When the chat template fails.
    pub fn prompt(&self, prompt: &str) -> Result<String, ChatError> {
        match self {
            Self::Chat(template) => template.render(&[message("user", prompt)], Prompt::Answer),
            Self::Plain { .. } => Ok(format!("{prompt}\n")),
        }
    }

    fn conversation(&self, prompt: &str, completion: &str) -> Result<Conversation, ChatError> {
        match self {
            Self::Chat(template) => template.conversation(&[message("user", prompt), message("assistant", completion)]),
            Self::Plain { end } => {
                let mut text = self.prompt(prompt)?;
                let begin = text.len();
                text.push_str(completion);
                text.push_str(end.as_deref().unwrap_or_default());
                let answer = begin..text.len();
                Ok(Conversation { text, answers: Vec::from([answer]) })
            }
        }
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

impl TextEncoder {
    /// The tokens of prompts ([`Example::text`]) with their completions ([`Example::label`]); only the latter count. The
    /// last token is only predicted, never read, so a text of n tokens is n − 1 here.
    ///
    /// # Errors
    /// When a template fails, or nothing of a completion is left within the length that texts are cut to.
    pub fn completions(&self, examples: &[Example], template: &PromptTemplate) -> Result<Dataset, DataError> {
        let encoded = examples.par_iter().map(|example| self.completion(example, template));
        let (ids, next): (Vec<_>, Vec<_>) = encoded.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let dataset = Dataset::pack(&ids, Targets::Tokens(next.concat()));
        self.checked(dataset)
    }

    fn completion(&self, example: &Example, template: &PromptTemplate) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let error = |reason: String| DataError::Completion { origin: example.origin.clone(), reason };
        let conversation = template.conversation(&example.text, &example.label).map_err(|e| error(e.to_string()))?;
        let tokens = conversation.tokens(self.whole()).map_err(|e| error(e.to_string()))?;
        let read = tokens.ids.len().saturating_sub(1).min(self.max_length());
        let next: Vec<u32> = (1..=read).map(|i| if tokens.learned[i] { tokens.ids[i] } else { IGNORED }).collect();
        if next.iter().all(|&token| token == IGNORED) {
            let (most, has) = (self.max_length(), tokens.ids.len());
            return Err(error(format!(
                "nothing of the completion is within {most} tokens; set training.max_length to {has} or more, or leave \
                 the example out"
            )));
        }
        Ok((tokens.ids[..read].to_vec(), next))
    }

    /// The tokens of a text that a template wrote, special tokens and all.
    ///
    /// # Errors
    /// When the tokenizer refuses it.
    pub fn written(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.whole().encode_fast(text, false).map_err(|e| self.refused(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;
    use tokenizers::Tokenizer;

    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "added_tokens": [{"id": 0, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"<end>": 0, "?": 1, "name": 2, "Alimentum": 3, "is": 4}}
    }"#;

    fn encoder(max_length: usize) -> TextEncoder {
        TextEncoder::new(Tokenizer::from_bytes(TOKENIZER).unwrap(), "t".as_ref(), max_length, 5).unwrap()
    }

    fn example(prompt: &str, completion: &str) -> Example {
        let origin = Origin::new("e2e.csv".as_ref(), 7);
        Example { text: prompt.into(), label: completion.into(), site: None, origin }
    }

    #[test]
    fn only_the_completion_and_its_end_count() {
        let template = PromptTemplate::Plain { end: Some("<end>".into()) };
        let examples = [example("name Alimentum", "Alimentum is"), example("name", "is")];
        let data = encoder(10).completions(&examples, &template).unwrap();
        assert_eq!((data.text(0), data.text(1)), ([2, 3, 3, 4].as_slice(), [2, 4].as_slice()));
        assert_eq!(data.targets, Targets::Tokens(vec![IGNORED, 3, 4, 0, 4, 0]));
    }

    #[test]
    fn what_is_too_long_loses_its_end_but_not_all_of_its_completion() {
        let template = PromptTemplate::Plain { end: Some("<end>".into()) };
        let data = encoder(2).completions(&[example("name Alimentum", "Alimentum is")], &template).unwrap();
        assert_eq!((data.text(0), &data.targets), ([2, 3].as_slice(), &Targets::Tokens(vec![IGNORED, 3])));
        let error = encoder(1).completions(&[example("name Alimentum", "Alimentum is")], &template).unwrap_err();
        assert!(error.to_string().starts_with("e2e.csv:7: nothing of the completion is within 1 tokens"), "{error}");
    }
}
