//! Completions of prompts by a base model with an adapter.

use crate::error::AppError;
use fedpipe_core::{Adapter, BaseFormat, Seed};
use fedpipe_model::data::TextEncoder;
use fedpipe_model::generate::sampling::Decoding;
use fedpipe_model::generate::{Request, Writer};
use fedpipe_model::{BaseModel, on_pool};

/// What writes, and how.
pub struct Writing<'a> {
    /// The base model.
    pub base: &'a BaseModel,
    /// Laid over it; it may be empty.
    pub adapter: &'a Adapter,
    /// Format of the frozen weights.
    pub format: BaseFormat,
    /// How tokens are chosen.
    pub decoding: &'a Decoding,
    /// Where draws start.
    pub seed: Seed,
}

impl Writing<'_> {
    /// The completion of every prompt, in order. `on_piece` hears of each piece of text with its prompt's number, and says
    /// whether that text goes on.
    ///
    /// # Errors
    /// When a prompt is empty or too long, or the model cannot write.
    pub fn texts(
        &self,
        prompts: &[Vec<u32>],
        encoder: &TextEncoder,
        on_piece: &mut (dyn FnMut(usize, &str) -> bool + Send),
    ) -> Result<Vec<String>, AppError> {
        let ends = self.base.files().end_tokens()?;
        let max_positions = self.base.outline().max_positions;
        let request = Request { decoding: self.decoding, ends: &ends, max_positions, seed: self.seed };
        let layers = self.base.encoder(self.format)?;
        let head = self.base.output_head(self.format)?;
        Ok(on_pool(|| Writer::new(&*layers, &head, self.adapter)?.texts(prompts, encoder.whole(), request, on_piece))?)
    }
}
