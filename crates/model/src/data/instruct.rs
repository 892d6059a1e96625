//! Instructions with their answers: how records hold them, and how they become texts.

use super::chat::{ChatError, ChatTemplate, Conversation, Message, Prompt};
use super::{DataError, Dataset, Example, Targets, TextEncoder};
use fedpipe_kernels::IGNORED;
use serde_json::{Map, Value};

const USER: &str = "user";
const ASSISTANT: &str = "assistant";

/// What Alpaca's models were trained to read (github.com/tatsu-lab/stanford_alpaca): with an input, and without.
const ALPACA: [&str; 2] = [
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
     that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
     ### Instruction:\n{instruction}\n\n### Response:",
];

/// How records hold instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InstructionFormat {
    /// A prompt ([`Example::text`]) and its completion ([`Example::label`]).
    #[default]
    Completion,
    /// A list of messages as JSON ([`Example::text`]): `role` and `content`, or ShareGPT's `from` and `value`.
    Messages,
    /// Alpaca's instruction ([`Example::text`]), input ([`Example::second`], often empty) and output ([`Example::label`]).
    Alpaca,
}

/// How messages become one text.
#[derive(Debug, Clone)]
pub enum PromptTemplate {
    /// By the model's chat template.
    Chat(Box<ChatTemplate>),
    /// The prompt, a line break, the completion and the model's end token, if it has one.
    Plain {
        /// The end token as text.
        end: Option<String>,
    },
}

/// How records become texts to learn from.
#[derive(Debug, Clone)]
pub struct Instructions {
    /// How records hold them.
    pub format: InstructionFormat,
    /// How they are put to the model.
    pub template: PromptTemplate,
}

/// A prompt as the model reads it, and what should follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What the user said last, for people.
    pub question: String,
    /// All that the model reads.
    pub prompt: String,
    /// The last answer, if the record has one.
    pub answer: Option<String>,
}

impl PromptTemplate {
    /// The text of a prompt alone, as the model reads it before it writes.
    ///
    /// # Errors
    /// When the chat template fails.
    pub fn prompt(&self, prompt: &str) -> Result<String, ChatError> {
        self.rendered(&[message(USER, prompt)])
    }

    /// Messages up to where an answer begins.
    fn rendered(&self, messages: &[Message]) -> Result<String, ChatError> {
        match self {
            Self::Chat(template) => template.render(messages, Prompt::Answer),
            Self::Plain { .. } => match messages {
                [only] => Ok(format!("{}\n", only.content)),
                _ => Err(ChatError::NotPlain { messages: messages.len() }),
            },
        }
    }

    fn conversation(&self, messages: &[Message]) -> Result<Conversation, ChatError> {
        match (self, messages) {
            (Self::Chat(template), _) => template.conversation(messages),
            (Self::Plain { end }, [prompts @ .., completion]) => {
                let mut text = self.rendered(prompts)?;
                let begin = text.len();
                text.push_str(&completion.content);
                text.push_str(end.as_deref().unwrap_or_default());
                let answer = begin..text.len();
                Ok(Conversation { text, answers: Vec::from([answer]) })
            }
            (Self::Plain { .. }, []) => Err(ChatError::NoAnswer),
        }
    }
}

impl Instructions {
    /// All that its texts hang on.
    pub fn identity(&self) -> String {
        let template = match &self.template {
            PromptTemplate::Chat(template) => template.identity(),
            PromptTemplate::Plain { end } => format!("{end:?}"),
        };
        format!("{:?} {template}", self.format)
    }

    /// The messages of a record before its last answer, and that answer if it has one.
    fn split(&self, example: &Example) -> Result<(Vec<Message>, Option<String>), DataError> {
        let question = match self.format {
            InstructionFormat::Messages => {
                let error = |reason: String| DataError::Completion { origin: example.origin.clone(), reason };
                let mut messages = messages(&example.text).map_err(error)?;
                let last = messages.iter().rposition(|message| message.role == ASSISTANT);
                let answer = last.and_then(|last| messages.drain(last..).next());
                return Ok((messages, answer.map(|message| message.content)));
            }
            InstructionFormat::Completion => example.text.clone(),
            InstructionFormat::Alpaca => self.alpaca(&example.text, example.second.as_deref().unwrap_or_default()),
        };
        let answer = (!example.label.is_empty()).then(|| example.label.clone());
        Ok((vec![message(USER, &question)], answer))
    }

    /// An instruction with its input: for a chat as a person would put it, else as Alpaca's models read it.
    fn alpaca(&self, instruction: &str, input: &str) -> String {
        match (&self.template, input.trim().is_empty()) {
            (PromptTemplate::Chat(_), true) => instruction.to_string(),
            (PromptTemplate::Chat(_), false) => format!("{instruction}\n\n{input}"),
            (PromptTemplate::Plain { .. }, without) => {
                // Only what follows the instruction is filled in: it may itself contain braces.
                let (head, rest) = ALPACA[usize::from(without)].split_once("{instruction}").unwrap_or_default();
                format!("{head}{instruction}{}", rest.replacen("{input}", input, 1))
            }
        }
    }

    /// What the model reads of a record, and what it should write.
    ///
    /// # Errors
    /// When the record is no conversation, or the template fails.
    pub fn exchange(&self, example: &Example) -> Result<Exchange, DataError> {
        let (messages, answer) = self.split(example)?;
        let prompt = self.template.rendered(&messages).map_err(|e| unusable(example, &e))?;
        let question = messages.into_iter().next_back().map(|message| message.content).unwrap_or_default();
        Ok(Exchange { question, prompt, answer })
    }

    fn conversation(&self, example: &Example) -> Result<Conversation, DataError> {
        let (mut messages, answer) = self.split(example)?;
        let Some(answer) = answer else { return Err(unusable(example, &ChatError::NoAnswer)) };
        messages.push(message(ASSISTANT, &answer));
        self.template.conversation(&messages).map_err(|e| unusable(example, &e))
    }
}

fn unusable(example: &Example, error: &ChatError) -> DataError {
    DataError::Completion { origin: example.origin.clone(), reason: error.to_string() }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

/// Messages from JSON.
fn messages(text: &str) -> Result<Vec<Message>, String> {
    let values: Vec<Map<String, Value>> =
        serde_json::from_str(text).map_err(|e| format!("not a list of messages with `role` and `content`: {e}"))?;
    let of = |(place, object): (usize, Map<String, Value>)| {
        let field = |names: [&str; 2]| names.iter().find_map(|name| object.get(*name)?.as_str());
        let (role, content) = (field(["role", "from"]), field(["content", "value"]));
        let (role, content) = role.zip(content).ok_or_else(|| {
            format!("message {} has no text as `role` and `content` (or `from` and `value`)", place + 1)
        })?;
        let role = match role {
            "human" => USER,
            "gpt" | "model" | "bot" => ASSISTANT,
            other => other,
        };
        Ok(message(role, content))
    };
    values.into_iter().enumerate().map(of).collect()
}

impl TextEncoder {
    /// The tokens of instructions with their answers; only the latter count. The last token is only predicted, never
    /// read, so a text of n tokens is n − 1 here.
    ///
    /// # Errors
    /// When a record is no conversation, a template fails, or nothing of an answer is left within the length that texts
    /// are cut to.
    pub fn instructions(&self, examples: &[Example], instructions: &Instructions) -> Result<Dataset, DataError> {
        let encoded = self.each(examples, |example| self.instruction(example, instructions))?;
        let (ids, next): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        let dataset = Dataset::pack(&ids, Targets::Tokens(next.concat()));
        self.checked(dataset)
    }

    fn instruction(&self, example: &Example, instructions: &Instructions) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let conversation = instructions.conversation(example)?;
        let tokens = conversation.tokens(self.whole()).map_err(|e| unusable(example, &e))?;
        let read = tokens.ids.len().saturating_sub(1).min(self.max_length());
        let next: Vec<u32> = (1..=read).map(|i| if tokens.learned[i] { tokens.ids[i] } else { IGNORED }).collect();
        if next.iter().all(|&token| token == IGNORED) {
            let (most, has) = (self.max_length(), tokens.ids.len());
            let reason = format!(
                "nothing of the completion is within {most} tokens; set training.max_length to {has} or more, or leave \
                 the example out"
            );
            return Err(DataError::Completion { origin: example.origin.clone(), reason });
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

    /// The tokens of whole documents, each followed by the token `end` where there is one. What is to be learnt of each
    /// token is the one after it; [`Dataset::packed`] makes texts of one length of them.
    ///
    /// # Errors
    /// When the tokenizer refuses a text, or a token is not in the model's vocabulary.
    pub fn documents(&self, examples: &[Example], end: Option<u32>) -> Result<Dataset, DataError> {
        let documents = self.each(examples, |example| {
            let encoding = self.whole().encode_fast(example.text.as_str(), true);
            let mut ids = encoding.map_err(|e| self.refused(e.to_string()))?.get_ids().to_vec();
            ids.extend(end.filter(|end| ids.last() != Some(end)));
            Ok(ids)
        })?;
        let next = documents.iter().flat_map(|ids| ids.iter().skip(1).copied().chain([IGNORED]).take(ids.len()));
        let dataset = Dataset::pack(&documents, Targets::Tokens(next.collect()));
        self.checked(dataset)
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

    const CHAT: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

    fn encoder(max_length: usize) -> TextEncoder {
        TextEncoder::new(Tokenizer::from_bytes(TOKENIZER).unwrap(), "t".as_ref(), max_length, 5, false).unwrap()
    }

    fn example(prompt: &str, completion: &str) -> Example {
        let origin = Origin::new("e2e.csv".as_ref(), 7);
        Example { text: prompt.into(), second: None, label: completion.into(), site: None, origin }
    }

    fn plain(format: InstructionFormat) -> Instructions {
        Instructions { format, template: PromptTemplate::Plain { end: Some("<end>".into()) } }
    }

    fn chat(format: InstructionFormat) -> Instructions {
        let template = ChatTemplate::new(CHAT, None, Some("<end>")).unwrap();
        Instructions { format, template: PromptTemplate::Chat(Box::new(template)) }
    }

    #[test]
    fn only_the_completion_and_its_end_count() {
        let examples = [example("name Alimentum", "Alimentum is"), example("name", "is")];
        let data = encoder(10).instructions(&examples, &plain(InstructionFormat::Completion)).unwrap();
        assert_eq!((data.text(0), data.text(1)), ([2, 3, 3, 4].as_slice(), [2, 4].as_slice()));
        assert_eq!(data.targets, Targets::Tokens(vec![IGNORED, 3, 4, 0, 4, 0]));
    }

    #[test]
    fn what_is_too_long_loses_its_end_but_not_all_of_its_completion() {
        let examples = [example("name Alimentum", "Alimentum is")];
        let plain = plain(InstructionFormat::Completion);
        let data = encoder(2).instructions(&examples, &plain).unwrap();
        assert_eq!((data.text(0), &data.targets), ([2, 3].as_slice(), &Targets::Tokens(vec![IGNORED, 3])));
        let error = encoder(1).instructions(&examples, &plain).unwrap_err();
        assert!(error.to_string().starts_with("e2e.csv:7: nothing of the completion is within 1 tokens"), "{error}");
    }

    #[test]
    fn messages_may_be_of_either_kind_and_end_with_an_answer() {
        let record = r#"[{"from": "human", "value": "hi"}, {"role": "assistant", "content": "yes?"},
                         {"role": "user", "content": "more"}, {"from": "gpt", "value": "no"}, {"from": "human", "value": "ok"}]"#;
        let exchange = chat(InstructionFormat::Messages).exchange(&example(record, "")).unwrap();
        let prompt = "<user>hi<end><assistant>yes?<end><user>more<end><assistant>";
        assert_eq!(exchange, Exchange { question: "more".into(), prompt: prompt.into(), answer: Some("no".into()) });
        let refused = |record: &str, instructions: &Instructions| {
            encoder(9).instructions(&[example(record, "")], instructions).unwrap_err().to_string()
        };
        let chat = chat(InstructionFormat::Messages);
        assert_eq!(
            refused(r#"[{"role": "user", "content": "hi"}]"#, &chat),
            "e2e.csv:7: the conversation has no message of the role `assistant`, so there is nothing to learn from it"
        );
        assert!(refused(r#"[{"role": "user"}]"#, &chat).contains("message 1 has no text as `role` and `content`"));
        assert!(refused("no", &chat).contains("not a list of messages"));
        let plain = plain(InstructionFormat::Messages);
        assert!(refused(record, &plain).contains("3 messages before an answer"), "{}", refused(record, &plain));
    }

    #[test]
    fn alpaca_is_put_as_its_models_read_it_or_as_a_question() {
        let record = |input: &str| Example { second: Some(input.into()), ..example("Sort {input}.", "a b") };
        let prompt = |instructions: Instructions, input: &str| instructions.exchange(&record(input)).unwrap().prompt;
        assert_eq!(prompt(chat(InstructionFormat::Alpaca), ""), "<user>Sort {input}.<end><assistant>");
        assert_eq!(prompt(chat(InstructionFormat::Alpaca), "b a"), "<user>Sort {input}.\n\nb a<end><assistant>");
        let plain = prompt(plain(InstructionFormat::Alpaca), "b a");
        assert!(plain.ends_with("### Instruction:\nSort {input}.\n\n### Input:\nb a\n\n### Response:\n"), "{plain}");
    }

    #[test]
    fn documents_are_packed_end_to_end() {
        let documents = [example("name is", ""), example("Alimentum", ""), example("is is is", "")];
        let data = encoder(10).documents(&documents, Some(0)).unwrap();
        let packed = data.packed(4);
        assert_eq!((packed.text(0), packed.text(1)), ([2, 4, 0, 3].as_slice(), [0, 4, 4, 4].as_slice()));
        // The last end token has nothing to learn after it.
        assert_eq!((packed.len(), packed.targets), (2, Targets::Tokens(vec![4, 0, IGNORED, 0, IGNORED, 4, 4, 0])));
    }
}
