//! What is done to the logits `[vocabulary]` of the next token before one is chosen. A forbidden token's is −∞. Semantics
//! are those of transformers' `LogitsProcessor` of the same purpose.

/// Divides the logit of every token in `history` by `penalty`, or multiplies it where it is negative; once for a token,
/// however often it occurs (`RepetitionPenaltyLogitsProcessor`).
pub fn penalise_repetition(logits: &mut [f32], history: &[u32], penalty: f32) {
    let mut tokens: Vec<u32> = history.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Forbids every token that would end a run of `length` tokens which `history` already has
/// (`NoRepeatNGramLogitsProcessor`).
pub fn forbid_repeated_runs(logits: &mut [f32], history: &[u32], length: usize) {
    let Some(begin) = history.len().checked_sub(length.saturating_sub(1)) else { return };
    let last = &history[begin..];
    for run in history.windows(length.max(1)) {
        if let Some((&token, before)) = run.split_last()
            && before == last
        {
            forbid(logits, &[token]);
        }
    }
}

/// Forbids tokens (`MinNewTokensLengthLogitsProcessor`, while a text is too short to end).
pub fn forbid(logits: &mut [f32], tokens: &[u32]) {
    for &token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Divides by a temperature (`TemperatureLogitsWarper`).
pub fn divide_by_temperature(logits: &mut [f32], temperature: f32) {
    logits.iter_mut().for_each(|logit| *logit /= temperature);
}

/// Forbids tokens whose logit is below the `k`-th highest; ties with it stay (`TopKLogitsWarper`).
pub fn keep_top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    logits.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f32::NEG_INFINITY);
}

/// Forbids the least probable tokens that together have at most the probability 1 − p; the most probable one stays
/// (`TopPLogitsWarper`; Holtzman et al. 2020).
pub fn keep_top_p(logits: &mut [f32], p: f32) {
    let mut allowed: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
    allowed.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let Some((&most, rest)) = allowed.split_last() else { return };
    let weight = |logit: f32| f64::from(logit - logits[most]).exp();
    let total: f64 = allowed.iter().map(|&i| weight(logits[i])).sum();
    let mut below = 0.0;
    let removed = rest.iter().take_while(|&&i| {
        below += weight(logits[i]);
        below <= f64::from(1.0 - p) * total
    });
    let removed: Vec<usize> = removed.copied().collect();
    for i in removed {
        logits[i] = f32::NEG_INFINITY;
    }
}

/// Log-probabilities of the tokens, in nats, in place; nothing happens where every token is forbidden.
pub fn log_softmax(logits: &mut [f32]) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if highest == f32::NEG_INFINITY {
        return;
    }
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    let total = total.ln() as f32;
    logits.iter_mut().for_each(|logit| *logit = *logit - highest - total);
}
