//! Logits, predictions and quality of a model with an adapter.

use crate::Error;
use crate::adapter::Adapters;
use crate::answer::answered;
use crate::arch::Backbone;
use crate::data::Dataset;
use crate::head::HeadLayout;
use crate::metrics::{Confusion, TokenLoss};
use crate::ops::{HeadTargets, Offsets, Pass, Workspace};
use crate::parameters::Parameters;
use crate::pool::on_pool;
use crate::task::Objective;
use fedpipe_core::{Adapter, Metrics};

/// Texts in a forward pass.
pub(crate) const BATCH: usize = 32;

/// The most probable class of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The class.
    pub class: usize,
    /// Its probability.
    pub probability: f64,
    /// The logit of every class.
    pub logits: Vec<f32>,
}

/// Logits `[classes]` of every text of a classification, in order.
///
/// # Errors
/// When the adapter does not fit the model, or a tensor operation fails.
pub fn logits(
    encoder: &dyn Backbone,
    head: &HeadLayout,
    adapter: &Adapter,
    data: &Dataset,
) -> Result<Vec<Vec<f32>>, Error> {
    on_pool(|| {
        let adapters = Adapters::constant(adapter);
        let mut parameters = Parameters::default();
        let head = head.parameters(&parameters.add_head(&adapter.head))?;
        let classes = parameters.get(head.output.weight).rows();
        let workspace = Workspace::inference();
        let indices: Vec<usize> = (0..data.len()).collect();
        let mut logits = Vec::with_capacity(data.len());
        for part in indices.chunks(BATCH) {
            let texts = data.subset(part);
            let offsets: Offsets = texts.offsets.into();
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference)?;
            let pooled = encoder.pooled(&mut *ops, &texts.ids, &offsets)?;
            let found = ops.classify(&pooled, head, HeadTargets::None)?.logits;
            logits.extend(found.chunks_exact(classes.max(1)).map(<[f32]>::to_vec));
        }
        Ok(logits)
    })
}

/// The most probable class of every text, in order.
///
/// # Errors
/// As [`logits`].
pub fn predict(
    encoder: &dyn Backbone,
    head: &HeadLayout,
    adapter: &Adapter,
    data: &Dataset,
) -> Result<Vec<Prediction>, Error> {
    let predictions = logits(encoder, head, adapter, data)?.into_iter().map(|logits| {
        let class = most_probable(&logits);
        Prediction { class, probability: (-surprise(&logits, class)).exp(), logits }
    });
    Ok(predictions.collect())
}

/// Quality on texts with targets: accuracy and mean cross-entropy of their labels, how well answers are found, or the
/// mean cross-entropy of the tokens to write.
///
/// # Errors
/// As [`logits`], and when the texts' targets are not those of the objective.
pub fn evaluate(
    encoder: &dyn Backbone,
    objective: &Objective,
    adapter: &Adapter,
    data: &Dataset,
) -> Result<Metrics, Error> {
    match objective {
        Objective::Classification { head } => Ok(classified(&logits(encoder, head, adapter, data)?, data)),
        Objective::Spans => answered(encoder, adapter, data),
        Objective::Language { .. } => written(encoder, objective, adapter, data),
    }
}

fn classified(logits: &[Vec<f32>], data: &Dataset) -> Metrics {
    let (mut classes, mut loss) = (Confusion::default(), 0.0);
    for (logits, &label) in logits.iter().zip(data.classes()) {
        classes.add(most_probable(logits) as u32, label);
        loss += surprise(logits, label as usize);
    }
    let examples = classes.examples();
    Metrics {
        accuracy: Some(classes.accuracy()),
        macro_f1: Some(classes.macro_f1()),
        matthews: Some(classes.matthews()),
        loss: loss / examples.max(1) as f64,
        examples,
        ..Metrics::default()
    }
}

fn written(encoder: &dyn Backbone, objective: &Objective, adapter: &Adapter, data: &Dataset) -> Result<Metrics, Error> {
    let loss = loss_of(encoder, objective, adapter, data)?.mean();
    Ok(Metrics { loss, examples: data.len() as u64, ..Metrics::default() })
}

/// The loss of texts with targets, over all that counts.
pub(crate) fn loss_of(
    encoder: &dyn Backbone,
    objective: &Objective,
    adapter: &Adapter,
    data: &Dataset,
) -> Result<TokenLoss, Error> {
    on_pool(|| {
        let (adapters, mut parameters) = (Adapters::constant(adapter), Parameters::default());
        let loss = objective.loss(&parameters.add_head(&adapter.head))?;
        let workspace = Workspace::inference();
        let indices: Vec<usize> = (0..data.len()).collect();
        let mut total = TokenLoss::default();
        for part in indices.chunks(BATCH) {
            let texts = data.subset(part);
            let offsets: Offsets = texts.offsets.as_slice().into();
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference)?;
            let start = (0, encoder.embed(&mut *ops, &texts.ids, &offsets)?);
            let found = loss.of(&mut *ops, encoder, start, &texts)?;
            total.add(found.mean * found.counted as f64, found.counted as u64);
        }
        Ok(total)
    })
}

/// The first of the highest logits.
fn most_probable(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, class| if logits[class] > logits[best] { class } else { best })
}

/// −log softmax(logits)[class], in nats.
pub(crate) fn surprise(logits: &[f32], class: usize) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&l| f64::from(l - highest).exp()).sum();
    total.ln() - f64::from(logits[class] - highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// softmax([0, ln 3]) = [1/4, 3/4].
    #[test]
    fn probabilities_follow_the_softmax() {
        let logits = [0.0, 3f32.ln()];
        assert_eq!(most_probable(&logits), 1);
        assert!(((-surprise(&logits, 1)).exp() - 0.75).abs() < 1e-7);
        assert!((surprise(&logits, 0) - 4f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn a_tie_goes_to_the_first_class() {
        assert_eq!(most_probable(&[1.0, 1.0, 0.5]), 0);
    }
}
