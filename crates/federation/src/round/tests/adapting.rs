//! Plans that change while rounds go on.

use super::*;
use crate::plan::Importance;
use crate::simulate::{SlowsDown, VirtualClock};
use fedpipe_core::{PlanChange, Slowness};
use std::sync::Mutex;

/// What the toy's silos take at their own speed, and a little room.
const DEADLINE_S: f64 = 7.5;

fn plan_settings() -> PlanSettings {
    let deadline = Deadline::Seconds(DEADLINE_S);
    let (finish, tuning) = (None, Default::default());
    PlanSettings {
        menu: menu(),
        server_rank: Some(4),
        local_steps: 5,
        cohort_fraction: 1.0,
        value_bytes: 4.0,
        deadline,
        finish,
        coverage: 1,
        tuning,
    }
}

fn adaptation(refresh_importance: u32) -> Adaptation {
    Adaptation { model: toy_model(), settings: plan_settings(), own_importance: 0.0, refresh_importance, rounds: 40 }
}

fn federation(adaptation: Adaptation) -> Federation {
    Federation { adaptation: Some(adaptation), ..Federation::new(transport()) }
}

fn start_planned(federation: &Federation) -> RunState {
    let mut state = federation.start();
    let importance = Importance::from(&state.importance);
    state.plan = plan(&toy_model(), &state.profiles, importance, &plan_settings()).unwrap();
    state
}

/// Rounds on a clock on which silo b has this speed from round 3 on, and its own again from round 9 on.
fn rounds(federation: &Federation, mut state: RunState, count: u32, speed: f64) -> RunState {
    for _ in 0..count {
        let slow = (state.round + 1 < 9).then(|| ("b".into(), SlowsDown { round: 3, speed }));
        let clock = VirtualClock::new(toy_model()).with_slow_downs(slow.into_iter().collect());
        state = done(Engine { clock: &clock, ..federation.engine() }.round(&state, |_| None).unwrap());
    }
    state
}

fn delivered(state: &RunState, silo: &str) -> Vec<bool> {
    state.history.iter().map(|record| record.silos.iter().any(|round| round.silo.as_str() == silo)).collect()
}

fn replanned(federation: &Federation) -> Vec<(u32, String, f64)> {
    let event = |event| match event {
        Event::Replanned { round, silo, slowness, plan, .. } => {
            assert_eq!(plan.silo, silo);
            Some((round, silo.to_string(), slowness))
        }
        _ => None,
    };
    federation.recorder.events().into_iter().filter_map(event).collect()
}

/// Rounds 1 and 2 at the speed that b enrolled with, 3 and 4 late at two fifths of it, then a smaller plan that keeps the
/// deadline; from round 9 on b is as fast as ever, and after two such rounds the plan is the first one again.
#[test]
fn a_silo_that_slows_down_is_late_then_planned_again_and_comes_back() {
    let federation = federation(adaptation(0));
    let start = start_planned(&federation);
    let b: SiloId = "b".into();
    let slowed = rounds(&federation, start.clone(), 8, 0.2);
    assert_eq!(delivered(&slowed, "b"), [true, true, false, false, true, true, true, true]);
    assert_eq!(delivered(&slowed, "a"), [true; 8]);
    let (before, after) = (&start.plan.silos[&b], &slowed.plan.silos[&b]);
    assert!(after.batch_size < before.batch_size || after.ranks.values().sum::<usize>() < before.ranks.values().sum());
    assert_eq!(slowed.plan.silos[&"a".into()], start.plan.silos[&"a".into()], "nobody else is planned again");
    assert_eq!((slowed.plan.deadline_s, &slowed.profiles), (start.plan.deadline_s, &start.profiles));
    let changes = replanned(&federation);
    assert_eq!((changes.len(), changes[0].0, changes[0].1.as_str()), (1, 4, "b"));
    // 2.5 is the processor alone; the link is as fast as ever, and takes little.
    assert!((2.49..2.5).contains(&changes[0].2), "{changes:?}");
    let [PlanChange { round: 4, silo: Some(silo), reason }] = &slowed.plan_changes[..] else { panic!("{slowed:?}") };
    assert_eq!(silo, &b);
    assert!(reason.starts_with("its last rounds took 2.5"), "{reason}");
    // What the new plan foresees at worst is no less than what the rounds then take.
    let last = slowed.history[7].silos.iter().find(|round| round.silo == b).unwrap();
    assert!(last.seconds <= after.time.total() && after.time.total() <= 0.9 * DEADLINE_S * 1.001, "{last:?} {after:?}");
    assert_eq!(slowed.slowness[&"a".into()], Slowness { recent: vec![1.0, 1.0], ..Slowness::default() });

    let back = rounds(&federation, slowed, 3, 0.2);
    let reasons = |plan: &fedpipe_core::SiloPlan| fedpipe_core::SiloPlan { reasons: vec![], ..plan.clone() };
    assert_eq!(reasons(&back.plan.silos[&b]), reasons(before));
    assert_eq!(replanned(&federation).into_iter().map(|change| (change.0, change.2)).collect::<Vec<_>>()[1], (10, 1.0));
}

/// Through JSON in the middle, as a checkpoint goes.
#[test]
fn what_was_learned_survives_a_checkpoint_to_the_last_bit() {
    let federation = || federation(adaptation(2));
    let whole = rounds(&federation(), start_planned(&federation()), 12, 0.2);
    assert!(whole.plan_changes.iter().any(|change| change.silo.is_some()) && whole.plan_changes.len() > 3);
    for stop in [3, 4, 5] {
        let half = rounds(&federation(), start_planned(&federation()), stop, 0.2);
        let json = serde_json::to_string(&half).unwrap();
        let read = RunState { adapter: half.adapter.clone(), ..serde_json::from_str(&json).unwrap() };
        assert_eq!(read, half);
        assert_eq!(rounds(&federation(), read, 12 - stop, 0.2), whole);
    }
}

/// At a five-hundredth of the speed not even a head alone keeps the deadline.
#[test]
fn a_silo_without_a_plan_for_its_speed_keeps_its_plan_and_one_warning_says_so() {
    let federation = federation(adaptation(0));
    let start = start_planned(&federation);
    let state = rounds(&federation, start.clone(), 8, 0.001);
    assert_eq!(state.plan, start.plan);
    assert_eq!(delivered(&state, "b"), [true, true, false, false, false, false, false, false]);
    let warning = |event| match event {
        Event::Warning { message } => Some(message),
        _ => None,
    };
    let warnings: Vec<String> = federation.recorder.events().into_iter().filter_map(warning).collect();
    assert!(warnings.len() == 1 && warnings[0].starts_with("silo b takes"), "{warnings:?}");
    assert!(warnings[0].contains("keeps its plan") && warnings[0].contains("raise the deadline"), "{warnings:?}");
    assert!(state.plan_changes.is_empty() && replanned(&federation).is_empty());
}

/// Texts of three times the length in one round make it late, and are no news of the silo.
#[test]
fn longer_texts_and_smaller_downloads_are_not_taken_for_another_speed() {
    let longer = |update: &mut Update| update.measured.tokens *= 3;
    let transport = (1..=6).fold(transport(), |t, round| t.with_fault("b", round, Fault::Changes(Box::new(longer))));
    let federation = Federation { adaptation: Some(adaptation(0)), ..Federation::new(transport) };
    let state = rounds(&federation, start_planned(&federation), 2, 1.0);
    assert_eq!(delivered(&state, "b"), [false, false]);
    assert_eq!(state.slowness[&"b".into()], Slowness { recent: vec![1.0, 1.0], ..Slowness::default() });
    assert!(replanned(&federation).is_empty());
}

#[test]
fn after_the_last_round_there_is_nothing_to_plan_for() {
    let federation = federation(Adaptation { rounds: 4, refresh_importance: 4, ..adaptation(0) });
    let start = start_planned(&federation);
    let state = rounds(&federation, start.clone(), 4, 0.1);
    assert_eq!((&state.plan, &state.importance), (&start.plan, &start.importance));
}

/// Keeps the tasks that pass.
struct Spy<'a> {
    inner: &'a FakeTransport,
    tasks: Mutex<Vec<Task>>,
}

impl<'a> Spy<'a> {
    fn on(inner: &'a FakeTransport) -> Self {
        Self { inner, tasks: Mutex::default() }
    }

    fn work(self) -> Vec<fedpipe_core::TrainWork> {
        let work = |task| match task {
            Task { work: Work::Train(work), .. } => work,
            task => panic!("{task:?}"),
        };
        self.tasks.into_inner().unwrap().into_iter().map(work).collect()
    }
}

impl Transport for Spy<'_> {
    fn silos(&self) -> Vec<SiloId> {
        self.inner.silos()
    }

    fn enrol(&self) -> Vec<Result<SiloProfile, Failure>> {
        self.inner.enrol()
    }

    fn exchange(&self, tasks: Vec<Task>, observer: &dyn Observer, stop: &Stop) -> Vec<Result<Update, Failure>> {
        self.tasks.lock().unwrap().extend(tasks.clone());
        self.inner.exchange(tasks, observer, stop)
    }
}

/// Importance is looked at after every third round: the silos are asked for sensitivities then and at no other time, what
/// they say moves the scores half of the way, and everybody is planned for anew under the deadline that stands.
#[test]
fn importance_is_refreshed_from_what_silos_hand_back() {
    let federation = federation(Adaptation { own_importance: 0.5, ..adaptation(3) });
    let mut state = start_planned(&federation);
    let (mut bytes, clock) = (Vec::new(), VirtualClock::new(toy_model()));
    for round in 1..=3 {
        let spy = Spy::on(&federation.transport);
        let before = state.clone();
        state = done(Engine { transport: &spy, clock: &clock, ..federation.engine() }.round(&state, |_| None).unwrap());
        bytes.push(state.bytes_up - before.bytes_up);
        assert!(spy.work().iter().all(|work| work.sensitivity == (round == 3)));
        if round < 3 {
            assert_eq!((&state.importance, &state.own_importance), (&before.importance, &before.own_importance));
            continue;
        }
        // The same round by hand: what each silo said, over the worth of its ranks.
        let mut sensed = Vec::new();
        let tasks = federation.engine().tasks(&before, &cohort(&before, 1.0));
        for update in federation.transport.exchange(tasks, &federation.recorder, &Stop::default()) {
            let Update { silo, examples, outcome: Outcome::Trained(adapter), sensitivity, .. } = update.unwrap() else {
                panic!("scores")
            };
            let rank = |weight: &WeightId| adapter.factors[weight].rank() as f64;
            let worth = |weight: &WeightId| rank(weight) / (rank(weight) + 1.0);
            let by_weight: BTreeMap<WeightId, f64> =
                sensitivity.iter().map(|(w, &s)| (w.clone(), f64::from(s as f32) / worth(w))).collect();
            assert_eq!(by_weight.len(), before.plan.silos[&silo].ranks.len());
            let of_silo = crate::importance::Sensed { examples, by_weight };
            let own = crate::importance::refreshed(&before.own_importance[&silo], std::slice::from_ref(&of_silo));
            assert_eq!(state.own_importance[&silo], own);
            sensed.push(of_silo);
        }
        assert_eq!(state.importance, crate::importance::refreshed(&before.importance, &sensed));
        assert_ne!(state.importance, before.importance);
    }
    assert!(bytes[2] > bytes[0] && bytes[0] == bytes[1], "sensitivities travel and count: {bytes:?}");
    assert!((state.importance.values().sum::<f64>() - 1.0).abs() < 1e-12);
    let everybody = Importance { federation: &state.importance, own: &state.own_importance, own_share: 0.5 };
    let anew = plan(&toy_model(), &state.profiles, everybody, &plan_settings()).unwrap();
    assert_eq!((&state.plan.silos, state.plan.deadline_s), (&anew.silos, DEADLINE_S));
    assert_eq!(state.plan_changes.iter().map(|change| (change.round, &change.silo)).collect::<Vec<_>>(), [(3, &None)]);
    let events = federation.recorder.events();
    assert!(events.contains(&Event::Planned(state.plan)));
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Identified { .. })).count(), 2);
}

/// Whichever rank the server has in the plan in force, be it the planner's choice or not, it has to the end, and no silo is
/// given a larger one.
#[test]
fn plans_made_anew_keep_the_server_rank() {
    let settings = PlanSettings { server_rank: None, ..plan_settings() };
    let federation = federation(Adaptation { settings: settings.clone(), ..adaptation(3) });
    let mut state = start_planned(&federation);
    let chosen = plan(&toy_model(), &state.profiles, &state.importance, &settings).unwrap().chosen;
    assert_eq!(chosen.len(), 1);
    for server_rank in [1, 2] {
        let small = plan(&toy_model(), &state.profiles, &state.importance, &settings.up_to(server_rank)).unwrap();
        state.plan = Plan { chosen: chosen.clone(), ..small };
        let after = rounds(&federation, state.clone(), 6, 0.2);
        let changed: Vec<Option<SiloId>> = after.plan_changes.iter().map(|change| change.silo.clone()).collect();
        assert!(changed.contains(&None) && changed.contains(&Some("b".into())), "{changed:?}");
        assert_eq!((after.plan.server_rank, &after.plan.chosen), (server_rank, &chosen));
        let largest = after.plan.silos.values().flat_map(|silo| silo.ranks.values()).max();
        assert_eq!(largest, Some(&server_rank));
    }
}

#[test]
fn a_sensitivity_that_is_not_valid_is_refused_and_says_why() {
    let change = |change: fn(&mut BTreeMap<WeightId, f64>)| {
        Fault::Changes(Box::new(move |update: &mut Update| change(&mut update.sensitivity)))
    };
    type Change = fn(&mut BTreeMap<WeightId, f64>);
    let cases: [(Change, &str); 6] = [
        (|s| s.values_mut().for_each(|value| *value = f64::NAN), "layer.0.query has the sensitivity NaN"),
        (|s| s.values_mut().for_each(|value| *value = -1.0), "layer.0.query has the sensitivity -1"),
        (|s| s.values_mut().for_each(|value| *value = 1e300), "layer.0.query has the sensitivity inf"),
        (|s| drop(s.pop_first()), "layer.0.query has no sensitivity"),
        (|s| s.clear(), "layer.0.query has no sensitivity"),
        (|s| s.extend([("other".into(), 1.0)]), "the sensitivity of `other` was not asked for"),
    ];
    let of = |fault, refresh| {
        let transport = transport().with_fault("b", 1, fault);
        let federation = Federation { adaptation: Some(adaptation(refresh)), ..Federation::new(transport) };
        let state = federation.rounds(start_planned(&federation), 1);
        let failures = state.history[0].failures.iter();
        failures.map(|failure| (failure.kind, failure.reason.clone())).collect::<Vec<_>>()
    };
    for (fault, expected) in cases {
        assert_eq!(of(change(fault), 1), [(FailureKind::Invalid, expected.to_string())]);
    }
    let unasked = |s: &mut BTreeMap<WeightId, f64>| s.extend([("layer.0.query".into(), 1.0)]);
    let refused = of(change(unasked), 0);
    assert_eq!(refused, [(FailureKind::Invalid, "the sensitivity of `layer.0.query` was not asked for".to_string())]);
    assert_eq!(of(change(unasked), 1), [], "the same number where it was asked for is taken");
}

/// scaling·(B·A + B₀·A₀) of every weight, as the silo's model applies it.
fn function(work: &fedpipe_core::TrainWork) -> BTreeMap<WeightId, Matrix> {
    let mut whole = work.adapter.factors.clone();
    for (weight, fixed) in &work.fixed {
        let trained = whole.get(weight);
        whole.insert(weight.clone(), trained.map_or_else(|| fixed.clone(), |trained| trained.stacked(fixed)));
    }
    products(work.adapter.scaling, &whole)
}

fn products(scaling: f32, factors: &BTreeMap<WeightId, LowRank>) -> BTreeMap<WeightId, Matrix> {
    let product = |f: &LowRank| {
        let cell = |i: usize, j: usize| (0..f.rank()).map(|k| f.b().row(i)[k] * f.a().row(k)[j]).sum::<f32>();
        Matrix::from_fn(4, 4, |i, j| scaling * cell(i, j))
    };
    factors.iter().map(|(weight, factors)| (weight.clone(), product(factors))).collect()
}

fn assert_same(found: &BTreeMap<WeightId, Matrix>, expected: &BTreeMap<WeightId, Matrix>) {
    for (weight, expected) in expected {
        let found = &found[weight];
        let largest = expected.data().iter().fold(0f32, |most, x| most.max(x.abs()));
        assert!(largest > 0.0);
        for (x, y) in found.data().iter().zip(expected.data()) {
            assert!((x - y).abs() <= 1e-6 * largest, "{weight}: {x} is not {y}");
        }
    }
}

/// Between rounds a silo's plan goes down, up, to 0 and from 0: what it starts from is the merged adapter whatever it trains,
/// what it does not train stays on the server, and fresh components add nothing before they train.
#[test]
fn ranks_that_change_between_rounds_lose_nothing_of_what_was_learnt() {
    let federation = Federation::new(transport());
    let (lower, upper): (WeightId, WeightId) = ("layer.0.query".into(), "layer.1.query".into());
    let mut state = federation.start();
    let change = |state: &mut RunState, ranks: [usize; 2]| {
        let ranks = [(&lower, ranks[0]), (&upper, ranks[1])].into_iter().filter(|(_, rank)| *rank > 0);
        let ranks: BTreeMap<WeightId, usize> = ranks.map(|(weight, rank)| (weight.clone(), rank)).collect();
        state.plan.silos.values_mut().for_each(|plan| plan.ranks.clone_from(&ranks));
    };
    // At rank 4 three silos that disagree fill the merged factors of both weights.
    change(&mut state, [4, 4]);
    state = federation.rounds(state, 3);
    for ranks in [[1, 4], [2, 1], [0, 3], [4, 0], [3, 4], [0, 0], [1, 1]] {
        change(&mut state, ranks);
        let spy = Spy::on(&federation.transport);
        let before = products(state.adapter.scaling, &state.adapter.factors);
        let next = done(Engine { transport: &spy, ..federation.engine() }.round(&state, |_| None).unwrap());
        for work in spy.work() {
            let rank = |weight| work.adapter.factors.get(weight).map_or(0, LowRank::rank);
            assert_eq!([rank(&lower), rank(&upper)], ranks);
            assert_same(&function(&work), &before);
            // The components that train are the strongest of the merged ones: each weighs no less than any that stays.
            for (weight, fixed) in &work.fixed {
                let strength =
                    |f: &LowRank, k: usize| f.components(k..k + 1).a().norm() * f.components(k..k + 1).b().norm();
                let Some(trained) = work.adapter.factors.get(weight) else { continue };
                let weakest = (0..trained.rank()).map(|k| strength(trained, k)).fold(f64::INFINITY, f64::min);
                let strongest = (0..fixed.rank()).map(|k| strength(fixed, k)).fold(0.0, f64::max);
                assert!(weakest >= 0.999 * strongest, "{weight}: {weakest} under {strongest}");
            }
        }
        for (weight, rank) in [(&lower, ranks[0]), (&upper, ranks[1])] {
            let untouched = next.adapter.factors[weight] == state.adapter.factors[weight];
            assert_eq!(untouched, rank == 0, "{weight} at rank {rank}");
        }
        state = next;
    }
    // With nothing learnt in between, going down and up again gives the same function back: the server kept it all.
    let frozen = Federation::new(transport());
    state.learning_rate = 0.0;
    let learnt = products(state.adapter.scaling, &state.adapter.factors);
    for ranks in [[1, 1], [4, 0], [0, 4], [4, 4]] {
        change(&mut state, ranks);
        state = frozen.rounds(state, 1);
        assert_same(&products(state.adapter.scaling, &state.adapter.factors), &learnt);
    }
}
