//! What the golden tests share: fixtures, both kinds of operations, and gradients of frozen weights.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]
#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]

use candle_core::{Device, Tensor};
use fedpipe_core::{
    Adapter, BaseFormat, CandidateWeight, Event, LearningRate, LowRank, Matrix, Observer, Seed, Stop, TrainWork,
    WeightId,
};
use fedpipe_model::adapter::{Adapters, Attached, Trained, fresh_head};
use fedpipe_model::data::{Dataset, Targets};
use fedpipe_model::head::HeadKind;
use fedpipe_model::ops::{OpsKind, Workspace};
use fedpipe_model::parameters::{ParameterId, Parameters};
use fedpipe_model::{BaseModel, HeapMeter, Objective, StepReport, Training, train};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Of logits, losses and gradients against PyTorch's.
pub const TOLERANCE: f32 = 1e-4;

/// Measures nothing.
pub struct NoMeter;

impl HeapMeter for NoMeter {
    fn current_bytes(&self) -> u64 {
        0
    }

    fn peak_bytes(&self) -> u64 {
        0
    }

    fn reset_peak(&self) {}
}

/// Nobody listens.
pub struct Unheard;

impl Observer for Unheard {
    fn observe(&self, _: &Event) {}
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures").join(name)
}

pub fn safetensors(path: PathBuf) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A matrix of a tensor; a vector becomes one row.
pub fn matrix(tensor: &Tensor) -> Matrix {
    let values = flat(tensor);
    let columns = tensor.dims().last().copied().unwrap();
    Matrix::new(values.len() / columns, columns, values).unwrap()
}

/// Relative to the largest expected value.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: shape");
    let size = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance * size, "{what}: {worst} off at values up to {size}");
}

/// Both kinds of operations; the fast ones also with every layer recomputed on the way back.
pub fn workspaces() -> [(String, Workspace); 3] {
    [(OpsKind::Reference, false), (OpsKind::Fast, false), (OpsKind::Fast, true)].map(|(kind, recompute)| {
        (format!("{kind:?}, recompute {recompute}"), Workspace::new(kind, BaseFormat::F32, recompute))
    })
}

/// Reads gradients of frozen weights `(id, inputs, outputs)` off low-rank paths with A = I and B = 0: dB = dyᵀ·x = dW.
pub fn probes(
    weights: impl IntoIterator<Item = (WeightId, usize, usize)>,
    parameters: &mut Parameters,
) -> (Adapters, Vec<(WeightId, ParameterId)>) {
    let (mut adapters, mut probes) = (Adapters::none(), Vec::new());
    for (id, inputs, outputs) in weights {
        let a = parameters.add(Matrix::from_fn(inputs, inputs, |i, j| f32::from(i == j)));
        let b = parameters.add(Matrix::zeros(outputs, inputs));
        probes.push((id.clone(), b));
        adapters.insert(id, Attached { trained: Some(Trained { a, b }), fixed: None, scaling: 1.0 });
    }
    (adapters, probes)
}

/// Every weight of a model that may be adapted: id, inputs, outputs.
pub fn candidates(base: &BaseModel) -> Vec<(WeightId, usize, usize)> {
    base.outline().candidates.iter().map(|c| (c.id.clone(), c.inputs, c.outputs)).collect()
}

/// What opening a fixture says with one key of its configuration changed; nothing when it is taken.
pub fn message_with(name: &str, key: &str, value: serde_json::Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    BaseModel::open(folder.path()).err().map(|error| error.to_string()).unwrap_or_default()
}

/// What `fedpipe run` does on a silo: a model learns two classes, over formats of the base and of activations.
pub fn check_training(name: &str, base: &BaseModel, steps: usize) {
    let spec = base.spec(&[], HeadKind::Classes(2)).unwrap();
    let text = |i: u32| (0..9).map(|j| 2 + (i * 7 + j * 3) % 60).collect::<Vec<u32>>();
    let classes = Targets::Classes((0..8).map(|i| i % 2).collect());
    let data = Dataset::pack(&(0..8).map(text).collect::<Vec<_>>(), classes);
    let fresh =
        |c: &CandidateWeight| (c.id.clone(), LowRank::fresh(2, c.inputs, c.outputs, Seed(1).named(c.id.as_str())));
    for (base_format, recompute) in [(BaseFormat::F32, false), (BaseFormat::Bf16, true), (BaseFormat::Nf4, false)] {
        let work = TrainWork {
            adapter: Adapter {
                scaling: 2.0,
                factors: spec.candidates.iter().map(fresh).collect(),
                head: fresh_head(&spec.head, Seed(1)),
            },
            fixed: BTreeMap::new(),
            base_format,
            batch_size: 4,
            steps,
            learning_rate: LearningRate::constant(1e-2),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dropout: 0.0,
            spare_bytes: 0,
            recompute,
        };
        let encoder = base.encoder(base_format).unwrap();
        assert_eq!(encoder.bytes(), base.outline().base_bytes(base_format), "{name}");
        let objective = Objective::Classification { head: base.outline().head };
        let training = Training { kind: OpsKind::Fast, encoder: &*encoder, objective: &objective, cache: None };
        let mut losses = Vec::new();
        let mut hear = |report: StepReport| losses.push(report.loss);
        let trained = train(training, &data, &work, Seed(3), &Stop::default(), &mut hear).unwrap();
        base.check_adapter(&trained, HeadKind::Classes(2)).unwrap();
        let last = losses[steps - 2] + losses[steps - 1];
        assert!(last < 0.6 * (losses[0] + losses[1]), "{name}, {base_format}: {losses:?}");
    }
}
