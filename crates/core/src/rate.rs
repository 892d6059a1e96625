//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// What becomes of the learning rate after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Falls to 0 after the last step of the last round.
    Linear,
    /// Falls to 0 by half a turn of the cosine: slowly, fast, slowly.
    Cosine,
    /// Stays.
    Constant,
}

/// The learning rate of the steps of one round, as a part of the run's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The highest.
    pub peak: f64,
    /// How it goes on from there.
    pub schedule: Schedule,
    /// Steps of the run in which it rises from 0.
    pub warmup_steps: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// Steps of the rounds before this one.
    pub first_step: usize,
}

impl LearningRate {
    /// The same in every step.
    pub fn constant(rate: f64) -> Self {
        Self { peak: rate, schedule: Schedule::Constant, warmup_steps: 0, total_steps: 0, first_step: 0 }
    }

    /// The rate of a step of this round, from 0: what `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` and
    /// `get_constant_schedule_with_warmup` of `transformers` have for it.
    pub fn at(&self, step: usize) -> f64 {
        let (step, warmup) = (self.first_step + step, self.warmup_steps);
        let left = self.total_steps.saturating_sub(step) as f64 / self.total_steps.saturating_sub(warmup).max(1) as f64;
        let share = match self.schedule {
            _ if step < warmup => step as f64 / warmup as f64,
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 - 0.5 * (PI * left).cos(),
        };
        self.peak * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get_last_lr()` of transformers 5.23 before each of 11 steps, with a rate of 0.8, 4 steps of warm-up and 10 in all.
    #[test]
    fn the_rates_are_those_of_transformers() {
        let of =
            |schedule, first_step| LearningRate { peak: 0.8, schedule, warmup_steps: 4, total_steps: 10, first_step };
        let expected = [0.0, 0.2, 0.4, 0.6, 0.8, 0.8 * 5.0 / 6.0, 0.8 * 4.0 / 6.0, 0.4, 0.8 / 3.0, 0.8 / 6.0, 0.0];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((of(Schedule::Linear, 0).at(step) - expected).abs() < 1e-12, "step {step}");
            assert_eq!(of(Schedule::Linear, step).at(0), of(Schedule::Linear, 0).at(step), "rounds join");
            let cosine =
                [0.0, 0.2, 0.4, 0.6, 0.8, 0.746_410_161_513_775_6, 0.6, 0.4, 0.2, 0.053_589_838_486_224_52, 0.0][step];
            assert!((of(Schedule::Cosine, 0).at(step) - cosine).abs() < 1e-12, "step {step}");
            let constant = if step < 4 { expected } else { 0.8 };
            assert!((of(Schedule::Constant, 0).at(step) - constant).abs() < 1e-12, "step {step}");
        }
        assert_eq!(LearningRate::constant(0.3).at(7), 0.3);
    }
}
