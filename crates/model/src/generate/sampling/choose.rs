//! One token from the logits of all.

use fedpipe_core::{Purpose, Seed, SiloId};
use rand_core::Rng;

/// The token with the highest logit, the first of several. None where every token is forbidden or no number.
pub fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut highest = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_finite() && logit > highest {
            (best, highest) = (Some(token), logit);
        }
    }
    best
}

/// A token drawn with the probabilities softmax(`logits`). None where every token is forbidden or no number.
///
/// What is drawn hangs on the seed, the sequence's number and the step alone: neither on the batch that a sequence is
/// generated in nor on how long the others are.
pub fn draw(logits: &[f32], seed: Seed, sequence: u64, step: u32) -> Option<u32> {
    let highest = logits[greedy(logits)? as usize];
    let weight = |logit: f32| if logit.is_finite() { f64::from(logit - highest).exp() } else { 0.0 };
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    let mut left = uniform(seed, sequence, step) * total;
    let mut last = None;
    for (token, &logit) in (0..).zip(logits).filter(|(_, logit)| logit.is_finite()) {
        left -= weight(logit);
        last = Some(token);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// A number from 0 to 1, without 1.
fn uniform(seed: Seed, sequence: u64, step: u32) -> f64 {
    let sequence = SiloId::new(sequence.to_string());
    let bits = seed.derive(Purpose::Sampling, step, Some(&sequence)).stream().next_u64();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
