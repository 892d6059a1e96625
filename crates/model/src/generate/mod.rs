//! Text from a language model, one token after the other.

pub mod sampling;

use crate::Error;
use crate::adapter::Adapters;
use crate::arch::{Backbone, LanguageModel};
use crate::ops::{KvCache, Offsets, Pass, Workspace};
use crate::parameters::Parameters;
use fedpipe_core::{Adapter, Seed};
use fedpipe_kernels::FrozenMatrix;
use sampling::{BeamSearch, Beams, Decoding, Strategy, TextStream, draw, greedy, log_softmax};
use tokenizers::Tokenizer;

/// Prompts that are continued side by side.
const BATCH: usize = 16;

/// A language model that writes.
pub struct Writer<'a> {
    backbone: &'a dyn Backbone,
    language: &'a dyn LanguageModel,
    head: &'a FrozenMatrix,
    adapters: Adapters,
    parameters: Parameters,
    workspace: Workspace,
}

/// What prompts are continued with, beside the model.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// How tokens are chosen.
    pub decoding: &'a Decoding,
    /// Tokens that end a text.
    pub ends: &'a [u32],
    /// Most tokens of a prompt and its continuation together.
    pub max_positions: usize,
    /// Where the draws of sampling start: those of prompt i hang on it, i and the step alone.
    pub seed: Seed,
}

impl<'a> Writer<'a> {
    /// The model with its output head `[vocabulary, hidden]` and an adapter, which may be empty.
    ///
    /// # Errors
    /// When the model is no language model.
    pub fn new(backbone: &'a dyn Backbone, head: &'a FrozenMatrix, adapter: &Adapter) -> Result<Self, Error> {
        let language = backbone.language().ok_or_else(|| Error::Misfit("an encoder cannot write".into()))?;
        let workspace = Workspace::inference();
        let (adapters, parameters) = (Adapters::constant(adapter), Parameters::default());
        Ok(Self { backbone, language, head, adapters, parameters, workspace })
    }

    /// Continues every prompt and gives the new tokens, with the end token where a text came to one. `on_token` hears of
    /// each token with its prompt's number, and says whether that text goes on; of beam search it hears at the end.
    ///
    /// # Errors
    /// When a prompt is empty or too long, or an operation fails.
    pub fn write(
        &self,
        prompts: &[Vec<u32>],
        request: Request<'_>,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Vec<u32>>, Error> {
        for (i, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() || prompt.len() >= request.max_positions {
                let most = request.max_positions.saturating_sub(1);
                return Err(Error::Prompt { number: i + 1, tokens: prompt.len(), most });
            }
        }
        if let Strategy::Beam(beams) = request.decoding.strategy {
            let texts = prompts.iter().enumerate().map(|(i, prompt)| {
                let text = self.search(prompt, beams, request)?;
                text.iter().take_while(|&&token| on_token(i, token)).for_each(drop);
                Ok(text)
            });
            return texts.collect();
        }
        let mut texts = Vec::with_capacity(prompts.len());
        for (batch, prompts) in prompts.chunks(BATCH).enumerate() {
            texts.extend(self.side_by_side(batch * BATCH, prompts, request, on_token)?);
        }
        Ok(texts)
    }

    /// Continues every prompt and gives the texts, without special tokens and up to the first stop string. `on_piece`
    /// hears of each piece of text as it becomes certain, with its prompt's number, and says whether that text goes on.
    ///
    /// # Errors
    /// As [`Writer::write`], and when the tokenizer cannot decode a token.
    pub fn texts(
        &self,
        prompts: &[Vec<u32>],
        tokenizer: &Tokenizer,
        request: Request<'_>,
        on_piece: &mut dyn FnMut(usize, &str) -> bool,
    ) -> Result<Vec<String>, Error> {
        let mut streams: Vec<_> = prompts.iter().map(|_| TextStream::new(tokenizer, &request.decoding.stop)).collect();
        let mut texts = vec![String::new(); prompts.len()];
        let mut failed = None;
        self.write(prompts, request, &mut |prompt, token| match streams[prompt].push(token) {
            Ok(piece) => {
                texts[prompt].push_str(&piece.text);
                on_piece(prompt, &piece.text) && !piece.stopped
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        for (prompt, (stream, text)) in streams.into_iter().zip(&mut texts).enumerate() {
            let rest = stream.finish()?.text;
            on_piece(prompt, &rest);
            text.push_str(&rest);
        }
        Ok(texts)
    }

    fn side_by_side(
        &self,
        first: usize,
        prompts: &[Vec<u32>],
        request: Request<'_>,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let Request { decoding, ends, max_positions, seed } = request;
        let mut cache = KvCache::new(prompts.len(), self.backbone.layers());
        let mut texts: Vec<Vec<u32>> = vec![vec![]; prompts.len()];
        // What each text has that the model has not read; nothing once it is finished.
        let mut unread: Vec<Vec<u32>> = prompts.to_vec();
        while unread.iter().any(|tokens| !tokens.is_empty()) {
            let mut logits = self.next_logits(&unread, &mut cache)?;
            let mut rows = logits.chunks_exact_mut(self.head.rows());
            for (i, unread) in unread.iter_mut().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
                let Some(row) = rows.next() else { return Err(Error::shape("logits for every text".into())) };
                unread.clear();
                let text = &mut texts[i];
                let history = [&prompts[i][..], &text[..]].concat();
                decoding.process(row, &history, text.len(), ends);
                let token = match decoding.strategy {
                    Strategy::Sample(_) => draw(row, seed, (first + i) as u64, text.len() as u32),
                    Strategy::Greedy | Strategy::Beam(_) => greedy(row),
                };
                let Some(token) = token else { continue };
                text.push(token);
                let goes_on = on_token(first + i, token) && !ends.contains(&token);
                if goes_on && text.len() < decoding.max_new_tokens && history.len() + 1 < max_positions {
                    unread.push(token);
                }
            }
        }
        Ok(texts)
    }

    fn search(&self, prompt: &[u32], beams: Beams, request: Request<'_>) -> Result<Vec<u32>, Error> {
        let Request { decoding, ends, max_positions, .. } = request;
        let most = decoding.max_new_tokens.min(max_positions - prompt.len());
        let mut search = BeamSearch::new(beams, ends, most);
        let mut cache = KvCache::new(1, self.backbone.layers());
        let mut unread = vec![prompt.to_vec()];
        while !search.running().is_empty() {
            let mut scores = self.next_logits(&unread, &mut cache)?;
            for (row, text) in scores.chunks_exact_mut(self.head.rows()).zip(search.running()) {
                log_softmax(row);
                let history = [prompt, &text.tokens].concat();
                decoding.process(row, &history, text.tokens.len(), ends);
            }
            let next = search.step(&scores)?;
            cache.select(&next.iter().map(|text| text.parent).collect::<Vec<_>>())?;
            unread = next.iter().map(|text| vec![text.token]).collect();
        }
        Ok(search.finish().into_iter().next().map(|text| text.tokens).unwrap_or_default())
    }

    /// The logits after each text that has unread tokens, `[such texts, vocabulary]`.
    fn next_logits(&self, unread: &[Vec<u32>], cache: &mut KvCache) -> Result<Vec<f32>, Error> {
        let mut end = 0;
        let ends = unread.iter().map(|tokens| {
            end += tokens.len();
            end
        });
        let offsets: Offsets = std::iter::once(0).chain(ends).collect();
        let mut ops = self.workspace.ops(&self.parameters, &self.adapters, Pass::Inference)?;
        self.language.next_logits(&mut *ops, self.head, &unread.concat(), &offsets, cache)
    }
}
