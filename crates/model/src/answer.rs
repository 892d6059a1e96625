//! Answers read off passages, and how good they are.

use crate::Error;
use crate::adapter::Adapters;
use crate::arch::Backbone;
use crate::data::{Dataset, Questions, Span, Spans, Targets};
use crate::evaluate::{BATCH, surprise};
use crate::head::SPAN;
use crate::metrics::{answer_f1, exact_match};
use crate::ops::{HeadTargets, Offsets, Pass, Workspace};
use crate::parameters::Parameters;
use crate::pool::on_pool;
use fedpipe_core::{Adapter, Metrics};

/// Most tokens of an answer, as in the original BERT and in Transformers' example.
const MAX_ANSWER_TOKENS: usize = 30;

/// The answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// A piece of the passage; empty where it holds no answer.
    pub text: String,
    /// Its probability within its window: that of where it begins times that of where it ends.
    pub probability: f64,
}

/// A span with the sum of its two logits.
#[derive(Clone, Copy)]
struct Scored {
    span: Span,
    score: f32,
    probability: f64,
}

/// The answers to the questions of `data`, in order. Where passages may be `unanswerable`, that is the answer when the
/// first token of every window is the better one.
///
/// # Errors
/// When the data are no questions, the adapter does not fit the model, or a tensor operation fails.
pub fn answers(
    encoder: &dyn Backbone,
    adapter: &Adapter,
    data: &Dataset,
    unanswerable: bool,
) -> Result<Vec<Answer>, Error> {
    let questions = questions_of(data)?;
    let found = on_pool(|| Reader { questions, unanswerable }.read(encoder, adapter, data))?;
    let texts = |(found, _): &(Scored, f64)| Answer {
        text: questions.text(found.span).trim().to_string(),
        probability: found.probability,
    };
    Ok(found.iter().map(texts).collect())
}

/// Exact match and F1 of the answers, and the mean cross-entropy over all windows.
pub(crate) fn answered(encoder: &dyn Backbone, adapter: &Adapter, data: &Dataset) -> Result<Metrics, Error> {
    let questions = questions_of(data)?;
    // As SQuAD's version 2: where some question has no answer, that is an answer.
    let unanswerable = questions.iter().any(|question| question.answers.is_empty());
    let found = on_pool(|| Reader { questions, unanswerable }.read(encoder, adapter, data))?;
    let (mut exact, mut f1, mut loss) = (0.0, 0.0, 0.0);
    for (found, loss_of_windows) in &found {
        let text = questions.text(found.span);
        let answers: Vec<&str> = questions.get(found.span.question).answers.iter().map(String::as_str).collect();
        exact += exact_match(text, &answers);
        f1 += answer_f1(text, &answers);
        loss += loss_of_windows;
    }
    let count = found.len().max(1) as f64;
    Ok(Metrics {
        exact_match: Some(100.0 * exact / count),
        answer_f1: Some(100.0 * f1 / count),
        loss: loss / data.len().max(1) as f64,
        examples: found.len() as u64,
        ..Metrics::default()
    })
}

fn questions_of(data: &Dataset) -> Result<&Questions, Error> {
    match &data.targets {
        Targets::Spans(Spans { questions: Some(questions), .. }) => Ok(questions),
        _ => Err(Error::Misfit("the texts are no questions whose answers can be read".into())),
    }
}

struct Reader<'a> {
    questions: &'a Questions,
    unanswerable: bool,
}

impl Reader<'_> {
    /// The best span of every question over its windows, and the sum of the windows' losses.
    fn read(&self, encoder: &dyn Backbone, adapter: &Adapter, data: &Dataset) -> Result<Vec<(Scored, f64)>, Error> {
        let Targets::Spans(spans) = &data.targets else { return Ok(vec![]) };
        let adapters = Adapters::constant(adapter);
        let mut parameters = Parameters::default();
        let head = SPAN.parameters(&parameters.add_head(&adapter.head))?;
        let workspace = Workspace::inference();
        let indices: Vec<usize> = (0..data.len()).collect();
        let mut windows = Vec::with_capacity(data.len());
        for part in indices.chunks(BATCH) {
            let texts = data.subset(part);
            let offsets: Offsets = texts.offsets.as_slice().into();
            let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference)?;
            let x = encoder.embed(&mut *ops, &texts.ids, &offsets)?;
            let states = encoder.states_from(&mut *ops, 0, x, &offsets)?;
            let logits = ops.classify(&states, head, HeadTargets::None)?.logits;
            for (&text, rows) in part.iter().zip(offsets.windows(2)) {
                windows.push(self.window(spans.places[text], &logits[2 * rows[0]..2 * rows[1]]));
            }
        }
        let of_question = |texts: std::ops::Range<usize>| {
            let windows = &windows[texts];
            let loss = windows.iter().map(|window| window.loss).sum();
            let best = windows.iter().filter_map(|window| window.best).max_by(|a, b| a.score.total_cmp(&b.score));
            // A passage holds no answer when none of its windows does.
            let none = windows.iter().map(|window| window.none).min_by(|a, b| a.score.total_cmp(&b.score));
            let found = match (best, none) {
                (Some(best), Some(none)) if self.unanswerable && none.score > best.score => none,
                (best, none) => best.or(none)?,
            };
            Some((found, loss))
        };
        Ok(data.by_example().into_iter().filter_map(of_question).collect())
    }

    /// What the logits `[tokens, 2]` say of a window.
    fn window(&self, right: Span, logits: &[f32]) -> Read {
        let [starts, ends] = [0, 1].map(|end| logits.iter().skip(end).step_by(2).copied().collect::<Vec<f32>>());
        let scored = |start: usize, end: usize| Scored {
            span: Span { start: start as u32, end: end as u32, ..right },
            score: starts[start] + ends[end],
            probability: (-surprise(&starts, start) - surprise(&ends, end)).exp(),
        };
        let tokens = self.questions.passage_tokens(right.window);
        let pairs = tokens
            .clone()
            .flat_map(|start| (start..tokens.end.min(start + MAX_ANSWER_TOKENS)).map(move |end| (start, end)));
        let sum = |&(start, end): &(usize, usize)| starts[start] + ends[end];
        let best = pairs.max_by(|a, b| sum(a).total_cmp(&sum(b)));
        let loss = (surprise(&starts, right.start as usize) + surprise(&ends, right.end as usize)) / 2.0;
        Read { best: best.map(|(start, end)| scored(start, end)), none: scored(0, 0), loss }
    }
}

/// What a window was found to say.
struct Read {
    /// The best span of the passage, if the window has any of it.
    best: Option<Scored>,
    /// That it holds no answer.
    none: Scored,
    loss: f64,
}
