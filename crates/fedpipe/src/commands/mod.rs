//! One file for every command: from its arguments to its exit.

mod evaluate;
mod export;
mod generate;
mod inspect;
mod plan;
mod predict;
mod profile;
mod run;

use crate::cli::Command;
use crate::error::AppError;
use fedpipe_model::HeapMeter;
use std::sync::Arc;

/// Does what was asked for; `meter` counts what this process has allocated.
///
/// # Errors
/// [`AppError::User`] when the input was wrong, another one when anything else was.
pub fn execute(command: Command, meter: &Arc<dyn HeapMeter>) -> Result<(), AppError> {
    match command {
        Command::Run(args) => run::run(&args, meter),
        Command::Plan(args) => plan::plan(&args, meter),
        Command::Profile(args) => profile::profile(&args, meter),
        Command::Evaluate(args) => evaluate::evaluate(&args),
        Command::Predict(args) => predict::predict(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Export(args) => export::export(&args),
        Command::Inspect(args) => inspect::inspect(&args),
    }
}
