//! Tasks and updates through the codec: what a silo or the server gets is what the codec lets through.

use fedpipe_core::{Adapter, Codec, Matrix, Outcome, Task, Tensors, TrainWork, Update, WeightId, Work};
use std::collections::BTreeMap;

/// What trains and what is only applied lie side by side in one message.
const TRAINED: &str = "trained.";
const FIXED: &str = "fixed.";
/// The one tensor of a message with a number a weight, `[1, weights]` in the order of their names.
const SCORES: &str = "scores";

/// The task as the silo gets it, and the bytes of its tensors.
pub(super) fn send(codec: &dyn Codec, mut task: Task) -> Result<(Task, u64), String> {
    let bytes = match &mut task.work {
        Work::Probe(probe) => {
            let (head, bytes) = through(codec, &probe.head)?;
            probe.head = head;
            bytes
        }
        Work::Train(work) => send_train(codec, work)?,
    };
    Ok((task, bytes))
}

fn send_train(codec: &dyn Codec, work: &mut TrainWork) -> Result<u64, String> {
    let scaling = work.adapter.scaling;
    let fixed = Adapter { scaling, factors: std::mem::take(&mut work.fixed), head: Tensors::new() };
    let named = |prefix: &'static str, tensors: Tensors| {
        tensors.into_iter().map(move |(name, matrix)| (format!("{prefix}{name}"), matrix))
    };
    let message = named(TRAINED, work.adapter.to_tensors()).chain(named(FIXED, fixed.to_tensors())).collect();
    let (message, bytes) = through(codec, &message)?;
    let (mut trained, mut fixed) = (Tensors::new(), Tensors::new());
    for (name, matrix) in message {
        if let Some(name) = name.strip_prefix(TRAINED) {
            trained.insert(name.into(), matrix);
        } else if let Some(name) = name.strip_prefix(FIXED) {
            fixed.insert(name.into(), matrix);
        }
    }
    work.adapter = Adapter::from_tensors(scaling, trained).map_err(|e| e.to_string())?;
    work.fixed = Adapter::from_tensors(scaling, fixed).map_err(|e| e.to_string())?.factors;
    Ok(bytes)
}

/// The update as the server gets it, and the bytes of its tensors.
pub(super) fn receive(codec: &dyn Codec, mut update: Update) -> Result<(Update, u64), String> {
    let mut bytes = match &mut update.outcome {
        Outcome::Trained(adapter) => {
            let (tensors, bytes) = through(codec, &adapter.to_tensors())?;
            *adapter = Adapter::from_tensors(adapter.scaling, tensors).map_err(|e| e.to_string())?;
            bytes
        }
        Outcome::Scores(scores) => {
            let (decoded, bytes) = through_scores(codec, scores)?;
            *scores = decoded;
            bytes
        }
    };
    if !update.sensitivity.is_empty() {
        let (sensitivity, more) = through_scores(codec, &update.sensitivity)?;
        (update.sensitivity, bytes) = (sensitivity, bytes + more);
    }
    Ok((update, bytes))
}

fn through_scores(
    codec: &dyn Codec,
    scores: &BTreeMap<WeightId, f64>,
) -> Result<(BTreeMap<WeightId, f64>, u64), String> {
    let values: Vec<f32> = scores.values().map(|&score| score as f32).collect();
    let row = Matrix::new(1, values.len(), values).map_err(|e| e.to_string())?;
    let (tensors, bytes) = through(codec, &[(SCORES.to_string(), row)].into())?;
    let row = tensors.get(SCORES).ok_or("the scores got lost in the codec")?;
    Ok((scores.keys().cloned().zip(row.data().iter().map(|&v| f64::from(v))).collect(), bytes))
}

fn through(codec: &dyn Codec, tensors: &Tensors) -> Result<(Tensors, u64), String> {
    let bytes = codec.encode(tensors);
    Ok((codec.decode(&bytes).map_err(|e| e.to_string())?, bytes.len() as u64))
}
