//! Corpus BLEU-4 (Papineni et al. 2002) as sacreBLEU 2 computes it by default: 13a tokens, exponential smoothing, the
//! closest reference's length, all four orders.

use super::text::{most_runs, runs, spaced_13a, words};
use serde::{Deserialize, Serialize};

const ORDERS: usize = 4;

/// Whether upper and lower case are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// They are.
    #[default]
    Kept,
    /// Texts are lower-cased first.
    Lowered,
}

/// Sums of matching and of all runs of one to four tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bleu {
    case: Case,
    tokens: u64,
    reference_tokens: u64,
    matching: [u64; ORDERS],
    runs: [u64; ORDERS],
}

impl Bleu {
    /// Nothing added yet.
    pub fn new(case: Case) -> Self {
        Self { case, ..Self::default() }
    }

    /// Adds a text and its references.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        let prepare = |text: &str| match self.case {
            Case::Kept => spaced_13a(text),
            Case::Lowered => spaced_13a(&text.to_lowercase()),
        };
        let (hypothesis, references) = (prepare(hypothesis), references.iter().map(|r| prepare(r)).collect::<Vec<_>>());
        let hypothesis: Vec<&str> = words(&hypothesis).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|r| words(r).collect()).collect();
        let distance = |length: &usize| (length.abs_diff(hypothesis.len()), *length);
        self.tokens += hypothesis.len() as u64;
        self.reference_tokens += references.iter().map(Vec::len).min_by_key(distance).unwrap_or(0) as u64;
        for order in 0..ORDERS {
            let most = most_runs(&references, order + 1);
            for (run, count) in runs(&hypothesis, order + 1) {
                self.runs[order] += count;
                self.matching[order] += count.min(most.get(run).copied().unwrap_or(0));
            }
        }
    }

    /// Adds the texts of another that treats case alike.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.reference_tokens += other.reference_tokens;
        for order in 0..ORDERS {
            self.matching[order] += other.matching[order];
            self.runs[order] += other.runs[order];
        }
    }

    /// From 0 to 100; 0 when not a token matches, or no text is as long as four tokens.
    pub fn value(&self) -> f64 {
        if self.matching[0] == 0 || self.runs.contains(&0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let mut logarithms = 0.0;
        for (&matching, &runs) in self.matching.iter().zip(&self.runs) {
            // An order without a match counts half a match, the next one a quarter, and so on (Chen and Cherry 2014, 3).
            let matching = if matching == 0 {
                smoothing /= 2.0;
                smoothing
            } else {
                matching as f64
            };
            logarithms += (matching / runs as f64).ln();
        }
        let brevity = (1.0 - self.reference_tokens as f64 / self.tokens as f64).min(0.0).exp();
        100.0 * brevity * (logarithms / ORDERS as f64).exp()
    }
}
