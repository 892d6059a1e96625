//! Against the values of the usual packages, which `scripts/golden_metrics.py` wrote.

use super::*;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Fixture {
    classes: Vec<Value>,
    answers: Vec<Answer>,
    corpora: Vec<Corpus>,
}

#[derive(Deserialize)]
struct Corpus {
    name: String,
    texts: Vec<Text>,
    values: BTreeMap<Metric, f64>,
}

#[derive(Deserialize)]
struct Text {
    hypothesis: String,
    references: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(flatten)]
    text: Text,
    values: BTreeMap<Metric, f64>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../testkit/fixtures/metrics.json")).unwrap()
}

fn add(scores: &mut TextScores, text: &Text) {
    scores.add(&text.hypothesis, &text.references.iter().map(String::as_str).collect::<Vec<_>>());
}

fn assert_close(what: &str, metric: Metric, found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance * expected.abs().max(1e-3),
        "{what}: {metric} is {found}, expected {expected}"
    );
}

fn of_texts() -> Vec<Metric> {
    Metric::all().filter(|metric| metric.input() == Input::Texts).collect()
}

#[test]
fn the_table_is_in_the_order_of_the_variants_and_names_are_unique() {
    for (place, row) in TABLE.iter().enumerate() {
        assert_eq!(row.metric as usize, place, "{}", row.name);
        assert_eq!(Metric::try_from(row.name.to_string()), Ok(row.metric), "a name must lead back to its metric");
        assert_eq!(serde_json::to_value(row.metric).unwrap(), row.name);
    }
    let error = Metric::try_from("blue".to_string()).unwrap_err().to_string();
    assert!(error.starts_with("there is no metric \"blue\"; use one of accuracy, macro-f1,"), "{error}");
}

/// Each metric is taken by the accumulator that its row names, and by no other.
#[test]
fn every_metric_gives_its_best_value_to_a_perfect_model() {
    let mut classes = Confusion::default();
    classes.add(0, 0);
    classes.add(1, 1);
    let mut likelihoods = TokenLoss::default();
    likelihoods.add(0.0, 3);
    let mut texts = TextScores::new(&of_texts()).unwrap();
    texts.add("five words are enough here", &["five words are enough here"]);
    for metric in Metric::all() {
        let found = [classes.value(metric), likelihoods.value(metric), texts.value(metric)];
        let place =
            [Input::Classes, Input::Likelihoods, Input::Texts].iter().position(|&i| i == metric.input()).unwrap();
        for (i, value) in found.iter().enumerate() {
            assert_eq!(value.is_some(), i == place, "{metric}");
        }
        let value = found[place].unwrap();
        assert!(metric.best().is_none_or(|best| (value - best).abs() < 1e-9), "{metric} is {value}");
        assert_eq!(metric.higher_is_better(), metric != Metric::Perplexity);
        if metric.input() != Input::Texts {
            let error = TextScores::new(&[metric]).unwrap_err().to_string();
            assert!(error.contains("is not computed from generated texts; use one of exact-match"), "{error}");
        }
    }
}

#[test]
fn corpora_have_the_values_of_sacrebleu_nltk_and_rouge_score() {
    let corpora = fixture().corpora;
    assert!(corpora.len() > 30);
    for corpus in corpora {
        let metrics: Vec<Metric> = corpus.values.keys().copied().collect();
        assert_eq!(metrics.len(), 6, "{}", corpus.name);
        let mut scores = TextScores::new(&metrics).unwrap();
        corpus.texts.iter().for_each(|text| add(&mut scores, text));
        for (metric, expected) in corpus.values {
            assert_close(&corpus.name, metric, scores.value(metric).unwrap(), expected, 1e-6);
        }
    }
}

/// torchmetrics works in f32.
#[test]
fn answers_have_the_values_of_the_squad_script() {
    for answer in fixture().answers {
        let mut scores = TextScores::new(&[Metric::ExactMatch, Metric::AnswerF1]).unwrap();
        add(&mut scores, &answer.text);
        for (metric, expected) in answer.values {
            assert_close(&answer.text.hypothesis, metric, scores.value(metric).unwrap(), expected, 1e-6);
        }
    }
}

/// By hand, from version 2 of the SQuAD script: answers of which nothing is left are no answers.
#[test]
fn a_question_without_an_answer_wants_an_empty_prediction() {
    for answers in [&[][..], &[""], &["the", "!"]] {
        assert_eq!((exact_match("", answers), answer_f1("a.", answers)), (1.0, 1.0), "{answers:?}");
        assert_eq!((exact_match("x", answers), answer_f1("x", answers)), (0.0, 0.0), "{answers:?}");
    }
    assert_eq!(exact_match("", &["", "x"]), 0.0, "an answer of which something is left makes the question answerable");
}

#[test]
fn classes_have_the_values_of_scikit_learn() {
    for case in fixture().classes {
        let read = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let mut confusion = Confusion::default();
        for (&predicted, &right) in read("predicted").iter().zip(&read("right")) {
            confusion.add(predicted, right);
        }
        for metric in Metric::all().filter(|metric| metric.input() == Input::Classes) {
            let expected = case[metric.name()].as_f64().unwrap();
            assert_close("classes", metric, confusion.value(metric).unwrap(), expected, 1e-12);
        }
    }
}

/// −ln(1/2) − ln(1/4) − ln(1/8) over three tokens is 2 ln 2 each.
#[test]
fn perplexity_weighs_tokens_and_not_texts() {
    let (mut loss, mut other) = (TokenLoss::default(), TokenLoss::default());
    loss.add(2f64.ln(), 1);
    other.add(32f64.ln(), 2);
    loss.merge(&other);
    assert!((loss.perplexity() - 4.0).abs() < 1e-12);
    assert_eq!((loss.tokens(), TokenLoss::default().perplexity()), (3, 1.0));
}

/// What a silo sends is JSON; the figure over all silos is that of all texts in one place.
#[test]
fn merged_silos_give_the_value_of_all_texts_together() {
    let corpora = fixture().corpora;
    let texts: Vec<&Text> = corpora.iter().flat_map(|corpus| &corpus.texts).collect();
    let mut together = TextScores::new(&of_texts()).unwrap();
    texts.iter().for_each(|text| add(&mut together, text));
    let mut merged = TextScores::new(&of_texts()).unwrap();
    for silo in texts.chunks(7) {
        let mut scores = TextScores::new(&of_texts()).unwrap();
        silo.iter().for_each(|text| add(&mut scores, text));
        let sent = serde_json::to_string(&scores).unwrap();
        merged.merge(&serde_json::from_str(&sent).unwrap()).unwrap();
    }
    for (metric, expected) in together.values() {
        assert!(expected > 0.0, "{metric}");
        assert_close("merged", metric, merged.value(metric).unwrap(), expected, 1e-12);
    }
    let (mut first, mut second, mut both) = (Confusion::default(), Confusion::default(), Confusion::default());
    for (predicted, right) in [(0, 0), (1, 0), (2, 1), (1, 1), (0, 2)] {
        (if right == 0 { &mut first } else { &mut second }).add(predicted, right);
        both.add(predicted, right);
    }
    first.merge(&second);
    assert_eq!((&first, first.examples()), (&both, 5));
}

#[test]
fn scores_of_other_metrics_are_not_merged() {
    let mut scores = TextScores::new(&[Metric::Bleu]).unwrap();
    scores.add("a b c d", &["a b c d"]);
    let before = scores.clone();
    let error = scores.merge(&TextScores::new(&[Metric::Nist]).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("scores of [bleu] and of [nist] cannot be merged"), "{error}");
    let forged = serde_json::from_str(r#"{"bleu": {"mean": {"total": 1.0, "texts": 1}}}"#).unwrap();
    assert!(scores.merge(&forged).is_err());
    assert_eq!(scores, before);
}

#[test]
fn nothing_added_is_worth_nothing_and_no_reference_is_no_panic() {
    let mut scores = TextScores::new(&of_texts()).unwrap();
    assert!(scores.values().all(|(_, value)| value == 0.0));
    scores.add("a text without a reference", &[]);
    assert!(scores.values().all(|(_, value)| value == 0.0));
    assert!(Confusion::default().value(Metric::Accuracy) == Some(0.0));
}
