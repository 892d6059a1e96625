//! A finished run of four silos, made up, for the tests of what a run leaves behind.

use fedpipe_core::{
    ActivationFormat, Adapter, BaseFormat, CacheUse, CandidateWeight, DeviceProfile, Event, Failure, FailureKind,
    LengthStats, LowRank, Matrix, Measured, MemoryCoefficients, MemoryTerms, Metrics, ModelSpec, Optimality, Plan,
    RUN_STATE_VERSION, RoundRecord, RunState, Seed, SiloId, SiloPlan, SiloProfile, SiloRound, TimeTerms, WeightId,
};
use std::collections::BTreeMap;

type Silo = (&'static str, u64, f64, f64, u64, BaseFormat, usize, usize);

/// Name, MiB, speed, Mbit/s, examples, format, batch, scale of the ranks.
const SILOS: [Silo; 4] = [
    ("bank", 400, 0.5, 50.0, 1_700, BaseFormat::Bf16, 16, 8),
    ("clinic", 700, 1.0, 100.0, 2_100, BaseFormat::F32, 32, 16),
    ("edge", 160, 0.25, 5.0, 385, BaseFormat::Nf4, 4, 2),
    ("factory", 250, 0.5, 20.0, 1_300, BaseFormat::Nf8, 8, 4),
];
const KINDS: [&str; 4] =
    ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"];
const LAYERS: usize = 6;
const ROUNDS: u32 = 8;
const MIB: f64 = 1_048_576.0;

/// The metrics at the end.
pub fn metrics() -> Metrics {
    Metrics {
        accuracy: Some(0.9584),
        macro_f1: Some(0.8817),
        matthews: Some(0.9391),
        loss: 0.1523,
        examples: 2_189,
        ..Metrics::default()
    }
}

/// The state after the last round.
pub fn state() -> RunState {
    let history: Vec<RoundRecord> = (1..=ROUNDS).map(round).collect();
    let sum = |bytes: fn(&SiloRound) -> u64| history.iter().flat_map(|r| &r.silos).map(bytes).sum();
    RunState {
        version: RUN_STATE_VERSION,
        method: "fedpipe".into(),
        seed: Seed(42),
        inputs: "0123abcd".into(),
        round: ROUNDS,
        profiles: SILOS.iter().map(|silo| (silo.0.into(), profile(silo))).collect(),
        importance: importance(),
        own_importance: BTreeMap::new(),
        plan: plan(),
        never_tune: Vec::new(),
        learning_rate: 3e-3,
        plan_changes: Vec::new(),
        slowness: BTreeMap::new(),
        adapter: adapter(),
        bytes_up: sum(|silo| silo.bytes_up),
        bytes_down: sum(|silo| silo.bytes_down),
        clock_s: history.iter().map(|round| round.seconds).sum(),
        wall_s: 412.75,
        history,
    }
}

/// An adapter with a weight or two, an awkward scaling and a head.
pub fn adapter() -> Adapter {
    let factors = |seed| LowRank::fresh(4, 8, 6, Seed(seed));
    Adapter {
        scaling: 0.1 + 0.2,
        factors: [(weight(0, 0), factors(1)), (weight(5, 2), factors(2))].into(),
        head: [("classifier.bias".to_string(), Matrix::from_fn(1, 3, |_, j| 1.0 / (j as f32 + 3.0)))].into(),
    }
}

/// The base model.
pub fn model() -> ModelSpec {
    let cells = (0..LAYERS).flat_map(|layer| (0..KINDS.len()).map(move |kind| (layer, kind)));
    let candidate = |(layer, kind): (usize, usize)| CandidateWeight {
        id: weight(layer, kind),
        layer,
        kind: KINDS[kind].trim_start_matches("attention.self.").into(),
        inputs: 32,
        outputs: 32,
    };
    ModelSpec {
        architecture: "bert".into(),
        fingerprint: "0".into(),
        parameters: 1_000_000,
        layers: LAYERS,
        hidden: 32,
        candidates: cells.map(candidate).collect(),
        head: BTreeMap::new(),
        base_bytes: BTreeMap::new(),
    }
}

fn weight(layer: usize, kind: usize) -> WeightId {
    WeightId::new(format!("bert.encoder.layer.{layer}.{}", KINDS[kind]))
}

fn importance() -> BTreeMap<WeightId, f64> {
    let raw = |layer: usize, kind: usize| (1.0 + layer as f64).powf(0.9) * [0.7, 0.3, 1.4, 1.0][kind];
    let cells = || (0..LAYERS).flat_map(|layer| (0..KINDS.len()).map(move |kind| (layer, kind)));
    let sum: f64 = cells().map(|(layer, kind)| raw(layer, kind)).sum();
    cells().map(|(layer, kind)| (weight(layer, kind), raw(layer, kind) / sum)).collect()
}

fn profile(&(name, memory_mib, speed, bandwidth_mbps, examples, ..): &Silo) -> SiloProfile {
    let memory = MemoryCoefficients {
        layer_bytes_per_token: 40_000.0,
        layer_input_bytes_per_token: 1_536.0,
        workspace_bytes_per_token: 9_000.0,
        recompute_workspace_bytes_per_token: 12_000.0,
        adapter_bytes_per_token_rank: 8.0,
        fixed_bytes: 4e6,
    };
    let device = DeviceProfile {
        device: "fixture, 2 threads, avx2".into(),
        memory: [(ActivationFormat::F32, memory)].into(),
        time: BTreeMap::new(),
        adapter_s_per_token_rank: 1e-8,
        step_overhead_s: 1e-3,
    };
    let lengths = LengthStats::of([40, 90, 128]);
    let silo = name.into();
    SiloProfile {
        silo,
        examples,
        lengths,
        memory_mib,
        speed,
        bandwidth_mbps,
        data_cap_mib: None,
        cache_bytes: 0,
        device,
    }
}

fn plan() -> Plan {
    let silo_plan = |&(name, memory_mib, speed, _, _, base_format, batch_size, scale): &Silo| {
        let ranks = (0..LAYERS)
            .flat_map(|layer| (0..KINDS.len()).map(move |kind| (layer, kind)))
            .filter(|&(layer, kind)| layer + 2 >= 16 / scale / 2 && kind != 1)
            .map(|(layer, kind)| (weight(layer, kind), if layer > 3 { scale } else { (scale / 2).max(1) }))
            .collect();
        let whole = memory_mib as f64 * MIB * 0.93;
        let share = |part: f64| whole * part;
        let memory = MemoryTerms {
            base: share(0.45),
            adapters: share(0.04),
            gradients: share(0.04),
            optimizer: share(0.08),
            activations: share(0.30),
            workspace: share(0.09),
        };
        let time = TimeTerms {
            forward: 1.6 / speed,
            backward: 2.2 / speed,
            adapter: 0.3,
            fixed: 0.1,
            download: 0.2,
            upload: 0.2,
        };
        let reasons = vec![
            format!("memory binds: {:.0} of {memory_mib} MiB are taken", whole / MIB),
            "one more GiB would allow bf16 and a batch of 32".into(),
        ];
        let plan = SiloPlan {
            silo: name.into(),
            batch_size,
            local_steps: if name == "clinic" { 80 } else { 20 },
            base_format,
            recompute: name == "edge",
            ranks,
            memory,
            time,
            objective: 0.81,
            reasons,
        };
        (SiloId::from(name), plan)
    };
    Plan {
        local_steps: 20,
        server_rank: 16,
        chosen: vec![],
        deadline_s: 18.0,
        deadline_reason: "1.1 times the slowest silo".into(),
        optimality: Optimality { objective: 1.1, bound: 1.11, uncovered: vec![] },
        silos: SILOS.iter().map(silo_plan).collect(),
    }
}

fn round(round: u32) -> RoundRecord {
    let late = round == 3;
    let progress = 1.0 - (-f64::from(round) / 2.0).exp();
    let silo_round = |(index, &(name, memory_mib, speed, bandwidth_mbps, ..)): (usize, &Silo)| {
        let compute_s = 3.9 + 0.2 * (f64::from(round) * 1.7 + index as f64).sin();
        let bytes = 180_000 * (4 - index as u64);
        let measured = Measured {
            steps: 20,
            tokens: 21_000,
            repeated_tokens: 0,
            loss: 1.9 * (1.0 - progress) + 0.12 + 0.05 * index as f64,
            compute_s,
            peak_bytes: (memory_mib as f64 * MIB * (0.86 + 0.01 * f64::from(round % 3))) as u64,
            cache: (name == "edge").then(|| edge_cache(round)),
        };
        let seconds = compute_s / speed + 2.0 * bytes as f64 * 8.0 / (bandwidth_mbps * 1e6);
        SiloRound { silo: name.into(), measured, seconds, bytes_up: bytes, bytes_down: bytes, slowness: Some(1.0) }
    };
    let silos: Vec<SiloRound> = SILOS.iter().enumerate().filter(|(i, _)| !(late && *i == 2)).map(silo_round).collect();
    let failures = late.then(|| Failure {
        silo: "edge".into(),
        round,
        kind: FailureKind::Late,
        reason: "21.4 s are more than the deadline of 18.0 s".into(),
    });
    let metrics = Metrics {
        accuracy: Some(0.55 + 0.41 * progress),
        loss: 1.75 * (1.0 - progress) + 0.15,
        examples: 512,
        ..Metrics::default()
    };
    RoundRecord {
        round,
        seconds: if late { 18.0 } else { silos.iter().map(|silo| silo.seconds).fold(0.0, f64::max) },
        silos,
        failures: failures.into_iter().collect(),
        merged: true,
        metrics: Some(metrics),
    }
}

/// Of the 385 texts, 80 a round are seen for the first time in rounds 1, 2, 4 and 5 and the last 65 in round 6.
fn edge_cache(round: u32) -> CacheUse {
    let hits = match round {
        0..=5 => 0,
        6 => 15,
        _ => 80,
    };
    CacheUse { lookups: 80, hits, ram_bytes: 8 << 20, disk_bytes: if round > 5 { 3 << 19 } else { 0 } }
}

/// The run as it was told: every kind of event at least once.
pub fn events() -> Vec<Event> {
    let state = state();
    let silo_ids = || state.profiles.keys().cloned();
    let mut events =
        vec![Event::Started { method: state.method.clone(), seed: 42, rounds: ROUNDS, completed: 0, clock_s: 0.0 }];
    events.extend(state.profiles.values().cloned().map(Event::Enrolled));
    events.push(Event::RoundStarted { round: 0, cohort: silo_ids().map(|silo| (silo, 2)).collect() });
    events.extend(silo_ids().flat_map(|silo| steps(0, silo)));
    events.push(Event::Identified { importance: state.importance.clone() });
    events.push(Event::Planned(state.plan.clone()));
    for record in state.history.iter().cloned() {
        let round = record.round;
        events.push(Event::RoundStarted { round, cohort: silo_ids().map(|silo| (silo, 2)).collect() });
        events.extend(silo_ids().flat_map(|silo| steps(round, silo)));
        events.extend(record.failures.iter().cloned().map(Event::SiloFailed));
        events.push(Event::RoundFinished(record));
        if round == 5 {
            events.push(replanned(round, &state));
        }
        events.push(Event::Checkpointed { round, path: format!("checkpoints/round-{round:03}") });
    }
    events.push(Event::Warning { message: "the disk is nearly full".into() });
    events.push(Event::Evaluated(metrics()));
    events.push(Event::Finished { rounds: ROUNDS, stopped: false });
    events
}

fn replanned(round: u32, state: &RunState) -> Event {
    let silo = SiloId::from("edge");
    let reason = "its last rounds took 1.40 times as long as its profile foresees; its plan reckoned with 1.00".into();
    Event::Replanned { round, plan: state.plan.silos[&silo].clone(), silo, slowness: 1.4, reason }
}

fn steps(round: u32, silo: SiloId) -> impl Iterator<Item = Event> {
    (1..=2).map(move |step| Event::Step { round, silo: silo.clone(), step, steps: 2, loss: 1.5, tokens: 900 })
}
