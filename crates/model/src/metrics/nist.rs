//! NIST-5 (Doddington 2002, equation 3) as mteval-v13a and the E2E challenge compute it.
//!
//! Tokens are mteval's own (13a, as for BLEU), lower-cased. A run of tokens that several references share matches as
//! often as the reference that has it most; the length to reach is the mean of the references'. With one reference
//! this is `nltk.translate.nist_score`, which otherwise picks one reference for each order.

use super::text::{most_runs, runs, spaced_13a, words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const ORDERS: usize = 5;

/// Counts of runs of one to five tokens. Unlike other sums they hold words: the references' runs are what their weights
/// are computed from, so merging over silos shows them to whoever merges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nist {
    tokens: [u64; ORDERS],
    reference_length: f64,
    reference_tokens: u64,
    /// By run, its tokens joined by spaces.
    runs: BTreeMap<String, Run>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// Times in all references.
    references: u64,
    /// Times that it matched.
    matching: u64,
}

impl Nist {
    /// Adds a text and its references.
    pub fn add(&mut self, hypothesis: &str, references: &[&str]) {
        let prepare = |text: &str| spaced_13a(&text.to_lowercase());
        let (hypothesis, references) = (prepare(hypothesis), references.iter().map(|r| prepare(r)).collect::<Vec<_>>());
        let hypothesis: Vec<&str> = words(&hypothesis).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|r| words(r).collect()).collect();
        let lengths: usize = references.iter().map(Vec::len).sum();
        self.reference_tokens += lengths as u64;
        self.reference_length += lengths as f64 / references.len().max(1) as f64;
        for order in 1..=ORDERS {
            for run in references.iter().flat_map(|reference| reference.windows(order)) {
                self.runs.entry(run.join(" ")).or_default().references += 1;
            }
            let most = most_runs(&references, order);
            for (run, count) in runs(&hypothesis, order) {
                self.tokens[order - 1] += count;
                if let Some(&most) = most.get(run) {
                    self.runs.entry(run.join(" ")).or_default().matching += count.min(most);
                }
            }
        }
    }

    /// Adds the texts of another.
    pub fn merge(&mut self, other: &Self) {
        for order in 0..ORDERS {
            self.tokens[order] += other.tokens[order];
        }
        self.reference_length += other.reference_length;
        self.reference_tokens += other.reference_tokens;
        for (run, counts) in &other.runs {
            let sum = self.runs.entry(run.clone()).or_default();
            sum.references += counts.references;
            sum.matching += counts.matching;
        }
    }

    /// From 0; how high it can be hangs on the references.
    pub fn value(&self) -> f64 {
        let mut information = [0.0; ORDERS];
        for (run, counts) in self.runs.iter().filter(|(_, counts)| counts.matching > 0) {
            // log2 of (times of the run without its last token / times of the run).
            let (order, before) = match run.rsplit_once(' ') {
                Some((before, _)) => (run.split(' ').count(), self.runs.get(before).map_or(0, |run| run.references)),
                None => (1, self.reference_tokens),
            };
            if let Some(sum) = information.get_mut(order - 1) {
                *sum += counts.matching as f64 * (before as f64 / counts.references as f64).log2();
            }
        }
        let precision: f64 = information.iter().zip(self.tokens).map(|(sum, runs)| sum / runs.max(1) as f64).sum();
        precision * self.brevity()
    }

    /// 1 for texts as long as their references, 1/2 at two thirds of that length.
    fn brevity(&self) -> f64 {
        let ratio = self.tokens[0] as f64 / self.reference_length;
        if ratio > 0.0 && ratio < 1.0 {
            0.5f64.powf((ratio.ln() / 1.5f64.ln()).powi(2))
        } else {
            f64::from(u8::from(ratio >= 1.0))
        }
    }
}
