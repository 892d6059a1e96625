//! `fedpipe predict`

use crate::cli::PredictArgs;
use crate::error::AppError;
use crate::task::Task;
use crate::trained::Trained;
use fedpipe_model::data::{Columns, Example, Origin, read};
use fedpipe_model::{Answer, Prediction, answers};
use serde::Serialize;
use std::io::{BufRead, Read, Write};

/// Texts that are labelled at a time, so that long inputs print as they go.
const CHUNK: usize = 256;
/// Bytes of the longest line of standard input.
const MAX_LINE_BYTES: u64 = 16 << 20;

#[derive(Serialize)]
struct AnswerLine<'a> {
    answer: &'a str,
    probability: f64,
}

#[derive(Serialize)]
struct Line<'a> {
    label: &'a str,
    probability: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<&'a [f32]>,
}

/// A text, and the second one of a pair.
type Text = (String, Option<String>);

/// Prints the label of every text, or the answer to every question, with its probability, in order.
pub fn predict(args: &PredictArgs) -> Result<(), AppError> {
    let trained = Trained::open(&args.trained.trained, args.trained.model.as_deref())?;
    if matches!(trained.task, Task::Instruct(_) | Task::Lm { .. }) {
        let what = format!("{} writes, it does not label", args.trained.trained.display());
        return Err(AppError::user(what).hint("use `fedpipe generate`"));
    }
    let limit = args.limit.unwrap_or(usize::MAX);
    let columns = Columns { label: None, ..super::evaluate::columns(&trained) };
    if columns.second.is_some() && args.data.is_none() && args.text_pair.is_none() {
        let what =
            "pairs of texts, and questions with their passages, come from --data FILE, or --text and --text-pair";
        return Err(AppError::user(what));
    }
    if columns.second.is_none() && args.text_pair.is_some() {
        let what = format!("{} takes single texts; it was not trained on pairs", args.trained.trained.display());
        return Err(AppError::user(what).hint("leave out --text-pair"));
    }
    let texts: Box<dyn Iterator<Item = Result<Text, AppError>>> = match (&args.text, &args.data) {
        (Some(text), _) => Box::new(std::iter::once(Ok((text.clone(), args.text_pair.clone())))),
        (None, Some(file)) => {
            Box::new(read(file, &columns)?.into_iter().map(|example| Ok((example.text, example.second))))
        }
        (None, None) => Box::new(lines().map(|line| Ok((line?, None)))),
    };
    let mut texts = texts.take(limit);
    loop {
        let chunk = texts.by_ref().take(CHUNK).collect::<Result<Vec<Text>, AppError>>()?;
        if chunk.is_empty() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        for line in found(args, &trained, &chunk)? {
            writeln!(out, "{line}").map_err(AppError::output)?;
        }
    }
}

/// A line for every text.
fn found(args: &PredictArgs, trained: &Trained, texts: &[Text]) -> Result<Vec<String>, AppError> {
    match &trained.task {
        Task::SpanQa(reading) => {
            let unlabelled = |(text, second): &Text| Example {
                text: text.clone(),
                second: second.clone(),
                label: String::new(),
                site: None,
                origin: Origin::new("the texts".as_ref(), 1),
            };
            let examples: Vec<Example> = texts.iter().map(unlabelled).collect();
            let data = trained.encoder.questions(&examples, *reading)?;
            let found = answers(&*trained.weights()?, &trained.adapter, &data, reading.unanswerable)?;
            found.iter().map(|answer| answer_line(args, answer)).collect()
        }
        task => {
            let texts: Vec<_> = texts.iter().map(|(text, second)| (text.as_str(), second.as_deref())).collect();
            let found = trained.predict(&trained.encoder.texts(&texts)?)?;
            found.iter().map(|prediction| line(args, task.labels(), prediction)).collect()
        }
    }
}

fn answer_line(args: &PredictArgs, Answer { text, probability }: &Answer) -> Result<String, AppError> {
    if args.json {
        return serde_json::to_string(&AnswerLine { answer: text, probability: *probability }).map_err(AppError::other);
    }
    // One line an answer, whatever it says.
    Ok(format!("{}\t{probability:.4}", text.replace(['\n', '\r', '\t'], " ")))
}

fn line(args: &PredictArgs, labels: &[String], prediction: &Prediction) -> Result<String, AppError> {
    let Prediction { class, probability, logits } = prediction;
    let label = labels.get(*class).map_or("?", String::as_str);
    if !args.json {
        return Ok(format!("{label}\t{probability:.4}"));
    }
    let logits = args.logits.then_some(logits.as_slice());
    serde_json::to_string(&Line { label, probability: *probability, logits }).map_err(AppError::other)
}

/// The lines of standard input, as they come.
pub(super) fn lines() -> impl Iterator<Item = Result<String, AppError>> {
    let mut input = std::io::stdin().lock();
    let mut number = 0;
    std::iter::from_fn(move || {
        number += 1;
        let mut line = Vec::new();
        match input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) if line.len() as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') => {
                Some(Err(AppError::user(format!("standard input, line {number}: longer than 16 MiB"))))
            }
            Ok(_) => {
                let text = String::from_utf8(line)
                    .map_err(|_| AppError::user(format!("standard input, line {number}: not UTF-8")));
                Some(text.map(|text| text.trim_end_matches(['\r', '\n']).to_string()))
            }
            Err(error) => Some(Err(AppError::other(error))),
        }
    })
}
