mod adapting;

use super::*;
use crate::aggregate::Product;
use crate::codec::{Bf16, F32};
use crate::importance::{SvdSensitivity, Uniform};
use crate::method::{FedPipe, LocalTraining, MethodSettings};
use crate::plan::{Deadline, Menu, PlanSettings, TuningPatterns, beside_values, plan};
use fedpipe_core::{BaseFormat, LowRank, Matrix, Schedule, Trainer};
use fedpipe_testkit::{FakeTransport, Fault, FixedClock, Recorder, ToyTrainer, toy_model};
use std::sync::Arc;

const DEADLINE_S: f64 = 1000.0;

fn silos() -> [(SiloId, ToyTrainer); 3] {
    [ToyTrainer::new("a", 300, 1.0), ToyTrainer::new("b", 100, 2.0), ToyTrainer::new("c", 200, 3.0)]
}

fn transport() -> FakeTransport {
    connected(silos())
}

fn connected(silos: [(SiloId, ToyTrainer); 3]) -> FakeTransport {
    FakeTransport::new(silos.map(|(silo, trainer)| (silo, Arc::new(trainer) as Arc<dyn Trainer>)).into())
}

fn method_settings() -> MethodSettings {
    let training = LocalTraining {
        rounds: 40,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        dropout: 0.0,
    };
    MethodSettings { model: toy_model(), training, aggregator: &Product }
}

/// Everything an engine borrows, with the parts that a test wants to change.
struct Federation {
    transport: FakeTransport,
    codec: &'static dyn Codec,
    clock: FixedClock,
    recorder: Recorder,
    stop: Stop,
    settings: RoundSettings,
    method: FedPipe,
    adaptation: Option<Adaptation>,
}

impl Federation {
    fn new(transport: FakeTransport) -> Self {
        Self {
            transport,
            codec: &F32,
            clock: FixedClock::default(),
            recorder: Recorder::default(),
            stop: Stop::default(),
            settings: RoundSettings::default(),
            method: FedPipe::new(method_settings()),
            adaptation: None,
        }
    }

    fn engine(&self) -> Engine<'_> {
        Engine {
            transport: &self.transport,
            method: &self.method,
            codec: self.codec,
            clock: &self.clock,
            observer: &self.recorder,
            stop: &self.stop,
            settings: self.settings,
            adaptation: self.adaptation.as_ref(),
        }
    }

    fn start(&self) -> RunState {
        let (engine, model) = (self.engine(), toy_model());
        let profiles = engine.enrol().unwrap();
        let identified = self.identify(&SvdSensitivity, &profiles);
        let settings = PlanSettings {
            menu: menu(),
            server_rank: Some(4),
            local_steps: 5,
            cohort_fraction: 1.0,
            value_bytes: 4.0,
            deadline: Deadline::Seconds(DEADLINE_S),
            finish: None,
            coverage: 1,
            tuning: TuningPatterns::default(),
        };
        let plan = plan(&model, &profiles, &identified.importance, &settings).unwrap();
        start(&self.method, (Seed(42), "inputs".into()), profiles, identified, plan, 0.05, (1.0, head()))
    }

    fn identify(&self, measure: &dyn ImportanceMeasure, profiles: &BTreeMap<SiloId, SiloProfile>) -> Identification {
        let probe = ProbeSettings { rank: 2, steps: 3, learning_rate: 1e-2, menu: menu() };
        match self.engine().identify(measure, &toy_model(), profiles, &head(), Seed(42), &probe).unwrap() {
            Progress::Done(identified) => identified,
            Progress::Stopped => panic!("nobody asked to stop"),
        }
    }

    fn rounds(&self, state: RunState, rounds: u32) -> RunState {
        (0..rounds).fold(state, |state, _| done(self.engine().round(&state, |_| None).unwrap()))
    }
}

fn done(progress: Progress<RunState>) -> RunState {
    match progress {
        Progress::Done(state) => state,
        Progress::Stopped => panic!("nobody asked to stop"),
    }
}

fn menu() -> Menu {
    Menu {
        batch_sizes: vec![2, 4],
        formats: vec![BaseFormat::F32],
        recompute: vec![false],
        ranks: vec![1, 2],
        batch_value: 0.1,
        step_multiples: vec![1],
        step_value: 0.1,
    }
}

fn head() -> Head {
    [("classifier.weight".to_string(), Matrix::zeros(2, 4))].into()
}

fn trained(change: impl Fn(&mut Adapter) + Send + Sync + 'static) -> Fault {
    Fault::Changes(Box::new(move |update| match &mut update.outcome {
        Outcome::Trained(adapter) => change(adapter),
        Outcome::Scores(_) => panic!("scores"),
    }))
}

fn first_factors(adapter: &mut Adapter) -> &mut LowRank {
    adapter.factors.values_mut().next().unwrap()
}

/// One round in which silo b has `fault`; the failure as (kind, reason), and the state after the round.
fn round_with(fault: Fault) -> (FailureKind, String, RunState) {
    let federation = Federation::new(transport().with_fault("b", 1, fault));
    let state = federation.rounds(federation.start(), 1);
    let record = state.history[0].clone();
    assert!(record.merged && record.silos.len() == 2, "the other two go on");
    let [failure] = &record.failures[..] else { panic!("{:?}", record.failures) };
    assert_eq!((failure.silo.as_str(), failure.round), ("b", 1));
    assert!(federation.recorder.events().contains(&Event::SiloFailed(failure.clone())));
    (failure.kind, failure.reason.clone(), state)
}

#[test]
fn a_federation_learns_and_its_loss_falls() {
    let federation = Federation::new(transport());
    let start = federation.start();
    let loss = |state: &RunState| silos().iter().map(|(_, silo)| silo.loss(&state.adapter)).sum::<f64>();
    let before = loss(&start);
    let after = federation.rounds(start, 30);
    // The silos disagree, so the best they can share is not 0: by hand, targets 1, 2 and 3 times T with examples 300, 100
    // and 200 have the mean 11/6, at Σ½(s − 11/6)²·2·‖T‖² = 2.083·‖T‖² against 14·‖T‖² at the start (‖T‖² = 2.8125).
    assert!(loss(&after) < 1.05 * 2.0833 * 2.8125, "from {before} to {}", loss(&after));
    assert!(after.adapter.factors.values().all(|factors| factors.rank() <= 4));
}

#[test]
fn two_rounds_and_two_more_are_four_rounds() {
    let federation = Federation::new(transport());
    let half = federation.rounds(federation.start(), 2);
    let resumed = Federation::new(transport()).rounds(half.clone(), 2);
    let whole = Federation::new(transport());
    assert_eq!(resumed, whole.rounds(whole.start(), 4));
    assert_eq!(half.round, 2, "the state that went in is as it was");
}

#[test]
fn bytes_are_what_the_codec_wrote_both_ways() {
    let federation = Federation::new(transport());
    let state = federation.start();
    let before = (state.bytes_up, state.bytes_down);
    let state = federation.rounds(state, 1);
    let sum = |of: &dyn Fn(&SiloRound) -> u64| state.history[0].silos.iter().map(of).sum::<u64>();
    assert_eq!(state.bytes_up - before.0, sum(&|silo| silo.bytes_up));
    assert_eq!(state.bytes_down - before.1, sum(&|silo| silo.bytes_down));
    // Both weights at rank 2, d = 8, and a head of 8: 40 values of four bytes and a header.
    assert!(state.history[0].silos.iter().all(|silo| silo.bytes_up > 160 && silo.bytes_up < 160 + 600));
    let mut half = Federation::new(transport());
    half.codec = &Bf16;
    let half = half.rounds(half.start(), 1);
    assert!(half.history[0].silos[0].bytes_up < state.history[0].silos[0].bytes_up);
}

#[test]
fn a_silo_that_errs_or_panics_is_a_failure_in_the_record() {
    let (kind, _, _) = round_with(Fault::Fails(FailureKind::OutOfMemory));
    assert_eq!(kind, FailureKind::OutOfMemory);
    let (kind, reason, _) = round_with(Fault::Panics);
    assert_eq!((kind, reason.as_str()), (FailureKind::Crashed, "the silo panicked"));
}

#[test]
fn an_update_that_is_not_valid_is_refused_and_says_why() {
    let cases: [(Fault, &str); 11] = [
        (
            trained(|a| first_factors(a).clone_from(&nan())),
            "tensor `layer.0.query.lora_A.weight` has values that are not finite",
        ),
        (trained(|a| *first_factors(a) = LowRank::fresh(1, 4, 4, Seed(1))), "is 1x4, not 2x4"),
        (trained(|a| a.head.values_mut().for_each(|m| m.data_mut()[0] = 1e30)), "above the bound of 1.000e4"),
        (trained(|a| drop(a.factors.pop_first())), "tensor `layer.0.query.lora_A.weight` is missing"),
        (trained(|a| drop(a.head.insert("extra".into(), Matrix::zeros(1, 1)))), "tensor `extra` was not asked for"),
        (trained(|a| a.scaling = 3.0), "its scaling is 3, not 1"),
        (Fault::Changes(Box::new(|u| u.round = 7)), "it answers round 7"),
        (Fault::Changes(Box::new(|u| u.silo = "a".into())), "it answers for silo a"),
        (Fault::Changes(Box::new(|u| u.examples = 1_000_000)), "it claims 1000000 examples and enrolled with 100"),
        (Fault::Changes(Box::new(|u| u.measured.loss = f64::NAN)), "its loss is NaN"),
        (Fault::Changes(Box::new(|u| u.measured.repeated_tokens = u.measured.tokens + 1)), "tokens as repeated"),
    ];
    for (fault, expected) in cases {
        let (kind, reason, state) = round_with(fault);
        assert_eq!(kind, FailureKind::Invalid);
        assert!(reason.contains(expected), "{reason}");
        assert!(state.adapter.to_tensors().values().all(Matrix::is_finite));
    }
}

fn nan() -> LowRank {
    LowRank::new(Matrix::from_fn(2, 4, |_, _| f32::NAN), Matrix::zeros(4, 2)).unwrap()
}

/// All that a message can hold beside values is within what plans take off the cap for it.
#[test]
fn names_and_shapes_take_no_more_than_plans_leave_for_them() {
    let (federation, model) = (Federation::new(transport()), toy_model());
    let start = federation.start();
    for (codec, width) in [(&F32 as &dyn Codec, 4.0), (&Bf16, 2.0)] {
        let mut task = federation.method.tasks(&start, &["a".into()]).remove(0);
        let Work::Train(work) = &mut task.work else { panic!("a task to train") };
        let factors = |rank| model.candidates.iter().map(move |c| (c.id.clone(), LowRank::fresh(rank, 4, 4, Seed(1))));
        (work.adapter.factors, work.fixed) = (factors(1).collect(), factors(3).collect());
        let update =
            federation.transport.exchange(vec![task.clone()], &federation.recorder, &federation.stop).remove(0);
        let down = message::send(codec, task).unwrap().1;
        let up = message::receive(codec, update.unwrap()).unwrap().1;
        // A head of 8 values and two weights of 8 values a rank.
        let values = width * f64::from(8 + 2 * 8 * 4 + 8 + 2 * 8);
        let (beside, most) = ((down + up) as f64 - values, beside_values(&model).iter().sum::<f64>());
        assert!((0.6 * most..most).contains(&beside), "{beside} of {most} bytes beside values");
    }
}

#[test]
fn a_cap_that_the_plan_keeps_is_kept_by_every_round_and_any_less_is_a_failure() {
    const CAP_BYTES: f64 = 2238.0;
    let silos = silos().map(|(silo, mut trainer)| {
        // 4 bytes for each of 2·8 values of the head, of 8 ranks of 8 values down and of 3 up; 1822 for names and shapes.
        trainer.profile.data_cap_mib = (silo.as_str() == "b").then(|| CAP_BYTES / f64::from(1 << 20));
        (silo, trainer)
    });
    let federation = Federation::new(connected(silos));
    let start = federation.start();
    assert_eq!(start.plan.silos[&"b".into()].ranks.values().sum::<usize>(), 3);
    let state = federation.rounds(start.clone(), 4);
    assert!(state.history.iter().all(|round| round.failures.is_empty()), "{:?}", state.history);
    let mut tight = start;
    tight.profiles.get_mut(&"b".into()).unwrap().data_cap_mib = Some(512.0 / f64::from(1 << 20));
    let failure = &federation.rounds(tight, 1).history[0].failures[0];
    assert_eq!((failure.silo.as_str(), failure.kind), ("b", FailureKind::TooMuchData));
    assert!(failure.reason.ends_with("it may send and receive 0.00 MiB"), "{}", failure.reason);
}

#[test]
fn scores_for_a_train_task_are_refused() {
    let fault = Fault::Changes(Box::new(|update| update.outcome = Outcome::Scores(BTreeMap::new())));
    assert_eq!(round_with(fault).1, "it scored when it was asked to train");
}

#[test]
fn a_late_silo_does_not_count_unless_nobody_enforces_the_deadline() {
    let mut federation = Federation::new(transport());
    federation.clock.0.insert("b".into(), DEADLINE_S + 1.0);
    let start = federation.start();
    let began = start.clock_s;
    let state = federation.rounds(start.clone(), 1);
    let failure = &state.history[0].failures[0];
    assert_eq!((failure.silo.as_str(), failure.kind), ("b", FailureKind::Late));
    assert_eq!(failure.reason, "it took 1001.0 s, and the round ended after 1000.0 s");
    assert_eq!(state.clock_s, began + DEADLINE_S, "the server waits until the deadline");
    federation.settings.deadline_enforced = false;
    let state = federation.rounds(start, 1);
    assert!(state.history[0].failures.is_empty());
    assert_eq!(state.clock_s, began + DEADLINE_S + 1.0, "the round lasts as long as its slowest member");
}

#[test]
fn below_the_quorum_the_adapter_stays_and_the_third_time_the_run_ends() {
    let gone = |round| move |t: FakeTransport, silo| t.with_fault(silo, round, Fault::Fails(FailureKind::Gone));
    let transport = (1..=3).fold(transport(), |t, round| ["a", "b"].into_iter().fold(t, gone(round)));
    let federation = Federation::new(transport);
    let start = federation.start();
    let state = federation.rounds(start.clone(), 2);
    assert_eq!((state.round, &state.adapter), (2, &start.adapter));
    assert!(state.history.iter().all(|record| !record.merged && record.failures.len() == 2));
    let error = check_learnt(&state).unwrap_err().to_string();
    assert!(error.starts_with("none of the 2 rounds had enough updates"), "{error}");
    assert!(error.contains("silo b in round 2"), "{error}");
    assert!(error.contains("no adapter is written") && error.contains("start a new run"), "{error}");
    assert!(check_learnt(&Federation::new(connected(silos())).rounds(start.clone(), 1)).is_ok());
    let error = federation.engine().round(&state, |_| panic!("nothing to evaluate")).unwrap_err();
    assert!(error.to_string().starts_with("3 rounds in a row had fewer updates than the quorum of 2"), "{error}");
    assert!(error.to_string().contains("silo a in round 3"), "{error}");
    // A resumed run takes its quorum from its configuration, but its deadline from its plan.
    let advice = "lower federation.quorum in the config.toml of the run's folder, and go on with --resume; another deadline \
                  takes a new run";
    assert!(error.to_string().contains(advice), "{error}");
}

#[test]
fn a_good_round_between_bad_ones_starts_the_count_anew() {
    let bad = [1, 2, 4, 5].iter();
    let transport = bad.fold(transport(), |t, &round| {
        ["a", "b"].iter().fold(t, |t, silo| t.with_fault(silo, round, Fault::Fails(FailureKind::Gone)))
    });
    let federation = Federation::new(transport);
    let state = federation.rounds(federation.start(), 5);
    let merged: Vec<bool> = state.history.iter().map(|record| record.merged).collect();
    assert_eq!(merged, [false, false, true, false, false]);
}

#[test]
fn a_stop_during_the_round_abandons_it() {
    let federation = Federation::new(transport().with_fault("b", 1, Fault::Stops));
    let state = federation.start();
    let progress = federation.engine().round(&state, |_| panic!("nothing to evaluate")).unwrap();
    assert_eq!(progress, Progress::Stopped);
}

/// In binary 0.28 · 25 and 0.55 · 100 come out above 7 and 55, and 0.57 · 100 below 57.
#[test]
fn a_share_of_the_silos_is_rounded_up_and_rounding_errors_are_not() {
    for (silos, fraction, expected) in [
        (25, 0.28, 7),
        (100, 0.55, 55),
        (100, 0.57, 57),
        (25, 0.29, 8),
        (3, 0.5, 2),
        (3, 1.0, 3),
        (10_000, 1.0, 10_000),
        (3, 0.0, 1),
        (0, 0.5, 1),
    ] {
        assert_eq!(share_of(silos, fraction), expected, "{fraction} of {silos}");
    }
}

#[test]
fn the_cohort_follows_from_seed_and_round_alone() {
    let federation = Federation::new(transport());
    let mut state = federation.start();
    assert_eq!(cohort(&state, 1.0).len(), 3);
    assert_eq!(cohort(&state, 0.0).len(), 1, "somebody always takes part");
    let over_rounds = |state: &mut RunState| -> Vec<Vec<SiloId>> {
        (0..20)
            .map(|round| {
                state.round = round;
                cohort(state, 0.5)
            })
            .collect()
    };
    let first = over_rounds(&mut state);
    assert!(first.iter().all(|cohort| cohort.len() == 2 && cohort.is_sorted()));
    assert_eq!(first, over_rounds(&mut state));
    let seen: std::collections::BTreeSet<_> = first.iter().flatten().collect();
    assert_eq!(seen.len(), 3, "everybody gets a turn");
    state.seed = Seed(43);
    assert_ne!(first, over_rounds(&mut state));
}

#[test]
fn metrics_come_from_the_caller_and_see_the_merged_adapter() {
    let federation = Federation::new(transport());
    let metrics = Metrics { accuracy: Some(0.5), loss: 1.0, examples: 2, ..Metrics::default() };
    let mut seen = None;
    let progress = federation.engine().round(&federation.start(), |adapter| {
        seen = Some(adapter.clone());
        Some(metrics.clone())
    });
    let state = done(progress.unwrap());
    assert_eq!(state.history[0].metrics, Some(metrics));
    assert_eq!(seen, Some(state.adapter));
}

#[test]
fn events_tell_the_story_in_order() {
    let federation = Federation::new(transport().with_fault("b", 1, Fault::Panics));
    federation.rounds(federation.start(), 1);
    let story: Vec<&str> = federation
        .recorder
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::Enrolled(_) => Some("enrolled"),
            Event::RoundStarted { round: 0, .. } => Some("probe"),
            Event::Identified { .. } => Some("identified"),
            Event::RoundStarted { .. } => Some("round"),
            Event::SiloFailed(_) => Some("failed"),
            Event::RoundFinished(_) => Some("finished"),
            _ => None,
        })
        .collect();
    assert_eq!(story, ["enrolled", "enrolled", "enrolled", "probe", "identified", "round", "failed", "finished"]);
}

#[test]
fn who_cannot_enrol_is_left_out_and_somebody_must() {
    let gone = |t: FakeTransport, silo| t.with_fault(silo, 0, Fault::Fails(FailureKind::Gone));
    let federation = Federation::new(gone(transport(), "a"));
    assert_eq!(federation.engine().enrol().unwrap().keys().map(SiloId::as_str).collect::<Vec<_>>(), ["b", "c"]);
    let nobody = Federation::new(["a", "b", "c"].into_iter().fold(transport(), gone));
    let error = nobody.engine().enrol().unwrap_err().to_string();
    assert!(error.starts_with("no silo enrolled") && error.contains("silo c in round 0"), "{error}");
}

#[test]
fn a_profile_that_makes_no_sense_is_refused() {
    let mut silos = silos();
    silos[0].1.profile.speed = 0.0;
    silos[1].1.profile.examples = 0;
    silos[2].1.profile.bandwidth_mbps = f64::NAN;
    let error = Federation::new(connected(silos)).engine().enrol().unwrap_err().to_string();
    for part in ["its speed is 0", "it has no training examples", "its bandwidth is NaN Mbit/s"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn silos_that_cannot_probe_are_left_out_and_without_any_all_weights_count_the_same() {
    let mut silos = silos();
    silos.iter_mut().for_each(|(_, silo)| silo.profile.memory_mib = 0);
    silos[2].1.profile.memory_mib = 1;
    silos[2].1.targets.insert("layer.1.query".into(), Matrix::zeros(4, 4));
    let federation = Federation::new(connected(silos.clone()));
    let profiles = federation.engine().enrol().unwrap();
    let identified = federation.identify(&SvdSensitivity, &profiles);
    assert_eq!(identified.importance[&"layer.0.query".into()], 1.0, "silo c alone decides");
    assert!(identified.bytes_up > 0 && identified.bytes_down > 0 && identified.seconds == 1.0);

    silos[2].1.profile.memory_mib = 0;
    let federation = Federation::new(connected(silos));
    let profiles = federation.engine().enrol().unwrap();
    let identified = federation.identify(&SvdSensitivity, &profiles);
    assert_eq!(identified.importance.into_values().collect::<Vec<_>>(), [0.5, 0.5]);
    let warnings = federation.recorder.events().into_iter().filter(|e| matches!(e, Event::Warning { .. }));
    assert_eq!(warnings.count(), 4, "one for each silo and one for the outcome");
}

#[test]
fn a_measure_without_a_probe_sends_nothing() {
    let federation = Federation::new(transport());
    let profiles = federation.engine().enrol().unwrap();
    let identified = federation.identify(&Uniform, &profiles);
    assert_eq!((identified.bytes_up, identified.bytes_down, identified.seconds), (0, 0, 0.0));
    assert!(
        !federation.recorder.events().iter().any(|e| matches!(e, Event::RoundStarted { .. } | Event::Warning { .. }))
    );
}

#[test]
fn scores_that_are_not_valid_are_refused() {
    let bad = |value: f64| {
        Fault::Changes(Box::new(move |update: &mut Update| match &mut update.outcome {
            Outcome::Scores(scores) => scores.values_mut().for_each(|score| *score = value),
            Outcome::Trained(_) => panic!("an adapter"),
        }))
    };
    let federation = Federation::new(transport().with_fault("a", 0, bad(f64::NAN)).with_fault("b", 0, bad(-1.0)));
    let profiles = federation.engine().enrol().unwrap();
    federation.identify(&SvdSensitivity, &profiles);
    let failed = federation.recorder.events().into_iter().filter_map(|event| match event {
        Event::SiloFailed(failure) => Some(failure.reason),
        _ => None,
    });
    assert_eq!(failed.collect::<Vec<_>>(), ["layer.0.query has the score NaN", "layer.0.query has the score -1"]);
}

/// The toy's gradient descent learns the faster the higher the rate, until it diverges.
#[test]
fn the_learning_rate_is_the_next_below_the_best_where_no_higher_one_lost() {
    let tune = |strength: f32| {
        let silos = [("a", 300, 1.0), ("b", 100, 2.0), ("c", 200, 3.0)];
        let federation =
            Federation::new(connected(silos.map(|(silo, n, part)| ToyTrainer::new(silo, n, strength * part))));
        let state = federation.start();
        (state.clone(), done(federation.engine().learning_rate(state).unwrap()))
    };
    // At 0.01 more is lost than at 0.003, or silos fail, or all of them.
    let of = |strength| {
        let state = tune(strength).1;
        (state.learning_rate, state.plan.chosen[0].reason.clone())
    };
    let (rate, reason) = of(38.0);
    assert!(rate == 0.003 && reason.starts_with("it has the least loss in a round"), "{reason}");
    let (rate, reason) = of(40.0);
    assert!(rate == 0.001 && reason.contains("those at which the fewest silos failed"), "{reason}");
    assert_eq!(of(80.0).0, 0.001);
    let (before, after) = tune(1.0);
    assert_eq!((after.learning_rate, after.round), (0.003, 0));
    let [chosen] = &after.plan.chosen[..] else { panic!("{:?}", after.plan.chosen) };
    assert_eq!((chosen.key.as_str(), chosen.value.as_str()), ("training.learning_rate", "0.003"));
    assert!(chosen.reason.starts_with("the next below 0.01, "), "{}", chosen.reason);
    assert!(chosen.reason.ends_with("tried: 0.0003, 0.001, 0.003, 0.01"), "{}", chosen.reason);
    // Nothing but the rate, what it learnt meanwhile and what finding it took.
    assert_ne!(after.adapter, before.adapter);
    assert!(after.clock_s > before.clock_s && after.bytes_up > before.bytes_up && after.bytes_down > before.bytes_down);
    let rest = RunState {
        learning_rate: before.learning_rate,
        adapter: before.adapter.clone(),
        plan: before.plan.clone(),
        clock_s: before.clock_s,
        bytes_up: before.bytes_up,
        bytes_down: before.bytes_down,
        ..after.clone()
    };
    assert_eq!(rest, before);
    assert_eq!(tune(1.0).1, after);
}

#[test]
fn the_steps_of_a_search_are_those_of_the_silos_that_make_the_fewest() {
    let federation = Federation::new(transport());
    let mut state = federation.start();
    let steps = [("a", 20), ("b", 10), ("c", 12)];
    steps.into_iter().for_each(|(silo, steps)| state.plan.silos.get_mut(&silo.into()).unwrap().local_steps = steps);
    let after = done(federation.engine().learning_rate(state).unwrap());
    assert!(after.plan.chosen[0].reason.contains("in a round of 10 steps"), "{}", after.plan.chosen[0].reason);
    let tried = federation.recorder.events().into_iter().filter_map(|event| match event {
        Event::LearningRateTried { steps, .. } => Some(steps),
        _ => None,
    });
    assert_eq!(tried.collect::<Vec<_>>(), [5, 5, 5, 5, 10, 10]);
}

#[test]
fn without_a_silo_that_trains_the_learning_rate_stays_and_a_warning_says_so() {
    let state = RunState { learning_rate: 0.05, ..Federation::new(transport()).start() };
    let failing = |transport: FakeTransport, silo| transport.with_fault(silo, 0, Fault::Fails(FailureKind::Crashed));
    let federation = Federation::new(["a", "b", "c"].into_iter().fold(transport(), failing));
    let after = done(federation.engine().learning_rate(state.clone()).unwrap());
    assert_eq!((after.learning_rate, after.plan.chosen), (0.05, vec![]));
    let events = federation.recorder.events();
    let warning = "it stays 0.05; the last failures: silo a in round 0: at the learning rate";
    let warned = |event: &Event| matches!(event, Event::Warning { message } if message.contains(warning));
    assert!(events.iter().any(warned), "{events:?}");
    let reason = |event: &Event| match event {
        Event::SiloFailed(failure) => Some(failure.reason.clone()),
        _ => None,
    };
    let failed: Vec<String> = events.iter().filter_map(reason).collect();
    // Three silos, at four rates and again at the better two.
    assert_eq!(failed.len(), 3 * (4 + 2));
    assert_eq!(failed[0], "at the learning rate 0.0003: a fault of the fake transport");
}

#[test]
fn a_stop_ends_the_search_for_a_learning_rate() {
    let federation = Federation::new(transport());
    let state = federation.start();
    federation.stop.request();
    assert_eq!(federation.engine().learning_rate(state).unwrap(), Progress::Stopped);
}
