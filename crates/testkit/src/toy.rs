//! A model of two weights and a silo that fits it to a target: small enough to follow by hand.

use fedpipe_core::{
    ActivationFormat, Adapter, BaseFormat, CandidateWeight, DeviceProfile, Event, Failure, LengthStats, LowRank,
    Matrix, Measured, MemoryCoefficients, ModelSpec, Observer, Outcome, ProbeWork, SiloId, SiloProfile, Stop, Task,
    TimeCoefficients, TrainWork, Trainer, Update, WeightId, Work,
};
use std::collections::BTreeMap;

/// Two layers of one 4×4 weight `layer.N.query` each, and a head `classifier.weight` `[2, 4]`.
pub fn toy_model() -> ModelSpec {
    let candidate = |layer: usize| CandidateWeight {
        id: WeightId::new(format!("layer.{layer}.query")),
        layer,
        kind: "query".into(),
        inputs: 4,
        outputs: 4,
    };
    ModelSpec {
        architecture: "toy".into(),
        fingerprint: "0".into(),
        parameters: 1000,
        layers: 2,
        hidden: 4,
        candidates: vec![candidate(0), candidate(1)],
        head: [("classifier.weight".to_string(), (2, 4))].into(),
        base_bytes: [(BaseFormat::F32, 4000), (BaseFormat::Bf16, 2000), (BaseFormat::Nf4, 600)].into(),
    }
}

/// A silo of 100 texts of ten tokens, 1 MiB, half speed and 1 Mbit/s; its measured profile is made of round numbers.
pub fn toy_profile(silo: &str) -> SiloProfile {
    let time = TimeCoefficients { forward_s_per_token_layer: 1e-3, backward_s_per_token_layer: 2e-3 };
    let memory = |layer_input_bytes_per_token: f64| MemoryCoefficients {
        layer_bytes_per_token: 100.0,
        layer_input_bytes_per_token,
        workspace_bytes_per_token: 50.0,
        recompute_workspace_bytes_per_token: 50.0,
        adapter_bytes_per_token_rank: 1.0,
        fixed_bytes: 1000.0,
    };
    SiloProfile {
        silo: silo.into(),
        examples: 100,
        lengths: LengthStats { mean: 10.0, deviation: 0.0, longest: 10 },
        memory_mib: 1,
        speed: 0.5,
        bandwidth_mbps: 1.0,
        data_cap_mib: None,
        cache_bytes: 0,
        device: DeviceProfile {
            device: "toy".into(),
            memory: [(ActivationFormat::F32, memory(10.0)), (ActivationFormat::Bf16, memory(5.0))].into(),
            time: [BaseFormat::F32, BaseFormat::Bf16, BaseFormat::Nf4].map(|format| (format, time.clone())).into(),
            adapter_s_per_token_rank: 3e-3,
            step_overhead_s: 10e-3,
        },
    }
}

/// A silo whose loss is ½·Σ_m ‖scaling·(B·A + B_fixed·A_fixed) − target_m‖² + ½·‖head − 1‖²: every weight has its own
/// target, the head wants to be all ones. Trains by plain gradient descent at the first learning rate of the task.
#[derive(Debug, Clone)]
pub struct ToyTrainer {
    /// What it says at enrolment.
    pub profile: SiloProfile,
    /// Where each weight should go, `[out, in]`.
    pub targets: BTreeMap<WeightId, Matrix>,
}

impl ToyTrainer {
    /// A silo of [`toy_profile`] for [`toy_model`] whose targets are `strength` times a matrix of rank 1.
    pub fn new(silo: &str, examples: u64, strength: f32) -> (SiloId, Self) {
        let target = Matrix::from_fn(4, 4, |i, j| strength * (1.0 + i as f32) * (1.0 - j as f32) / 8.0);
        let targets = toy_model().candidates.into_iter().map(|c| (c.id, target.clone())).collect();
        (silo.into(), Self { profile: SiloProfile { examples, ..toy_profile(silo) }, targets })
    }

    /// The loss of `adapter` on this silo.
    pub fn loss(&self, adapter: &Adapter) -> f64 {
        let residual = |(weight, target): (&WeightId, &Matrix)| {
            let product = adapter.factors.get(weight).map(product).unwrap_or_else(|| Matrix::zeros(4, 4));
            Matrix::from_fn(4, 4, |i, j| adapter.scaling * product.row(i)[j] - target.row(i)[j]).norm().powi(2) / 2.0
        };
        let head = adapter.head.values().flat_map(Matrix::data).map(|&h| f64::from(h - 1.0).powi(2) / 2.0);
        self.targets.iter().map(residual).sum::<f64>() + head.sum::<f64>()
    }

    /// The whole adapter as the silo's model applies it: what trains beside what is fixed.
    fn whole(work: &TrainWork, adapter: &Adapter) -> Adapter {
        let mut whole = adapter.clone();
        for (weight, fixed) in &work.fixed {
            let trained = whole.factors.get(weight).cloned();
            whole.factors.insert(weight.clone(), trained.map_or_else(|| fixed.clone(), |t| t.stacked(fixed)));
        }
        whole
    }

    /// One step of gradient descent: the loss before it; Σ |p·∂L/∂p| of every weight is added to `sensitivity`.
    fn step(&self, work: &TrainWork, adapter: &mut Adapter, sensitivity: &mut BTreeMap<WeightId, f64>) -> f64 {
        let whole = Self::whole(work, adapter);
        let (rate, scaling) = (work.learning_rate.at(0) as f32, adapter.scaling);
        for (weight, factors) in &mut adapter.factors {
            let (product, target) = (product(&whole.factors[weight]), &self.targets[weight]);
            let gradient = Matrix::from_fn(4, 4, |i, j| scaling * (scaling * product.row(i)[j] - target.row(i)[j]));
            let (a, b) = (factors.a(), factors.b());
            let of_a = Matrix::from_fn(a.rows(), 4, |k, j| (0..4).map(|i| b.row(i)[k] * gradient.row(i)[j]).sum());
            let of_b = Matrix::from_fn(4, b.cols(), |i, k| (0..4).map(|j| gradient.row(i)[j] * a.row(k)[j]).sum());
            let moved = |from: &Matrix, along: &Matrix| {
                Matrix::from_fn(from.rows(), from.cols(), |i, j| from.row(i)[j] - rate * along.row(i)[j])
            };
            let (new_a, new_b) = (moved(a, &of_a), moved(b, &of_b));
            let values = a.data().iter().chain(b.data()).zip(of_a.data().iter().chain(of_b.data()));
            *sensitivity.entry(weight.clone()).or_default() +=
                values.map(|(&p, &g)| f64::from(p * g).abs()).sum::<f64>() / work.steps as f64;
            *factors = LowRank::new(new_a, new_b).unwrap();
        }
        for value in adapter.head.values_mut().flat_map(|m| m.data_mut()) {
            *value -= rate * (*value - 1.0);
        }
        self.loss(&whole)
    }

    fn scores(&self, probe: &ProbeWork) -> Outcome {
        let norms: BTreeMap<_, _> =
            self.targets.iter().map(|(w, t)| (w.clone(), t.norm() * probe.rank as f64)).collect();
        let total: f64 = norms.values().sum();
        Outcome::Scores(norms.into_iter().map(|(weight, norm)| (weight, norm / total)).collect())
    }
}

/// B·A of a 4×4 weight.
fn product(factors: &LowRank) -> Matrix {
    let rank = factors.rank();
    Matrix::from_fn(4, 4, |i, j| (0..rank).map(|k| factors.b().row(i)[k] * factors.a().row(k)[j]).sum())
}

impl Trainer for ToyTrainer {
    fn enrol(&self) -> Result<SiloProfile, Failure> {
        Ok(self.profile.clone())
    }

    fn run(&self, task: &Task, observer: &dyn Observer, stop: &Stop) -> Result<Update, Failure> {
        let tokens_per_step = |batch: usize| (batch as f64 * self.profile.lengths.mean) as u64;
        let mut sensitivity = BTreeMap::new();
        let (outcome, measured) = match &task.work {
            Work::Probe(probe) => {
                let tokens = probe.steps as u64 * tokens_per_step(probe.batch_size);
                (self.scores(probe), Measured { steps: probe.steps, tokens, ..Measured::default() })
            }
            Work::Train(work) => {
                let mut adapter = work.adapter.clone();
                let mut measured = Measured::default();
                for step in 1..=work.steps {
                    let (loss, tokens) =
                        (self.step(work, &mut adapter, &mut sensitivity), tokens_per_step(work.batch_size));
                    measured.steps = step;
                    measured.tokens += tokens;
                    measured.loss += loss / work.steps as f64;
                    let (round, silo, steps) = (task.round, task.silo.clone(), work.steps);
                    observer.observe(&Event::Step { round, silo, step, steps, loss, tokens });
                    if stop.requested() {
                        break;
                    }
                }
                if !work.sensitivity {
                    sensitivity.clear();
                }
                (Outcome::Trained(adapter), measured)
            }
        };
        let (round, silo, examples) = (task.round, task.silo.clone(), self.profile.examples);
        Ok(Update { round, silo, examples, outcome, measured, sensitivity })
    }
}
