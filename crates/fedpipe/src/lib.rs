//! FedPipe fine-tunes a language model on data that stays where it is, with a plan made for every site.
//!
//! The binary `fedpipe` is a thin shell over this library.

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
pub mod memory;
pub mod report;
pub mod run;
pub mod run_dir;
pub mod setup;
pub mod summary;
pub mod trained;
