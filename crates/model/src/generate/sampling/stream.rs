//! Tokens to text as they come.

use tokenizers::Tokenizer;

/// Tokens that may be held back until their text is complete. A character has four bytes, so what is not complete by
/// then never will be.
const MAX_HELD: usize = 32;

/// A token that the tokenizer cannot turn into text.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot decode token {token}: {reason}")]
pub struct DetokenizeError {
    /// The token.
    pub token: u32,
    /// The tokenizer's reason.
    pub reason: String,
}

/// What a token added to the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// Text that is certain: whole characters, and no beginning of a stop string.
    pub text: String,
    /// Whether a stop string was met. It is not part of the text, and nor is what follows.
    pub stopped: bool,
}

/// The text of a growing sequence of tokens, piece by piece; special tokens are left out. The pieces together are the
/// text of all tokens up to the first stop string.
///
/// A token may hold a part of a character, and its text may hang on its neighbours (a space that is left out at the
/// beginning of a text), so a token is decoded together with those before it. What is out stays as it is even where the
/// tokenizer would now decode it otherwise, as BERT's does with the space before a comma.
#[derive(Debug, Clone)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    stops: Vec<String>,
    /// The tokens of the last text that was complete, and those since.
    tokens: Vec<u32>,
    /// How many of them belong to the former.
    complete: usize,
    /// Complete text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl<'t> TextStream<'t> {
    /// A stream without tokens, which ends at the first of `stops`. Empty stop strings are passed over.
    pub fn new(tokenizer: &'t Tokenizer, stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { tokenizer, stops, tokens: vec![], complete: 0, held: String::new(), stopped: false }
    }

    /// Adds a token and gives the text that is certain now. After a stop string it gives nothing more.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, token: u32) -> Result<Piece, DetokenizeError> {
        if self.stopped {
            return Ok(Piece { text: String::new(), stopped: true });
        }
        self.tokens.push(token);
        let text = self.complete_text(self.tokens.len() - self.complete > MAX_HELD)?;
        Ok(self.release(&text, false))
    }

    /// The rest of the text once no token follows: incomplete characters become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(mut self) -> Result<Piece, DetokenizeError> {
        if self.stopped {
            return Ok(Piece { text: String::new(), stopped: true });
        }
        let text = self.complete_text(true)?;
        Ok(self.release(&text, true))
    }

    /// What the tokens since the last complete text add to it; nothing while they end within a character, unless that
    /// is `forced`.
    fn complete_text(&mut self, forced: bool) -> Result<String, DetokenizeError> {
        let before = self.decode(&self.tokens[..self.complete])?;
        let all = self.decode(&self.tokens)?;
        if all == before {
            // Special tokens: they are not to pile up.
            self.tokens.truncate(self.complete);
            return Ok(String::new());
        }
        if all.ends_with('\u{fffd}') && !forced {
            return Ok(String::new());
        }
        let common: usize =
            before.chars().zip(all.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        self.tokens.drain(..self.complete);
        self.complete = self.tokens.len();
        Ok(all[common..].to_owned())
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, DetokenizeError> {
        let token = tokens.last().copied().unwrap_or(0);
        self.tokenizer.decode(tokens, true).map_err(|e| DetokenizeError { token, reason: e.to_string() })
    }

    /// Adds complete text and gives what cannot become a stop string any more, or all of it at the `end`.
    fn release(&mut self, text: &str, end: bool) -> Piece {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(place) = first {
            self.stopped = true;
            self.held.truncate(place);
        }
        let keep = if end || self.stopped { 0 } else { self.longest_beginning() };
        let rest = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: self.stopped }
    }

    /// Bytes of the longest end of the held text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let beginning = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            lengths.into_iter().find(|&at| self.held.ends_with(&stop[..at])).unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }
}
