//! The binary `fedpipe`.

use clap::Parser;
use fedpipe::cli::Cli;
use fedpipe::commands;
use fedpipe::error::AppError;
use fedpipe_federation::plan::in_solver;
use fedpipe_kernels::{CountingAllocator, keep_freed_memory};
use fedpipe_model::HeapMeter;
use mimalloc::MiMalloc;
use std::process::ExitCode;
use std::sync::Arc;

/// Counts every allocation of this process, so that a silo's memory is measured and not guessed.
#[global_allocator]
static HEAP: CountingAllocator<MiMalloc> = CountingAllocator::new(MiMalloc);

struct Heap;

impl HeapMeter for Heap {
    fn current_bytes(&self) -> u64 {
        HEAP.current_bytes() as u64
    }

    fn peak_bytes(&self) -> u64 {
        HEAP.peak_bytes() as u64
    }

    fn reset_peak(&self) {
        HEAP.reset_peak();
    }
}

/// Says nothing of panics that the planner catches: they cost no more than the last bit of a plan's proof.
fn keep_quiet_of_the_solver() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !in_solver() {
            told(panic);
        }
    }));
}

fn main() -> ExitCode {
    keep_freed_memory();
    keep_quiet_of_the_solver();
    match commands::execute(Cli::parse().command, &(Arc::new(Heap) as Arc<dyn HeapMeter>)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match &error {
                AppError::OutputClosed => {}
                AppError::Stopped(what) => eprintln!("{what}"),
                error => eprintln!("error: {error}"),
            }
            error.exit_code()
        }
    }
}
