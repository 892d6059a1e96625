//! The nouns and the contracts of FedPipe: everything that crosses from one crate to another.
//!
//! No I/O, no threads and no tensor library: a federation can be tested without a model, a model without a network.
//! The data flow of a round is `Task -> Trainer -> Update | Failure -> Method::fold -> RunState`.

mod adapter;
mod contract;
mod event;
mod id;
mod matrix;
mod model;
mod plan;
mod profile;
mod rate;
mod seed;
mod state;
mod task;

pub use adapter::{A_SUFFIX, Adapter, AdapterError, B_SUFFIX, Head, LowRank, Tensors};
pub use contract::{
    Aggregator, Clock, Codec, CodecError, FoldError, Method, Observer, Stop, Trainer, Transport, WeightedFactors,
};
pub use event::{EVENT_VERSION, Event};
pub use id::{SiloId, WeightId};
pub use matrix::{Matrix, MatrixError};
pub use model::{CandidateWeight, ModelSpec};
pub use plan::{ActivationFormat, BaseFormat, Chosen, MemoryTerms, Optimality, Plan, SiloPlan, TimeTerms};
pub use profile::{DeviceProfile, LengthStats, MemoryCoefficients, SiloProfile, TimeCoefficients};
pub use rate::{LearningRate, Schedule};
pub use seed::{Purpose, Seed, SeedStream};
pub use state::{Metrics, RUN_STATE_VERSION, RoundRecord, RunState, SiloRound};
pub use task::{
    CacheUse, Failure, FailureKind, Measured, Outcome, ProbeScore, ProbeWork, Task, TrainWork, Update, Work,
};
