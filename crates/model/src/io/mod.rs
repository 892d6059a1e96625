//! Files of the ecosystem: Hugging Face model folders, GGUF files, PEFT adapters, merged models.

mod error;
mod files;
mod folder;
mod gguf;
mod hf;
mod hub;
mod merged;
mod peft;
mod source;
mod tensors;

pub use error::IoError;
pub use files::{ModelFiles, read_tokenizer};
pub use folder::{read_json, write_folder, write_json};
pub use gguf::{GGUF_ADAPTER, GgufFile, GgufTokenizer, SpecialToken, write_gguf_adapter};
pub use hf::HfFolder;
pub use hub::{ModelSource, resolve};
pub use merged::{MergedLayout, write_merged};
pub use peft::{AdapterInfo, AdapterTask, SavedAdapter, read_adapter, serving_rank, write_adapter, write_serving};
pub use source::WeightSource;
pub use tensors::{LazyTensor, TensorFile, write_tensors};
