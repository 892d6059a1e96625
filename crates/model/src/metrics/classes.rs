//! Accuracy, macro-F1 and Matthews correlation from the counts of (predicted, right) pairs.

use super::Metric;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often each class was predicted for each class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confusion {
    /// Times that `predicted` was said of an example of `right`, by right class and predicted class.
    counts: BTreeMap<u32, BTreeMap<u32, u64>>,
}

/// Counts of one class.
#[derive(Default)]
struct Class {
    predicted: u64,
    right: u64,
    both: u64,
}

impl Confusion {
    /// Counts one example.
    pub fn add(&mut self, predicted: u32, right: u32) {
        *self.counts.entry(right).or_default().entry(predicted).or_default() += 1;
    }

    /// Adds the examples of another.
    pub fn merge(&mut self, other: &Self) {
        for (&right, row) in &other.counts {
            for (&predicted, &count) in row {
                *self.counts.entry(right).or_default().entry(predicted).or_default() += count;
            }
        }
    }

    /// Number of examples.
    pub fn examples(&self) -> u64 {
        self.counts.values().flat_map(BTreeMap::values).sum()
    }

    /// A metric of classes; none for the others.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => Some(self.accuracy()),
            Metric::MacroF1 => Some(self.macro_f1()),
            Metric::Matthews => Some(self.matthews()),
            _ => None,
        }
    }

    /// Share of examples whose class is right; 0 of none.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = self.classes().values().map(|class| class.both).sum();
        ratio(right as f64, self.examples() as f64)
    }

    /// The mean over classes of 2·both / (predicted + right). A class that is neither predicted nor right anywhere does
    /// not count, as in scikit-learn.
    pub fn macro_f1(&self) -> f64 {
        let classes = self.classes();
        let f1: f64 = classes.values().map(|c| ratio(2.0 * c.both as f64, (c.predicted + c.right) as f64)).sum();
        ratio(f1, classes.len() as f64)
    }

    /// Matthews correlation for any number of classes (Gorodkin 2004): from −1 to 1, and 0 where all predictions or all
    /// labels are one class.
    pub fn matthews(&self) -> f64 {
        let classes = self.classes();
        let examples = self.examples() as f64;
        let sum = |of: fn(&Class) -> f64| classes.values().map(of).sum::<f64>();
        let covariance = sum(|c| c.both as f64) * examples - sum(|c| c.predicted as f64 * c.right as f64);
        let predicted = examples * examples - sum(|c| c.predicted as f64 * c.predicted as f64);
        let right = examples * examples - sum(|c| c.right as f64 * c.right as f64);
        ratio(covariance, (predicted * right).sqrt())
    }

    fn classes(&self) -> BTreeMap<u32, Class> {
        let mut classes: BTreeMap<u32, Class> = BTreeMap::new();
        for (&right, row) in &self.counts {
            for (&predicted, &count) in row {
                classes.entry(right).or_default().right += count;
                classes.entry(predicted).or_default().predicted += count;
                if predicted == right {
                    classes.entry(right).or_default().both += count;
                }
            }
        }
        classes
    }
}

/// a / b, and 0 where b is.
fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}
