//! GGUF files: a language model in one file, weights, configuration, tokenizer and chat template.

mod adapter;
mod blocks;
mod config;
mod container;
mod metadata;
mod names;
mod tokenizer;
mod value;

#[cfg(test)]
mod tests;

pub use adapter::{GGUF_ADAPTER, write_gguf_adapter};
pub use tokenizer::{GgufTokenizer, SpecialToken};

use super::hf::file_digest;
use super::{IoError, WeightSource};
use container::{Container, Tensor};
use fedpipe_kernels::{MappedFile, map_file};
use metadata::Metadata;
use names::{FAMILIES, Family, Rows, half_split, hugging_face};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A GGUF file of the Llama family, with Hugging Face's names for everything in it.
///
/// Files of version 2 and 3 of the architectures `llama` (which Mistral's are, too), `qwen2` and `qwen3` can be read. The
/// file is mapped into memory: a tensor is read from the disk when it is asked for. Files come from strangers: opening
/// one checks every length, and allocates a few words for each entry that is really there.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    container: Container,
    config: Map<String, Value>,
    /// By Hugging Face's name: the name in the file, and how many heads its rows are to be put in order for.
    tensors: BTreeMap<String, (String, Option<usize>)>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl GgufFile {
    /// Opens a file and checks that it is whole and can be read.
    ///
    /// # Errors
    /// When it is missing, cut off or contradicts itself, or holds something else than a model that can be read.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        Self::new(path, Bytes::Mapped(map_file(path).map_err(IoError::at(path))?))
    }

    /// As [`open`](Self::open), for a file that is in memory already; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, IoError> {
        Self::new(path, Bytes::Owned(bytes))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<Self, IoError> {
        let error = |reason| IoError::gguf(path, reason);
        let container = Container::read(&bytes).map_err(error)?;
        let metadata = Metadata::new(&bytes, &container);
        let family = family(&metadata).map_err(error)?;
        let config = config::config(family, &container, &metadata).map_err(error)?;
        let tensors = tensors(family, &container, &config).map_err(error)?;
        Ok(Self { path: path.into(), bytes, container, config, tensors })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str) -> Result<(&Tensor, Option<usize>), IoError> {
        let stored = self.tensors.get(name);
        stored
            .and_then(|(stored, heads)| Some((self.container.tensors.get(stored)?, *heads)))
            .ok_or_else(|| IoError::MissingTensor { path: self.path.clone(), name: name.into() })
    }

    /// The tokenizer in the metadata.
    ///
    /// # Errors
    /// When there is none, it is of a kind that cannot be read, or it does not belong to the model's embeddings.
    pub fn tokenizer(&self) -> Result<GgufTokenizer, IoError> {
        let metadata = Metadata::new(&self.bytes, &self.container);
        let vocabulary = self.config.get("vocab_size").and_then(Value::as_u64).unwrap_or_default();
        tokenizer::read(&metadata, vocabulary).map_err(|reason| IoError::gguf(&self.path, reason))
    }

    /// The source of the chat template in the metadata.
    ///
    /// # Errors
    /// When it is no text.
    pub fn chat_template(&self) -> Result<Option<&str>, IoError> {
        let metadata = Metadata::new(&self.bytes, &self.container);
        metadata.optional_text("tokenizer.chat_template").map_err(|reason| IoError::gguf(&self.path, reason))
    }

    /// SHA-256 of the file, in hexadecimal. The file is streamed, so that it does not count as memory of this process.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub fn fingerprint(&self) -> Result<String, IoError> {
        Ok(file_digest(&self.path)?.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Linear weights are `[outputs, inputs]`, with blocks of integers multiplied out. The rows of query and key come in
/// Hugging Face's order, in which the first half of a head is rotated against the second.
impl WeightSource for GgufFile {
    fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    fn config_path(&self) -> PathBuf {
        self.path.clone()
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor_names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor_shape(&self, name: &str) -> Result<&[usize], IoError> {
        Ok(&self.find(name)?.0.shape)
    }

    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, IoError> {
        let (tensor, heads) = self.find(name)?;
        if tensor.shape != shape {
            let (expected, got) = (shape.to_vec(), tensor.shape.clone());
            return Err(IoError::Shape { path: self.path.clone(), name: name.into(), expected, got });
        }
        let values = tensor
            .format
            .dequantise(&self.bytes[tensor.bytes.clone()])
            .map_err(|e| IoError::gguf(&self.path, format!("the tensor `{name}` cannot be read: {e}")))?;
        let columns = shape.iter().skip(1).product();
        Ok(match heads {
            Some(heads) => half_split(&values, heads, columns),
            None => values,
        })
    }
}

fn family(metadata: &Metadata<'_>) -> Result<&'static Family, String> {
    if let Some(kind) = metadata.optional_text("general.type")?.filter(|&kind| kind != "model") {
        return Err(format!("it holds something of the type `{kind}`, not a model"));
    }
    let architecture = metadata
        .optional_text("general.architecture")?
        .ok_or("the metadata `general.architecture` is missing, so it holds no model")?;
    FAMILIES.iter().find(|family| family.architecture == architecture).ok_or_else(|| {
        let known = FAMILIES.each_ref().map(|family| family.architecture).join(", ");
        format!("a model of the architecture `{architecture}`, which cannot be read; {known} can")
    })
}

/// The tensors by Hugging Face's names. One that the family does not have is an error: without it the model would compute
/// something else.
fn tensors(
    family: &Family,
    container: &Container,
    config: &Map<String, Value>,
) -> Result<BTreeMap<String, (String, Option<usize>)>, String> {
    let count = |key| config.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    let mut tensors = BTreeMap::new();
    for (stored, tensor) in &container.tensors {
        if stored == names::ROPE_FACTORS {
            continue;
        }
        let Some((name, rows)) = hugging_face(stored) else {
            return Err(format!("the tensor `{stored}` is none of a {} model", family.model_type));
        };
        let heads = match rows {
            _ if !family.interleaved => None,
            Rows::Plain => None,
            Rows::Query => count("num_attention_heads"),
            Rows::Key => count("num_key_value_heads"),
        };
        let rows = tensor.shape.first().copied().unwrap_or_default();
        if heads.is_some_and(|heads| !rows.is_multiple_of(2 * heads)) {
            return Err(format!("the tensor `{stored}` is {:?}, which are no pairs of rows a head", tensor.shape));
        }
        tensors.insert(name, (stored.clone(), heads));
    }
    Ok(tensors)
}
