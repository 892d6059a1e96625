//! `fedpipe inspect`

use crate::cli::InspectArgs;
use crate::config::ModelSource;
use crate::error::AppError;
use crate::setup::open_model;
use fedpipe_core::BaseFormat;
use fedpipe_model::BaseModel;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Serialize)]
struct Inspection {
    architecture: &'static str,
    parameters: u64,
    layers: usize,
    hidden: usize,
    vocabulary: usize,
    max_positions: usize,
    /// Kinds that are adapted when a configuration names none.
    default_targets: &'static [&'static str],
    weights: Vec<Weights>,
    /// MiB of the frozen weights by format.
    memory_mib: BTreeMap<BaseFormat, f64>,
}

/// One kind of adaptable weight; there is one in every layer.
#[derive(Serialize)]
struct Weights {
    kind: String,
    /// `[out, in]`.
    shape: [usize; 2],
    layers: Vec<usize>,
    first: String,
}

/// Prints what a base model is made of.
pub fn inspect(args: &InspectArgs) -> Result<(), AppError> {
    let base = open_model(&ModelSource::named(&args.model))?;
    let inspection = inspection(&base);
    let text = match args.json {
        true => serde_json::to_string_pretty(&inspection).map_err(AppError::other)?,
        false => text(&inspection),
    };
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).map_err(AppError::output)
}

fn inspection(base: &BaseModel) -> Inspection {
    let outline = base.outline();
    let mut weights: Vec<Weights> = Vec::new();
    for candidate in &outline.candidates {
        match weights.iter_mut().find(|w| w.kind == candidate.kind) {
            Some(weights) => weights.layers.push(candidate.layer),
            None => weights.push(Weights {
                kind: candidate.kind.clone(),
                shape: [candidate.outputs, candidate.inputs],
                layers: vec![candidate.layer],
                first: candidate.id.to_string(),
            }),
        }
    }
    Inspection {
        architecture: base.model_type(),
        parameters: outline.parameters(),
        layers: outline.layers,
        hidden: outline.hidden,
        vocabulary: outline.vocabulary,
        max_positions: outline.max_positions,
        default_targets: outline.default_targets,
        weights,
        memory_mib: BaseFormat::ALL.map(|f| (f, outline.base_bytes(f) as f64 / f64::from(1 << 20))).into(),
    }
}

fn text(inspection: &Inspection) -> String {
    let mut text = format!(
        "architecture  {}\nparameters    {:.1} M\nlayers        {} of width {}\nvocabulary    {}\npositions     {}\n",
        inspection.architecture,
        inspection.parameters as f64 / 1e6,
        inspection.layers,
        inspection.hidden,
        inspection.vocabulary,
        inspection.max_positions,
    );
    text.push_str("\nAdaptable weights (* when a configuration names none)\n");
    for Weights { kind, shape: [outputs, inputs], layers, first } in &inspection.weights {
        let mark = if inspection.default_targets.contains(&kind.as_str()) { '*' } else { ' ' };
        let count = layers.len();
        text.push_str(&format!("{mark} {kind:<24} [{outputs}, {inputs}] in {count} layers, the first {first}\n"));
    }
    text.push_str("\nMemory of the frozen weights\n");
    for (format, mib) in &inspection.memory_mib {
        text.push_str(&format!("  {format:<5} {mib:>8.1} MiB\n"));
    }
    text
}
