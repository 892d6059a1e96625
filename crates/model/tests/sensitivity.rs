//! The sensitivity that training hands back is the slope of the loss.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::fixture;
use fedpipe_core::{Adapter, BaseFormat, LearningRate, LowRank, Matrix, Seed, Stop, TrainWork, WeightId};
use fedpipe_model::adapter::fresh_head;
use fedpipe_model::data::{Dataset, Targets};
use fedpipe_model::head::HeadKind;
use fedpipe_model::ops::OpsKind;
use fedpipe_model::{BaseModel, Objective, TrainedAdapter, Training, train};

/// One step over the same texts.
fn one_step(base: &BaseModel, kind: OpsKind, work: &TrainWork) -> (f64, TrainedAdapter) {
    let text = |i: u32| (0..9).map(|j| 2 + (i * 7 + j * 3) % 60).collect::<Vec<u32>>();
    let classes = Targets::Classes((0..4).map(|i| i % 2).collect());
    let data = Dataset::pack(&(0..4).map(text).collect::<Vec<_>>(), classes);
    let encoder = base.encoder(work.base_format).unwrap();
    let objective = Objective::Classification { head: base.outline().head };
    let training = Training { kind, encoder: &*encoder, objective: &objective, cache: None };
    let mut loss = 0.0;
    let trained = train(training, &data, work, Seed(3), &Stop::default(), &mut |report| loss = report.loss).unwrap();
    (loss, trained)
}

fn work(base: &BaseModel, factors: &[(WeightId, LowRank)]) -> TrainWork {
    let head = fresh_head(&base.spec(&[], HeadKind::Classes(2)).unwrap().head, Seed(1));
    TrainWork {
        adapter: Adapter { scaling: 2.0, factors: factors.iter().cloned().collect(), head },
        fixed: Default::default(),
        base_format: BaseFormat::F32,
        recompute: false,
        batch_size: 4,
        steps: 1,
        learning_rate: LearningRate::constant(1e-3),
        weight_decay: 0.0,
        // Far below the gradient: what is clipped is not what is measured.
        max_grad_norm: 1e-3,
        dropout: 0.0,
        spare_bytes: 0,
        sensitivity: true,
    }
}

#[test]
fn it_is_the_slope_of_the_loss_at_every_entry_of_the_factors() {
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let candidates = &base.outline().candidates;
    let weights = [&candidates[0], &candidates[candidates.len() - 1]];
    let wave = |rows, cols| Matrix::from_fn(rows, cols, |i, j| 0.3 * ((i * 5 + j * 3) as f32).sin());
    let factors: Vec<(WeightId, LowRank)> =
        weights.iter().map(|c| (c.id.clone(), LowRank::new(wave(1, c.inputs), wave(c.outputs, 1)).unwrap())).collect();
    let work = work(&base, &factors);
    let (_, reference) = one_step(&base, OpsKind::Reference, &work);
    // Central differences, an entry after the other: p·∂L/∂p.
    for (place, (weight, low_rank)) in factors.iter().enumerate() {
        let mut slopes = 0.0;
        for entry in 0..low_rank.parameters() {
            let loss = |scale: f32| {
                let (mut a, mut b) = (low_rank.a().clone(), low_rank.b().clone());
                let inputs = a.data().len();
                let value = if entry < inputs { &mut a.data_mut()[entry] } else { &mut b.data_mut()[entry - inputs] };
                *value *= scale;
                let mut factors = factors.clone();
                factors[place].1 = LowRank::new(a, b).unwrap();
                let moved = TrainWork { sensitivity: false, ..crate::work(&base, &factors) };
                one_step(&base, OpsKind::Reference, &moved).0
            };
            slopes += ((loss(1.1) - loss(0.9)) / 0.2).abs();
        }
        let found = reference.sensitivity[weight];
        assert!((found / slopes - 1.0).abs() < 0.03, "{weight}: {found} is not {slopes}");
    }
    let (_, fast) = one_step(&base, OpsKind::Fast, &work);
    for (weight, expected) in &reference.sensitivity {
        assert!((fast.sensitivity[weight] / expected - 1.0).abs() < 1e-3, "{weight}");
    }
    assert_eq!(reference.sensitivity.len(), 2);
}

#[test]
fn who_does_not_ask_gets_none_and_the_same_adapter() {
    let base = BaseModel::open(&fixture("bert-tiny")).unwrap();
    let fresh = |c: &fedpipe_core::CandidateWeight| (c.id.clone(), LowRank::fresh(2, c.inputs, c.outputs, Seed(1)));
    let factors: Vec<_> = base.outline().candidates.iter().map(fresh).collect();
    let asked = TrainWork { steps: 3, ..work(&base, &factors) };
    let unasked = TrainWork { sensitivity: false, ..asked.clone() };
    let [(_, asked), (_, unasked)] = [asked, unasked].map(|work| one_step(&base, OpsKind::Fast, &work));
    assert_eq!(asked.adapter, unasked.adapter);
    assert!(unasked.sensitivity.is_empty());
    assert!(asked.sensitivity.values().all(|s| *s > 0.0) && asked.sensitivity.len() == factors.len());
}
