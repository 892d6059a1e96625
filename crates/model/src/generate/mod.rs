//! Text from a language model, one token after the other.

pub mod sampling;
