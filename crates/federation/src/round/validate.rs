//! What comes from a silo is checked before it counts. Every check says what was wrong, for the failure's record.

use fedpipe_core::{
    Adapter, DeviceProfile, Failure, FailureKind, Matrix, ModelSpec, Outcome, SiloId, SiloProfile, Task, Tensors,
    TrainWork, Update, WeightId, Work,
};

/// A profile that the planner can work with.
pub(super) fn profile(silo: &SiloId, profile: SiloProfile) -> Result<SiloProfile, Failure> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let fault = if &profile.silo != silo {
        format!("it enrolled as {}", profile.silo)
    } else if profile.examples == 0 {
        "it has no training examples".into()
    } else if !positive(profile.lengths.mean) || !profile.lengths.deviation.is_finite() {
        format!("its texts have {} tokens on average", profile.lengths.mean)
    } else if !coefficients(&profile).all(|value| value.is_finite() && value >= 0.0) {
        "its measured profile has a coefficient below zero or none at all".into()
    } else if !positive(profile.speed) {
        format!("its speed is {}", profile.speed)
    } else if !positive(profile.bandwidth_mbps) {
        format!("its bandwidth is {} Mbit/s", profile.bandwidth_mbps)
    } else if let Some(cap) = profile.data_cap_mib.filter(|&cap| !positive(cap)) {
        format!("its cap on data is {cap} MiB")
    } else {
        return Ok(profile);
    };
    Err(Failure { silo: silo.clone(), round: 0, kind: FailureKind::Invalid, reason: fault })
}

/// Whether the bytes of a task and its update keep the silo's cap.
pub(super) fn data(task: &Task, profile: &SiloProfile, bytes: u64) -> Result<(), Failure> {
    let (mib, cap) = (f64::from(1 << 20), profile.data_cap_bytes());
    if bytes as f64 <= cap {
        return Ok(());
    }
    let reason = format!("{:.2} MiB travelled, and it may send and receive {:.2} MiB", bytes as f64 / mib, cap / mib);
    Err(Failure::of(task, FailureKind::TooMuchData, reason))
}

fn coefficients(profile: &SiloProfile) -> impl Iterator<Item = f64> {
    let DeviceProfile { memory, time, adapter_s_per_token_rank, step_overhead_s, .. } = &profile.device;
    let per_format = time.values().flat_map(|t| [t.forward_s_per_token_layer, t.backward_s_per_token_layer]);
    let of_activations = memory.values().flat_map(|bytes| {
        [
            bytes.layer_bytes_per_token,
            bytes.layer_input_bytes_per_token,
            bytes.workspace_bytes_per_token,
            bytes.recompute_workspace_bytes_per_token,
            bytes.adapter_bytes_per_token_rank,
            bytes.fixed_bytes,
        ]
    });
    per_format.chain(of_activations).chain([*adapter_s_per_token_rank, *step_overhead_s])
}

/// That the update answers this task of this silo.
pub(super) fn header(task: &Task, profile: &SiloProfile, update: &Update) -> Result<(), String> {
    if update.round != task.round {
        return Err(format!("it answers round {}", update.round));
    }
    if update.silo != task.silo {
        return Err(format!("it answers for silo {}", update.silo));
    }
    if update.examples != profile.examples {
        return Err(format!("it claims {} examples and enrolled with {}", update.examples, profile.examples));
    }
    let measured = &update.measured;
    if !measured.loss.is_finite() || !measured.compute_s.is_finite() || measured.compute_s < 0.0 {
        return Err(format!("its loss is {} after {} s", measured.loss, measured.compute_s));
    }
    if measured.steps != task.work.steps() || measured.tokens == 0 {
        let steps = task.work.steps();
        return Err(format!("it made {} of {steps} steps over {} tokens", measured.steps, measured.tokens));
    }
    if measured.repeated_tokens > measured.tokens {
        return Err(format!("it counts {} of {} tokens as repeated", measured.repeated_tokens, measured.tokens));
    }
    Ok(())
}

/// A score, finite and not negative, for every candidate and for nothing else.
pub(super) fn scores(model: &ModelSpec, _: &Task, update: &Update) -> Result<(), String> {
    let Outcome::Scores(scores) = &update.outcome else { return Err("it trained when it was asked for scores".into()) };
    let missing = model.candidates.iter().find(|candidate| !scores.contains_key(&candidate.id));
    if let Some(candidate) = missing {
        return Err(format!("{} has no score", candidate.id));
    }
    if scores.len() != model.candidates.len() {
        return Err(format!("{} scores for {} candidate weights", scores.len(), model.candidates.len()));
    }
    match scores.iter().find(|(_, score)| !score.is_finite() || **score < 0.0) {
        Some((weight, score)) => Err(format!("{weight} has the score {score}")),
        None => Ok(()),
    }
}

/// Exactly the tensors that were sent, finite, and no further from them than `max_norm`.
pub(super) fn update(task: &Task, update: &Update, max_norm: f64) -> Result<(), String> {
    let (Work::Train(work), Outcome::Trained(adapter)) = (&task.work, &update.outcome) else {
        return Err("it scored when it was asked to train".into());
    };
    if adapter.scaling != work.adapter.scaling {
        return Err(format!("its scaling is {}, not {}", adapter.scaling, work.adapter.scaling));
    }
    let norm = change(&work.adapter, adapter)?;
    if norm > max_norm {
        return Err(format!("its change has norm {norm:.3e}, above the bound of {max_norm:.3e}"));
    }
    sensitivity(work, update)
}

/// A number, finite and not negative, for every weight that trained and for nothing else; none unless it was asked for.
fn sensitivity(work: &TrainWork, update: &Update) -> Result<(), String> {
    let found = &update.sensitivity;
    let asked = |weight: &WeightId| work.sensitivity && work.adapter.factors.contains_key(weight);
    if let Some(extra) = found.keys().find(|weight| !asked(weight)) {
        return Err(format!("the sensitivity of `{extra}` was not asked for"));
    }
    if let Some(missing) = work.adapter.factors.keys().find(|weight| work.sensitivity && !found.contains_key(weight)) {
        return Err(format!("{missing} has no sensitivity"));
    }
    match found.iter().find(|(_, value)| !value.is_finite() || **value < 0.0) {
        Some((weight, value)) => Err(format!("{weight} has the sensitivity {value}")),
        None => Ok(()),
    }
}

/// The Frobenius norm of the change over all tensors.
fn change(sent: &Adapter, back: &Adapter) -> Result<f64, String> {
    let (sent, back): (Tensors, Tensors) = (sent.to_tensors(), back.to_tensors());
    if let Some(extra) = back.keys().find(|name| !sent.contains_key(*name)) {
        return Err(format!("tensor `{extra}` was not asked for"));
    }
    let mut squares = 0.0;
    for (name, from) in &sent {
        let to = back.get(name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
        if (from.rows(), from.cols()) != (to.rows(), to.cols()) {
            let shape = |m: &Matrix| format!("{}x{}", m.rows(), m.cols());
            return Err(format!("tensor `{name}` is {}, not {}", shape(to), shape(from)));
        }
        if !to.is_finite() {
            return Err(format!("tensor `{name}` has values that are not finite"));
        }
        squares += to.data().iter().zip(from.data()).map(|(&t, &f)| (f64::from(t) - f64::from(f)).powi(2)).sum::<f64>();
    }
    Ok(squares.sqrt())
}
