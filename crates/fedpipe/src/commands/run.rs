//! `fedpipe run`

use crate::cli::RunArgs;
use crate::config::Config;
use crate::error::AppError;
use crate::interrupt::stop_on_interrupt;
use crate::report::{Fanout, Loading, ReportContext};
use crate::run::{self, Ending, Surroundings};
use crate::run_dir::RunDir;
use crate::setup::Setup;
use fedpipe_core::Stop;
use fedpipe_model::HeapMeter;
use std::sync::Arc;

/// The main job, from a configuration or from where a run left off.
pub fn run(args: &RunArgs, meter: &Arc<dyn HeapMeter>) -> Result<(), AppError> {
    let stop = Stop::default();
    stop_on_interrupt(&stop).map_err(AppError::other)?;
    // Everything that a user may have got wrong is read before a folder is made.
    let resumed = args.resume.is_some();
    let loading = Loading::new(args.quiet);
    let (config, setup, run_dir) = match (&args.resume, &args.config) {
        (Some(dir), _) => {
            let run_dir = RunDir::resume(dir)?;
            let config = run_dir.config()?;
            (config.clone(), Setup::load(&config, &loading)?, run_dir)
        }
        (None, Some(file)) => {
            let mut config = Config::load(file, &args.set)?;
            if let Some(dir) = &args.output {
                config.output.dir.clone_from(dir);
            }
            RunDir::check_free(&config.output.dir)?;
            let setup = Setup::load(&config, &loading)?;
            let run_dir = RunDir::create(&config)?;
            (config, setup, run_dir)
        }
        (None, None) => return Err(AppError::user("neither a configuration nor a run to resume is named")),
    };
    let observer = Fanout::open(&ReportContext { run: &run_dir, quiet: args.quiet });
    let around = Surroundings { observer: &observer, stop: &stop, meter };
    match run::run(&config, &setup, &run_dir, &around) {
        Ok(Ending::Finished(_)) => Ok(()),
        Ok(Ending::Stopped { rounds }) => {
            let dir = run_dir.path().display();
            Err(AppError::Stopped(format!("stopped after round {rounds}; go on with: fedpipe run --resume {dir}")))
        }
        Err(error) => {
            drop(observer);
            if !resumed {
                run_dir.discard_unless_begun();
            }
            Err(error)
        }
    }
}
