//! FedPipe fine-tunes a language model on data that stays where it is, with a plan made for every site.
//!
//! The binary `fedpipe` is a thin shell over this library. To embed a run: read a [`Config`], load its [`Setup`], make a
//! [`RunDir`] and call [`run::run`] with an [`Observer`] that hears every [`Event`] and a [`Stop`] that can end it.

pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
mod device;
mod disk;
pub mod error;
#[cfg(test)]
mod fixture;
pub mod interrupt;
mod length;
pub mod memory;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod setup;
pub mod summary;
pub mod task;
mod texts;
pub mod trained;
mod writing;

pub use config::Config;
pub use fedpipe_core::{Event, Observer, Stop};
pub use fedpipe_model::HeapMeter;
pub use run::{Ending, Surroundings};
pub use run_dir::RunDir;
pub use setup::Setup;
