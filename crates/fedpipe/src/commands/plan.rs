//! `fedpipe plan`

use crate::cli::PlanArgs;
use crate::config::Config;
use crate::disk;
use crate::error::AppError;
use crate::report::Loading;
use crate::report::plan::difference;
use crate::run::{Surroundings, check_what_if, plan_only, plan_svg, plan_text, what_if};
use crate::setup::Setup;
use fedpipe_core::{Event, Observer, Stop};
use fedpipe_model::HeapMeter;
use std::io::Write;
use std::sync::Arc;

/// Says nothing but warnings: standard output is for the plan.
pub(super) struct Warnings;

impl Observer for Warnings {
    fn observe(&self, event: &Event) {
        match event {
            Event::Warning { message } => eprintln!("warning: {message}"),
            Event::SiloFailed(failure) => eprintln!("warning: {failure}"),
            _ => {}
        }
    }
}

/// Enrols, identifies and plans, and prints the plan.
pub fn plan(args: &PlanArgs, meter: &Arc<dyn HeapMeter>) -> Result<(), AppError> {
    let config = Config::load(&args.config, &args.set)?;
    let other = match args.what_if.is_empty() {
        true => None,
        false => {
            let options: Vec<String> = args.set.iter().chain(&args.what_if).cloned().collect();
            let other = Config::load(&args.config, &options)?;
            check_what_if(&config, &other)?;
            Some(other)
        }
    };
    let setup = Setup::load(&config, &Loading::new(false))?;
    let stop = Stop::default();
    let around = Surroundings { observer: &Warnings, stop: &stop, meter };
    let Some(state) = plan_only(&config, &setup, &around)? else { return Ok(()) };
    let other = other.map(|other| what_if(&other, &setup, &state)).transpose()?;
    if let Some(path) = &args.svg {
        let drawing = plan_svg(&setup, &state, other.as_ref().unwrap_or(&state.plan));
        let fault = |error| AppError::user(format!("{}: {error}", path.display()));
        disk::replace(path, drawing.as_bytes()).map_err(fault)?;
    }
    let text = match (args.json, other) {
        (true, other) => {
            serde_json::to_string_pretty(other.as_ref().unwrap_or(&state.plan)).map_err(AppError::other)?
        }
        (false, None) => plan_text(&setup, &state),
        (false, Some(other)) => difference(&state.plan, &other),
    };
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).map_err(AppError::output)
}
