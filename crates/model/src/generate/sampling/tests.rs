//! Against what `transformers` did with the same table of logits (`scripts/golden_sampling.py`).

use super::*;
use fedpipe_core::Seed;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

#[derive(Deserialize)]
struct Fixture {
    prompt: Vec<u32>,
    end: u32,
    /// `[position][token][vocabulary]`
    table: Vec<Vec<Vec<f32>>>,
    sample: Vec<Sample>,
    beam: Vec<Beam>,
}

#[derive(Deserialize)]
struct Sample {
    settings: Value,
    tokens: Vec<u32>,
    /// Null is −∞.
    logits: Vec<Vec<Option<f32>>>,
}

#[derive(Deserialize)]
struct Beam {
    prompt: Vec<u32>,
    settings: Value,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    tokens: Vec<u32>,
    score: f32,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../../../testkit/fixtures/sampling.json")).unwrap()
}

impl Fixture {
    fn logits(&self, history: &[u32]) -> Vec<f32> {
        self.table[history.len() - 1][*history.last().unwrap() as usize].clone()
    }
}

fn number(settings: &Value, key: &str, default: f64) -> f32 {
    settings[key].as_f64().unwrap_or(default) as f32
}

fn count(settings: &Value, key: &str) -> Option<usize> {
    settings[key].as_u64().map(|n| n as usize)
}

/// transformers' names of what all strategies share.
fn decoding(settings: &Value, strategy: Strategy) -> Decoding {
    let decoding = Decoding {
        strategy,
        max_new_tokens: count(settings, "max_new_tokens").unwrap_or(10),
        min_new_tokens: count(settings, "min_new_tokens").unwrap_or(0),
        repetition_penalty: number(settings, "repetition_penalty", 1.0),
        no_repeat_ngram: count(settings, "no_repeat_ngram_size"),
        stop: vec![],
    };
    decoding.validate().unwrap();
    decoding
}

/// To 1e-5: the fixture holds six decimals.
#[test]
fn logits_are_processed_as_transformers_processes_them() {
    let fixture = fixture();
    for sample in &fixture.sample {
        let strategy = Strategy::Sample(Sampling {
            temperature: number(&sample.settings, "temperature", 1.0),
            top_k: count(&sample.settings, "top_k"),
            top_p: number(&sample.settings, "top_p", 1.0),
        });
        let decoding = decoding(&sample.settings, strategy);
        assert!(!sample.logits.is_empty());
        let mut history = fixture.prompt.clone();
        for (step, (expected, &token)) in sample.logits.iter().zip(&sample.tokens).enumerate() {
            let mut logits = fixture.logits(&history);
            decoding.process(&mut logits, &history, step, &[fixture.end]);
            for (i, (&found, expected)) in logits.iter().zip(expected).enumerate() {
                let expected = expected.unwrap_or(f32::NEG_INFINITY);
                let close = found == expected || (found - expected).abs() < 1e-5;
                assert!(close, "{} step {step} token {i}: {found}, expected {expected}", sample.settings);
            }
            history.push(token);
        }
    }
}

#[test]
fn beams_are_those_of_transformers() {
    let fixture = fixture();
    for beam in &fixture.beam {
        let settings = &beam.settings;
        let beams = Beams {
            beams: count(settings, "num_beams").unwrap(),
            length_penalty: number(settings, "length_penalty", 1.0),
            stopping: match &settings["early_stopping"] {
                Value::Bool(true) => Stopping::WhenFull,
                Value::Bool(false) => Stopping::Heuristic,
                _ => Stopping::Exhaustive,
            },
        };
        let decoding = decoding(settings, Strategy::Beam(beams));
        let ends = serde_json::from_value(settings["eos_token_id"].clone()).unwrap_or(vec![fixture.end]);
        let found = search(&fixture, &beam.prompt, &decoding, beams, &ends);
        assert_eq!(found.len(), beam.texts.len(), "{settings}");
        for (found, expected) in found.iter().zip(&beam.texts) {
            assert_eq!(found.tokens, expected.tokens, "{settings}");
            let close = (found.score - expected.score).abs() <= 1e-5 * expected.score.abs().max(1.0);
            assert!(close, "{settings}: {} instead of {}", found.score, expected.score);
        }
    }
}

/// Keeps histories by `Continuation::parent`, as a cache would be kept, and checks them against the search's own.
fn search(fixture: &Fixture, prompt: &[u32], decoding: &Decoding, beams: Beams, ends: &[u32]) -> Vec<Hypothesis> {
    let mut search = BeamSearch::new(beams, ends, decoding.max_new_tokens);
    let mut histories = vec![prompt.to_vec()];
    while !search.running().is_empty() {
        let mut rows = Vec::new();
        for history in &histories {
            let mut row = fixture.logits(history);
            log_softmax(&mut row);
            decoding.process(&mut row, history, history.len() - prompt.len(), ends);
            rows.extend(row);
        }
        let next = search.step(&rows).unwrap();
        histories = next.iter().map(|c| [histories[c.parent].as_slice(), &[c.token]].concat()).collect();
        let own: Vec<_> = search.running().iter().map(|t| [prompt, &t.tokens].concat()).collect();
        assert_eq!(histories, own);
    }
    search.finish()
}

#[test]
fn a_search_of_which_every_token_is_forbidden_ends_with_what_it_has() {
    let mut search = BeamSearch::new(Beams { beams: 2, ..Beams::default() }, &[0], 5);
    assert!(search.step(&[0.0; 0]).is_err());
    search.step(&[f32::NEG_INFINITY, -1.0, -2.0]).unwrap();
    assert_eq!(search.running().len(), 2);
    let error = search.clone().step(&[-1.0; 3]).unwrap_err().to_string();
    assert!(error.contains("3 log-probabilities are no rows for 2 running texts"), "{error}");
    assert_eq!(search.step(&[f32::NEG_INFINITY, f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY]).unwrap(), []);
    assert!(search.step(&[0.0; 4]).is_err(), "the search is over");
    let tokens: Vec<_> = search.finish().into_iter().map(|text| text.tokens).collect();
    assert_eq!(tokens, [[1], [2]]);
}

#[test]
fn the_most_probable_token_is_the_first_of_several_and_never_a_forbidden_one() {
    assert_eq!(greedy(&[1.0, 2.0, 2.0]), Some(1));
    assert_eq!(greedy(&[f32::NAN, f32::NEG_INFINITY, -5.0]), Some(2));
    for logits in [&[][..], &[f32::NEG_INFINITY], &[f32::NAN, f32::INFINITY]] {
        assert_eq!((greedy(logits), draw(logits, Seed(1), 0, 0)), (None, None), "{logits:?}");
    }
}

/// Probabilities 1/2, 1/3, 1/6 and a forbidden token: 6000 draws are within five standard deviations (σ ≤ 39).
#[test]
fn tokens_are_drawn_by_their_probability() {
    let logits = [3f32.ln(), f32::NEG_INFINITY, 2f32.ln(), 0.0];
    let mut counts = [0i32; 4];
    for sequence in 0..100 {
        for step in 0..60 {
            counts[draw(&logits, Seed(5), sequence, step).unwrap() as usize] += 1;
        }
    }
    for (found, expected) in counts.into_iter().zip([3000, 0, 2000, 1000]) {
        assert!((found - expected).abs() < 195, "{counts:?}");
    }
    assert_eq!(counts[1], 0);
}

#[test]
fn what_is_drawn_hangs_on_seed_sequence_and_step_alone() {
    let logits = [0.0; 1000];
    let drawn = |seed, sequence, step| draw(&logits, Seed(seed), sequence, step).unwrap();
    assert_eq!(drawn(1, 2, 3), drawn(1, 2, 3));
    let others: std::collections::BTreeSet<u32> =
        [drawn(1, 2, 3), drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4), drawn(1, 3, 2)].into();
    assert_eq!(others.len(), 5, "each of the three changes the draw");
}

#[test]
fn a_decoding_is_read_from_a_configuration_and_says_what_is_wrong_with_it() {
    let read = |json: &str| serde_json::from_str::<Decoding>(json).map_err(|e| e.to_string());
    assert_eq!(read("{}").unwrap(), Decoding::default());
    let decoding = read(r#"{"strategy": {"sample": {"top_p": 0.9}}, "stop": ["\n"]}"#).unwrap();
    assert_eq!(decoding.strategy, Strategy::Sample(Sampling { top_p: 0.9, ..Sampling::default() }));
    assert_eq!(serde_json::from_value::<Decoding>(serde_json::to_value(&decoding).unwrap()).unwrap(), decoding);
    assert!(read(r#"{"temperature": 1}"#).unwrap_err().contains("unknown field `temperature`"));
    assert!(read(r#"{"strategy": {"beam": {"top_p": 1}}}"#).unwrap_err().contains("unknown field `top_p`"));
    for (json, message) in [
        (r#"{"max_new_tokens": 0}"#, "max_new_tokens = 0: a text has from 1"),
        (
            r#"{"max_new_tokens": 3, "min_new_tokens": 4}"#,
            "min_new_tokens = 4: choose at most max_new_tokens, which is 3",
        ),
        (r#"{"repetition_penalty": -1}"#, "repetition_penalty = -1: choose a number above 0"),
        (r#"{"no_repeat_ngram": 0}"#, "no_repeat_ngram = 0: choose a length of at least 1"),
        (r#"{"stop": [""]}"#, "stop = \"\": a stop string has from 1"),
        (r#"{"strategy": {"sample": {"temperature": 0}}}"#, "temperature = 0: choose a number above 0; the most"),
        (r#"{"strategy": {"sample": {"top_k": 0}}}"#, "top_k = 0: choose at least 1"),
        (r#"{"strategy": {"sample": {"top_p": 1.5}}}"#, "top_p = 1.5: choose a probability above 0 and up to 1"),
        (r#"{"strategy": {"beam": {"beams": 1}}}"#, "beams = 1: choose from 2 to 256; one beam is greedy decoding"),
        (r#"{"strategy": {"beam": {}}, "stop": ["x"]}"#, "stop = [\"x\"]: beam search does not look for stop strings"),
    ] {
        let error = read(json).unwrap().validate().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let infinite = Beams { length_penalty: f32::INFINITY, ..Beams::default() };
    assert!(Decoding { strategy: Strategy::Beam(infinite), ..Decoding::default() }.validate().is_err());
}

/// GPT-2's kind: a token is a string of bytes, here shown as GPT-2 shows them. "é" is `Ã` `©`, a space `Ġ`.
const BYTE_LEVEL: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "added_tokens": [{"id": 0, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "merges": [],
              "vocab": {"<end>": 0, "a": 1, "Ġb": 2, "Ã": 3, "©": 4, "©Ã": 5, "ST": 6, "OP": 7, "S": 8, "OPS": 9}}}"#;

/// Llama's kind: words begin with `▁`, which is left out at the beginning of a text; bytes without a token have names.
const BYTE_FALLBACK: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
    "pre_tokenizer": null, "post_processor": null, "added_tokens": [],
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "merges": [],
              "vocab": {"▁the": 0, "▁cat": 1, "s": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5}}}"#;

fn pieces(tokenizer: &str, tokens: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
    let tokenizer: Tokenizer = tokenizer.parse().unwrap();
    let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
    let mut stream = TextStream::new(&tokenizer, &stops);
    let mut found: Vec<Piece> = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
    found.push(stream.finish().unwrap());
    let stopped = found.last().unwrap().stopped;
    (found.into_iter().map(|piece| piece.text).collect(), stopped)
}

#[test]
fn a_character_comes_out_whole_or_not_at_all() {
    let (found, _) = pieces(BYTE_LEVEL, &[1, 3, 4, 2, 3, 5, 0, 4, 1], &[]);
    assert_eq!(found, ["a", "", "é", " b", "", "", "", "éé", "a", ""]);
    let (found, _) = pieces(BYTE_LEVEL, &[1, 3, 1, 3], &[]);
    assert_eq!(found, ["a", "", "\u{fffd}a", "", "\u{fffd}"]);
    let (found, _) = pieces(BYTE_FALLBACK, &[0, 1, 2, 3, 4, 5, 3, 4, 5, 1], &[]);
    assert_eq!(found, ["the", " cat", "s", "", "", "€", "", "", "€", " cat", ""]);
}

#[test]
fn special_tokens_and_endless_bytes_are_not_kept_forever() {
    let tokenizer: Tokenizer = BYTE_LEVEL.parse().unwrap();
    let mut stream = TextStream::new(&tokenizer, &[]);
    for _ in 0..100 {
        assert_eq!(stream.push(0).unwrap(), Piece::default());
    }
    let text: String = (0..100).map(|_| stream.push(3).unwrap().text).collect();
    assert!(text.chars().count() > 60 && text.chars().all(|c| c == '\u{fffd}'), "{text}");
}

/// Tokens `a`, ` b`, `ST`, `OP`, `S`, `OPS`.
#[test]
fn a_stop_string_ends_the_text_wherever_the_tokens_part_it() {
    for (tokens, expected, stopped) in [
        (vec![1, 6, 7, 1], vec!["a", "", "", "", ""], true),
        (vec![1, 6, 9, 1], vec!["a", "", "", "", ""], true),
        (vec![6, 1, 2], vec!["", "STa", " b", ""], false),
        (vec![1, 6], vec!["a", "", "ST"], false),
        (vec![6, 6, 7], vec!["", "ST", "", ""], true),
        (vec![8, 6, 3, 4, 8], vec!["", "S", "", "STé", "", "S"], false),
    ] {
        let expected: Vec<String> = expected.into_iter().map(String::from).collect();
        assert_eq!(pieces(BYTE_LEVEL, &tokens, &["STOP"]), (expected, stopped), "{tokens:?}");
    }
    let (found, stopped) = pieces(BYTE_LEVEL, &[1, 2, 3, 4, 1], &["é", " bé", ""]);
    assert_eq!((found.concat().as_str(), stopped), ("a", true), "the first stop string in the text counts");
}
