//! The fast operations train as the reference does: MiniLM on R8, fifty steps from one seed.

use fedpipe_core::{Adapter, BaseFormat, LearningRate, LowRank, Seed, Stop, TrainWork};
use fedpipe_model::adapter::fresh_head;
use fedpipe_model::data::{Columns, Labels, read};
use fedpipe_model::head::HeadKind;
use fedpipe_model::ops::OpsKind;
use fedpipe_model::{BaseModel, Objective, Training, train};
use std::collections::BTreeMap;
use std::path::Path;

const STEPS: usize = 50;
const BATCH: usize = 4;
/// Losses are compared by their mean over so many steps: a batch of four is noise.
const WINDOW: usize = 10;

#[test]
fn fifty_steps_lose_the_same() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let folder = assets.join("models/all-MiniLM-L6-v2");
    if !folder.join("model.safetensors").is_file() {
        eprintln!("SKIPPED: assets/ is not there; `make assets` fetches it");
        return;
    }
    let base = BaseModel::open(&folder).unwrap();
    let columns = Columns::default();
    let mut examples = read(&assets.join("data/reuters-r8-train.tsv"), &columns).unwrap();
    // The file is sorted by label.
    examples = examples.into_iter().step_by(27).collect();
    let labels = Labels::of(&examples).unwrap();
    let tokens = base.text_encoder(64).unwrap();
    let data = tokens.examples(&examples, &labels).unwrap();
    let targets: Vec<_> = base
        .outline()
        .candidates
        .iter()
        .filter(|c| base.outline().default_targets.contains(&c.kind.as_str()))
        .collect();
    let seed = Seed(7);
    let losses = |kind: OpsKind, base_format: BaseFormat| {
        let fresh = |c: &&fedpipe_core::CandidateWeight| {
            (c.id.clone(), LowRank::fresh(8, c.inputs, c.outputs, seed.named(c.id.as_str())))
        };
        let work = TrainWork {
            adapter: Adapter {
                scaling: 2.0,
                factors: targets.iter().map(fresh).collect(),
                head: fresh_head(&base.outline().head_shapes(HeadKind::Classes(labels.len())), seed),
            },
            fixed: BTreeMap::new(),
            base_format,
            batch_size: BATCH,
            steps: STEPS,
            learning_rate: LearningRate::constant(1e-3),
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            dropout: 0.1,
            spare_bytes: 0,
            recompute: false,
        };
        let encoder = base.encoder(base_format).unwrap();
        let mut losses = Vec::new();
        let objective = Objective::Classification { head: base.outline().head };
        let training = Training { kind, encoder: &*encoder, objective: &objective, cache: None };
        train(training, &data, &work, seed, &Stop::default(), &mut |report| losses.push(report.loss)).unwrap();
        losses.chunks(WINDOW).map(|window| window.iter().sum::<f64>() / WINDOW as f64).collect::<Vec<_>>()
    };
    let reference = losses(OpsKind::Reference, BaseFormat::F32);
    for (format, tolerance) in [(BaseFormat::F32, 1e-3), (BaseFormat::Bf16, 1e-2)] {
        let fast = losses(OpsKind::Fast, format);
        println!("{format}: {fast:.4?}, reference {reference:.4?}");
        for (fast, reference) in fast.iter().zip(&reference) {
            assert!((fast / reference - 1.0).abs() < tolerance, "{format}: {fast} is not {reference}");
        }
    }
    assert!(reference[STEPS / WINDOW - 1] < 0.8 * reference[0], "it learns: {reference:?}");
}
