//! `fedpipe export`

use crate::cli::ExportArgs;
use crate::error::AppError;
use crate::run_dir::RunDir;
use crate::setup::model_name;
use crate::task::Task;
use crate::trained::Trained;
use fedpipe_model::io::{AdapterInfo, MergedLayout, write_adapter, write_merged};

/// Writes a run's adapter, or the merged model, to a folder.
pub fn export(args: &ExportArgs) -> Result<(), AppError> {
    if !RunDir::holds_run(&args.run) {
        let what = format!("{} holds no run: it has no config.toml", args.run.display());
        return Err(AppError::user(what).hint("name the folder that `fedpipe run` wrote"));
    }
    let trained = Trained::open(&args.run, None)?;
    let outline = trained.base.outline();
    let labels = trained.task.labels();
    if args.merged {
        let (class, head) = match (&trained.task, &outline.causal) {
            (Task::Instruct(_) | Task::Lm { .. }, Some(causal)) => (causal.class, causal.tensor),
            _ => (outline.classifier_class, None),
        };
        let (prefix, unused, transposed) = (outline.prefix, outline.unused, outline.transposed);
        let layout = MergedLayout { class, prefix, unused, transposed, head };
        write_merged(&args.to, trained.base.files(), &trained.adapter, labels, &layout)?;
    } else {
        let info = AdapterInfo {
            base_model: trained.config.as_ref().map(|c| model_name(&c.model)).unwrap_or_default(),
            base_fingerprint: trained.base.files().fingerprint()?,
            labels: labels.to_vec(),
            max_length: trained.encoder.max_length(),
            task: trained.task.of_adapter(),
            chat: trained.task.chat(),
            fan_in_fan_out: outline.transposed,
        };
        write_adapter(&args.to, &trained.adapter, &info)?;
    }
    eprintln!("wrote {}", args.to.display());
    Ok(())
}
