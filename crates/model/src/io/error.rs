//! What can go wrong with files of models and adapters.

use std::path::{Path, PathBuf};

/// A file or folder that cannot be read or written, with its path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The operating system refuses.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that is there and not empty.
    #[error("{} is not empty; name another folder or remove it first", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Something that a folder must hold is not there.
    #[error("{}: {what}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is not there, and where it comes from.
        what: String,
    },
    /// A JSON file that cannot be used.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key of a JSON file.
    #[error("{}: `{key}` {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that is no whole safetensors file.
    #[error("{}: not a whole safetensors file ({reason}); copy or download it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file that cannot be used.
    #[error("{}: GGUF: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is not there.
    #[error("{}: there is no tensor `{name}`", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("{}: the tensor `{name}` is {got:?}, but {expected:?} is needed", path.display())]
    Shape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shape that is needed.
        expected: Vec<usize>,
        /// The shape that it has.
        got: Vec<usize>,
    },
    /// A tensor's numbers cannot be read.
    #[error("{}: the tensor `{name}` holds {dtype}; F32, F16 and BF16 can be read", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it holds.
        dtype: String,
    },
    /// An adapter that cannot be honoured, or written.
    #[error("{}: {reason}", path.display())]
    Adapter {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A repository of the hub that cannot be had.
    #[error("hub repository {repository}: {reason}")]
    Hub {
        /// The repository.
        repository: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl IoError {
    /// Whether the system failed, such as by a full disk, rather than the user naming something that cannot be used.
    pub fn is_systems(&self) -> bool {
        use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        match self {
            Self::File { source, .. } => {
                !matches!(source.kind(), NotFound | PermissionDenied | IsADirectory | NotADirectory)
            }
            _ => false,
        }
    }

    /// For `map_err`: an operating system's error at `path`.
    pub(super) fn at(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File { path: path.into(), source }
    }

    pub(crate) fn key(path: &Path, key: &str, reason: impl Into<String>) -> Self {
        Self::Key { path: path.into(), key: key.into(), reason: reason.into() }
    }

    pub(super) fn gguf(path: &Path, reason: impl Into<String>) -> Self {
        Self::Gguf { path: path.into(), reason: reason.into() }
    }

    pub(super) fn adapter(path: &Path, reason: impl Into<String>) -> Self {
        Self::Adapter { path: path.into(), reason: reason.into() }
    }
}
