//! Federated methods: each one file with its configuration, its local rule as data, its server rule and its tests. A new
//! one is a file here and a row in [`METHODS`].

mod fedpipe;

pub use fedpipe::FedPipe;

use crate::UnknownName;
use fedpipe_core::{Aggregator, LearningRate, Method, ModelSpec, RunState, Schedule};

/// Every method, with what builds it.
pub const METHODS: &[MethodRow] =
    &[MethodRow { name: FedPipe::NAME, build: |settings| Box::new(FedPipe::new(settings)) }];

/// A row of [`METHODS`].
#[derive(Debug, Clone, Copy)]
pub struct MethodRow {
    /// The name in configurations.
    pub name: &'static str,
    /// Builds the method.
    pub build: fn(MethodSettings) -> Box<dyn Method>,
}

/// The method of that name.
///
/// # Errors
/// When no row of [`METHODS`] has the name.
pub fn by_name(name: &str) -> Result<MethodRow, UnknownName> {
    METHODS
        .iter()
        .copied()
        .find(|row| row.name == name)
        .ok_or_else(|| UnknownName::new("method", name, METHODS.iter().map(|row| row.name)))
}

/// What every method that trains low-rank adapters is told.
#[derive(Clone)]
pub struct MethodSettings {
    /// The base model.
    pub model: ModelSpec,
    /// How silos train.
    pub training: LocalTraining,
    /// How factors are merged; up to which rank, the plan says ([`fedpipe_core::Plan::server_rank`]).
    pub aggregator: &'static dyn Aggregator,
}

/// How silos train, the same for all of them; the learning rate and the steps of a round are the run's own
/// ([`fedpipe_core::RunState`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalTraining {
    /// Rounds of the run, over which the learning rate falls.
    pub rounds: u32,
    /// What becomes of the learning rate.
    pub schedule: Schedule,
    /// Share of all steps in which the learning rate rises to its peak.
    pub warmup_ratio: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Dropout on the input of every trained factor A.
    pub dropout: f64,
}

impl LocalTraining {
    /// The learning rate in the next round of a run, of a silo that makes so many steps in each.
    fn learning_rate(&self, state: &RunState, steps: usize) -> LearningRate {
        let rounds = self.rounds as usize;
        LearningRate {
            peak: state.learning_rate,
            schedule: self.schedule,
            warmup_steps: (self.warmup_ratio * (rounds * steps) as f64).ceil() as usize,
            total_steps: rounds * steps,
            first_step: state.round as usize * steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Product;
    use fedpipe_testkit::toy_model;

    #[test]
    fn every_row_of_the_table_is_found_by_its_name_and_builds_what_it_says() {
        for row in METHODS {
            let settings = MethodSettings {
                model: toy_model(),
                training: LocalTraining {
                    rounds: 4,
                    schedule: Schedule::Linear,
                    warmup_ratio: 0.0,
                    weight_decay: 0.0,
                    max_grad_norm: 1.0,
                    dropout: 0.0,
                },
                aggregator: &Product,
            };
            assert_eq!((by_name(row.name).unwrap().build)(settings).name(), row.name);
        }
    }
}
