//! Losses over few classes. (The fused loss over a vocabulary is another operation.)

use candle_core::{D, Result, Tensor};

/// Mean cross-entropy in nats of `logits` `[sequences, classes]` against `labels` `[sequences]` (`u32`).
///
/// # Errors
/// When the shapes disagree or a label is not a class.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let highest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&highest)?;
    let log_total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let log_probabilities = shifted.broadcast_sub(&log_total)?;
    log_probabilities.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()
}
