//! A run between two rounds, on disk: `checkpoints/round-NNN/` with `state.json` and `adapter.safetensors`.
//!
//! A checkpoint is written into a folder beside its own, synced and renamed, so it is there whole or not at all, and
//! whatever goes wrong the one before it stays.

use crate::disk;
use fedpipe_core::{Adapter, AdapterError, Matrix, MatrixError, RUN_STATE_VERSION, RunState, Tensors};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const ADAPTER: &str = "adapter.safetensors";
const PREFIX: &str = "round-";
/// Where the safetensors file keeps [`Adapter::scaling`]; its decimal form reads back to the same bits.
const SCALING: &str = "scaling";

/// Bytes of the largest state that is read: some millions of silo rounds.
const MAX_STATE_BYTES: u64 = 1 << 30;
/// Bytes of the largest adapter that is read.
const MAX_ADAPTER_BYTES: u64 = 8 << 30;

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is there is not a checkpoint.
    #[error("{} is broken: {reason}", path.display())]
    Broken {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another release wrote it.
    #[error(
        "{} has version {found}, this release reads version {RUN_STATE_VERSION}; go on with the release that wrote it, \
         or start a new run",
        path.display()
    )]
    OtherVersion {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The state would not read back.
    #[error("round {round} cannot be kept: {reason}")]
    Unrepresentable {
        /// Which round.
        round: u32,
        /// Why.
        reason: String,
    },
    /// Not one of the checkpoints can be read.
    #[error("no checkpoint of {} can be read:\n  {}", path.display(), reasons.join("\n  "))]
    NoneReadable {
        /// Where.
        path: PathBuf,
        /// A reason each.
        reasons: Vec<String>,
    },
}

/// The newest checkpoint that could be read.
#[derive(Debug)]
pub struct Restored {
    /// The run.
    pub state: RunState,
    /// Newer checkpoints that could not be read, and why.
    pub warnings: Vec<String>,
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// How a file gets on the disk; tests let it fail.
    write: fn(&Path, &[u8]) -> io::Result<()>,
}

impl Checkpoints {
    /// The checkpoints in `folder`, of which the last `keep` stay.
    pub fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep: keep.max(1), write: disk::write_synced }
    }

    /// Writes the state after a round, then removes checkpoints beyond the last ones; gives the checkpoint's folder.
    ///
    /// # Errors
    /// When it cannot be written; what was there before stays.
    pub fn save(&self, state: &RunState) -> Result<PathBuf, CheckpointError> {
        let name = format!("{PREFIX}{:03}", state.round);
        let (path, temporary) = (self.folder.join(&name), self.folder.join(format!(".{name}.tmp")));
        let files = [(STATE, encode_state(state)?), (ADAPTER, encode_adapter(&state.adapter, state.round)?)];
        let put = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            disk::remove_folder(&temporary)?;
            fs::create_dir(&temporary)?;
            for (file, bytes) in &files {
                (self.write)(&temporary.join(file), bytes)?;
            }
            disk::sync_folder(&temporary)?;
            // A folder cannot be renamed onto another; a round that is done again after a resume makes room first.
            let replaced = self.folder.join(format!(".{name}.old"));
            disk::remove_folder(&replaced)?;
            if path.exists() {
                fs::rename(&path, &replaced)?;
            }
            fs::rename(&temporary, &path)?;
            disk::sync_folder(&self.folder)?;
            disk::remove_folder(&replaced)
        };
        let written = put();
        if written.is_err() {
            // The first error says why; a full disk needs the room back.
            let _ = fs::remove_dir_all(&temporary);
        }
        written.map_err(|error| CheckpointError::Io { path: path.clone(), error })?;
        self.prune();
        Ok(path)
    }

    /// The newest checkpoint that can be read; `None` when there is none at all.
    ///
    /// # Errors
    /// When the newest was written by a release of another version, or none can be read.
    pub fn newest(&self) -> Result<Option<Restored>, CheckpointError> {
        let mut warnings = Vec::new();
        for (round, path) in self.list()?.into_iter().rev() {
            match load(&path, round) {
                Ok(state) => return Ok(Some(Restored { state, warnings })),
                Err(other @ CheckpointError::OtherVersion { .. }) => return Err(other),
                Err(error) => warnings.push(error.to_string()),
            }
        }
        match warnings {
            none if none.is_empty() => Ok(None),
            reasons => Err(CheckpointError::NoneReadable { path: self.folder.clone(), reasons }),
        }
    }

    /// Folders by round, in order.
    fn list(&self) -> Result<Vec<(u32, PathBuf)>, CheckpointError> {
        let at = |error| CheckpointError::Io { path: self.folder.clone(), error };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at)?,
        };
        let mut rounds = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at)?;
            let name = entry.file_name();
            let round = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
            rounds.extend(round.map(|round| (round, entry.path())));
        }
        rounds.sort();
        Ok(rounds)
    }

    /// An old checkpoint that cannot be removed takes room and does no harm: the next save tries again.
    fn prune(&self) {
        let rounds = self.list().unwrap_or_default();
        for (_, path) in rounds.iter().take(rounds.len().saturating_sub(self.keep)) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn encode_state(state: &RunState) -> Result<Vec<u8>, CheckpointError> {
    let refuse = |e: serde_json::Error| CheckpointError::Unrepresentable { round: state.round, reason: e.to_string() };
    let bytes = serde_json::to_vec(state).map_err(refuse)?;
    // JSON writes a number that is not finite as null: better known now than when the run has to go on from it.
    serde_json::from_slice::<RunState>(&bytes).map_err(refuse)?;
    Ok(bytes)
}

fn encode_adapter(adapter: &Adapter, round: u32) -> Result<Vec<u8>, CheckpointError> {
    let tensors = adapter.to_tensors();
    let bytes: Vec<(&String, [usize; 2], Vec<u8>)> = tensors
        .iter()
        .map(|(name, m)| (name, [m.rows(), m.cols()], m.data().iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let encode = || {
        let views: Result<Vec<_>, SafeTensorError> = bytes
            .iter()
            .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), data)?)))
            .collect();
        // One entry only: the order of several would follow a hash map, and equal states shall give equal bytes.
        let metadata = HashMap::from([(SCALING.to_string(), adapter.scaling.to_string())]);
        safetensors::serialize(views?, Some(metadata))
    };
    encode().map_err(|e| CheckpointError::Unrepresentable { round, reason: e.to_string() })
}

fn load(path: &Path, round: u32) -> Result<RunState, CheckpointError> {
    let (state_path, adapter_path) = (path.join(STATE), path.join(ADAPTER));
    let read = |path: &Path, limit| {
        disk::read_bounded(path, limit).map_err(|error| CheckpointError::Io { path: path.to_path_buf(), error })
    };
    let mut state = decode_state(&read(&state_path, MAX_STATE_BYTES)?, &state_path)?;
    if state.round != round {
        let reason = format!("it is of round {}", state.round);
        return Err(CheckpointError::Broken { path: state_path, reason });
    }
    state.adapter = decode_adapter(&read(&adapter_path, MAX_ADAPTER_BYTES)?)
        .map_err(|error| CheckpointError::Broken { path: adapter_path, reason: error.to_string() })?;
    Ok(state)
}

fn decode_state(bytes: &[u8], path: &Path) -> Result<RunState, CheckpointError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let broken = |e: serde_json::Error| CheckpointError::Broken { path: path.to_path_buf(), reason: e.to_string() };
    let Versioned { version } = serde_json::from_slice(bytes).map_err(broken)?;
    if version != RUN_STATE_VERSION {
        return Err(CheckpointError::OtherVersion { path: path.to_path_buf(), found: version });
    }
    serde_json::from_slice(bytes).map_err(broken)
}

#[derive(Debug, thiserror::Error)]
enum DecodeError {
    #[error(transparent)]
    Format(#[from] SafeTensorError),
    #[error("its metadata lacks a readable `{SCALING}`")]
    Scaling,
    #[error("{0} is not a matrix of f32")]
    NotAMatrix(String),
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

fn decode_adapter(bytes: &[u8]) -> Result<Adapter, DecodeError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let scaling = header.metadata().as_ref().and_then(|metadata| metadata.get(SCALING)?.parse().ok());
    let scaling = scaling.ok_or(DecodeError::Scaling)?;
    let mut tensors = Tensors::new();
    for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
        let (Dtype::F32, &[rows, cols]) = (view.dtype(), view.shape()) else {
            return Err(DecodeError::NotAMatrix(name.to_string()));
        };
        let (values, _) = view.data().as_chunks::<4>();
        let values = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        tensors.insert(name.to_string(), Matrix::new(rows, cols, values)?);
    }
    Ok(Adapter::from_tensors(scaling, tensors)?)
}

#[cfg(test)]
mod tests;
