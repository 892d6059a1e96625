//! What every implementation of a contract has to keep, whatever else it does.

use crate::{Recorder, ToyTrainer};
use fedpipe_core::{
    Adapter, Aggregator, BaseFormat, Codec, Event, Failure, FailureKind, LearningRate, LowRank, Matrix, Observer, Seed,
    SiloId, SiloProfile, Stop, Task, Tensors, TrainWork, Trainer, Transport, Update, WeightedFactors, Work,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A dense B·A in `f64`, row by row.
fn product(factors: &LowRank) -> Vec<f64> {
    let (a, b) = (factors.a(), factors.b());
    let entry = |i: usize, j: usize| -> f64 {
        (0..factors.rank()).map(|k| f64::from(b.row(i)[k]) * f64::from(a.row(k)[j])).sum()
    };
    (0..b.rows()).flat_map(|i| (0..a.cols()).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn close(name: &str, what: &str, x: &LowRank, y: &LowRank) {
    let (x, y) = (product(x), product(y));
    let size = x.iter().fold(1e-12f64, |most, v| most.max(v.abs()));
    for (x, y) in x.iter().zip(&y) {
        assert!((x - y).abs() <= 1e-5 * size, "{name}: {what}: {x} is not {y}");
    }
}

/// Factors `[rank, 7]`, `[5, rank]` with nothing special about them.
fn factors(rank: usize, phase: f32) -> LowRank {
    let a = Matrix::from_fn(rank, 7, |i, j| (phase + 1.7 * i as f32 + 0.9 * j as f32).sin());
    let b = Matrix::from_fn(5, rank, |i, j| (phase + 0.8 * i as f32 + 2.3 * j as f32).cos());
    LowRank::new(a, b).unwrap()
}

/// Every merge rule: one silo alone gets its own product back; the order of silos does not matter; the result has the
/// weight's shape, no more than `max_rank` components and finite values, also for silos that changed nothing.
///
/// # Panics
/// Where the rule breaks the contract.
pub fn aggregator_conformance(rule: &dyn Aggregator) {
    let name = rule.name();
    let (one, two, three) = (factors(1, 0.1), factors(2, 0.2), factors(3, 0.3));
    for own in [&one, &two, &three] {
        let alone = rule.merge(&[WeightedFactors { share: 1.0, factors: own }], 8);
        close(name, "one silo alone keeps its product", own, &alone);
    }
    let mut parts =
        [(0.5, &one), (0.2, &two), (0.3, &three)].map(|(share, factors)| WeightedFactors { share, factors });
    let merged = rule.merge(&parts, 8);
    parts.reverse();
    close(name, "the order of silos does not matter", &merged, &rule.merge(&parts, 8));
    let none = LowRank::new(Matrix::zeros(0, 7), Matrix::zeros(5, 0)).unwrap();
    let unchanged = LowRank::new(factors(2, 0.4).a().clone(), Matrix::zeros(5, 2)).unwrap();
    let idle = [(0.5, &none), (0.5, &unchanged)].map(|(share, factors)| WeightedFactors { share, factors });
    for (parts, max_rank) in [(&parts[..], 8), (&parts, 2), (&parts, 1), (&parts, 0), (&idle, 4)] {
        let merged = rule.merge(parts, max_rank);
        assert_eq!((merged.a().cols(), merged.b().rows()), (7, 5), "{name}: the shape is the weight's");
        assert!(merged.rank() <= max_rank, "{name}: rank {} is above {max_rank}", merged.rank());
        assert!(merged.a().is_finite() && merged.b().is_finite(), "{name}: not finite");
        assert_eq!(merged, rule.merge(parts, max_rank), "{name}: the same parts give the same factors");
    }
    assert!(product(&rule.merge(&idle, 4)).iter().all(|&v| v == 0.0), "{name}: nothing changed, nothing merged");
}

/// Every codec: names and shapes come back, values up to a relative error of 1 %, the same message for the same tensors,
/// no message at all decodes to no tensors; a truncated or corrupted message is an error or tensors, never a panic.
///
/// # Panics
/// Where the codec breaks the contract.
pub fn codec_conformance(codec: &dyn Codec) {
    let name = codec.name();
    let mut tensors = Tensors::new();
    tensors.insert("layer.0.query.lora_A.weight".into(), Matrix::from_fn(3, 5, |i, j| (i as f32 - j as f32) * 0.37));
    tensors.insert("layer.0.query.lora_B.weight".into(), Matrix::zeros(4, 3));
    tensors.insert("classifier.bias".into(), Matrix::from_fn(1, 2, |_, j| 1e-6 * (1 + j) as f32));
    tensors.insert("rank 0 and \"quotes\"".into(), Matrix::zeros(0, 4));
    let bytes = codec.encode(&tensors);
    assert_eq!(bytes, codec.encode(&tensors), "{name}: the same tensors give the same bytes");
    let back = codec.decode(&bytes).expect(name);
    assert_eq!(back.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>(), "{name}: names");
    for (key, sent) in &tensors {
        let got = &back[key];
        assert_eq!((got.rows(), got.cols()), (sent.rows(), sent.cols()), "{name}: shape of {key}");
        for (x, y) in sent.data().iter().zip(got.data()) {
            assert!((x - y).abs() <= 0.01 * x.abs(), "{name}: {key}: {x} came back as {y}");
        }
    }
    assert_eq!(codec.decode(&codec.encode(&Tensors::new())), Ok(Tensors::new()), "{name}: no tensors");
    for length in 0..bytes.len() {
        assert!(codec.decode(&bytes[..length]).is_err(), "{name}: {length} of {} bytes decoded", bytes.len());
    }
    for position in 0..bytes.len() {
        let mut corrupted = bytes.clone();
        corrupted[position] ^= 0x55;
        let _ = codec.decode(&corrupted);
    }
}

/// A silo that answers every call by panicking.
struct Panicking;

impl Trainer for Panicking {
    fn enrol(&self) -> Result<SiloProfile, Failure> {
        panic!("no device");
    }

    fn run(&self, _: &Task, _: &dyn Observer, _: &Stop) -> Result<Update, Failure> {
        panic!("no device");
    }
}

fn train_task(silo: &str, steps: usize) -> Task {
    let work = TrainWork {
        adapter: Adapter { scaling: 1.0, factors: BTreeMap::new(), head: Tensors::new() },
        fixed: BTreeMap::new(),
        base_format: BaseFormat::F32,
        recompute: false,
        batch_size: 1,
        steps,
        learning_rate: LearningRate::constant(0.1),
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        dropout: 0.0,
        spare_bytes: 0,
    };
    Task { round: 3, silo: silo.into(), seed: Seed(1), work: Work::Train(work) }
}

/// Every transport, connected by `connect` to two good silos and one that panics: all are listed and answer in order; a
/// panic is a crash in its place and a silo that it does not know is a failure; every step reaches the observer; no tasks
/// give no results; the next round works like the first.
///
/// # Panics
/// Where the transport breaks the contract.
pub fn transport_conformance(connect: impl Fn(BTreeMap<SiloId, Arc<dyn Trainer>>) -> Box<dyn Transport>) {
    let mut trainers: BTreeMap<SiloId, Arc<dyn Trainer>> = [("panics".into(), Arc::new(Panicking) as _)].into();
    for (silo, trainer) in [ToyTrainer::new("a", 100, 1.0), ToyTrainer::new("z", 200, 2.0)] {
        trainers.insert(silo, Arc::new(trainer));
    }
    let transport = connect(trainers);
    let silos = transport.silos();
    assert_eq!(silos, transport.silos(), "silos are in a fixed order");
    let enrolled = transport.enrol();
    assert_eq!(enrolled.len(), silos.len(), "an answer a silo");
    for (silo, answer) in silos.iter().zip(enrolled) {
        match answer {
            Ok(profile) => assert_eq!(&profile.silo, silo, "profiles are in the order of the silos"),
            Err(failure) => assert_eq!((failure.silo.as_str(), failure.kind), ("panics", FailureKind::Crashed)),
        }
    }
    let recorder = Recorder::default();
    for _ in 0..2 {
        let tasks = ["z", "panics", "nobody", "a"].map(|silo| train_task(silo, 2));
        let results = transport.exchange(tasks.to_vec(), &recorder, &Stop::default());
        let [Ok(z), Err(panics), Err(nobody), Ok(a)] = &results[..] else { panic!("{results:?}") };
        assert_eq!((z.silo.as_str(), a.silo.as_str(), z.round), ("z", "a", 3), "results are in the order of the tasks");
        assert_eq!((panics.silo.as_str(), panics.round, panics.kind), ("panics", 3, FailureKind::Crashed));
        assert_eq!(nobody.silo.as_str(), "nobody", "a silo that is not there is a failure, not a panic");
    }
    let step = |event: Event| match event {
        Event::Step { silo, step, .. } if silo.as_str() == "a" => Some(step),
        _ => None,
    };
    assert_eq!(recorder.events().into_iter().filter_map(step).collect::<Vec<_>>(), [1, 2, 1, 2], "every step is told");
    assert!(transport.exchange(Vec::new(), &recorder, &Stop::default()).is_empty(), "no tasks, no results");
}
