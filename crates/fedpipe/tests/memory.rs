//! Plans keep their word on the real model: what four unequal silos take is what was predicted, and what they have.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{World, assets};
use std::fs;

#[test]
fn measured_memory_stays_within_the_prediction_and_the_silo() {
    let Some(assets) = assets() else { return };
    let world = World::new();
    std::os::unix::fs::symlink(&assets, world.path("assets")).unwrap();
    let test = fs::read_to_string(assets.join("data/reuters-r8-test.tsv")).unwrap();
    fs::write(world.path("few.tsv"), test.lines().take(40).collect::<Vec<_>>().join("\n")).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/r8.toml");
    let settings = [
        "federation.rounds=1",
        "training.local_steps=4",
        "probe.steps=2",
        "evaluation.every=0",
        "data.test=[\"few.tsv\"]",
    ];
    let mut arguments = vec!["run", example, "--quiet"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    world.succeed(&arguments);

    let summary = world.json("runs/r8/summary.json");
    let has = [("clinic", 250.0), ("bank", 160.0), ("factory", 96.0), ("edge", 64.0)];
    for (silo, memory_mib) in has {
        let figures = &summary["silos"][silo];
        let of = |side: &str| figures[side]["memory_mib"].as_f64().unwrap();
        let (predicted, measured) = (of("predicted"), of("measured"));
        assert!(predicted <= memory_mib, "{silo}: {predicted} MiB are planned of {memory_mib}");
        // Four steps seldom meet a batch as large as the plan provides for.
        let share = measured / predicted;
        assert!((0.8..=1.05).contains(&share), "{silo}: {measured} MiB measured, {predicted} predicted");
        assert!(measured <= memory_mib, "{silo}: {measured} MiB measured of {memory_mib}");
    }
}
