//! Beam search over log-probabilities, without a model: the caller computes them and keeps the caches.

use super::{Beams, Stopping};
use crate::Error;

/// A running text after a step: which of the former running texts it continues, and with which token. Caches are
/// reordered by `parent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation {
    /// Place among the texts that were running.
    pub parent: usize,
    /// The token that was added.
    pub token: u32,
}

/// A text and how good it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens without the prompt, with the end token if it came to one.
    pub tokens: Vec<u32>,
    /// Log-probability in nats; of a finished text divided by length^length_penalty.
    pub score: f32,
}

/// Beam search for one prompt, step by step as transformers' `generate(num_beams=…)` does it.
///
/// It starts with one running text, the empty one, so the prompt goes through the model once. Each [`BeamSearch::step`]
/// takes the log-probabilities of the next token of every running text and says which texts run next.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    settings: Beams,
    ends: Vec<u32>,
    max_new_tokens: usize,
    /// Tokens of every running text.
    length: usize,
    /// Best first.
    running: Vec<Hypothesis>,
    /// Best first, `settings.beams` at most.
    finished: Vec<Hypothesis>,
}

/// A token that may follow a running text.
#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    parent: usize,
    token: u32,
}

impl BeamSearch {
    /// A search that has not begun. `ends` are the tokens that end a text, which is otherwise cut after
    /// `max_new_tokens`.
    pub fn new(settings: Beams, ends: &[u32], max_new_tokens: usize) -> Self {
        let empty = Hypothesis { tokens: vec![], score: 0.0 };
        Self { settings, ends: ends.to_vec(), max_new_tokens, length: 0, running: vec![empty], finished: vec![] }
    }

    /// The running texts, in the order of the rows that [`BeamSearch::step`] takes; none when the search is over.
    pub fn running(&self) -> &[Hypothesis] {
        &self.running
    }

    /// Takes a step. `log_probabilities` is `[running, vocabulary]`; −∞ forbids a token. Returns the texts that run on,
    /// none when the search is over.
    ///
    /// # Errors
    /// When there is not one row for every running text.
    pub fn step(&mut self, log_probabilities: &[f32]) -> Result<Vec<Continuation>, Error> {
        let rows = self.running.len();
        if rows == 0 || log_probabilities.is_empty() || !log_probabilities.len().is_multiple_of(rows) {
            return Err(Error::shape(format!(
                "{} log-probabilities are no rows for {rows} running texts",
                log_probabilities.len()
            )));
        }
        let candidates = self.candidates(log_probabilities);
        if candidates.is_empty() {
            // Every token is forbidden: the texts are as they are.
            let length = self.length;
            let stuck = std::mem::take(&mut self.running);
            stuck.into_iter().for_each(|text| self.finish_text(text, length));
            return Ok(vec![]);
        }
        self.length += 1;
        let ended = |c: &Candidate| self.ends.contains(&c.token) || self.length >= self.max_new_tokens;
        let (mut next, mut done) = (Vec::new(), Vec::new());
        for (rank, candidate) in candidates.iter().enumerate() {
            if !ended(candidate) {
                next.push(*candidate);
            } else if rank < self.settings.beams {
                // Candidates of lower rank are there only to keep enough texts running.
                done.push(self.extended(candidate));
            }
        }
        next.truncate(self.settings.beams);
        let running = next.iter().map(|candidate| self.extended(candidate)).collect();
        done.into_iter().for_each(|text| self.finish_text(text, self.length));
        self.running = running;
        if self.is_over() {
            self.running.clear();
            next.clear();
        }
        Ok(next.iter().map(|&Candidate { parent, token, .. }| Continuation { parent, token }).collect())
    }

    /// The best texts, best first, as many as beams at most; those still running if none is finished.
    pub fn finish(self) -> Vec<Hypothesis> {
        if self.finished.is_empty() { self.running } else { self.finished }
    }

    /// The best tokens to add, best first: enough that as many texts as beams run on even if the best all end.
    fn candidates(&self, log_probabilities: &[f32]) -> Vec<Candidate> {
        let vocabulary = log_probabilities.len() / self.running.len();
        let mut candidates = Vec::new();
        for (parent, (text, row)) in self.running.iter().zip(log_probabilities.chunks_exact(vocabulary)).enumerate() {
            for (token, &log_probability) in (0..).zip(row) {
                if log_probability > f32::NEG_INFINITY {
                    candidates.push(Candidate { score: text.score + log_probability, parent, token });
                }
            }
        }
        let order = |a: &Candidate, b: &Candidate| {
            b.score.total_cmp(&a.score).then_with(|| (a.parent, a.token).cmp(&(b.parent, b.token)))
        };
        let kept = (1 + self.ends.len()).max(2) * self.settings.beams;
        if candidates.len() > kept {
            candidates.select_nth_unstable_by(kept, order);
            candidates.truncate(kept);
        }
        candidates.sort_unstable_by(order);
        candidates
    }

    fn extended(&self, candidate: &Candidate) -> Hypothesis {
        let mut tokens = self.running[candidate.parent].tokens.clone();
        tokens.push(candidate.token);
        Hypothesis { tokens, score: candidate.score }
    }

    /// Keeps a text of `length` tokens if it is among the best finished ones.
    fn finish_text(&mut self, mut text: Hypothesis, length: usize) {
        text.score /= self.penalty(length);
        let place = self.finished.partition_point(|other| other.score >= text.score);
        self.finished.insert(place, text);
        self.finished.truncate(self.settings.beams);
    }

    /// length^length_penalty; an empty text is as long as one token.
    fn penalty(&self, length: usize) -> f32 {
        (length.max(1) as f64).powf(f64::from(self.settings.length_penalty)) as f32
    }

    fn is_over(&self) -> bool {
        let Some(best) = self.running.first() else { return true };
        let Some(worst) = self.finished.last().filter(|_| self.finished.len() == self.settings.beams) else {
            return false;
        };
        let length = match self.settings.stopping {
            Stopping::WhenFull => return true,
            Stopping::Exhaustive if self.settings.length_penalty > 0.0 => self.max_new_tokens,
            Stopping::Exhaustive | Stopping::Heuristic => self.length,
        };
        best.score / self.penalty(length) <= worst.score
    }
}
