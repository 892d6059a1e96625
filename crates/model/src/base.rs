//! A base model on disk, and its frozen weights in the formats in use.

use crate::Error;
use crate::arch::{self, Architecture, Backbone, Outline};
use crate::data::{DataError, Targets, TextEncoder};
use crate::head::HeadKind;
use crate::io::ModelFiles;
use crate::task::Objective;
use fedpipe_core::{Adapter, BaseFormat, CandidateWeight, ModelSpec};
use fedpipe_kernels::FrozenMatrix;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A model on disk. Silos of one process that use the same base format share its bytes.
pub struct BaseModel {
    files: ModelFiles,
    architecture: &'static Architecture,
    outline: Outline,
    encoders: Mutex<BTreeMap<BaseFormat, Loaded>>,
}

/// Weights in one format.
#[derive(Clone)]
struct Loaded {
    layers: Arc<dyn Backbone>,
    /// The output head, once it was asked for.
    head: Option<Arc<FrozenMatrix>>,
}

impl BaseModel {
    /// Opens a Hugging Face folder or a GGUF file and reads the configuration; weights are mapped, not read.
    ///
    /// # Errors
    /// When the model is incomplete or its architecture is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let files = ModelFiles::open(path)?;
        let architecture = arch::of(files.weights())?;
        let outline = (architecture.outline)(files.weights())?;
        Ok(Self { files, architecture, outline, encoders: Mutex::default() })
    }

    /// The files.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// How texts of at most `max_length` tokens are read.
    ///
    /// # Errors
    /// When there is no tokenizer, or `max_length` leaves no room beside its special tokens.
    pub fn text_encoder(&self, max_length: usize) -> Result<TextEncoder, DataError> {
        TextEncoder::new(
            self.files.tokenizer()?,
            self.files.path(),
            max_length,
            self.outline.vocabulary,
            self.outline.segments,
        )
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
        Ok(self.loaded(format, &mut self.encoders.lock().unwrap_or_else(PoisonError::into_inner))?.layers.clone())
    }

    fn loaded<'a>(
        &self,
        format: BaseFormat,
        encoders: &'a mut BTreeMap<BaseFormat, Loaded>,
    ) -> Result<&'a mut Loaded, Error> {
        Ok(match encoders.entry(format) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry
                .insert(Loaded { layers: (self.architecture.load)(self.files.weights(), format)?.into(), head: None }),
        })
    }

    /// What texts with these targets train the model for. A language model's output head is loaded in `format` on first
    /// use and shared afterwards.
    ///
    /// # Errors
    /// When tokens are to be written by a model that cannot, or its head cannot be read.
    pub fn objective(&self, targets: &Targets, format: BaseFormat) -> Result<Objective, Error> {
        match targets {
            Targets::Tokens(_) => Ok(Objective::Language { head: self.output_head(format)? }),
            Targets::Spans(_) if self.outline.span_class.is_none() => Err(Error::Misfit(format!(
                "answers are read by an encoder such as BERT; this is a {}",
                self.model_type()
            ))),
            Targets::Spans(_) => Ok(Objective::Spans),
            Targets::Classes(_) | Targets::None => Ok(Objective::Classification { head: self.outline.head }),
        }
    }

    /// The output head of a language model, `[vocabulary, hidden]`.
    ///
    /// # Errors
    /// When the model has none, or it cannot be read.
    pub fn output_head(&self, format: BaseFormat) -> Result<Arc<FrozenMatrix>, Error> {
        let mut encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = self.loaded(format, &mut encoders)?;
        if let Some(head) = &loaded.head {
            return Ok(head.clone());
        }
        let no_writer = || Error::Misfit(format!("a {} model has no output head: it cannot write", self.model_type()));
        let causal = self.outline.causal.as_ref().ok_or_else(no_writer)?;
        let head = causal.load(self.files.weights(), format, loaded.layers.language().ok_or_else(no_writer)?)?;
        loaded.head = Some(head.clone());
        Ok(head)
    }

    /// Bytes of an objective's frozen head that are not among those of the layers.
    pub(crate) fn own_head_bytes(&self, objective: &Objective) -> u64 {
        match (objective, &self.outline.causal) {
            (Objective::Language { head }, Some(causal)) if causal.tensor.is_some() => head.bytes() as u64,
            _ => 0,
        }
    }

    /// Lets go of the weights in a format; they are loaded again when needed.
    pub fn release(&self, format: BaseFormat) {
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).remove(&format);
    }

    /// The model as the federation sees it, with what stands on its layers.
    ///
    /// `targets` names kinds of weights (`query`) or whole module paths; empty takes the
    /// architecture's usual ones, [`ALL_LINEAR`] alone all.
    ///
    /// # Errors
    /// When a target matches no weight, or the weights cannot be read.
    pub fn spec(&self, targets: &[String], head: HeadKind) -> Result<ModelSpec, Error> {
        Ok(ModelSpec {
            architecture: self.model_type().to_string(),
            fingerprint: self.files.fingerprint()?,
            parameters: self.outline.parameters(),
            layers: self.outline.layers,
            hidden: self.outline.hidden,
            candidates: self.targets(targets)?,
            head: self.outline.head_shapes(head),
            base_bytes: BaseFormat::ALL.map(|format| (format, self.bytes(format, head))).into(),
        })
    }

    /// Bytes of the frozen weights at rest, the output head's only for a model that writes.
    fn bytes(&self, format: BaseFormat, head: HeadKind) -> u64 {
        let head = self.outline.causal.as_ref().filter(|_| head == HeadKind::Vocabulary);
        self.outline.base_bytes(format) + head.map_or(0, |head| head.bytes(format))
    }

    /// Checks that an adapter and its head belong to this model and to what stands on its layers.
    ///
    /// # Errors
    /// [`Error::Misfit`] with the first tensor that does not fit.
    pub fn check_adapter(&self, adapter: &Adapter, head: HeadKind) -> Result<(), Error> {
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
        let expected = self.outline.head_shapes(head);
        let found: BTreeMap<_, _> = adapter.head.iter().map(|(n, m)| (n.clone(), (m.rows(), m.cols()))).collect();
        if found != expected {
            return Err(Error::Misfit(format!("its head is {found:?}; the task takes {expected:?}")));
        }
        Ok(())
    }

    fn targets(&self, targets: &[String]) -> Result<Vec<CandidateWeight>, Error> {
        let usual: Vec<String> = self.outline.default_targets.iter().map(|t| t.to_string()).collect();
        let targets = if targets.is_empty() { &usual } else { targets };
        if targets == [ALL_LINEAR] {
            return Ok(self.outline.candidates.clone());
        }
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

/// PEFT's name for every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

/// Kinds match whole: `output.dense` does not hit `attention.output.dense`.
fn hits(candidate: &CandidateWeight, target: &str) -> bool {
    candidate.kind == target || candidate.id.as_str() == target
}
