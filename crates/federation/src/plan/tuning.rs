//! Weights that a person has decided about: those that every silo trains, and those that none does.

use super::PlanError;
use super::cost::capped;
use fedpipe_core::{CandidateWeight, ModelSpec, WeightId};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Patterns of weights. A pattern is a kind (`query`), the whole name of a weight, or a name in which `*` stands for any
/// letters, dots included (`*.layer.5.*`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TuningPatterns {
    /// Weights that every silo trains, at the menu's smallest rank that fits them or above.
    pub always: Vec<String>,
    /// Weights that no silo trains.
    pub never: Vec<String>,
}

impl TuningPatterns {
    /// Whether every silo has to train the weight.
    pub(crate) fn requires(&self, candidate: &CandidateWeight) -> bool {
        self.always.iter().any(|pattern| matches(pattern, candidate))
    }
}

/// The weights that patterns match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Weights that every silo trains, each with its smallest rank.
    pub always: BTreeMap<WeightId, usize>,
    /// Weights that no silo trains.
    pub never: BTreeSet<WeightId>,
}

/// Names of the keys, for messages.
const ALWAYS: &str = "always_tune";
const NEVER: &str = "never_tune";

impl Tuning {
    /// The weights among `candidates` that `patterns` match; `ranks` is the menu's, ascending.
    ///
    /// # Errors
    /// When a pattern matches nothing, patterns of both kinds match one weight, or one that has to train, or none of those that
    /// may, takes a rank of the menu.
    pub fn of(patterns: &TuningPatterns, candidates: &[CandidateWeight], ranks: &[usize]) -> Result<Self, PlanError> {
        let mut tuning = Self::default();
        for pattern in &patterns.never {
            tuning.never.extend(matched(NEVER, pattern, candidates)?.map(|candidate| candidate.id.clone()));
        }
        for pattern in &patterns.always {
            for candidate in matched(ALWAYS, pattern, candidates)? {
                if tuning.never.contains(&candidate.id) {
                    return Err(contradiction(pattern, &patterns.never, candidates));
                }
                let fitting = ranks.iter().find(|&&rank| rank == capped(candidate, rank));
                let rank = *fitting.ok_or_else(|| PlanError::NoRank {
                    pattern: pattern.clone(),
                    weight: candidate.id.clone(),
                    most: candidate.inputs.min(candidate.outputs),
                    ranks: listed(ranks),
                })?;
                tuning.always.insert(candidate.id.clone(), rank);
            }
        }
        let may_train = candidates.iter().filter(|candidate| !tuning.never.contains(&candidate.id));
        let widest = may_train.map(|candidate| candidate.inputs.min(candidate.outputs)).max();
        if let (Some(&least), Some(most)) = (ranks.first(), widest)
            && least > most
        {
            let ranks = listed(ranks);
            return Err(PlanError::Menu(format!("adapter.ranks are {ranks}, and no weight takes a rank above {most}")));
        }
        Ok(tuning)
    }
}

impl Tuning {
    /// The model of a federation in which nobody trains the barred weights: nothing of them is ever sent or applied.
    pub(super) fn model<'m>(&self, model: &'m ModelSpec) -> Cow<'m, ModelSpec> {
        if self.never.is_empty() {
            return Cow::Borrowed(model);
        }
        let may_train = |candidate: &&CandidateWeight| !self.never.contains(&candidate.id);
        let candidates = model.candidates.iter().filter(may_train).cloned().collect();
        Cow::Owned(ModelSpec { candidates, ..model.clone() })
    }
}

/// The weights that a pattern matches, at least one.
fn matched<'c>(
    key: &'static str,
    pattern: &str,
    candidates: &'c [CandidateWeight],
) -> Result<impl Iterator<Item = &'c CandidateWeight>, PlanError> {
    let matched: Vec<_> = candidates.iter().filter(|candidate| matches(pattern, candidate)).collect();
    if matched.is_empty() {
        return Err(PlanError::NoMatch { key, pattern: pattern.into(), available: available(candidates) });
    }
    Ok(matched.into_iter())
}

/// Kinds match whole, as in `adapter.target_modules`.
fn matches(pattern: &str, candidate: &CandidateWeight) -> bool {
    let id = candidate.id.as_str();
    candidate.kind == pattern || if pattern.contains('*') { wildcard(pattern, id) } else { pattern == id }
}

/// Whether `*`, for any letters, makes `name` of the pattern.
fn wildcard(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        // The first place leaves most for what follows.
        let Some(place) = rest.find(part) else { return false };
        rest = &rest[place + part.len()..];
    }
    rest.ends_with(last)
}

fn contradiction(pattern: &str, never: &[String], candidates: &[CandidateWeight]) -> PlanError {
    let of_always = || candidates.iter().filter(|candidate| matches(pattern, candidate));
    let barring = never.iter().find(|barring| of_always().any(|candidate| matches(barring, candidate)));
    let barring = barring.cloned().unwrap_or_default();
    let both = of_always().filter(|candidate| matches(&barring, candidate)).map(|candidate| candidate.id.as_str());
    PlanError::Contradiction { always: pattern.into(), weights: some(both), never: barring }
}

/// What there is: the kinds, and the first and last of the names.
fn available(candidates: &[CandidateWeight]) -> String {
    let kinds: BTreeSet<&str> = candidates.iter().map(|candidate| candidate.kind.as_str()).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    match candidates {
        [] => "no weight can be adapted".into(),
        [only] => format!("there is {}, of the kind {}", only.id, kinds.join(", ")),
        [first, .., last] => {
            format!("there are the kinds {}, and names from {} to {}", kinds.join(", "), first.id, last.id)
        }
    }
}

/// The first few of a list that may be long, and how many more there are.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<&str> = names.collect();
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn listed(ranks: &[usize]) -> String {
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<CandidateWeight> {
        let candidate = |layer: usize, kind: &str, inputs: usize| CandidateWeight {
            id: WeightId::new(format!("bert.encoder.layer.{layer}.{kind}")),
            layer,
            kind: kind.into(),
            inputs,
            outputs: 16,
        };
        let of_layer = |layer| [candidate(layer, "attention.self.query", 16), candidate(layer, "output.dense", 4)];
        (0..12).flat_map(of_layer).collect()
    }

    fn tuning(always: &[&str], never: &[&str], ranks: &[usize]) -> Result<Tuning, PlanError> {
        let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
        Tuning::of(&TuningPatterns { always: owned(always), never: owned(never) }, &candidates(), ranks)
    }

    #[test]
    fn a_pattern_is_a_kind_a_name_or_has_wildcards() {
        let count = |pattern: &str| tuning(&[], &[pattern], &[2]).map_or(0, |tuning| tuning.never.len());
        assert_eq!(count("output.dense"), 12);
        assert_eq!(count("dense"), 0, "kinds match whole");
        assert_eq!(count("bert.encoder.layer.3.output.dense"), 1);
        assert_eq!(count("*.layer.1.*"), 2, "layers 10 and 11 are others");
        assert_eq!(count("*.layer.1*"), 6);
        assert_eq!(count("*dense"), 12);
        assert_eq!(count("bert*"), 24);
        assert_eq!(count("*"), 24);
        assert_eq!(count("**.1.*query"), 1);
        assert_eq!(count("*.query.*"), 0, "what follows a dot is there or not");
        assert_eq!(count("*layer.11.attention.self.query*query"), 0, "no letter serves twice");
        assert_eq!(count(""), 0);
    }

    #[test]
    fn a_weight_that_has_to_train_does_so_at_the_smallest_rank_that_fits() {
        let tuned = tuning(&["*.3.*", "output.dense"], &["*.0.attention*"], &[3, 8]).unwrap();
        assert_eq!(tuned.always.len(), 13);
        assert!(tuned.always.values().all(|&rank| rank == 3));
        assert_eq!(tuned.never.len(), 1);
        let error = tuning(&["output.dense"], &[], &[8, 16]).unwrap_err().to_string();
        assert_eq!(
            error,
            "plan.always_tune `output.dense`: bert.encoder.layer.0.output.dense takes no rank above 4, and adapter.ranks are \
             8, 16; add a rank that it takes, or name other weights"
        );
        let error = tuning(&[], &["attention.self.query"], &[8, 16]).unwrap_err().to_string();
        assert!(error.ends_with("adapter.ranks are 8, 16, and no weight takes a rank above 4"), "{error}");
        assert!(tuning(&[], &[], &[16, 32]).is_ok() && tuning(&[], &["*"], &[64]).is_ok());
    }

    #[test]
    fn patterns_that_match_nothing_or_contradict_each_other_say_what_there_is() {
        let error = tuning(&[], &["key"], &[2]).unwrap_err().to_string();
        assert_eq!(
            error,
            "plan.never_tune: no weight that may be adapted matches `key`; there are the kinds attention.self.query, output.dense, \
             and names from bert.encoder.layer.0.attention.self.query to bert.encoder.layer.11.output.dense"
        );
        let error = tuning(&["*.layer.1.*"], &["*.2.*", "output.dense"], &[2]).unwrap_err().to_string();
        assert_eq!(
            error,
            "plan.always_tune `*.layer.1.*` and plan.never_tune `output.dense` both match bert.encoder.layer.1.output.dense; \
             narrow one of them"
        );
        let error = tuning(&["*"], &["*"], &[2]).unwrap_err().to_string();
        assert!(error.contains("and 16 more;"), "{error}");
    }
}
