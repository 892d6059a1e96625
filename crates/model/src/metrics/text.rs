//! Words and runs of words, cut as the metrics' reference implementations cut them.

use std::collections::HashMap;

/// Whitespace of Python's `str.split`, which is Unicode's and four control characters.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words between whitespace.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// The text with a space between any two tokens of mteval-v13a (sacreBLEU's `13a`), the default of machine translation
/// and of the E2E challenge.
///
/// Punctuation stands alone, except for apostrophes, and for full stops and commas between digits; a dash leaves the
/// digit before it.
pub(super) fn spaced_13a(text: &str) -> String {
    let text = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let mut spaced = String::with_capacity(text.len() + 16);
    for c in format!(" {text} ").chars() {
        if c.is_ascii_punctuation() && !matches!(c, '\'' | ',' | '-' | '.') {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    let stop = |c: char| matches!(c, '.' | ',');
    let spaced = replace_pairs(&spaced, |a, b| !a.is_ascii_digit() && stop(b), |a, b| [a, ' ', b, ' ']);
    let spaced = replace_pairs(&spaced, |a, b| stop(a) && !b.is_ascii_digit(), |a, b| [' ', a, ' ', b]);
    replace_pairs(&spaced, |a, b| a.is_ascii_digit() && b == '-', |a, b| [a, ' ', b, ' '])
}

/// Replaces pairs of neighbours from left to right; a replaced pair is not looked at again, as with a regular
/// expression of two characters.
fn replace_pairs(text: &str, wanted: impl Fn(char, char) -> bool, with: impl Fn(char, char) -> [char; 4]) -> String {
    let mut replaced = String::with_capacity(text.len() + 16);
    let mut rest = text.chars();
    while let Some(a) = rest.next() {
        match rest.clone().next() {
            Some(b) if wanted(a, b) => {
                replaced.extend(with(a, b));
                rest.next();
            }
            _ => replaced.push(a),
        }
    }
    replaced
}

/// How often each run of `n` neighbouring tokens occurs. Nothing may hang on the order of the map.
pub(super) fn runs<'a>(tokens: &'a [&'a str], n: usize) -> HashMap<&'a [&'a str], u64> {
    let mut counts = HashMap::new();
    for run in tokens.windows(n) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// For each run of `n` tokens the most that one reference has of it.
pub(super) fn most_runs<'a>(references: &'a [Vec<&'a str>], n: usize) -> HashMap<&'a [&'a str], u64> {
    let mut most = HashMap::new();
    for reference in references {
        for (run, count) in runs(reference, n) {
            let kept = most.entry(run).or_insert(0);
            *kept = count.max(*kept);
        }
    }
    most
}
