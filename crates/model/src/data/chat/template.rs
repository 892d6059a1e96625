//! Chat templates: Jinja, as transformers' `apply_chat_template` runs it.

use super::confined::{bound_printing, confined};
use super::error::ChatError;
use super::functions::{Raised, add};
use crate::io::{IoError, read_json};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::error::Error;
use std::path::Path;

/// Longest source that is read; those with tools and dates take 10 to 20 KiB. The compiler takes time by the square of a
/// chain of operators: at this length seconds.
const MAX_SOURCE_BYTES: usize = 1 << 15;
/// Steps that a conversation may take; those of a thousand messages take a third. A step makes at most 64 bytes, so this
/// bounds the memory, too.
const FUEL: u64 = 1 << 18;
/// Deepest nesting of macros and loops.
const MAX_DEPTH: usize = 64;
const NAME: &str = "chat";

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What they say.
    pub content: String,
}

/// Whether a rendered conversation goes on with the beginning of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// It ends with the last message.
    None,
    /// It ends where the model's answer begins (`add_generation_prompt`).
    Answer,
}

/// A chat template: how a conversation becomes one text.
///
/// Templates come with models. One can read nothing but the conversation; loops, recursion and text are bounded by fuel,
/// and it runs on a stack that suffices for all that so much fuel can nest. What is left: a list that is doubled thirty
/// times and then compared with another takes minutes.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are what it finds as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// When it is too long or is no Jinja template.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, ChatError> {
        let error = |reason: String| ChatError::Template { reason };
        if source.len() > MAX_SOURCE_BYTES {
            return Err(error(format!("it has {} bytes; {MAX_SOURCE_BYTES} are possible", source.len())));
        }
        let mut environment = Environment::new();
        add(&mut environment);
        bound_printing(&mut environment);
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| error(e.to_string()))?,
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_DEPTH);
        let source = without_generation_marks(source)?;
        confined(|| environment.add_template_owned(NAME, source).map_err(|e| error(located(&e))))??;
        Ok(Self { environment, bos: bos.map(str::to_string), eos: eos.map(str::to_string) })
    }

    /// The template of a Hugging Face model folder, from `chat_template.jinja` or `tokenizer_config.json`. None if it has
    /// none.
    ///
    /// # Errors
    /// When a file is broken, or the template cannot be compiled.
    pub fn open(folder: &Path) -> Result<Option<Self>, ChatError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = if config_path.exists() { read_json(&config_path)? } else { Map::new() };
        let path = folder.join("chat_template.jinja");
        let source = if path.exists() {
            Some(read_text(&path)?)
        } else {
            config.get("chat_template").filter(|v| !v.is_null()).map(default_template).transpose()?
        };
        let token = |key: &str| match config.get(key) {
            Some(Value::String(text)) => Some(text.as_str()),
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            _ => None,
        };
        source.map(|source| Self::new(&source, token("bos_token"), token("eos_token"))).transpose()
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// When the template refuses it, fails or does too much.
    pub fn render(&self, messages: &[Message], prompt: Prompt) -> Result<String, ChatError> {
        // The values are dropped where they were made.
        confined(|| self.render_here(messages, prompt))?
    }

    fn render_here(&self, messages: &[Message], prompt: Prompt) -> Result<String, ChatError> {
        // Neither is there, which templates ask for with `is none`.
        let none = || minijinja::Value::from(());
        // A token that the model does not have is undefined, as in transformers.
        let token = |text: &Option<String>| text.as_deref().map_or(minijinja::Value::UNDEFINED, Into::into);
        let values = context! {
            messages => Serde(messages),
            add_generation_prompt => prompt == Prompt::Answer,
            tools => none(),
            documents => none(),
            bos_token => token(&self.bos),
            eos_token => token(&self.eos),
        };
        self.environment.get_template(NAME).and_then(|template| template.render(values)).map_err(|e| failure(&e))
    }

    /// All that its texts hang on.
    pub(in crate::data) fn identity(&self) -> String {
        let source = self.environment.get_template(NAME).map(|template| template.source().to_string());
        format!("{:?} {:?}\n{}", self.bos, self.eos, source.unwrap_or_default())
    }

    /// The text that ends an answer, if the model has one.
    pub(super) fn eos(&self) -> Option<&str> {
        self.eos.as_deref().filter(|eos| !eos.is_empty())
    }
}

/// `{% generation %}` marks answers for transformers and writes nothing; here answers are found by prefixes.
fn without_generation_marks(source: &str) -> Result<String, ChatError> {
    let mark = |name| Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}"));
    let error = |e: regex::Error| ChatError::Template { reason: e.to_string() };
    let opened = mark("generation").map_err(error)?.replace_all(source, "{%$1 if true $2%}");
    Ok(mark("endgeneration").map_err(error)?.replace_all(&opened, "{%$1 endif $2%}").into_owned())
}

/// Of a list of named templates that which is called `default`.
fn default_template(value: &Value) -> Result<String, ChatError> {
    let named = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
    let source = match value {
        Value::String(source) => Some(source.as_str()),
        Value::Array(entries) => entries.iter().find(named).and_then(|entry| entry.get("template")?.as_str()),
        _ => None,
    };
    source.map(str::to_string).ok_or_else(|| ChatError::Template {
        reason: "`chat_template` is neither a text nor a list with a template called `default`".into(),
    })
}

fn read_text(path: &Path) -> Result<String, ChatError> {
    let length = path.metadata().map_err(|source| IoError::File { path: path.into(), source })?.len();
    if length > MAX_SOURCE_BYTES as u64 {
        let reason = format!("{} has {length} bytes; {MAX_SOURCE_BYTES} are possible", path.display());
        return Err(ChatError::Template { reason });
    }
    Ok(std::fs::read_to_string(path).map_err(|source| IoError::File { path: path.into(), source })?)
}

fn failure(error: &minijinja::Error) -> ChatError {
    // What a template raises lies below the lines that were on the way to it.
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return ChatError::Refused { message: message.clone() };
        }
        if inner.downcast_ref::<minijinja::Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return ChatError::TooMuchWork { fuel: FUEL };
        }
        cause = inner.source();
    }
    ChatError::Render { reason: located(error) }
}

fn located(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    error.line().map_or_else(|| what.clone(), |line| format!("line {line}: {what}"))
}
