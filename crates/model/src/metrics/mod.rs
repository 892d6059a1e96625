//! How good a model's answers are: classes, likelihoods and generated texts.
//!
//! Every metric is a sum over examples that is turned into a value at the end. Sums of several silos are merged by
//! addition, so a figure over a federation is the figure over all its examples, not a mean of means. [`Confusion`] takes
//! classes, [`TokenLoss`] likelihoods, [`TextScores`] texts with their references.

mod answers;
mod bleu;
mod classes;
mod likelihood;
mod nist;
mod rouge;
mod scores;
mod text;

pub use answers::{answer_f1, exact_match};
pub use bleu::{Bleu, Case};
pub use classes::Confusion;
pub use likelihood::TokenLoss;
pub use nist::Nist;
pub use rouge::{rouge_l, rouge_n};
pub use scores::TextScores;

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a metric is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A predicted class and the right one: [`Confusion`].
    Classes,
    /// The probability of each token of a text: [`TokenLoss`].
    Likelihoods,
    /// A text and its references: [`TextScores`].
    Texts,
}

/// A measure of quality. Configurations and reports call it by [`Metric::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Metric {
    /// Share of examples whose class is right.
    Accuracy,
    /// F1 of each class, averaged over the classes.
    MacroF1,
    /// Matthews correlation, as GLUE uses it for CoLA.
    Matthews,
    /// e to the mean cross-entropy of a token.
    Perplexity,
    /// SQuAD's exact match, in percent.
    ExactMatch,
    /// SQuAD's F1 over words, in percent.
    AnswerF1,
    /// Corpus BLEU-4 as sacreBLEU computes it by default.
    Bleu,
    /// The same on lower-cased texts, as the E2E challenge reports it.
    BleuLowercase,
    /// NIST-5 of mteval, on lower-cased texts.
    Nist,
    /// F-measure over words.
    Rouge1,
    /// F-measure over pairs of words.
    Rouge2,
    /// F-measure over the longest common subsequence of words.
    RougeL,
}

/// The facts about a metric.
struct Row {
    metric: Metric,
    name: &'static str,
    input: Input,
    /// The value of a perfect model, where the data do not decide it.
    best: Option<f64>,
    higher_is_better: bool,
}

const fn row(metric: Metric, name: &'static str, input: Input, best: Option<f64>) -> Row {
    Row { metric, name, input, best, higher_is_better: true }
}

static TABLE: [Row; 12] = [
    row(Metric::Accuracy, "accuracy", Input::Classes, Some(1.0)),
    row(Metric::MacroF1, "macro-f1", Input::Classes, Some(1.0)),
    row(Metric::Matthews, "matthews", Input::Classes, Some(1.0)),
    Row { higher_is_better: false, ..row(Metric::Perplexity, "perplexity", Input::Likelihoods, Some(1.0)) },
    row(Metric::ExactMatch, "exact-match", Input::Texts, Some(100.0)),
    row(Metric::AnswerF1, "answer-f1", Input::Texts, Some(100.0)),
    row(Metric::Bleu, "bleu", Input::Texts, Some(100.0)),
    row(Metric::BleuLowercase, "bleu-lowercase", Input::Texts, Some(100.0)),
    row(Metric::Nist, "nist", Input::Texts, None),
    row(Metric::Rouge1, "rouge-1", Input::Texts, Some(1.0)),
    row(Metric::Rouge2, "rouge-2", Input::Texts, Some(1.0)),
    row(Metric::RougeL, "rouge-l", Input::Texts, Some(1.0)),
];

impl Metric {
    /// Every metric.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.metric)
    }

    /// Its name, such as `macro-f1`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it is computed from.
    pub fn input(self) -> Input {
        self.row().input
    }

    /// The value of a perfect model; none where it hangs on the data.
    pub fn best(self) -> Option<f64> {
        self.row().best
    }

    /// Whether a higher value is the better one.
    pub fn higher_is_better(self) -> bool {
        self.row().higher_is_better
    }

    /// The table is in the order of the variants, which a test holds.
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Metric> for &'static str {
    fn from(metric: Metric) -> Self {
        metric.name()
    }
}

impl TryFrom<String> for Metric {
    type Error = MetricError;

    fn try_from(name: String) -> Result<Self, MetricError> {
        match TABLE.iter().find(|row| row.name == name) {
            Some(row) => Ok(row.metric),
            None => Err(MetricError::Unknown { name }),
        }
    }
}

/// A metric that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// No metric has that name.
    #[error("there is no metric {name:?}; use one of {}", TABLE.iter().map(|row| row.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// A metric of classes or likelihoods was asked of texts.
    #[error("{metric} is not computed from generated texts; use one of {}", text_metrics())]
    NotOfTexts {
        /// The metric.
        metric: Metric,
    },
    /// Sums of different metrics cannot be added.
    #[error("scores of [{left}] and of [{right}] cannot be merged; every silo has to measure the same metrics")]
    Mixed {
        /// Metrics of one side.
        left: String,
        /// Metrics of the other.
        right: String,
    },
}

fn text_metrics() -> String {
    let names: Vec<&str> = TABLE.iter().filter(|row| row.input == Input::Texts).map(|row| row.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
