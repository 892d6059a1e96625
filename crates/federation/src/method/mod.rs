//! Federated methods: each one file with its configuration, its local rule as data, its server rule and its tests. A new
//! one is a file here and a row in [`METHODS`].

mod fedpipe;

pub use fedpipe::FedPipe;

use crate::UnknownName;
use fedpipe_core::{Aggregator, Method, ModelSpec};
use serde::{Deserialize, Serialize};

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
    /// How factors are merged.
    pub aggregator: &'static dyn Aggregator,
    /// Largest rank of the merged adapter.
    pub server_rank: usize,
}

/// How silos train, the same for all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalTraining {
    /// Rounds of the run, over which the learning rate falls.
    pub rounds: u32,
    /// Optimizer steps of a round.
    pub local_steps: usize,
    /// AdamW's learning rate at the first step of the run.
    pub learning_rate: f64,
    /// How it goes on from there.
    pub schedule: Schedule,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Dropout on the input of every trained factor A.
    pub dropout: f64,
}

/// The learning rate over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Falls to 0 after the last step of the last round.
    Linear,
    /// Stays.
    Constant,
}

impl LocalTraining {
    /// Learning rate at the first and after the last step of a round, counted from 1.
    fn rates(&self, round: u32) -> (f64, f64) {
        let left = |done: u32| 1.0 - f64::from(done.min(self.rounds)) / f64::from(self.rounds.max(1));
        match self.schedule {
            Schedule::Constant => (self.learning_rate, self.learning_rate),
            Schedule::Linear => (self.learning_rate * left(round.saturating_sub(1)), self.learning_rate * left(round)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Product;
    use fedpipe_testkit::toy_model;

    fn training(schedule: Schedule) -> LocalTraining {
        LocalTraining {
            rounds: 4,
            local_steps: 5,
            learning_rate: 0.8,
            schedule,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dropout: 0.0,
        }
    }

    #[test]
    fn every_row_of_the_table_is_found_by_its_name_and_builds_what_it_says() {
        for row in METHODS {
            let settings = MethodSettings {
                model: toy_model(),
                training: training(Schedule::Linear),
                aggregator: &Product,
                server_rank: 2,
            };
            assert_eq!((by_name(row.name).unwrap().build)(settings).name(), row.name);
        }
    }

    #[test]
    fn the_learning_rate_falls_over_the_whole_run_without_a_jump_between_rounds() {
        let rates: Vec<_> = (1..=4).map(|round| training(Schedule::Linear).rates(round)).collect();
        assert_eq!((rates[0].0, rates[3].1), (0.8, 0.0));
        assert!(rates.windows(2).all(|pair| pair[0].1 == pair[1].0));
        assert_eq!(training(Schedule::Constant).rates(4), (0.8, 0.8));
    }
}
