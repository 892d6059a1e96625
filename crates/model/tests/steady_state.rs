//! Training steps reuse their buffers, and the activation cache changes no bit.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use fedpipe_core::{Adapter, BaseFormat, LearningRate, LowRank, Seed, Stop, TrainWork};
use fedpipe_kernels::CountingAllocator;
use fedpipe_model::adapter::fresh_head;
use fedpipe_model::data::{Dataset, Targets};
use fedpipe_model::head::HeadKind;
use fedpipe_model::ops::OpsKind;
use fedpipe_model::{BaseModel, CacheLimits, Objective, Prefix, PrefixCache, StepReport, Training, train};
use std::alloc::System;
use std::path::Path;
use std::sync::Mutex;

#[global_allocator]
static HEAP: CountingAllocator<System> = CountingAllocator::new(System);

const LAYERS: usize = 2;

/// Allocations are the process's, so its tests run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

fn fixture() -> BaseModel {
    BaseModel::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/bert-tiny")).unwrap()
}

fn texts(count: u32, length: u32) -> Dataset {
    let text = |i: u32| (0..length).map(|j| 5 + (i * 7 + j * 3) % 50).collect::<Vec<u32>>();
    Dataset::pack(&(0..count).map(text).collect::<Vec<_>>(), Targets::Classes((0..count).map(|i| i % 2).collect()))
}

fn work(base: &BaseModel, lowest: usize, base_format: BaseFormat, steps: usize) -> TrainWork {
    let weights = base.outline().candidates.iter().filter(|c| c.layer >= lowest);
    let fresh = |c: &fedpipe_core::CandidateWeight| {
        (c.id.clone(), LowRank::fresh(2, c.inputs, c.outputs, Seed(1).named(c.id.as_str())))
    };
    TrainWork {
        adapter: Adapter {
            scaling: 2.0,
            factors: weights.map(fresh).collect(),
            head: fresh_head(&base.outline().head_shapes(HeadKind::Classes(2)), Seed(1)),
        },
        fixed: Default::default(),
        base_format,
        batch_size: 4,
        steps,
        learning_rate: LearningRate::constant(1e-2),
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        dropout: 0.1,
        spare_bytes: 0,
        sensitivity: false,
        recompute: false,
    }
}

/// A batch has 4 · 60 tokens of width 32: its activations take 15 KiB and more each. From the third step on none of that
/// size is allocated any more.
#[test]
fn later_steps_allocate_no_activations() {
    const LARGE: usize = 8 << 10;
    let _alone = ALONE.lock();
    let base = fixture();
    let data = texts(16, 60);
    for (format, recompute) in
        [(BaseFormat::F32, false), (BaseFormat::Bf16, false), (BaseFormat::Bf16, true), (BaseFormat::Nf4, true)]
    {
        let encoder = base.encoder(format).unwrap();
        let mut large = Vec::new();
        let objective = Objective::Classification { head: base.outline().head };
        let training = Training { kind: OpsKind::Fast, encoder: &*encoder, objective: &objective, cache: None };
        // One thread, so that which thread's working memory grows when does not depend on how work is stolen.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let work = TrainWork { recompute, ..work(&base, 0, format, 8) };
        HEAP.count_above(LARGE);
        pool.install(|| {
            train(training, &data, &work, Seed(3), &Stop::default(), &mut |_| large.push(HEAP.counted())).unwrap()
        });
        assert!(large[0] > 10, "the first step allocates its buffers: {large:?}");
        assert!(large[2..].iter().all(|&count| count == large[2]), "{format}: {large:?}");
    }
}

/// Trained above layer 1 alone, over a silo's whole training: with a cache that holds everything, a part, or nothing. What is
/// reported to come again is what an empty cache on the disk alone finds, whatever this one came with and has in memory.
#[test]
fn cached_activations_train_to_the_same_bits() {
    let _alone = ALONE.lock();
    let base = fixture();
    let data = texts(10, 21);
    for format in [BaseFormat::F32, BaseFormat::Bf16] {
        let encoder = base.encoder(format).unwrap();
        let work = work(&base, 1, format, 12);
        let run = |cache: Option<&mut PrefixCache>| {
            let objective = Objective::Classification { head: base.outline().head };
            let training = Training { kind: OpsKind::Fast, encoder: &*encoder, objective: &objective, cache };
            let mut repeated = 0;
            let mut count = |report: StepReport| repeated += report.repeated;
            (train(training, &data, &work, Seed(3), &Stop::default(), &mut count).unwrap(), repeated)
        };
        let layer_of = |id: &fedpipe_core::WeightId| {
            base.outline().candidates.iter().find(|c| &c.id == id).map(|candidate| candidate.layer)
        };
        let prefix = Prefix::of(&work, data.len(), LAYERS, layer_of).unwrap();
        assert_eq!(prefix.layer(), 1);
        let (plain, none) = run(None);
        assert_eq!(none, 0);
        for (ram_bytes, disk_bytes) in [(1 << 20, 0), (4 * 21 * 32 * 2, 0), (4 * 21 * 32 * 2, 1 << 20), (0, 0)] {
            let folder = std::env::temp_dir();
            let mut cache = PrefixCache::new(prefix.clone(), CacheLimits { ram_bytes, disk_bytes, folder });
            let (trained, repeated) = run(Some(&mut cache));
            assert!(trained == plain, "{format}, {ram_bytes} bytes in memory");
            let used = cache.used();
            assert_eq!(used.lookups, 48, "one for every text of every batch");
            // A batch that reaches over the end of an epoch may miss a text twice.
            let all = 48 - 10;
            let on_disk = if disk_bytes > 0 { used.hits } else { 0 };
            assert_eq!(repeated, 21 * on_disk);
            assert_eq!(run(Some(&mut cache)).1, repeated, "the cache is no longer empty");
            match (ram_bytes, disk_bytes) {
                (0, 0) => assert_eq!(used.hits, 0),
                (1_048_576, _) | (_, 1_048_576) => assert!((all - 2..=all).contains(&used.hits), "{used:?}"),
                _ => assert!((1..all - 2).contains(&used.hits), "{used:?}"),
            }
        }
        // Room for five texts on the disk, and none in memory.
        let room = 5 * 21 * 32 * format.activations().value_bytes() as u64;
        let limits = CacheLimits { ram_bytes: 0, disk_bytes: room, folder: std::env::temp_dir() };
        let mut cache = PrefixCache::new(prefix.clone(), limits);
        let (_, repeated) = run(Some(&mut cache));
        assert_eq!(repeated, 21 * cache.used().hits);
        assert!((1..48 - 12).contains(&cache.used().hits));
    }
}
