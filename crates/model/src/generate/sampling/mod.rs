//! Which token comes next, given the logits: everything of generation that needs no model.
//!
//! [`Decoding`] says how; its [`Decoding::process`] forbids and rescales logits, [`greedy`] and [`draw`] choose from
//! them, [`BeamSearch`] follows several texts at once, and [`TextStream`] turns the tokens into text as they come.

mod beam;
mod choose;
mod decoding;
mod logits;
mod stream;

pub use beam::{BeamSearch, Continuation, Hypothesis};
pub use choose::{draw, greedy};
pub use decoding::{Beams, Decoding, DecodingError, Sampling, Stopping, Strategy};
pub use logits::{
    divide_by_temperature, forbid, forbid_repeated_runs, keep_top_k, keep_top_p, log_softmax, penalise_repetition,
};
pub use stream::{DetokenizeError, Piece, TextStream};

#[cfg(test)]
mod tests;
