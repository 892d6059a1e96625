//! `fedpipe export`

use crate::cli::{ExportArgs, ExportFormat};
use crate::config::ModelSource;
use crate::error::AppError;
use crate::run_dir::RunDir;
use crate::setup::{model_name, open_model};
use crate::trained::Trained;
use fedpipe_core::Adapter;
use fedpipe_model::BaseModel;
use fedpipe_model::head::HeadKind;
use fedpipe_model::io::{
    AdapterInfo, IoError, MergedLayout, write_adapter, write_gguf_adapter, write_merged, write_serving,
};
use std::collections::BTreeMap;

/// Writes a run's adapter, or the merged model, to a folder.
pub fn export(args: &ExportArgs) -> Result<(), AppError> {
    if !RunDir::holds_run(&args.run) {
        if args.format == ExportFormat::Merged && !args.run.join("adapter_config.json").exists() {
            return convert(args);
        }
        let what = format!("{} holds no run: it has no config.toml", args.run.display());
        return Err(AppError::user(what).hint("name the folder that `fedpipe run` wrote"));
    }
    let trained = Trained::open(&args.run, None)?;
    let (base, adapter) = (trained.base.files(), &trained.adapter);
    match args.format {
        ExportFormat::Peft => write_adapter(&args.to, adapter, &info(&trained)?)?,
        ExportFormat::Serving => write_serving(&args.to, adapter, &info(&trained)?)?,
        ExportFormat::Merged => {
            write_merged(&args.to, base, adapter, trained.task.labels(), &layout(&trained.base, trained.task.head()))?;
        }
        ExportFormat::Gguf => write_gguf_adapter(&args.to, adapter, base.weights())?,
    }
    eprintln!("wrote {}", args.to.display());
    Ok(())
}

fn info(trained: &Trained) -> Result<AdapterInfo, IoError> {
    Ok(AdapterInfo {
        base_model: trained.config.as_ref().map(|c| model_name(&c.model)).unwrap_or_default(),
        base_fingerprint: trained.base.files().fingerprint()?,
        labels: trained.task.labels().to_vec(),
        max_length: trained.encoder.max_length(),
        task: trained.task.of_adapter(),
        chat: trained.task.chat(),
        reading: trained.task.reading(),
        fan_in_fan_out: trained.base.outline().transposed,
    })
}

/// How the whole model is written.
fn layout(base: &BaseModel, head: HeadKind) -> MergedLayout {
    let outline = base.outline();
    let (class, unused, head) = match (head, &outline.causal, outline.span_class) {
        (HeadKind::Vocabulary, Some(causal), _) => (causal.class, outline.unused, causal.tensor),
        // What answers questions reads every token, and has no pooler.
        (HeadKind::Span, _, Some(class)) => (class, ["pooler."].as_slice(), None),
        _ => (outline.classifier_class, outline.unused, None),
    };
    MergedLayout { class, prefix: outline.prefix, unused, transposed: outline.transposed, head }
}

/// A base model as it is, as a Hugging Face folder: what a GGUF file holds for those who cannot read one.
fn convert(args: &ExportArgs) -> Result<(), AppError> {
    let base = open_model(&ModelSource::Path { path: args.run.clone() })?;
    if base.outline().causal.is_none() {
        return Err(AppError::user(format!("{} is a Hugging Face folder already", args.run.display())));
    }
    let adapter = Adapter { scaling: 1.0, factors: BTreeMap::new(), head: BTreeMap::new() };
    write_merged(&args.to, base.files(), &adapter, &[], &layout(&base, HeadKind::Vocabulary))?;
    eprintln!("wrote {}", args.to.display());
    Ok(())
}
