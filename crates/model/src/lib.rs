//! Models, adapters, training and evaluation: everything of FedPipe that touches tensors.
//!
//! Start at [`BaseModel`], which opens a Hugging Face folder, and [`SiloTrainer`], which trains on one silo's data.

pub mod adapter;
mod answer;
pub mod arch;
mod base;
mod cache;
pub mod data;
mod error;
mod evaluate;
pub mod generate;
pub mod head;
pub mod io;
pub mod metrics;
mod nn;
pub mod ops;
mod optimizer;
pub mod parameters;
mod pool;
mod probe;
mod profile;
pub mod quant;
mod silo;
pub mod task;
mod train;

pub use answer::{Answer, answers};
pub use base::{ALL_LINEAR, BaseModel};
pub use cache::{CacheLimits, Prefix, PrefixCache};
pub use error::Error;
pub use evaluate::{Prediction, evaluate, logits, predict};
pub use pool::{limit_threads, on_pool};
pub use profile::{HeapMeter, ProfileSettings, ProfiledTargets, device_name, measure_device};
pub use silo::{CacheSettings, SiloSettings, SiloTrainer};
pub use task::Objective;
pub use train::{StepReport, TrainedAdapter, Training, train};
