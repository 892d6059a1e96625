//! The binary `fedpipe`.

use clap::Parser;
use fedpipe::cli::Cli;
use fedpipe::commands;
use fedpipe::error::AppError;
use fedpipe_model::HeapMeter;
use peak_alloc::PeakAlloc;
use std::process::ExitCode;
use std::sync::Arc;

/// Counts every allocation of this process, so that a silo's memory is measured and not guessed.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

struct Heap;

impl HeapMeter for Heap {
    fn current_bytes(&self) -> u64 {
        HEAP.current_usage() as u64
    }

    fn peak_bytes(&self) -> u64 {
        HEAP.peak_usage() as u64
    }

    fn reset_peak(&self) {
        HEAP.reset_peak_usage();
    }
}

fn main() -> ExitCode {
    match commands::execute(Cli::parse().command, &(Arc::new(Heap) as Arc<dyn HeapMeter>)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, AppError::OutputClosed) {
                eprintln!("error: {error}");
            }
            error.exit_code()
        }
    }
}
