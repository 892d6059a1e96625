//! Perplexity.

use super::Metric;
use serde::{Deserialize, Serialize};

/// Summed cross-entropy of tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLoss {
    nats: f64,
    tokens: u64,
}

impl TokenLoss {
    /// Adds a text of `tokens` predicted tokens whose cross-entropies, −ln p, sum to `nats`.
    pub fn add(&mut self, nats: f64, tokens: u64) {
        self.nats += nats;
        self.tokens += tokens;
    }

    /// Adds the texts of another.
    pub fn merge(&mut self, other: &Self) {
        self.add(other.nats, other.tokens);
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Mean cross-entropy of a token, in nats; 0 of none.
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// e to the mean cross-entropy. It counts tokens, so it compares models of one tokenizer only.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// A metric of likelihoods; none for the others.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        (metric == Metric::Perplexity).then(|| self.perplexity())
    }
}
