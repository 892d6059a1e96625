//! How long texts may be, where nobody says so.

use crate::config::QUESTION_LENGTH;
use crate::error::AppError;
use crate::task::Task;
use crate::texts::Loader;
use fedpipe_core::{Chosen, SiloId};
use fedpipe_federation::tune;
use fedpipe_model::BaseModel;
use fedpipe_model::data::Example;
use std::collections::BTreeMap;

/// Share of the texts that are left whole where the length is left to FedPipe: labels seldom hang on the last words of the
/// longest texts, which cost the most, those of pairs may hang on any word, and answers end where they are cut.
const WHOLE_TEXTS: f64 = 0.75;
const WHOLE_PAIRS: f64 = 0.95;
const WHOLE_ANSWERS: f64 = 0.99;
/// Most tokens of a text that are asked for without a person having said so.
const MOST_TOKENS: usize = 1024;
/// Tokens of plain text that are learnt in one piece.
const PIECE_TOKENS: usize = 512;

/// The length that texts are cut to, where it is left to FedPipe, and why.
///
/// # Errors
/// When a text cannot be used.
pub fn of(
    base: &BaseModel,
    task: &Task,
    loader: &mut Loader<'_>,
    shared: &[Example],
    own: &BTreeMap<SiloId, Vec<Example>>,
) -> Result<(usize, Chosen), AppError> {
    let positions = base.outline().max_positions;
    let usual = |length: usize, reason: &str| {
        let length = length.min(positions);
        let (key, reason) = ("training.max_length".into(), reason.into());
        Ok((length, Chosen { key, value: length.to_string(), reason }))
    };
    let pairs = shared.iter().chain(own.values().flatten()).any(|example| example.second.is_some());
    let whole = match task {
        Task::SpanQa(_) => return usual(QUESTION_LENGTH, "longer passages are read in windows of this length"),
        Task::Lm { .. } => return usual(PIECE_TOKENS, "documents are packed into pieces of this length"),
        Task::Classification(_) if pairs => WHOLE_PAIRS,
        Task::Classification(_) => WHOLE_TEXTS,
        Task::Instruct(_) => WHOLE_ANSWERS,
    };
    let most = positions.min(MOST_TOKENS);
    let encoder = base.text_encoder(most)?;
    let said = loader.notices.len();
    let mut lengths = |examples: &[Example]| -> Result<Vec<usize>, AppError> {
        Ok(loader.encode(task, &encoder, &mut examples.to_vec())?.lengths().collect())
    };
    // How the shared texts are split hangs on what is made of them; their lengths together are known before.
    let mut all = BTreeMap::new();
    if !shared.is_empty() {
        all.insert(SiloId::new("data.train"), lengths(shared)?);
    }
    for (silo, examples) in own {
        all.insert(silo.clone(), lengths(examples)?);
    }
    // What is left out is said when the texts are read to be learnt.
    loader.notices.truncate(said);
    Ok(tune::max_length(&all, whole, most))
}
