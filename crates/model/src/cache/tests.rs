use super::*;
use crate::data::Targets;
use fedpipe_core::{Adapter, Head, LearningRate, Seed};
use half::bf16;
use proptest::prelude::*;
use std::convert::Infallible;
use tempfile::TempDir;

const HIDDEN: usize = 3;

fn prefix() -> Prefix {
    Prefix { layer: 2, base_format: BaseFormat::Bf16, applied: None }
}

fn cache(ram_bytes: u64, disk_bytes: u64) -> (TempDir, PrefixCache) {
    let folder = tempfile::tempdir().unwrap();
    let limits = CacheLimits { ram_bytes, disk_bytes, folder: folder.path().to_path_buf() };
    (folder, PrefixCache::new(prefix(), limits))
}

fn value(cache: &mut PrefixCache, text: &[u32], length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0xee; length];
    cache.get(text, &mut bytes).then_some(bytes)
}

#[test]
fn memory_comes_first_then_the_disk_and_then_nothing() {
    let (folder, mut cache) = cache(10, 6);
    for text in 0..4u32 {
        cache.insert(&[text], &[text as u8; 5]);
    }
    // Two values fill the memory, one the disk, and the fourth is not kept.
    assert_eq!(cache.used(), CacheUse { lookups: 0, hits: 0, ram_bytes: 10, disk_bytes: 5 });
    for text in 0..3u32 {
        assert_eq!(value(&mut cache, &[text], 5), Some(vec![text as u8; 5]));
    }
    assert_eq!(value(&mut cache, &[3], 5), None);
    cache.insert(&[4], &[9]);
    assert_eq!(value(&mut cache, &[4], 1), Some(vec![9]), "a smaller value finds the room that is left");
    assert_eq!(cache.used(), CacheUse { lookups: 5, hits: 4, ram_bytes: 10, disk_bytes: 6 });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the spill file has no name");
    assert_eq!(cache.take_trouble(), None);
}

#[test]
fn the_first_value_of_a_text_stays() {
    let (_folder, mut cache) = cache(100, 0);
    cache.insert(&[1, 2], &[1; 4]);
    cache.insert(&[1, 2], &[2; 4]);
    assert_eq!(value(&mut cache, &[1, 2], 4), Some(vec![1; 4]));
    assert_eq!(cache.used().ram_bytes, 4);
    assert_eq!(value(&mut cache, &[1], 4), None, "another text");
    assert_eq!(value(&mut cache, &[1, 2], 5), None, "another length");
}

#[test]
fn without_a_disk_bound_nothing_touches_the_disk() {
    let (_folder, mut cache) = cache(4, 0);
    cache.open = |_| panic!("the disk was touched");
    cache.insert(&[1], &[1; 4]);
    cache.insert(&[2], &[2; 4]);
    assert_eq!(cache.used(), CacheUse { ram_bytes: 4, ..CacheUse::default() });
}

/// Values 1 in memory and 2 on the disk, which then breaks; what is in memory must survive.
fn gives_up(mut cache: PrefixCache, what: &str) {
    cache.insert(&[1], &[1; 4]);
    cache.insert(&[2], &[2; 4]);
    assert_eq!(value(&mut cache, &[2], 4), None, "a failure counts as a miss");
    assert_eq!(value(&mut cache, &[1], 4), Some(vec![1; 4]));
    let trouble = cache.take_trouble().unwrap();
    assert!(trouble.starts_with(&format!("cannot {what} the spill file")), "{trouble}");
    cache.insert(&[3], &[3; 4]);
    assert_eq!(cache.used(), CacheUse { lookups: 2, hits: 1, ram_bytes: 4, disk_bytes: 0 });
    assert_eq!(cache.take_trouble(), None, "told once");
}

#[test]
fn a_disk_that_fails_is_given_up_with_a_reason_and_costs_no_more_than_a_miss() {
    let (_a, mut nowhere) = cache(4, 100);
    nowhere.limits.folder.push("missing");
    gives_up(nowhere, "write");
    let (_b, mut read_only) = cache(4, 100);
    read_only.open = |folder| {
        std::fs::write(folder.join("spill"), "")?;
        File::open(folder.join("spill"))
    };
    gives_up(read_only, "write");
    let (_c, mut write_only) = cache(4, 100);
    write_only.open = |folder| File::create(folder.join("spill"));
    gives_up(write_only, "read");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_given_up() {
    let (_folder, mut cache) = cache(4, 100);
    cache.open = |_| File::options().read(true).write(true).open("/dev/full");
    gives_up(cache, "write");
}

#[test]
fn a_spill_file_that_lost_its_end_is_a_miss() {
    let (_folder, mut cache) = cache(0, 100);
    cache.insert(&[1], &[1; 8]);
    cache.spill.as_ref().unwrap().set_len(7).unwrap();
    assert_eq!(value(&mut cache, &[1], 8), None);
    assert!(cache.take_trouble().unwrap().starts_with("cannot read"));
}

#[test]
fn memory_that_the_system_refuses_leaves_the_disk() {
    let (_folder, mut cache) = cache(u64::MAX, 8);
    assert!(cache.take_trouble().unwrap().starts_with("no memory for"));
    cache.insert(&[1], &[1; 8]);
    assert_eq!(value(&mut cache, &[1], 8), Some(vec![1; 8]));
}

/// Something that depends on every token of its text and on nothing else, awkward bits included.
fn computed(texts: &Dataset) -> Vec<bf16> {
    let of = |text: &[u32]| -> Vec<bf16> {
        let sum: u32 = text.iter().sum();
        let bits = move |i: usize, j: usize| (sum * 31 + text[i] * 1009 + j as u32 * 0x7fc1) as u16;
        (0..text.len())
            .flat_map(|i| (0..HIDDEN).map(move |j| (i, j)))
            .map(|(i, j)| bf16::from_bits(bits(i, j)))
            .collect()
    };
    (0..texts.len()).flat_map(|i| of(texts.text(i))).collect()
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    /// Whatever fits, batch after batch holds the bits that computing gives, and only what is missing is computed.
    #[test]
    fn a_batch_from_the_cache_is_the_computed_one(
        texts in prop::collection::vec(prop::collection::vec(0u32..5, 1..6), 1..12),
        batches in prop::collection::vec(prop::collection::vec(0usize..1000, 1..8), 1..12),
        ram_bytes in 0u64..200,
        disk_bytes in 0u64..200,
    ) {
        let (_folder, mut cache) = cache(ram_bytes, disk_bytes);
        let data = Dataset::pack(&texts, Targets::None);
        for indices in batches {
            let batch = data.subset(&indices.iter().map(|i| i % data.len()).collect::<Vec<_>>());
            let before = cache.used();
            let mut to = vec![bf16::NAN; HIDDEN * batch.tokens()];
            let mut asked = 0;
            cache.fill(&batch, &mut to, |missing| {
                asked = missing.len() as u64;
                Ok::<_, Infallible>(computed(missing))
            }).unwrap();
            prop_assert_eq!(bits(&to), bits(&computed(&batch)));
            let used = cache.used();
            prop_assert_eq!(used.lookups - before.lookups, batch.len() as u64);
            prop_assert_eq!(used.lookups - before.lookups - (used.hits - before.hits), asked);
            prop_assert!(used.ram_bytes <= ram_bytes && used.disk_bytes <= disk_bytes);
        }
        prop_assert_eq!(cache.take_trouble(), None);
    }
}

#[test]
fn with_room_for_all_every_epoch_but_the_first_hits() {
    let (_folder, mut cache) = cache(1 << 10, 0);
    let data = Dataset::pack(&[vec![1, 2], vec![3], vec![4, 5, 6]], Targets::None);
    for _ in 0..3 {
        let mut to = vec![bf16::ZERO; HIDDEN * data.tokens()];
        cache.fill(&data, &mut to, |missing| Ok::<_, Infallible>(computed(missing))).unwrap();
    }
    assert_eq!((cache.used().lookups, cache.used().hits), (9, 6));
}

#[test]
fn an_error_of_computing_is_handed_on_and_keeps_nothing() {
    let (_folder, mut cache) = cache(1 << 10, 0);
    let data = Dataset::pack(&[vec![1, 2]], Targets::None);
    assert_eq!(cache.fill(&data, &mut [bf16::ZERO; 2 * HIDDEN], |_| Err("stopped")), Err("stopped"));
    assert_eq!(cache.used(), CacheUse { lookups: 1, ..CacheUse::default() });
}

/// Trained at `trained`, applied at `fixed`, in a model of six layers; 100 texts, batches of 10.
fn prefix_of(trained: &[usize], fixed: &[usize], steps: usize, seed: u64) -> Option<Prefix> {
    let factors = |layers: &[usize]| {
        layers
            .iter()
            .map(|l| (WeightId::new(format!("layer.{l}.query")), LowRank::fresh(2, 4, 4, Seed(seed))))
            .collect()
    };
    let work = TrainWork {
        adapter: Adapter { scaling: 2.0, factors: factors(trained), head: Head::new() },
        fixed: factors(fixed),
        base_format: BaseFormat::Nf4,
        recompute: false,
        batch_size: 10,
        steps,
        learning_rate: LearningRate::constant(1e-3),
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        dropout: 0.1,
        spare_bytes: 0,
    };
    Prefix::of(&work, 100, 6, |weight| weight.as_str().split('.').nth(1)?.parse().ok())
}

#[test]
fn the_prefix_ends_at_the_lowest_layer_with_anything_attached() {
    let layer = |trained: &[usize], fixed: &[usize]| prefix_of(trained, fixed, 5, 1).map(|prefix| prefix.layer());
    assert_eq!(layer(&[4, 5], &[]), Some(4));
    assert_eq!(layer(&[4, 5], &[4, 2]), Some(2), "merged factors below change every round");
    assert_eq!(layer(&[], &[]), Some(6), "a head alone leaves all layers frozen");
    assert_eq!(layer(&[0], &[]), None);
    assert_eq!(layer(&[4], &[0]), None);
}

/// By hand: in n epochs of a round, a share 1 − 1/n of the lookups is of a text that this round has seen.
#[test]
fn a_round_of_many_epochs_keeps_more_layers_and_only_while_they_stay_the_same() {
    let of = |steps, seed| prefix_of(&[4], &[2], steps, seed).unwrap();
    assert_eq!(of(19, 1).layer(), 2, "1.9 epochs save 4·(1 − 1/1.9) = 1.9 layers");
    assert_eq!(of(21, 1).layer(), 4, "2.1 epochs save 4·(1 − 1/2.1) = 2.1 layers");
    assert_eq!(of(21, 1), of(21, 1));
    assert_ne!(of(21, 1), of(21, 2), "other factors below the cut make another prefix");
    assert_eq!(of(19, 1), of(19, 2), "factors above the cut do not matter");
}
