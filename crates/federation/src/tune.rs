//! Settings that nobody should have to choose: each found out from the task and the data, each with its reason.
//!
//! The learning rate is found by trying, in [`crate::round::Engine::learning_rate`].

use crate::plan::{Importance, PlanError, PlanSettings, TuningPatterns, plan};
use fedpipe_core::{Chosen, ModelSpec, Plan, Schedule, SiloId, SiloPlan, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Learning rates that are tried, ascending: what LoRA with AdamW is trained at, from the larger models to the smallest.
pub const LEARNING_RATES: [f64; 4] = [3e-4, 1e-3, 3e-3, 1e-2];
/// What a run is given that learns most at the least of them, where no higher one went through a round.
const LOWEST_RATE: f64 = 1e-4;
/// Alpha / r.
pub const SCALING: f64 = 2.0;
/// Share of the steps in which the learning rate rises.
pub const WARMUP_RATIO: f64 = 0.06;

/// The key of the steps in the configuration.
pub const LOCAL_STEPS: &str = "training.local_steps";
/// The key of the learning rate.
const LEARNING_RATE: &str = "training.learning_rate";
/// Steps of a round that are considered, ascending.
const STEPS: [usize; 6] = [5, 10, 20, 40, 80, 160];
/// AdamW starts anew in every round, so of fewer steps than these little stays.
const ENOUGH_STEPS: usize = 10;
/// Share of a round that transfers may take in the median silo.
const TRANSFER_SHARE: f64 = 0.2;
/// Share of all importance that the adapted kinds of weight hold at least.
const HELD: f64 = 0.8;
/// Lengths come in multiples of this, which is kind to kernels and to the eye.
const LENGTH_STEP: usize = 16;

fn chosen(key: &str, value: impl ToString, reason: String) -> Chosen {
    Chosen { key: key.into(), value: value.to_string(), reason }
}

/// Tokens that texts are cut to: the fewest, in steps of 16, that leave the share `whole` of every silo's texts whole, and no
/// more than `most`. `lengths` are those of the texts before they are cut; none count for nothing.
pub fn max_length(lengths: &BTreeMap<SiloId, Vec<usize>>, whole: f64, most: usize) -> (usize, Chosen) {
    let enough = |of_silo: &Vec<usize>| {
        let mut sorted = of_silo.clone();
        sorted.sort_unstable();
        let place = (whole * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).copied().unwrap_or(0)
    };
    let silos = lengths.iter().map(|(silo, of_silo)| (enough(of_silo), silo));
    let (needed, silo) = silos.max_by_key(|(needed, _)| *needed).unzip();
    let needed: usize = needed.unwrap_or(0);
    let length = needed.max(1).next_multiple_of(LENGTH_STEP).min(most);
    let tokens = |cut: usize| lengths.values().flatten().map(|&tokens| tokens.min(cut)).sum::<usize>().max(1) as f64;
    let percent_cut = |silos: &[&Vec<usize>]| {
        let cut = silos.iter().copied().flatten().filter(|&&tokens| tokens > length).count();
        100.0 * cut as f64 / silos.iter().map(|texts| texts.len()).sum::<usize>().max(1) as f64
    };
    let goal = match silo {
        Some(silo) if needed <= length && lengths.len() > 1 => {
            format!("leaves {:.0} % of the texts of every silo whole (most are needed in {silo})", 100.0 * whole)
        }
        Some(_) if needed <= length => format!("leaves {:.0} % of the texts whole", 100.0 * whole),
        Some(silo) if lengths.len() > 1 => {
            let percent = percent_cut(&lengths.get(silo).into_iter().collect::<Vec<_>>());
            format!("the most that there is room for: {percent:.0} % of the texts of {silo} need more")
        }
        _ => "the most that there is room for".into(),
    };
    let reason = format!(
        "{goal}; {:.1} % of all texts are cut, which leaves {:.1} % of their tokens to compute",
        percent_cut(&lengths.values().collect::<Vec<_>>()),
        100.0 * tokens(length) / tokens(usize::MAX)
    );
    (length, chosen("training.max_length", length, reason))
}

/// Kinds of weight that nobody trains: all but those that hold most importance for the values of their adapters and together
/// 80 % of all importance. Kinds of which a person wants a weight trained stay.
pub fn target_modules(
    model: &ModelSpec,
    importance: &BTreeMap<WeightId, f64>,
    decided: &TuningPatterns,
) -> (Vec<String>, Chosen) {
    struct Kind {
        name: String,
        held: f64,
        values: f64,
        required: bool,
    }
    let mut kinds: Vec<Kind> = Vec::new();
    for candidate in &model.candidates {
        let place = kinds.iter().position(|kind| kind.name == candidate.kind).unwrap_or_else(|| {
            kinds.push(Kind { name: candidate.kind.clone(), held: 0.0, values: 0.0, required: false });
            kinds.len() - 1
        });
        kinds[place].held += importance.get(&candidate.id).copied().unwrap_or(0.0);
        kinds[place].values += candidate.parameters(1) as f64;
        kinds[place].required |= decided.requires(candidate);
    }
    kinds.sort_by(|a, b| (b.held * a.values).total_cmp(&(a.held * b.values)));
    let all: f64 = kinds.iter().map(|kind| kind.held).sum();
    let (mut held, mut kept, mut never) = (0.0, Vec::new(), Vec::new());
    for kind in kinds {
        let wanted = kept.is_empty() || held < HELD * all || kind.required;
        held += if wanted { kind.held } else { 0.0 };
        if wanted { kept.push(kind) } else { never.push(kind) }
    }
    let list = |kinds: &[Kind]| {
        let of = |kind: &Kind| format!("{} {:.0} %", kind.name, 100.0 * kind.held / all.max(f64::MIN_POSITIVE));
        kinds.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    let left_out = if never.is_empty() { String::new() } else { format!("; left out: {}", list(&never)) };
    let reason = format!("most importance for the values of an adapter: {}{left_out}", list(&kept));
    let names: Vec<String> = kept.iter().map(|kind| format!("\"{}\"", kind.name)).collect();
    let value = format!("[{}]", names.join(", "));
    (never.into_iter().map(|kind| kind.name).collect(), chosen("adapter.target_modules", value, reason))
}

/// A plan with the fewest steps of a round, from ten on, at which transfers take no more than a fifth of it in the median silo,
/// but no more than bring the median silo once through its texts: silos that train for long on their own drift apart.
///
/// # Errors
/// When there is no plan even for the fewest steps.
pub fn plan_with_steps(
    model: &ModelSpec,
    profiles: &BTreeMap<SiloId, SiloProfile>,
    importance: Importance<'_>,
    settings: &PlanSettings,
) -> Result<Plan, PlanError> {
    let of = |local_steps| plan(model, profiles, importance, &PlanSettings { local_steps, ..settings.clone() });
    let mut steps = STEPS.into_iter();
    let mut best = of(steps.next().unwrap_or(1))?;
    let why = loop {
        let share = median(best.silos.values().map(|silo| (silo.time.download + silo.time.upload) / silo.time.total()));
        let transfers = format!("transfers take {:.0} % of a round in the median silo", 100.0 * share);
        if share <= TRANSFER_SHARE && best.local_steps >= ENOUGH_STEPS {
            break transfers;
        }
        let short = format!("{transfers}, and more steps");
        let Some(more) = steps.next() else { break format!("{short} are not considered") };
        let Ok(longer) = of(more) else { break format!("{short} do not fit the deadline") };
        if median_passes(profiles, &longer) > 1.0 {
            break format!("{short} would go through its texts more than once");
        }
        best = longer;
    };
    let reason = format!("{why}; {:.2} times through its texts a round", median_passes(profiles, &best));
    best.chosen.push(chosen(LOCAL_STEPS, best.local_steps, reason));
    Ok(best)
}

/// How many times a round brings the median silo through its texts.
fn median_passes(profiles: &BTreeMap<SiloId, SiloProfile>, plan: &Plan) -> f64 {
    let of = |silo: &SiloPlan| {
        let examples = profiles.get(&silo.silo).map_or(1, |profile| profile.examples.max(1));
        (silo.local_steps * silo.batch_size) as f64 / examples as f64
    };
    median(plan.silos.values().map(of))
}

/// The upper one of the middle two where there are two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Alpha / r, for every rank.
pub fn scaling() -> (f64, Chosen) {
    let reason = "alpha twice the rank, as is usual; the learning rate makes up for any other";
    (SCALING, chosen("adapter.scaling", SCALING, reason.into()))
}

/// Share of the steps in which the learning rate rises to its peak.
pub fn warmup_ratio(schedule: Schedule) -> (f64, Chosen) {
    let ratio = match schedule {
        Schedule::Linear | Schedule::Cosine => WARMUP_RATIO,
        Schedule::Constant => 0.0,
    };
    let reason = match schedule {
        Schedule::Linear | Schedule::Cosine => {
            "AdamW's moments are noise in the first steps; 6 % as in RoBERTa's fine-tuning"
        }
        Schedule::Constant => "a learning rate that stays has no phases",
    };
    (ratio, chosen("training.warmup_ratio", ratio, reason.into()))
}

/// The next rate of [`LEARNING_RATES`] below one of them.
fn lower_rate(best: f64) -> f64 {
    LEARNING_RATES.into_iter().rev().find(|&rate| rate < best).unwrap_or(LOWEST_RATE)
}

/// The learning rate, by those that went through a round of so many steps: each with its loss, the best first, which is that of
/// the fewest failed silos and of these of the least loss. It is the best where a higher one went through that round, too, with a
/// higher loss; else nobody knows how near it is to those at which whole runs diverge, and it is the next lower one. None where
/// no loss is a number.
pub(crate) fn learning_rate(tried: &[(f64, f64)], steps: usize) -> Option<(f64, Chosen)> {
    let &(best, loss) = tried.first().filter(|(_, loss)| loss.is_finite())?;
    let higher_lost = tried.iter().any(|&(rate, other)| rate > best && other.is_finite() && other > loss);
    let next = tried.get(1).map(|(rate, loss)| format!(" ({loss:.3} at {rate}, the next best)"));
    // A loss of fewer silos may be lower.
    let stands = match tried.iter().all(|&(_, other)| other.is_nan() || other >= loss) {
        true => "has the least loss",
        false => "has the least loss of those at which the fewest silos failed",
    };
    let (rate, which) = match higher_lost {
        true => (best, "it".to_string()),
        false => (lower_rate(best), format!("the next below {best}, which")),
    };
    let reason = format!(
        "{which} {stands} in a round of {steps} steps after half a round and a merge, {loss:.3}{}; tried: {}",
        next.unwrap_or_default(),
        rates()
    );
    Some((rate, chosen(LEARNING_RATE, rate, reason)))
}

/// What a plan says of the learning rate while it is still to be found.
pub fn learning_rate_to_be_found() -> Chosen {
    let reason = format!("found when the run begins, by training at {}", rates());
    chosen(LEARNING_RATE, "auto", reason)
}

fn rates() -> String {
    LEARNING_RATES.map(|rate| rate.to_string()).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Deadline, Menu, TuningPatterns};
    use fedpipe_core::{BaseFormat, CandidateWeight};
    use fedpipe_testkit::{toy_model, toy_profile};

    #[test]
    fn the_rate_is_the_next_below_the_best_unless_a_higher_one_lost() {
        let of = |tried: &[(f64, f64)]| learning_rate(tried, 20).map(|(rate, chosen)| (rate, chosen.reason));
        let (rate, reason) = of(&[(1e-2, 0.5), (3e-3, 0.6)]).unwrap();
        assert!(rate == 3e-3 && reason.starts_with("the next below 0.01, which has the least loss"), "{reason}");
        let (rate, reason) = of(&[(3e-3, 0.5), (1e-2, 0.6)]).unwrap();
        assert!(rate == 3e-3 && reason.starts_with("it has the least loss"), "{reason}");
        // One that nobody trained at has not lost.
        assert_eq!(of(&[(3e-3, 0.5), (1e-2, f64::INFINITY)]).unwrap().0, 1e-3);
        assert_eq!(of(&[(3e-4, 0.5), (1e-3, f64::INFINITY)]).unwrap().0, LOWEST_RATE);
        // Nor one at which silos failed, though the others learnt more.
        let (rate, reason) = of(&[(3e-3, 0.6), (1e-2, 0.5)]).unwrap();
        assert!(
            rate == 1e-3 && reason.contains("which has the least loss of those at which the fewest silos failed"),
            "{reason}"
        );
        assert_eq!(of(&[(3e-3, f64::INFINITY)]), None);
    }

    /// 20 texts of 1 to 20 tokens need 19 for 95 %; a silo of 100 tokens needs all of them.
    #[test]
    fn texts_are_cut_where_nearly_all_of_every_silo_are_whole() {
        let short: Vec<usize> = (1..=20).collect();
        let alone = BTreeMap::from([("a".into(), short.clone())]);
        let (length, chosen) = max_length(&alone, 0.95, 512);
        assert_eq!((length, chosen.value.as_str()), (32, "32"));
        assert!(chosen.reason.starts_with("leaves 95 % of the texts whole; 0.0 %"));
        assert_eq!(max_length(&alone, 0.5, 512).0, 16);
        let both = BTreeMap::from([("a".into(), short), ("b".into(), vec![100; 10])]);
        assert_eq!(max_length(&both, 0.95, 512).0, 112);
        let (length, chosen) = max_length(&both, 0.95, 64);
        assert_eq!(length, 64);
        // 10 of 30 texts are cut, all of b's, and 210 + 640 of 210 + 1,000 tokens stay.
        let reason = "the most that there is room for: 100 % of the texts of b need more; 33.3 % of all texts are cut, \
                      which leaves 70.2 % of their tokens to compute";
        assert_eq!(chosen.reason, reason);
        let (length, chosen) = max_length(&alone, 0.95, 10);
        assert_eq!(length, 10);
        assert!(chosen.reason.starts_with("the most that there is room for; 50.0 % of all texts are cut"));
        assert_eq!(max_length(&BTreeMap::new(), 0.95, 64).0, 16);
    }

    /// query: 0.5 by 8 values a rank and layer; output: 0.4 by 12; inner: 0.1 by 8.
    #[test]
    fn the_kinds_that_hold_most_importance_for_their_size_are_adapted() {
        let weight = |kind: &str, outputs| CandidateWeight {
            id: WeightId::new(format!("layer.0.{kind}")),
            layer: 0,
            kind: kind.into(),
            inputs: 4,
            outputs,
        };
        let model =
            ModelSpec { candidates: vec![weight("inner", 4), weight("output", 8), weight("query", 4)], ..toy_model() };
        let importance = [("layer.0.inner", 0.1), ("layer.0.output", 0.4), ("layer.0.query", 0.5)];
        let importance = importance.map(|(id, share)| (WeightId::new(id), share)).into();
        let (never, chosen) = target_modules(&model, &importance, &TuningPatterns::default());
        assert_eq!((never, chosen.value.as_str()), (vec!["inner".to_string()], "[\"query\", \"output\"]"));
        assert_eq!(
            chosen.reason,
            "most importance for the values of an adapter: query 50 %, output 40 %; left out: inner 10 %"
        );
        let decided = TuningPatterns { always: vec!["*.inner".into()], never: vec![] };
        assert!(target_modules(&model, &importance, &decided).0.is_empty());
    }

    fn settings(deadline: Deadline) -> PlanSettings {
        let menu = Menu {
            batch_sizes: vec![2],
            formats: vec![BaseFormat::F32],
            recompute: vec![false],
            ranks: vec![1, 2],
            batch_value: 0.1,
            step_multiples: vec![1],
            step_value: 0.1,
        };
        let (finish, tuning) = (None, TuningPatterns::default());
        PlanSettings {
            menu,
            server_rank: Some(2),
            local_steps: 1,
            cohort_fraction: 1.0,
            value_bytes: 4.0,
            deadline,
            finish,
            coverage: 1,
            tuning,
        }
    }

    #[test]
    fn a_round_is_long_enough_for_its_transfers_and_no_longer_than_the_texts() {
        let with = |bandwidth_mbps: f64, examples: u64| {
            let mut profile = toy_profile("a");
            (profile.bandwidth_mbps, profile.examples) = (bandwidth_mbps, examples);
            let profiles = BTreeMap::from([("a".into(), profile)]);
            plan_with_steps(&toy_model(), &profiles, (&BTreeMap::new()).into(), &settings(Deadline::Seconds(1e6)))
                .unwrap()
        };
        let fast = with(1e6, 100_000);
        assert_eq!(fast.local_steps, 10);
        assert!(fast.chosen[0].reason.starts_with("transfers take 0 % of a round in the median silo; 0.00 times"));
        let slow = with(1e-3, 100_000);
        assert!(slow.local_steps > 10);
        let shares: Vec<f64> = [&fast, &slow].map(|p| p.silos[&"a".into()].time.upload).to_vec();
        assert!(shares[0] < shares[1]);
        // 20 texts are seen once in 10 steps of 2.
        assert_eq!(with(1e-3, 20).local_steps, 10);
        assert!(with(1e-3, 20).chosen[0].reason.contains("more steps would go through its texts more than once; 1.00"));
        assert_eq!(with(1e6, 12).local_steps, 5);
    }

    #[test]
    fn a_deadline_that_is_given_bounds_the_steps() {
        let mut profile = toy_profile("a");
        profile.bandwidth_mbps = 1e-3;
        let profiles = BTreeMap::from([("a".into(), profile)]);
        let of = |seconds| {
            plan_with_steps(&toy_model(), &profiles, (&BTreeMap::new()).into(), &settings(Deadline::Seconds(seconds)))
        };
        assert!(of(1e-3).is_err());
        let plan = of(25.0).unwrap();
        assert!(plan.chosen[0].reason.contains("more steps do not fit the deadline"), "{:?}", plan.chosen);
    }
}
