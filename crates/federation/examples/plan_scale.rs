//! How long plans for large federations take, and how far from the best they can be.
//!
//! ```text
//! cargo run --release -p fedpipe-federation --example plan_scale -- [--own] [--capped] [SILOS …]
//! ```
//!
//! Silos of unlike memory, speed, link and texts over a model of 32 layers with seven weights each, of the sizes of
//! Llama-3.2-1B's; six batch sizes, four formats, recomputation or not, ranks 2 to 64, a deadline and a server's rank that
//! the planner sets. With `--own` every silo has scores of its own that count for half.

use std::collections::BTreeMap;
use std::time::Instant;

use fedpipe_core::{
    ActivationFormat, BaseFormat, CandidateWeight, DeviceProfile, LengthStats, MemoryCoefficients, ModelSpec, Seed,
    SiloId, SiloProfile, TimeCoefficients, WeightId,
};
use fedpipe_federation::plan::{
    BATCH_VALUE, Deadline, Importance, Menu, PlanSettings, STEP_VALUE, TuningPatterns, plan,
};
use fedpipe_testkit::toy_model;
use rand::RngExt;

const LAYERS: usize = 32;
const HIDDEN: usize = 2048;
const KEYS: usize = 512;
const INNER: usize = 8192;
const FORMATS: [(BaseFormat, f64); 4] =
    [(BaseFormat::Bf16, 2.0), (BaseFormat::Nf8, 1.0625), (BaseFormat::Nf4, 0.5625), (BaseFormat::Nf3, 0.4375)];

fn main() {
    let capped = std::env::args().any(|argument| argument == "--capped");
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![10, 100, 1000, 10_000] } else { sizes };
    let own_share = if std::env::args().any(|argument| argument == "--own") { 0.5 } else { 0.0 };
    let (model, federation) = (model(), importance(0));
    let columns = ["silos", "seconds", "ms a silo", "gap", "adapted weights, mean", "uncovered", "server's rank"];
    println!("| {} |\n|{}", columns.join(" | "), "--:|".repeat(columns.len()));
    for size in sizes {
        let silos: BTreeMap<SiloId, SiloProfile> =
            (0..size).map(|number| silo(number, capped)).map(|silo| (silo.silo.clone(), silo)).collect();
        let own =
            silos.keys().zip(1..).filter(|_| own_share > 0.0).map(|(silo, seed)| (silo.clone(), importance(seed)));
        let own = own.collect();
        let importance = Importance { federation: &federation, own: &own, own_share };
        let menu = Menu {
            batch_sizes: vec![1, 2, 4, 8, 16, 32],
            formats: FORMATS.map(|(format, _)| format).to_vec(),
            recompute: vec![false, true],
            ranks: vec![2, 4, 8, 16, 32, 64],
            batch_value: BATCH_VALUE,
            step_multiples: vec![1, 2, 3, 4, 6, 8],
            step_value: STEP_VALUE,
        };
        let deadline = Deadline::Auto;
        let (finish, tuning) = (None, TuningPatterns::default());
        let settings = PlanSettings {
            menu,
            server_rank: None,
            local_steps: 10,
            cohort_fraction: 1.0,
            value_bytes: 2.0,
            deadline,
            finish,
            coverage: 2,
            tuning,
        };
        let start = Instant::now();
        let plan = match plan(&model, &silos, importance, &settings) {
            Ok(plan) => plan,
            Err(error) => {
                eprintln!("{size} silos: {error}");
                continue;
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        let adapted: usize = plan.silos.values().map(|silo| silo.ranks.len()).sum();
        println!(
            "| {size} | {seconds:.2} | {:.2} | {:.3} % | {:.0} | {} | {} |",
            1e3 * seconds / size as f64,
            100.0 * plan.optimality.gap(),
            adapted as f64 / size as f64,
            plan.optimality.uncovered.len(),
            plan.server_rank,
        );
    }
}

fn weights() -> impl Iterator<Item = CandidateWeight> {
    let kinds = [
        ("q_proj", HIDDEN, HIDDEN),
        ("k_proj", HIDDEN, KEYS),
        ("v_proj", HIDDEN, KEYS),
        ("o_proj", HIDDEN, HIDDEN),
        ("gate_proj", HIDDEN, INNER),
        ("up_proj", HIDDEN, INNER),
        ("down_proj", INNER, HIDDEN),
    ];
    (0..LAYERS).flat_map(move |layer| {
        kinds.map(|(kind, inputs, outputs)| CandidateWeight {
            id: WeightId::new(format!("layers.{layer}.{kind}")),
            layer,
            kind: kind.into(),
            inputs,
            outputs,
        })
    })
}

fn model() -> ModelSpec {
    let candidates: Vec<CandidateWeight> = weights().collect();
    let parameters: usize = candidates.iter().map(|c| c.inputs * c.outputs).sum();
    let base_bytes = FORMATS.map(|(format, bytes)| (format, (parameters as f64 * bytes) as u64)).into();
    ModelSpec { layers: LAYERS, candidates, base_bytes, parameters: parameters as u64, ..toy_model() }
}

/// Upper layers count for more, and no two weights for the same.
fn importance(seed: u64) -> BTreeMap<WeightId, f64> {
    let mut stream = Seed(seed).stream();
    let scores: Vec<(WeightId, f64)> =
        weights().map(|c| (c.id, stream.random_range(0.2..1.0) * (1.0 + c.layer as f64))).collect();
    let all: f64 = scores.iter().map(|(_, score)| score).sum();
    scores.into_iter().map(|(id, score)| (id, score / all)).collect()
}

/// With `capped` every third silo has a cap on data: what the merged adapter takes down, and nothing to all of its size up.
fn silo(number: usize, capped: bool) -> SiloProfile {
    let mut stream = Seed(1 + number as u64).stream();
    let mut spread = |low: f64, high: f64| low * (high / low).powf(stream.random_range(0.0..1.0));
    let memory = |bytes: f64| MemoryCoefficients {
        layer_bytes_per_token: 53_000.0 * bytes,
        layer_input_bytes_per_token: 2048.0 * bytes,
        workspace_bytes_per_token: 60_000.0 * bytes,
        recompute_workspace_bytes_per_token: 60_000.0 * bytes,
        adapter_bytes_per_token_rank: 2.0 * bytes,
        fixed_bytes: 64e6,
    };
    let time = |slower: f64| TimeCoefficients {
        forward_s_per_token_layer: 3e-5 * slower,
        backward_s_per_token_layer: 6e-5 * slower,
    };
    SiloProfile {
        silo: SiloId::new(format!("silo-{number:05}")),
        examples: spread(100.0, 10_000.0) as u64,
        lengths: LengthStats { mean: spread(30.0, 300.0), deviation: 20.0, longest: 512 },
        memory_mib: spread(2048.0, 24_576.0) as u64,
        speed: spread(0.25, 8.0),
        bandwidth_mbps: spread(3.0, 1000.0),
        data_cap_mib: (capped && number.is_multiple_of(3)).then(|| spread(180.0, 330.0)),
        cache_bytes: 0,
        device: DeviceProfile {
            device: "made up".into(),
            memory: [(ActivationFormat::F32, memory(4.0)), (ActivationFormat::Bf16, memory(2.0))].into(),
            time: FORMATS.map(|(format, bytes)| (format, time(1.2 - 0.1 * bytes))).into(),
            adapter_s_per_token_rank: 4e-9,
            step_overhead_s: 5e-3,
        },
    }
}
