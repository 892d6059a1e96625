//! `fedpipe evaluate`

use crate::cli::EvaluateArgs;
use crate::error::AppError;
use crate::task::Task;
use crate::trained::Trained;
use fedpipe_core::BaseFormat;
use fedpipe_model::data::{Columns, read};
use std::io::Write;

/// Prints the quality on a file of texts with their labels, or of prompts with their completions.
pub fn evaluate(args: &EvaluateArgs) -> Result<(), AppError> {
    let trained = Trained::open(&args.trained.trained, args.trained.model.as_deref())?;
    let examples = read(&args.data, &columns(&trained))?;
    let data = trained.task.texts(&trained.encoder, &examples)?;
    let objective = trained.base.objective(&data.targets, BaseFormat::F32)?;
    let metrics = fedpipe_model::evaluate(&*trained.weights()?, &objective, &trained.adapter, &data)?;
    let text = match args.json {
        true => serde_json::to_string(&metrics).map_err(AppError::other)?,
        false => {
            let (name, value) = metrics.headline();
            format!("{name:<10} {value:.4}\nloss       {:.4}\nexamples   {}", metrics.loss, metrics.examples)
        }
    };
    writeln!(std::io::stdout().lock(), "{text}").map_err(AppError::output)
}

/// The columns of the run, or the usual ones.
pub(super) fn columns(trained: &Trained) -> Columns {
    let (text, label) = match (&trained.config, &trained.task) {
        (Some(config), _) => config.data.columns.names(),
        (None, Task::Classification(_)) => return Columns::default(),
        (None, Task::Instruct(_)) => ("prompt", "completion"),
    };
    Columns { text: text.into(), label: Some(label.into()), site: None }
}
