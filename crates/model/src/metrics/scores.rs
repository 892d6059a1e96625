//! Several metrics of generated texts at once.

use super::{Bleu, Case, Input, Metric, MetricError, Nist, answer_f1, exact_match, rouge_l, rouge_n};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::mem::discriminant;

/// Sums of the metrics of generated texts.
///
/// ```
/// # use fedpipe_model::metrics::{Metric, TextScores};
/// let mut scores = TextScores::new(&[Metric::Bleu, Metric::RougeL])?;
/// scores.add("The cat sat on the mat.", &["The cat sat on the mat.", "A cat is on the mat."]);
/// assert_eq!(scores.value(Metric::RougeL), Some(1.0));
/// # Ok::<(), fedpipe_model::metrics::MetricError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TextScores {
    sums: BTreeMap<Metric, Sum>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Sum {
    /// Of a metric that is the mean of its values for the texts.
    Mean {
        total: f64,
        texts: u64,
    },
    Bleu(Bleu),
    Nist(Nist),
}

impl TextScores {
    /// Nothing added yet.
    ///
    /// # Errors
    /// When a metric is not computed from texts.
    pub fn new(metrics: &[Metric]) -> Result<Self, MetricError> {
        let sum = |&metric: &Metric| match metric {
            Metric::Bleu => Ok((metric, Sum::Bleu(Bleu::new(Case::Kept)))),
            Metric::BleuLowercase => Ok((metric, Sum::Bleu(Bleu::new(Case::Lowered)))),
            Metric::Nist => Ok((metric, Sum::Nist(Nist::default()))),
            _ if metric.input() == Input::Texts => Ok((metric, Sum::Mean { total: 0.0, texts: 0 })),
            _ => Err(MetricError::NotOfTexts { metric }),
        };
        Ok(Self { sums: metrics.iter().map(sum).collect::<Result<_, _>>()? })
    }

    /// Adds a text and what it should have been: one reference or several.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        for (&metric, sum) in &mut self.sums {
            match sum {
                Sum::Mean { total, texts } => {
                    *total += of_one_text(metric, hypothesis, references);
                    *texts += 1;
                }
                Sum::Bleu(bleu) => bleu.add(hypothesis, references),
                Sum::Nist(nist) => nist.add(hypothesis, references),
            }
        }
    }

    /// Adds the texts of another.
    ///
    /// # Errors
    /// When it measures other metrics; nothing is added then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MetricError> {
        let names = |scores: &Self| scores.sums.keys().map(|metric| metric.name()).collect::<Vec<_>>().join(", ");
        let kinds = |scores: &Self| scores.sums.iter().map(|(&m, sum)| (m, discriminant(sum))).collect::<Vec<_>>();
        if kinds(self) != kinds(other) {
            return Err(MetricError::Mixed { left: names(self), right: names(other) });
        }
        for (ours, theirs) in self.sums.values_mut().zip(other.sums.values()) {
            match (ours, theirs) {
                (Sum::Mean { total, texts }, Sum::Mean { total: more, texts: further }) => {
                    *total += more;
                    *texts += further;
                }
                (Sum::Bleu(ours), Sum::Bleu(theirs)) => ours.merge(theirs),
                (Sum::Nist(ours), Sum::Nist(theirs)) => ours.merge(theirs),
                _ => {}
            }
        }
        Ok(())
    }

    /// A metric over everything added, 0 of nothing; none for a metric that is not measured.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.sums.get(&metric).map(Sum::value)
    }

    /// Every metric over everything added.
    pub fn values(&self) -> impl Iterator<Item = (Metric, f64)> {
        self.sums.iter().map(|(&metric, sum)| (metric, sum.value()))
    }
}

impl Sum {
    fn value(&self) -> f64 {
        match self {
            Self::Mean { total, texts } => total / (*texts).max(1) as f64,
            Self::Bleu(bleu) => bleu.value(),
            Self::Nist(nist) => nist.value(),
        }
    }
}

/// A metric that is a mean over texts, for one text; 0 for the others, which [`TextScores::new`] keeps apart.
fn of_one_text(metric: Metric, hypothesis: &str, references: &[&str]) -> f64 {
    match metric {
        Metric::ExactMatch => 100.0 * exact_match(hypothesis, references),
        Metric::AnswerF1 => 100.0 * answer_f1(hypothesis, references),
        Metric::Rouge1 => rouge_n(1, hypothesis, references),
        Metric::Rouge2 => rouge_n(2, hypothesis, references),
        Metric::RougeL => rouge_l(hypothesis, references),
        _ => 0.0,
    }
}
