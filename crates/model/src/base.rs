//! A base model on disk, and its frozen weights in the formats in use.

use crate::Error;
use crate::arch::{self, Architecture, Backbone, Outline};
use crate::io::HfFolder;
use fedpipe_core::{Adapter, BaseFormat, CandidateWeight, ModelSpec};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A Hugging Face model folder. Silos of one process that use the same base format share its bytes.
pub struct BaseModel {
    folder: HfFolder,
    architecture: &'static Architecture,
    outline: Outline,
    encoders: Mutex<BTreeMap<BaseFormat, Arc<dyn Backbone>>>,
}

impl BaseModel {
    /// Opens a folder and reads its configuration; weights are mapped, not read.
    ///
    /// # Errors
    /// When the folder is incomplete or its architecture is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let folder = HfFolder::open(path)?;
        let architecture = arch::of(&folder)?;
        let outline = (architecture.outline)(&folder)?;
        Ok(Self { folder, architecture, outline, encoders: Mutex::default() })
    }

    /// The folder.
    pub fn folder(&self) -> &HfFolder {
        &self.folder
    }

    /// What the model consists of.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// `model_type` in the configuration.
    pub fn model_type(&self) -> &'static str {
        self.architecture.model_type
    }

    /// The model with its weights in `format`; loaded on first use, shared afterwards.
    ///
    /// # Errors
    /// When a weight is missing, broken or of the wrong shape.
    pub fn encoder(&self, format: BaseFormat) -> Result<Arc<dyn Backbone>, Error> {
        let mut encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = encoders.get(&format) {
            return Ok(encoder.clone());
        }
        let encoder: Arc<dyn Backbone> = (self.architecture.load)(&self.folder, format)?.into();
        encoders.insert(format, encoder.clone());
        Ok(encoder)
    }

    /// Lets go of the weights in a format; they are loaded again when needed.
    pub fn release(&self, format: BaseFormat) {
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).remove(&format);
    }

    /// The model as the federation sees it, for a classification with `classes` labels.
    ///
    /// `targets` names kinds of weights (`query`) or whole module paths; empty takes the
    /// architecture's usual ones.
    ///
    /// # Errors
    /// When a target matches no weight, or the weights cannot be read.
    pub fn spec(&self, targets: &[String], classes: usize) -> Result<ModelSpec, Error> {
        Ok(ModelSpec {
            architecture: self.model_type().to_string(),
            fingerprint: self.folder.fingerprint()?,
            parameters: self.outline.parameters(),
            layers: self.outline.layers,
            hidden: self.outline.hidden,
            candidates: self.targets(targets)?,
            head: self.outline.head_shapes(classes),
            base_bytes: BaseFormat::ALL.map(|format| (format, self.outline.base_bytes(format))).into(),
        })
    }

    /// Checks that an adapter and its head belong to this model and to `classes` labels.
    ///
    /// # Errors
    /// [`Error::Misfit`] with the first tensor that does not fit.
    pub fn check_adapter(&self, adapter: &Adapter, classes: usize) -> Result<(), Error> {
        for (id, factors) in &adapter.factors {
            let Some(weight) = self.outline.candidates.iter().find(|c| &c.id == id) else {
                return Err(Error::Misfit(format!("the model has no weight {id} that can be adapted")));
            };
            let found = (factors.b().rows(), factors.a().cols());
            if found != (weight.outputs, weight.inputs) {
                let expected = (weight.outputs, weight.inputs);
                return Err(Error::Misfit(format!("{id} is {expected:?} in the model and {found:?} in the adapter")));
            }
        }
        let expected = self.outline.head_shapes(classes);
        let found: BTreeMap<_, _> = adapter.head.iter().map(|(n, m)| (n.clone(), (m.rows(), m.cols()))).collect();
        if found != expected {
            return Err(Error::Misfit(format!("its head is {found:?}; {classes} labels take {expected:?}")));
        }
        Ok(())
    }

    fn targets(&self, targets: &[String]) -> Result<Vec<CandidateWeight>, Error> {
        let usual: Vec<String> = self.outline.default_targets.iter().map(|t| t.to_string()).collect();
        let targets = if targets.is_empty() { &usual } else { targets };
        for target in targets {
            if !self.outline.candidates.iter().any(|c| hits(c, target)) {
                let mut kinds: Vec<&str> = self.outline.candidates.iter().map(|c| c.kind.as_str()).collect();
                kinds.sort_unstable();
                kinds.dedup();
                return Err(Error::UnknownTarget { target: target.clone(), available: kinds.join(", ") });
            }
        }
        let chosen = self.outline.candidates.iter().filter(|c| targets.iter().any(|t| hits(c, t)));
        Ok(chosen.cloned().collect())
    }
}

/// Kinds match whole: `output.dense` does not hit `attention.output.dense`.
fn hits(candidate: &CandidateWeight, target: &str) -> bool {
    candidate.kind == target || candidate.id.as_str() == target
}
