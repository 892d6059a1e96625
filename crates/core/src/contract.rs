//! The extension points. Everything that implements one stands in a table of its crate and passes its conformance suite.

use crate::{Adapter, Event, Failure, LowRank, RunState, SiloId, SiloProfile, Task, Tensors, Update};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives events. It must not fail: a reporter's trouble never breaks a run.
pub trait Observer: Send + Sync {
    /// Called for every event, in order within one silo.
    fn observe(&self, event: &Event);
}

/// A request to end after the current step, shared by whoever asks and whoever works.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the end was asked for.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The silo's side: holds its data and its base model, does what a task says.
pub trait Trainer: Send + Sync {
    /// Describes the silo.
    ///
    /// # Errors
    /// A [`Failure`] when the silo cannot take part.
    fn enrol(&self) -> Result<SiloProfile, Failure>;

    /// Does a task; emits an [`Event::Step`] after every step and ends early when `stop` is requested.
    ///
    /// # Errors
    /// A [`Failure`] when there is nothing to hand back.
    fn run(&self, task: &Task, observer: &dyn Observer, stop: &Stop) -> Result<Update, Failure>;
}

/// Moves tasks to silos and updates back.
pub trait Transport: Send + Sync {
    /// The silos that can be reached, in a fixed order.
    fn silos(&self) -> Vec<SiloId>;

    /// Enrols every silo; a result a silo in the order of [`Transport::silos`].
    fn enrol(&self) -> Vec<Result<SiloProfile, Failure>>;

    /// Delivers the tasks and waits, boundedly, for a result each, in the order of the tasks. A silo that errs,
    /// panics or goes silent is a [`Failure`] in its place.
    fn exchange(&self, tasks: Vec<Task>, observer: &dyn Observer, stop: &Stop) -> Vec<Result<Update, Failure>>;
}

/// A federated method: a value whose silo half is data in the [`Task`]s and whose server half is [`Method::fold`].
pub trait Method: Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// The tasks of the next round for the silos of `cohort`; the same state and cohort give the same tasks.
    fn tasks(&self, state: &RunState, cohort: &[SiloId]) -> Vec<Task>;

    /// The federation's adapter after the updates of a round.
    ///
    /// # Errors
    /// When the updates cannot be merged; the state stays as it is.
    fn fold(&self, state: &RunState, updates: &[Update]) -> Result<Adapter, FoldError>;
}

/// Updates that cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("round {round}: the updates cannot be merged: {reason}")]
pub struct FoldError {
    /// The round.
    pub round: u32,
    /// Why.
    pub reason: String,
}

/// Factors of one weight with the weight of their silo in the mean.
#[derive(Debug, Clone, Copy)]
pub struct WeightedFactors<'a> {
    /// Share of the silo among those that trained this weight; the shares sum to 1.
    pub share: f64,
    /// Its factors.
    pub factors: &'a LowRank,
}

/// Merges the factors of one weight from silos of different ranks into factors of at most `max_rank`.
pub trait Aggregator: Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// The merged factors; `parts` is not empty and all of one shape but for the rank.
    fn merge(&self, parts: &[WeightedFactors<'_>], max_rank: usize) -> LowRank;
}

/// Turns tensors into bytes and back.
pub trait Codec: Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// The bytes that travel.
    fn encode(&self, tensors: &Tensors) -> Vec<u8>;

    /// The tensors, up to the codec's precision.
    ///
    /// # Errors
    /// When the bytes are not what [`Codec::encode`] writes; bounded in memory whatever the bytes say.
    fn decode(&self, bytes: &[u8]) -> Result<Tensors, CodecError>;
}

/// Bytes that do not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{codec}: {reason}")]
pub struct CodecError {
    /// The codec's name.
    pub codec: &'static str,
    /// What is wrong with the bytes.
    pub reason: String,
}

/// Decides how long a silo's part of a round took.
pub trait Clock: Send + Sync {
    /// The name in reports.
    fn name(&self) -> &'static str;

    /// Seconds from sending the task to having the update, transfers of the given bytes included.
    fn charge(&self, profile: &SiloProfile, task: &Task, update: &Update, bytes_down: u64, bytes_up: u64) -> f64;
}
