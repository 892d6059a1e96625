//! SQuAD's exact match and F1 (Rajpurkar et al. 2016), with version 2's rule for questions without an answer.

use super::text::{is_space, runs, words};

/// 1 when the prediction says what one of the answers says, up to case, punctuation, articles and spacing; else 0.
///
/// No answer, or only answers of which nothing is left, mean that the question has none: the right prediction is empty.
pub fn exact_match(prediction: &str, answers: &[&str]) -> f64 {
    best(prediction, answers, |prediction, answer| f64::from(u8::from(prediction == answer)))
}

/// F1 over the words of the prediction and of the answer that it fits best, from 0 to 1. Normalised as
/// [`exact_match`].
pub fn answer_f1(prediction: &str, answers: &[&str]) -> f64 {
    best(prediction, answers, |prediction, answer| {
        let (found, wanted): (Vec<&str>, Vec<&str>) = (words(prediction).collect(), words(answer).collect());
        if found.is_empty() || wanted.is_empty() {
            return f64::from(u8::from(found == wanted));
        }
        let (in_found, in_wanted) = (runs(&found, 1), runs(&wanted, 1));
        let common: u64 = in_found.iter().map(|(word, &n)| n.min(in_wanted.get(word).copied().unwrap_or(0))).sum();
        2.0 * common as f64 / (found.len() + wanted.len()) as f64
    })
}

fn best(prediction: &str, answers: &[&str], score: impl Fn(&str, &str) -> f64) -> f64 {
    let prediction = normalised(prediction);
    let answers: Vec<String> = answers.iter().map(|a| normalised(a)).filter(|a| !a.is_empty()).collect();
    if answers.is_empty() {
        return score(&prediction, "");
    }
    answers.iter().map(|answer| score(&prediction, answer)).fold(0.0, f64::max)
}

/// Lower case without ASCII punctuation, then without articles, then with single spaces.
fn normalised(text: &str) -> String {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // What is left beside words is whitespace and symbols beyond ASCII: an article may stand next to either.
    let mut kept = String::with_capacity(text.len());
    for piece in text.split_inclusive(|c: char| !c.is_alphanumeric()) {
        let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric());
        kept.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        kept.push_str(&piece[word.len()..]);
    }
    kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
