use super::*;
use crate::aggregate::{Product, ZeroPad};
use crate::method::LocalTraining;
use fedpipe_core::{Aggregator, BaseFormat, LearningRate, Measured, Plan, Schedule, Seed};
use fedpipe_testkit::toy_model;

const UPPER: &str = "layer.1.query";
const LOWER: &str = "layer.0.query";

fn method(aggregator: &'static dyn Aggregator) -> FedPipe {
    let training = LocalTraining {
        rounds: 4,
        warmup_ratio: 0.25,
        schedule: Schedule::Linear,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        dropout: 0.1,
    };
    FedPipe::new(MethodSettings { model: toy_model(), training, aggregator })
}

fn plan(silo: &str, ranks: &[(&str, usize)]) -> SiloPlan {
    SiloPlan {
        silo: silo.into(),
        batch_size: 2,
        local_steps: 5,
        base_format: BaseFormat::Bf16,
        recompute: true,
        ranks: ranks.iter().map(|&(weight, rank)| (weight.into(), rank)).collect(),
        memory: Default::default(),
        time: Default::default(),
        objective: 0.0,
        reasons: Vec::new(),
    }
}

/// Component k is `b[k]` times the outer product of two unit vectors at k: easy to tell apart.
fn diagonal(magnitudes: &[f32]) -> LowRank {
    let rank = magnitudes.len();
    let a = Matrix::from_fn(rank, 4, |k, j| f32::from(j == k));
    LowRank::new(a, Matrix::from_fn(4, rank, |i, k| if i == k { magnitudes[k] } else { 0.0 })).unwrap()
}

/// The upper weight has rank 3 on the server, the lower one none; silo a trains the upper at 2, silo b both at 4 and 1.
fn state() -> RunState {
    let head = [("classifier.weight".to_string(), Matrix::zeros(2, 4))].into();
    RunState {
        version: 1,
        method: "fedpipe".into(),
        seed: Seed(42),
        round: 1,
        profiles: BTreeMap::new(),
        importance: BTreeMap::new(),
        own_importance: BTreeMap::new(),
        plan_changes: Vec::new(),
        slowness: BTreeMap::new(),
        plan: Plan {
            local_steps: 5,
            server_rank: 4,
            chosen: vec![],
            deadline_s: 1.0,
            deadline_reason: String::new(),
            optimality: Default::default(),
            silos: [plan("a", &[(UPPER, 2)]), plan("b", &[(UPPER, 4), (LOWER, 1)]), plan("c", &[])]
                .map(|plan| (plan.silo.clone(), plan))
                .into(),
        },
        never_tune: Vec::new(),
        learning_rate: 0.8,
        adapter: Adapter { scaling: 2.0, factors: [(UPPER.into(), diagonal(&[3.0, 2.0, 1.0]))].into(), head },
        history: Vec::new(),
        bytes_up: 0,
        bytes_down: 0,
        clock_s: 0.0,
        wall_s: 0.0,
        inputs: String::new(),
    }
}

fn work(task: &Task) -> &TrainWork {
    match &task.work {
        Work::Train(work) => work,
        Work::Probe(_) => panic!("a probe"),
    }
}

/// By hand: plans may take 95 % of the toy's 1 MiB, 996,147.2 bytes.
#[test]
fn a_task_says_what_its_plan_leaves_of_the_memory() {
    let spare = |base: f64| {
        let mut state = state();
        state.profiles.insert("a".into(), fedpipe_testkit::toy_profile("a"));
        state.plan.silos.get_mut(&"a".into()).unwrap().memory.base = base;
        work(&method(&Product).tasks(&state, &["a".into()])[0]).spare_bytes
    };
    assert_eq!((spare(900_000.0), spare(2e6)), (96_147, 0));
}

fn update(silo: &str, examples: u64, factors: &[(&str, LowRank)], head: f32) -> Update {
    let adapter = Adapter {
        scaling: 2.0,
        factors: factors.iter().map(|(weight, factors)| ((*weight).into(), factors.clone())).collect(),
        head: [("classifier.weight".to_string(), Matrix::from_fn(2, 4, |_, _| head))].into(),
    };
    let outcome = Outcome::Trained(adapter);
    Update {
        round: 2,
        silo: silo.into(),
        examples,
        outcome,
        measured: Measured::default(),
        sensitivity: BTreeMap::new(),
    }
}

fn product(factors: &LowRank) -> Vec<f32> {
    let entry = |i: usize, j: usize| (0..factors.rank()).map(|k| factors.b().row(i)[k] * factors.a().row(k)[j]).sum();
    (0..4).flat_map(|i| (0..4).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn assert_diagonal(factors: &LowRank, expected: [f32; 4]) {
    for (position, value) in product(factors).into_iter().enumerate() {
        let expected = if position % 5 == 0 { expected[position / 5] } else { 0.0 };
        assert!((value - expected).abs() < 1e-6, "entry {position} is {value}, not {expected}");
    }
}

#[test]
fn a_silo_trains_the_strongest_components_and_applies_the_rest() {
    let mut state = state();
    state.plan.silos.get_mut(&SiloId::from("b")).unwrap().local_steps = 10;
    let tasks = method(&Product).tasks(&state, &["a".into(), "b".into(), "c".into()]);
    let (a, b, c) = (work(&tasks[0]), work(&tasks[1]), work(&tasks[2]));
    assert_eq!(a.adapter.factors[&UPPER.into()], diagonal(&[3.0, 2.0, 1.0]).components(0..2));
    assert_eq!(a.fixed, [(UPPER.into(), diagonal(&[3.0, 2.0, 1.0]).components(2..3))].into());
    // b holds all three components and a fresh one; the lower weight is all fresh.
    let upper = &b.adapter.factors[&UPPER.into()];
    assert_eq!(upper.components(0..3), diagonal(&[3.0, 2.0, 1.0]));
    assert_eq!((upper.rank(), upper.components(3..4).b()), (4, &Matrix::zeros(4, 1)));
    assert_eq!(b.adapter.factors[&LOWER.into()].rank(), 1);
    assert!(b.fixed.is_empty());
    // c trains the head alone and still applies the federation's model.
    assert!(c.adapter.factors.is_empty());
    assert_eq!(c.fixed, state.adapter.factors);
    assert_eq!((a.batch_size, a.steps, a.base_format), (2, 5, BaseFormat::Bf16));
    // Round 2 of 4, after a quarter of warm-up.
    let rate = LearningRate { peak: 0.8, schedule: Schedule::Linear, warmup_steps: 5, total_steps: 20, first_step: 5 };
    assert_eq!(a.learning_rate, rate);
    // Twice the steps a round: as far down the schedule.
    assert_eq!(b.steps, 10);
    assert_eq!(b.learning_rate, LearningRate { warmup_steps: 10, total_steps: 40, first_step: 10, ..rate });
}

#[test]
fn fresh_components_agree_between_silos_and_differ_between_rounds_and_weights() {
    let mut state = state();
    state.adapter.factors.clear();
    state.plan.silos.insert("a".into(), plan("a", &[(UPPER, 2), (LOWER, 2)]));
    let tasks = method(&Product).tasks(&state, &["a".into(), "b".into()]);
    let (a, b) = (work(&tasks[0]), work(&tasks[1]));
    let of = |work: &TrainWork, weight: &str| work.adapter.factors[&weight.into()].components(0..1);
    assert_eq!(of(a, UPPER), of(b, UPPER));
    assert_eq!(of(a, LOWER), of(b, LOWER));
    assert_ne!(of(a, UPPER), of(a, LOWER));
    state.round += 1;
    let later = method(&Product).tasks(&state, &["a".into()]);
    assert_ne!(of(work(&later[0]), UPPER), of(a, UPPER));
    assert_ne!(tasks[0].seed, tasks[1].seed);
}

/// By hand: a (300 examples) trained the first two components to 7 and 2 and keeps the third at 1; b (100) trained all to
/// 3, 6 and 1. The mean is ¾·(7, 2, 1) + ¼·(3, 6, 1) = (6, 3, 1). Only b trained the lower weight: it is b's alone.
#[test]
fn the_fold_is_the_mean_of_whole_models_over_those_who_trained() {
    let updates = [
        update("a", 300, &[(UPPER, diagonal(&[7.0, 2.0]))], 1.0),
        update("b", 100, &[(UPPER, diagonal(&[3.0, 6.0, 1.0])), (LOWER, diagonal(&[5.0]))], 5.0),
    ];
    for rule in [&Product as &'static dyn Aggregator, &ZeroPad] {
        let folded = method(rule).fold(&state(), &updates).unwrap();
        if rule.name() == "product" {
            assert_diagonal(&folded.factors[&UPPER.into()], [6.0, 3.0, 1.0, 0.0]);
        }
        assert_diagonal(&folded.factors[&LOWER.into()], [5.0, 0.0, 0.0, 0.0]);
        assert!(folded.head["classifier.weight"].data().iter().all(|&h| h == 2.0), "¾·1 + ¼·5");
        assert_eq!(folded.scaling, 2.0);
    }
    // A server of rank 2 keeps the two strongest.
    let mut state = state();
    state.plan.server_rank = 2;
    let folded = method(&Product).fold(&state, &updates).unwrap();
    assert_diagonal(&folded.factors[&UPPER.into()], [6.0, 3.0, 0.0, 0.0]);
}

/// The collapse that the remainder prevents (arXiv 2602.13486): with only rank-1 silos, components two and three live on.
#[test]
fn components_that_no_silo_can_hold_survive_rounds_of_small_silos() {
    let mut state = state();
    state.plan.silos = [plan("a", &[(UPPER, 1)])].map(|plan| (plan.silo.clone(), plan)).into();
    let method = method(&Product);
    for _ in 0..5 {
        let tasks = method.tasks(&state, &["a".into()]);
        let trained = work(&tasks[0]).adapter.factors[&UPPER.into()].clone();
        state.adapter = method.fold(&state, &[update("a", 100, &[(UPPER, trained)], 0.0)]).unwrap();
        state.round += 1;
    }
    assert_diagonal(&state.adapter.factors[&UPPER.into()], [3.0, 2.0, 1.0, 0.0]);
}

#[test]
fn weights_that_nobody_trained_stay_and_odd_shapes_are_an_error() {
    let method = method(&Product);
    let folded = method.fold(&state(), &[update("c", 100, &[], 0.0)]).unwrap();
    assert_eq!(folded.factors, state().adapter.factors);
    let narrow = LowRank::new(Matrix::zeros(1, 3), Matrix::zeros(4, 1)).unwrap();
    let error = method.fold(&state(), &[update("a", 100, &[(UPPER, narrow)], 0.0)]).unwrap_err();
    assert!(error.to_string().contains("layer.1.query: factors of a (4, 3) weight for one of (4, 4)"), "{error}");
}
