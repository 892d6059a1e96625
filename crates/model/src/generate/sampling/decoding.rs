//! How a text is decoded, as a configuration says it.

use super::logits;
use serde::{Deserialize, Serialize};

/// Most tokens of a text that may be asked for.
const MAX_NEW_TOKENS: usize = 1 << 20;
/// Most beams.
const MAX_BEAMS: usize = 256;
/// Most stop strings, and most bytes of one.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;

/// How texts are decoded. Names and meanings are those of transformers' `GenerationConfig`, but nothing is on unless it
/// is asked for: there is no top-k of 50.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Tokens at most; the end token counts.
    pub max_new_tokens: usize,
    /// Tokens at least before the text may end.
    pub min_new_tokens: usize,
    /// What the logits of tokens that already occur, in the prompt too, are divided by (multiplied if negative); 1
    /// changes nothing. Keskar et al. 2019.
    pub repetition_penalty: f32,
    /// Length of the runs of tokens that may occur only once, in prompt and text together.
    pub no_repeat_ngram: Option<usize>,
    /// Strings that end a text. They are not part of it.
    pub stop: Vec<String>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The most probable token.
    #[default]
    Greedy,
    /// A token drawn by its probability.
    Sample(Sampling),
    /// The most probable text among several that are followed.
    Beam(Beams),
}

/// From what a token is drawn: temperature first, then top-k, then top-p.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// What logits are divided by: below 1 likely tokens become likelier.
    pub temperature: f32,
    /// Only this many of the most probable tokens; all without it.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together have this probability.
    pub top_p: f32,
}

/// Beam search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Beams {
    /// Texts that are followed at a time.
    pub beams: usize,
    /// The exponent of the length that a text's log-probability is divided by: above 0 favours long texts.
    pub length_penalty: f32,
    /// When the search ends.
    pub stopping: Stopping,
}

/// When a beam search with as many finished texts as beams ends. transformers calls it `early_stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopping {
    /// When the best running text, ended now, would be worse than every finished one (`False`).
    #[default]
    Heuristic,
    /// At once (`True`).
    WhenFull,
    /// When no running text can become better than a finished one (`"never"`).
    Exhaustive,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            strategy: Strategy::Greedy,
            max_new_tokens: 64,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            no_repeat_ngram: None,
            stop: vec![],
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0 }
    }
}

impl Default for Beams {
    fn default() -> Self {
        Self { beams: 4, length_penalty: 1.0, stopping: Stopping::Heuristic }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {advice}")]
pub struct DecodingError {
    /// The setting.
    pub key: &'static str,
    /// What it is.
    pub value: String,
    /// What to do.
    pub advice: String,
}

fn check(fits: bool, key: &'static str, value: impl ToString, advice: impl Into<String>) -> Result<(), DecodingError> {
    if fits { Ok(()) } else { Err(DecodingError { key, value: value.to_string(), advice: advice.into() }) }
}

fn positive(value: f32) -> bool {
    value.is_finite() && value > 0.0
}

impl Decoding {
    /// Refuses settings that cannot be used.
    ///
    /// # Errors
    /// The first such setting, with what to do.
    pub fn validate(&self) -> Result<(), DecodingError> {
        let tokens = self.max_new_tokens;
        let advice = format!("a text has from 1 to {MAX_NEW_TOKENS} tokens");
        check((1..=MAX_NEW_TOKENS).contains(&tokens), "max_new_tokens", tokens, advice)?;
        let advice = format!("choose at most max_new_tokens, which is {tokens}");
        check(self.min_new_tokens <= tokens, "min_new_tokens", self.min_new_tokens, advice)?;
        let advice = "choose a number above 0; 1 switches the penalty off, 1.2 is usual";
        check(positive(self.repetition_penalty), "repetition_penalty", self.repetition_penalty, advice)?;
        let advice = "choose a length of at least 1, or leave it out to allow repetitions";
        check(self.no_repeat_ngram != Some(0), "no_repeat_ngram", 0, advice)?;
        let advice = format!("give at most {MAX_STOPS} strings");
        check(self.stop.len() <= MAX_STOPS, "stop", format!("{} strings", self.stop.len()), advice)?;
        for stop in &self.stop {
            let advice = format!("a stop string has from 1 to {MAX_STOP_BYTES} bytes");
            check((1..=MAX_STOP_BYTES).contains(&stop.len()), "stop", format!("{stop:?}"), advice)?;
        }
        match &self.strategy {
            Strategy::Greedy => Ok(()),
            Strategy::Sample(sampling) => sampling.validate(),
            Strategy::Beam(beams) => {
                let advice = "beam search does not look for stop strings; leave them out, or use greedy or sample";
                check(self.stop.is_empty(), "stop", format!("{:?}", self.stop), advice)?;
                beams.validate()
            }
        }
    }

    /// Rescales the logits of the next token and sets those of forbidden tokens to −∞, in the order of transformers:
    /// repetition penalty, repeated runs, least length; then, for sampling, temperature, top-k and top-p.
    ///
    /// `logits` `[vocabulary]`; for beam search they are log-probabilities, as in transformers. `history` is the prompt
    /// (for a decoder) and the `new_tokens` tokens so far; `ends` are the tokens that end a text.
    pub fn process(&self, logits: &mut [f32], history: &[u32], new_tokens: usize, ends: &[u32]) {
        if self.repetition_penalty != 1.0 {
            logits::penalise_repetition(logits, history, self.repetition_penalty);
        }
        if let Some(length) = self.no_repeat_ngram {
            logits::forbid_repeated_runs(logits, history, length);
        }
        if new_tokens < self.min_new_tokens {
            logits::forbid(logits, ends);
        }
        if let Strategy::Sample(sampling) = &self.strategy {
            logits::divide_by_temperature(logits, sampling.temperature);
            if let Some(k) = sampling.top_k {
                logits::keep_top_k(logits, k);
            }
            if sampling.top_p < 1.0 {
                logits::keep_top_p(logits, sampling.top_p);
            }
        }
    }
}

impl Sampling {
    fn validate(&self) -> Result<(), DecodingError> {
        let advice = "choose a number above 0; the most probable token is what greedy decoding takes";
        check(positive(self.temperature), "temperature", self.temperature, advice)?;
        check(self.top_k != Some(0), "top_k", 0, "choose at least 1, or leave it out to draw from all tokens")?;
        let advice = "choose a probability above 0 and up to 1, which keeps all tokens";
        check(positive(self.top_p) && self.top_p <= 1.0, "top_p", self.top_p, advice)
    }
}

impl Beams {
    fn validate(&self) -> Result<(), DecodingError> {
        let advice = format!("choose from 2 to {MAX_BEAMS}; one beam is greedy decoding");
        check((2..=MAX_BEAMS).contains(&self.beams), "beams", self.beams, advice)?;
        let advice = "choose a finite number; 0 leaves lengths alone, above 0 favours long texts";
        check(self.length_penalty.is_finite(), "length_penalty", self.length_penalty, advice)
    }
}
