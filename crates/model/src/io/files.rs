//! A base model on disk: a Hugging Face folder, or a GGUF file.

use super::{GgufFile, HfFolder, IoError, WeightSource, read_json};
use crate::data::{ChatTemplate, DataError, PromptTemplate};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

const TOKENIZER: &str = "tokenizer.json";
const GENERATION: &str = "generation_config.json";

/// The files of a base model.
#[derive(Debug)]
pub enum ModelFiles {
    /// `config.json`, safetensors, `tokenizer.json`.
    Folder(HfFolder),
    /// All in one file.
    Gguf(Box<GgufFile>),
}

impl ModelFiles {
    /// Opens a Hugging Face folder, a GGUF file, or a folder whose one GGUF file is the model.
    ///
    /// # Errors
    /// When there is no model, or its files are broken.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        match gguf_of(path)? {
            Some(file) => Ok(Self::Gguf(Box::new(GgufFile::open(&file)?))),
            None => Ok(Self::Folder(HfFolder::open(path)?)),
        }
    }

    /// The folder or the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder.path(),
            Self::Gguf(file) => file.path(),
        }
    }

    /// Weights and configuration.
    pub fn weights(&self) -> &dyn WeightSource {
        match self {
            Self::Folder(folder) => folder,
            Self::Gguf(file) => &**file,
        }
    }

    /// SHA-256 of configuration and weights, in hexadecimal.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String, IoError> {
        match self {
            Self::Folder(folder) => folder.fingerprint(),
            Self::Gguf(file) => file.fingerprint(),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, DataError> {
        match self {
            Self::Folder(folder) => read_tokenizer(&folder.path().join(TOKENIZER)),
            Self::Gguf(file) => {
                let found = file.tokenizer().map_err(|e| tokenizer_error(file.path(), e.to_string()))?;
                Ok(found.tokenizer)
            }
        }
    }

    /// The chat template, if the model has one.
    ///
    /// # Errors
    /// When it cannot be read or compiled.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, DataError> {
        let error = |reason: String| DataError::Chat { path: self.path().into(), reason };
        match self {
            Self::Folder(folder) => ChatTemplate::open(folder.path()).map_err(|e| error(e.to_string())),
            Self::Gguf(file) => {
                let Some(source) = file.chat_template().map_err(|e| error(e.to_string()))? else { return Ok(None) };
                let tokens = file.tokenizer().map_err(|e| tokenizer_error(file.path(), e.to_string()))?;
                let text = |token: &Option<super::SpecialToken>| token.as_ref().map(|token| token.text.clone());
                let (bos, eos) = (text(&tokens.bos), text(&tokens.eos));
                let template = ChatTemplate::new(source, bos.as_deref(), eos.as_deref());
                template.map(Some).map_err(|e| error(e.to_string()))
            }
        }
    }

    /// How prompts and completions become texts: by the chat template where `chat` asks for one, or leaves it open and the
    /// model has one.
    ///
    /// # Errors
    /// When there is no chat template although it is asked for, or it cannot be used.
    pub fn prompt_template(&self, chat: Option<bool>) -> Result<PromptTemplate, DataError> {
        let template = if chat == Some(false) { None } else { self.chat_template()? };
        match template {
            Some(template) => Ok(PromptTemplate::Chat(Box::new(template))),
            None if chat == Some(true) => {
                let reason = "the model has no chat template; choose the template \"plain\"".into();
                Err(DataError::Chat { path: self.path().into(), reason })
            }
            None => {
                let (tokenizer, ends) = (self.tokenizer()?, self.end_tokens()?);
                Ok(PromptTemplate::Plain { end: ends.first().and_then(|&end| tokenizer.id_to_token(end)) })
            }
        }
    }

    /// The tokens that end a text of a language model; none where the model names none.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn end_tokens(&self) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.path().join(GENERATION);
                let error = |e: IoError| tokenizer_error(folder.path(), e.to_string());
                let generation = if path.exists() { read_json(&path).map_err(error)? } else { Map::new() };
                let named = [&generation, folder.config()].into_iter().find_map(|config| config.get("eos_token_id"));
                let ids = match named {
                    Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
                    Some(id) => id.as_u64().into_iter().collect(),
                    None => vec![],
                };
                Ok(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
            }
            Self::Gguf(file) => {
                let tokens = file.tokenizer().map_err(|e| tokenizer_error(file.path(), e.to_string()))?;
                Ok(tokens.eos.into_iter().map(|token| token.id).collect())
            }
        }
    }
}

/// The GGUF file that `path` is, or holds in place of a Hugging Face model.
fn gguf_of(path: &Path) -> Result<Option<PathBuf>, IoError> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if path.is_file() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if !path.is_dir() || path.join("config.json").exists() {
        return Ok(None);
    }
    let entries =
        std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(IoError::at(path))?;
    let mut files: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).filter(|path| is_gguf(path)).collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        several => {
            let what = format!("it holds {several} GGUF files; name the one that is meant");
            Err(IoError::Missing { path: path.into(), what })
        }
    }
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// When it is missing or no tokenizer.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer, DataError> {
    let error = |reason: String| tokenizer_error(path, reason);
    let bytes = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            error("missing; a model folder needs it (transformers writes it with `save_pretrained`)".into())
        }
        _ => error(e.to_string()),
    })?;
    Tokenizer::from_bytes(bytes).map_err(|e| error(format!("not a tokenizer that can be read: {e}")))
}

fn tokenizer_error(path: &Path, reason: String) -> DataError {
    DataError::Tokenizer { path: path.into(), reason }
}
