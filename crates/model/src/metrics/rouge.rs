//! ROUGE's F-measure (Lin 2004) as the `rouge-score` package computes it, without a stemmer.

use super::text::runs;

/// F-measure over runs of `n` words, from 0 to 1, against the reference that gives most.
pub fn rouge_n(n: usize, hypothesis: &str, references: &[&str]) -> f64 {
    best(hypothesis, references, |found, wanted| {
        let (in_found, in_wanted) = (runs(found, n), runs(wanted, n));
        let common: u64 = in_found.iter().map(|(run, &n)| n.min(in_wanted.get(run).copied().unwrap_or(0))).sum();
        (common, in_found.values().sum(), in_wanted.values().sum())
    })
}

/// F-measure over the longest common subsequence of words, from 0 to 1, against the reference that gives most.
pub fn rouge_l(hypothesis: &str, references: &[&str]) -> f64 {
    best(hypothesis, references, |found, wanted| {
        (common_subsequence(found, wanted), found.len() as u64, wanted.len() as u64)
    })
}

/// The highest F-measure of (common, in the hypothesis, in the reference).
fn best(hypothesis: &str, references: &[&str], count: impl Fn(&[&str], &[&str]) -> (u64, u64, u64)) -> f64 {
    let hypothesis = hypothesis.to_lowercase();
    let found: Vec<&str> = words(&hypothesis).collect();
    let score = |reference: &&str| {
        let reference = reference.to_lowercase();
        let (common, in_found, in_wanted) = count(&found, &words(&reference).collect::<Vec<_>>());
        2.0 * common as f64 / (in_found + in_wanted).max(1) as f64
    };
    references.iter().map(score).fold(0.0, f64::max)
}

/// Runs of ASCII letters and digits; everything else parts them, letters with accents too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty())
}

/// Length of the longest common subsequence, in time `a · b` and memory `b`.
fn common_subsequence(a: &[&str], b: &[&str]) -> u64 {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
