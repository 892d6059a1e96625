//! What can go wrong in this crate.

use crate::data::DataError;
use crate::generate::sampling::DetokenizeError;
use crate::io::IoError;
use crate::quant::QuantError;
use std::path::PathBuf;

/// An error of loading, training or evaluating a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No architecture of that name.
    #[error("{}: model_type {model_type:?} is not supported; supported: {supported}", path.display())]
    UnsupportedArchitecture {
        /// The configuration.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// What there is.
        supported: String,
    },
    /// A configuration asks for something that would be computed wrongly.
    #[error("{}: {key} {reason}", path.display())]
    UnsupportedConfig {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A base weight that cannot be quantised.
    #[error("{}: {tensor} cannot be quantised: {source}", path.display())]
    Quantization {
        /// The model's configuration.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// Target modules that the model does not have.
    #[error("target module {target:?} matches no weight of the model; there are {available}")]
    UnknownTarget {
        /// What was asked for.
        target: String,
        /// The kinds that there are.
        available: String,
    },
    /// A cap on threads that comes too late.
    #[error("{asked} threads are asked for, and this process computes with {has} already")]
    Threads {
        /// Threads that the cap allows.
        asked: usize,
        /// Threads that there are.
        has: usize,
    },
    /// A prompt that nothing can be written behind.
    #[error("prompt {number} has {tokens} tokens; from 1 to {most} leave room to write")]
    Prompt {
        /// Which, from 1 on.
        number: usize,
        /// What it has.
        tokens: usize,
        /// Most that leave room.
        most: usize,
    },
    /// An adapter that does not fit the model.
    #[error("the adapter does not fit the model: {0}")]
    Misfit(String),
    /// Training left the finite numbers.
    #[error("the loss is {loss} at step {step}; lower the learning rate or max_grad_norm")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// The end was requested.
    #[error("stopped on request after {steps} steps")]
    Stopped {
        /// Steps done.
        steps: usize,
    },
    /// Reading or writing a model or an adapter.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Reading data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A token that cannot be turned into text.
    #[error(transparent)]
    Detokenize(#[from] DetokenizeError),
    /// A tensor operation.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Tensors whose shapes do not fit each other.
    #[error("tensor shapes: {0}")]
    Shape(String),
}

impl Error {
    pub(crate) fn shape(what: String) -> Self {
        Self::Shape(what)
    }
}
