//! Questions whose answers stand in a passage, and the windows that long passages are cut into.

use super::{DataError, Dataset, Example, Origin, Targets, TextEncoder};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use tokenizers::{Encoding, PostProcessor, TruncationDirection};

/// How passages are read for answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Tokens that one window of a passage shares with the next.
    pub stride: usize,
    /// Whether a passage may hold no answer, as in version 2 of SQuAD.
    pub unanswerable: bool,
}

impl Reading {
    /// What is usual for texts of so many tokens: a third is shared, as 128 of 384, and every question has an answer.
    pub fn usual(max_length: usize) -> Self {
        Self { stride: max_length / 3, unanswerable: false }
    }
}

/// Where an answer begins and ends in a window. Both are the first token where the window holds none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The question; windows of one question follow each other.
    pub question: u32,
    /// The window among all that were made.
    pub window: u32,
    /// First token.
    pub start: u32,
    /// Last token.
    pub end: u32,
}

/// A question, to read its answer back as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What is asked.
    pub question: String,
    /// What the answer stands in.
    pub passage: String,
    /// What people answered; none where the passage holds no answer, or nobody was asked.
    pub answers: Vec<String>,
}

/// A piece of a passage behind its question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    /// Place of the piece's first token in the text.
    first: u32,
    /// Bytes of the passage that each token of the piece stands for.
    tokens: Vec<Range<u32>>,
}

/// The questions of a dataset and their windows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Questions {
    questions: Vec<Question>,
    windows: Vec<Window>,
}

/// What texts are to be answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// `[texts]`.
    pub places: Vec<Span>,
    /// What the texts were made of; not kept for training.
    pub questions: Option<Arc<Questions>>,
}

impl Spans {
    /// Those of the texts `indices`.
    pub(super) fn subset(&self, indices: &[usize]) -> Self {
        Self { places: indices.iter().map(|&i| self.places[i]).collect(), questions: self.questions.clone() }
    }

    /// The texts of each question.
    pub(super) fn by_question(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let of_question = |group: &[Span]| {
            end += group.len();
            end - group.len()..end
        };
        self.places.chunk_by(|a, b| a.question == b.question).map(of_question).collect()
    }
}

impl Questions {
    /// A question.
    ///
    /// # Panics
    /// When there is none of that number.
    pub fn get(&self, question: u32) -> &Question {
        &self.questions[question as usize]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Question> {
        self.questions.iter()
    }

    /// Whether the question and the window of a span are among these.
    pub(super) fn has(&self, span: Span) -> bool {
        (span.question as usize) < self.questions.len() && (span.window as usize) < self.windows.len()
    }

    /// Tokens of a window that are the passage's, by their places in the text.
    pub fn passage_tokens(&self, window: u32) -> Range<usize> {
        let window = &self.windows[window as usize];
        window.first as usize..window.first as usize + window.tokens.len()
    }

    /// What the tokens `start..=end` of a window's text say; nothing where they are not all the passage's.
    pub fn text(&self, span: Span) -> &str {
        let window = &self.windows[span.window as usize];
        let token = |place: u32| window.tokens.get(place.checked_sub(window.first)? as usize);
        let passage = &self.get(span.question).passage;
        let bytes = token(span.start).zip(token(span.end)).map(|(first, last)| first.start as usize..last.end as usize);
        bytes.and_then(|bytes| passage.get(bytes)).unwrap_or_default()
    }
}

/// `{"text": [...], "answer_start": [...]}` as Hugging Face has it, or SQuAD's `[{"text": ..., "answer_start": ...}]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answers {
    Columns {
        text: Vec<String>,
        #[serde(default)]
        answer_start: Vec<usize>,
    },
    Rows(Vec<Answer>),
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    /// In code points.
    #[serde(default)]
    answer_start: Option<usize>,
}

/// Whether an example of a question has an answer; one whose answers cannot be read counts as having some.
pub fn has_answer(example: &Example) -> bool {
    answers(example).map_or(true, |answers| !answers.is_empty())
}

fn answers(example: &Example) -> Result<Vec<Answer>, DataError> {
    if example.label.is_empty() {
        return Ok(vec![]);
    }
    let refused = |reason: String| DataError::Answers { origin: example.origin.clone(), reason };
    match serde_json::from_str(&example.label) {
        Ok(Answers::Rows(rows)) => Ok(rows),
        Ok(Answers::Columns { text, answer_start }) if answer_start.len() == text.len() || answer_start.is_empty() => {
            let starts = answer_start.into_iter().map(Some).chain(std::iter::repeat(None));
            Ok(text.into_iter().zip(starts).map(|(text, answer_start)| Answer { text, answer_start }).collect())
        }
        Ok(Answers::Columns { text, answer_start }) => {
            Err(refused(format!("there are {} answers and {} places of answers", text.len(), answer_start.len())))
        }
        Err(_) => Err(refused(
            "answers are a list of {\"text\", \"answer_start\"}, or {\"text\": [...], \"answer_start\": [...]}".into(),
        )),
    }
}

/// Bytes of an answer in its passage.
fn place(answer: &Answer, passage: &str, origin: &Origin) -> Result<Range<usize>, DataError> {
    let refused = |reason: String| DataError::Answers { origin: origin.clone(), reason };
    let text = &answer.text;
    let at = answer.answer_start.ok_or_else(|| refused(format!("the answer {text:?} has no `answer_start`")))?;
    let start = passage.char_indices().map(|(byte, _)| byte).nth(at);
    match start.filter(|&start| passage[start..].starts_with(text.as_str()) && !text.is_empty()) {
        Some(start) => Ok(start..start + text.len()),
        None => Err(refused(format!("the answer {text:?} does not stand at character {at} of the passage"))),
    }
}

/// One window, and where the answer is in it.
struct Cut {
    ids: Vec<u32>,
    window: Window,
    start: u32,
    end: u32,
}

impl TextEncoder {
    /// The windows of questions with their passages, the text of an example being the question, its second text the
    /// passage and its label the answers as JSON, or empty. The first answer is the one that is learnt.
    ///
    /// A question that leaves too little room for its passage loses its end.
    ///
    /// # Errors
    /// When answers are not where they are said to be, or the stride leaves no room.
    pub fn questions(&self, examples: &[Example], reading: Reading) -> Result<Dataset, DataError> {
        let cutter = Cutter::new(self, reading)?;
        let all: Vec<Vec<Cut>> = self.each(examples, |example| cutter.cut(example))?;
        let (mut ids, mut places, mut kept) = (Vec::new(), Vec::new(), Questions::default());
        for (question, (cuts, example)) in (0..).zip(all.into_iter().zip(examples)) {
            for Cut { ids: tokens, window, start, end } in cuts {
                places.push(Span { question, window: places.len() as u32, start, end });
                ids.push(tokens);
                kept.windows.push(window);
            }
            kept.questions.push(Question {
                question: example.text.clone(),
                passage: example.second.clone().unwrap_or_default(),
                answers: answers(example)?.into_iter().map(|answer| answer.text).collect(),
            });
        }
        self.checked(Dataset::pack(&ids, Targets::Spans(Spans { places, questions: Some(Arc::new(kept)) })))
    }
}

/// Cuts passages.
struct Cutter<'a> {
    encoder: &'a TextEncoder,
    stride: usize,
    /// Tokens beside the special ones.
    room: usize,
    /// Most tokens of a question.
    question: usize,
}

impl<'a> Cutter<'a> {
    fn new(encoder: &'a TextEncoder, reading: Reading) -> Result<Self, DataError> {
        let (max_length, stride) = (encoder.max_length(), reading.stride);
        let special = encoder.whole().get_post_processor().map_or(0, |p| p.added_tokens(true));
        let room = max_length.saturating_sub(special);
        // A window has to be longer than what it shares with the next; a question has one token at least.
        let Some(question) = room.checked_sub(stride + 1).filter(|&question| question > 0) else {
            return Err(encoder.unfit(format!(
                "windows of {max_length} tokens that share {stride} leave no room for a question and {special} special \
                 tokens; raise the maximum length or lower the stride"
            )));
        };
        Ok(Self { encoder, stride, room, question })
    }

    fn cut(&self, example: &Example) -> Result<Vec<Cut>, DataError> {
        let passage = example.second.as_deref().unwrap_or_default();
        let answer = match answers(example)?.first() {
            Some(answer) => Some(place(answer, passage, &example.origin)?),
            None => None,
        };
        let refused = |e: tokenizers::Error| self.encoder.refused(e.to_string());
        let tokenizer = self.encoder.whole();
        let mut question = tokenizer.encode(example.text.as_str(), false).map_err(refused)?;
        question.truncate(self.question, 0, TruncationDirection::Right);
        question.take_overflowing();
        let mut first = tokenizer.encode(passage, false).map_err(refused)?;
        first.set_type_ids(vec![1; first.len()]);
        first.truncate(self.room - question.len(), self.stride, TruncationDirection::Right);
        let others = first.take_overflowing();
        let cut = |piece: Encoding| {
            // Taken before: a byte-level post-processor would trim the spaces before words a second time.
            let offsets = piece.get_offsets().to_vec();
            let whole = tokenizer.post_process(question.clone(), Some(piece), true).map_err(refused)?;
            Ok(self.window(&whole, &offsets, answer.as_ref()))
        };
        std::iter::once(first).chain(others).map(cut).collect()
    }

    fn window(&self, encoding: &Encoding, tokens: &[(usize, usize)], answer: Option<&Range<usize>>) -> Cut {
        let of_passage = |sequence: &Option<usize>| *sequence == Some(1);
        let sequences = encoding.get_sequence_ids();
        let first = sequences.iter().position(of_passage).unwrap_or(0);
        // The last token that begins by where the answer begins, and the first that ends by where it ends.
        let inside = |answer: &&Range<usize>| {
            tokens.first().is_some_and(|token| token.0 <= answer.start)
                && tokens.last().is_some_and(|token| token.1 >= answer.end)
        };
        let (start, end) = answer.filter(inside).map_or((0, 0), |answer| {
            let start = tokens.iter().rposition(|token| token.0 <= answer.start).unwrap_or(0);
            let end = tokens.iter().position(|token| token.1 >= answer.end).unwrap_or(start);
            (first + start, first + end.max(start))
        });
        Cut {
            ids: self.encoder.marked(encoding),
            window: Window {
                first: first as u32,
                tokens: tokens.iter().map(|&(start, end)| start as u32..end as u32).collect(),
            },
            start: start as u32,
            end: end as u32,
        }
    }
}

#[cfg(test)]
impl Questions {
    /// So many questions and windows, of no matter what.
    pub(super) fn of_windows(questions: usize, windows: usize) -> Self {
        let question = Question { question: "who?".into(), passage: "nobody".into(), answers: vec![] };
        let window = Window { first: 3, tokens: vec![0..3, 3..6] };
        Self { questions: vec![question; questions], windows: vec![window; windows] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(answers: &str) -> Example {
        Example {
            text: "who?".into(),
            second: Some("größe of wheat".into()),
            label: answers.into(),
            site: None,
            origin: Origin::new("a.jsonl".as_ref(), 3),
        }
    }

    /// Both layouts, with places in characters; a question without answers has none.
    #[test]
    fn answers_are_read_in_either_layout() {
        for text in [
            r#"{"text": ["of", "wheat"], "answer_start": [6, 9]}"#,
            r#"[{"text": "of", "answer_start": 6}, {"text": "wheat", "answer_start": 9, "id": 1}]"#,
        ] {
            let example = example(text);
            let found = answers(&example).unwrap();
            assert_eq!(found.iter().map(|answer| answer.text.as_str()).collect::<Vec<_>>(), ["of", "wheat"]);
            // Two letters of the first word take two bytes each.
            assert_eq!(place(&found[0], "größe of wheat", &example.origin).unwrap(), 8..10);
        }
        assert!(
            has_answer(&example("[{\"text\": \"of\"}]")) && !has_answer(&example("[]")) && !has_answer(&example(""))
        );
        assert!(!has_answer(&example(r#"{"text": [], "answer_start": []}"#)));
    }

    #[test]
    fn answers_that_do_not_fit_are_named_with_their_line() {
        for (answers, expected) in [
            (r#"[{"text": "of", "answer_start": 7}]"#, "the answer \"of\" does not stand at character 7"),
            (r#"[{"text": "of", "answer_start": 700}]"#, "does not stand at character 700"),
            (r#"[{"text": "", "answer_start": 0}]"#, "the answer \"\" does not stand at character 0"),
            (r#"[{"text": "of"}]"#, "the answer \"of\" has no `answer_start`"),
            (r#"{"text": ["of"], "answer_start": [6, 7]}"#, "there are 1 answers and 2 places"),
            ("42", "answers are a list of"),
            ("of", "answers are a list of"),
        ] {
            let example = example(answers);
            let found = super::answers(&example)
                .and_then(|found| place(&found[0], "größe of wheat", &example.origin).map(|_| ()));
            let error = found.unwrap_err().to_string();
            assert!(error.starts_with("a.jsonl:3: ") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_windows_of_a_question_stay_together() {
        let span = |question, window| Span { question, window, start: 0, end: 0 };
        let places = vec![span(0, 0), span(0, 1), span(1, 2), span(2, 3), span(2, 4)];
        let texts: Vec<Vec<u32>> = (0..5).map(|i| vec![i]).collect();
        let data = Dataset::pack(&texts, Targets::Spans(Spans { places, questions: None }));
        assert_eq!(data.by_example(), [0..2, 2..3, 3..5]);
        assert_eq!(data.spread(2).ids, [0, 1, 2]);
        assert_eq!(data.subset(&[2, 3, 4]).by_example(), [0..1, 1..3]);
    }
}
