//! Local training of low-rank adapters, and of a classifier's head.

use crate::Error;
use crate::adapter::{Adapters, Sensed, Trainable};
use crate::arch::Backbone;
use crate::cache::PrefixCache;
use crate::data::{Batches, Dataset};
use crate::ops::{Offsets, OpsKind, Pass, Workspace};
use crate::optimizer::AdamW;
use crate::parameters::Gradients;
use crate::pool::on_pool;
use crate::task::Objective;
use fedpipe_core::{Adapter, Purpose, Seed, Stop, TrainWork, WeightId};
use std::collections::{BTreeMap, BTreeSet};

/// One optimizer step, as it is reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, from 1.
    pub step: usize,
    /// Mean cross-entropy of the batch before the step.
    pub loss: f64,
    /// Tokens in the batch.
    pub tokens: u64,
    /// Those that count as [`fedpipe_core::Measured::repeated_tokens`].
    pub repeated: u64,
}

/// What a silo trains with.
pub struct Training<'a> {
    /// The operations.
    pub kind: OpsKind,
    /// The base model.
    pub encoder: &'a dyn Backbone,
    /// What it is trained for.
    pub objective: &'a Objective,
    /// Keeps what the frozen layers at the bottom make of each text.
    pub cache: Option<&'a mut PrefixCache>,
}

/// What training comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedAdapter {
    /// The adapter after the last step.
    pub adapter: Adapter,
    /// [`fedpipe_core::Update::sensitivity`].
    pub sensitivity: BTreeMap<WeightId, f64>,
}

/// Trains `work.adapter` on `data` for `work.steps` steps and returns it as it is then. The batches follow from `seed`.
///
/// # Errors
/// [`Error::NotFinite`] when the loss is not a number, [`Error::Stopped`] when `stop` was requested, and tensor errors.
pub fn train(
    training: Training<'_>,
    data: &Dataset,
    work: &TrainWork,
    seed: Seed,
    stop: &Stop,
    on_step: &mut (dyn FnMut(StepReport) + Send),
) -> Result<TrainedAdapter, Error> {
    on_pool(|| {
        let Training { kind, encoder, objective, mut cache } = training;
        let mut trainable = Trainable::new(&work.adapter);
        let mut adapters = trainable.attached(&work.fixed);
        let loss = objective.loss(trainable.head())?;
        let mut optimizer = AdamW::new(&trainable.parameters, work.weight_decay);
        let mut gradients = Gradients::new(&trainable.parameters);
        let mut sensed = Sensed::default();
        let workspace = Workspace::new(kind, work.base_format, work.recompute);
        let mut met = Met::default();
        let batches = Batches::new(data.len(), work.batch_size, seed.derive(Purpose::Batches, 0, None));
        for (step, indices) in batches.take(work.steps).enumerate() {
            if stop.requested() {
                return Err(Error::Stopped { steps: step });
            }
            adapters.set_dropout(work.dropout, seed.derive(Purpose::Dropout, step as u32, None));
            let batch = data.subset(&indices);
            let offsets: Offsets = batch.offsets.as_slice().into();
            gradients.clear();
            let mut ops = workspace.ops(&trainable.parameters, &adapters, Pass::Training)?;
            let mut repeated = 0;
            let start = match cache.as_deref_mut() {
                None => (0, encoder.embed(&mut *ops, &batch.ids, &offsets)?),
                Some(cache) => {
                    let token_bytes = encoder.hidden() * workspace.element_bytes();
                    repeated = met.again(&indices, &batch, token_bytes as u64, cache.limits().disk_bytes);
                    let prefix = Frozen { encoder, workspace: &workspace, trainable: &trainable, adapters: &adapters };
                    let (first, bytes) = prefix.output(cache, &batch)?;
                    (first, ops.constant(batch.tokens(), encoder.hidden(), &bytes)?)
                }
            };
            let loss = finite(loss.of(&mut *ops, encoder, start, &batch)?.mean, step)?;
            ops.backward(&mut gradients)?;
            drop(ops);
            if work.sensitivity {
                sensed.observe(&trainable, &gradients);
            }
            optimizer.step(&mut trainable.parameters, &mut gradients, work.learning_rate.at(step), work.max_grad_norm);
            on_step(StepReport { step: step + 1, loss, tokens: batch.tokens() as u64, repeated });
        }
        Ok(TrainedAdapter { adapter: trainable.adapter(), sensitivity: sensed.mean() })
    })
}

/// The texts that the batches of a task had so far, and the bytes of what frozen layers make of them.
#[derive(Default)]
struct Met {
    texts: BTreeSet<usize>,
    bytes: u64,
}

impl Met {
    /// Takes a batch in: the tokens of its texts that were met before. A text counts as met while `room` bytes hold it and all
    /// before it, so that the answer hangs on the batches alone and not on what a cache came with.
    fn again(&mut self, indices: &[usize], batch: &Dataset, token_bytes: u64, room: u64) -> u64 {
        let tokens = |place: usize| batch.text(place).len() as u64;
        let places = || indices.iter().enumerate();
        let again = places().filter(|(_, index)| self.texts.contains(index)).map(|(place, _)| tokens(place)).sum();
        for (place, &index) in places() {
            let bytes = self.bytes + tokens(place) * token_bytes;
            if bytes <= room && self.texts.insert(index) {
                self.bytes = bytes;
            }
        }
        again
    }
}

/// Tokens below which products may round otherwise than those of a batch.
const FEW_TOKENS: usize = 64;

/// The frozen layers at the bottom, with the factors that are applied there.
struct Frozen<'a> {
    encoder: &'a dyn Backbone,
    workspace: &'a Workspace,
    trainable: &'a Trainable,
    adapters: &'a Adapters,
}

impl Frozen<'_> {
    /// The first layer above them, and what it reads: `[tokens, hidden]` of the batch as bytes.
    fn output(&self, cache: &mut PrefixCache, batch: &Dataset) -> Result<(usize, Vec<u8>), Error> {
        // The last layer is computed for some tokens only, so its output is not what is kept.
        let first = cache.prefix().layer().min(self.encoder.layers() - 1);
        let mut bytes = vec![0; batch.tokens() * self.encoder.hidden() * self.workspace.element_bytes()];
        cache.fill(batch, &mut bytes, |missing| self.compute(missing, first))?;
        Ok((first, bytes))
    }

    fn compute(&self, texts: &Dataset, first: usize) -> Result<Vec<u8>, Error> {
        // A text must come out the same whatever others are missing with it: a few tokens are computed several times over.
        let times = FEW_TOKENS.div_ceil(texts.tokens().max(1));
        let indices: Vec<usize> = (0..texts.len()).cycle().take(texts.len() * times).collect();
        let repeated = texts.subset(&indices);
        let offsets: Offsets = repeated.offsets.into();
        let mut ops = self.workspace.ops(&self.trainable.parameters, self.adapters, Pass::Inference)?;
        let mut x = self.encoder.embed(&mut *ops, &repeated.ids, &offsets)?;
        for layer in 0..first {
            x = self.encoder.layer(&mut *ops, layer, &x, &offsets)?;
        }
        let mut bytes = ops.bytes(&x)?;
        bytes.truncate(bytes.len() / times);
        Ok(bytes)
    }
}

/// The loss, if it is a number.
pub(crate) fn finite(loss: f64, step: usize) -> Result<f64, Error> {
    if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite { step: step + 1, loss }) }
}
