//! Tasks: what stands on top of a model's layers, and what its loss is.

use crate::Error;
use crate::arch::Backbone;
use crate::data::{Batch, Targets};
use crate::head::{HeadLayout, SPAN};
use crate::ops::{ClassifierHead, HeadTargets, IGNORED, Offsets, Ops, Value};
use crate::parameters::ParameterId;
use fedpipe_kernels::FrozenMatrix;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What a model is trained for.
#[derive(Debug, Clone)]
pub enum Objective {
    /// The class of a text, by a head of its own that trains along.
    Classification {
        /// What the head consists of.
        head: &'static HeadLayout,
    },
    /// Where in a text the answer stands, by a head of its own that trains along.
    Spans,
    /// The token that comes next, by the model's frozen output head.
    Language {
        /// `[vocabulary, hidden]`.
        head: Arc<FrozenMatrix>,
    },
}

impl Objective {
    /// The loss over the parameters of an adapter's head.
    ///
    /// # Errors
    /// When the head lacks a tensor.
    pub(crate) fn loss(&self, head: &BTreeMap<String, ParameterId>) -> Result<Loss<'_>, Error> {
        Ok(match self {
            Self::Classification { head: layout } => Loss::Classes(layout.parameters(head)?),
            Self::Spans => Loss::Spans(SPAN.parameters(head)?),
            Self::Language { head } => Loss::Tokens(head),
        })
    }
}

/// A mean cross-entropy over a batch, in nats, and what it is a mean of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BatchLoss {
    pub(crate) mean: f64,
    /// Texts, or tokens that count.
    pub(crate) counted: usize,
}

/// How the outputs of a model's layers are judged.
pub(crate) enum Loss<'h> {
    Classes(ClassifierHead),
    Spans(ClassifierHead),
    Tokens(&'h FrozenMatrix),
}

impl Loss<'_> {
    /// The loss of a batch, from what layer `first` reads of it.
    pub(crate) fn of<'a>(
        &self,
        ops: &mut dyn Ops<'a>,
        encoder: &'a dyn Backbone,
        (first, x): (usize, Value),
        batch: &Batch,
    ) -> Result<BatchLoss, Error> {
        let offsets: Offsets = batch.offsets.as_slice().into();
        match (self, &batch.targets) {
            (Self::Classes(head), Targets::Classes(classes)) => {
                let pooled = encoder.pooled_from(ops, first, x, &offsets)?;
                let loss = ops.classify(&pooled, *head, HeadTargets::Classes(classes))?.loss;
                Ok(BatchLoss { mean: loss.unwrap_or(f64::NAN), counted: classes.len() })
            }
            (Self::Spans(head), Targets::Spans(spans)) => {
                let places: Vec<[u32; 2]> = spans.places.iter().map(|span| [span.start, span.end]).collect();
                let states = encoder.states_from(ops, first, x, &offsets)?;
                let targets = HeadTargets::Spans { offsets: &offsets, places: &places };
                let loss = ops.classify(&states, *head, targets)?.loss;
                Ok(BatchLoss { mean: loss.unwrap_or(f64::NAN), counted: places.len() })
            }
            (Self::Tokens(head), Targets::Tokens(next)) => {
                let tails = tails(&batch.offsets, next);
                let mut end = 0;
                let ends = tails.iter().map(|tail| {
                    end += tail.len();
                    end
                });
                let queries: Offsets = std::iter::once(0).chain(ends).collect();
                let targets: Vec<u32> = tails.into_iter().flat_map(|tail| &next[tail]).copied().collect();
                let states = encoder.tail_from(ops, first, x, &offsets, &queries)?;
                let loss = ops.token_loss(&states, head, &targets)?;
                Ok(BatchLoss { mean: loss.mean, counted: loss.counted })
            }
            _ => Err(Error::Misfit("the texts have no targets of the kind that the task learns".into())),
        }
    }
}

/// The tokens of each text from the first that counts on: nothing is read off the others.
fn tails(offsets: &[usize], next: &[u32]) -> Vec<Range<usize>> {
    let tail = |pair: &[usize]| {
        let counts = next[pair[0]..pair[1]].iter().position(|&token| token != IGNORED);
        counts.map_or(pair[1], |first| pair[0] + first)..pair[1]
    };
    offsets.windows(2).map(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_the_first_token_that_counts_is_read() {
        let next = [IGNORED, 5, IGNORED, 7, IGNORED, IGNORED, 3];
        assert_eq!(tails(&[0, 4, 6, 7], &next), [1..4, 6..6, 6..7]);
    }
}
