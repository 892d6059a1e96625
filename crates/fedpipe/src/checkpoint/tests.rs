use super::*;
use crate::fixture;
use tempfile::TempDir;

fn checkpoints(keep: usize) -> (TempDir, Checkpoints) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), keep);
    (folder, checkpoints)
}

fn state_at(round: u32) -> RunState {
    RunState { round, ..fixture::state() }
}

fn names(checkpoints: &Checkpoints) -> Vec<String> {
    let entries = fs::read_dir(&checkpoints.folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn newest_round(checkpoints: &Checkpoints) -> u32 {
    checkpoints.newest().unwrap().unwrap().state.round
}

#[test]
fn a_state_comes_back_to_the_last_bit() {
    let (_folder, checkpoints) = checkpoints(3);
    // Sums that have no short decimal form, and numbers at the edges.
    let mut state = state_at(4);
    state.clock_s = 0.1 + 0.2;
    state.wall_s = f64::MIN_POSITIVE;
    state.plan.deadline_s = f64::MAX;
    state.bytes_up = u64::MAX;
    checkpoints.save(&state).unwrap();
    let restored = checkpoints.newest().unwrap().unwrap();
    assert_eq!(restored.state, state);
    assert_eq!(restored.state.adapter.scaling.to_bits(), state.adapter.scaling.to_bits());
    assert!(restored.warnings.is_empty());
}

#[test]
fn equal_states_give_equal_bytes() {
    let (_a, first) = checkpoints(3);
    let (_b, second) = checkpoints(3);
    for file in [STATE, ADAPTER] {
        let path = |c: &Checkpoints| c.save(&state_at(1)).unwrap().join(file);
        assert_eq!(fs::read(path(&first)).unwrap(), fs::read(path(&second)).unwrap());
    }
}

#[test]
fn a_run_without_checkpoints_has_none() {
    let (_folder, checkpoints) = checkpoints(3);
    assert!(checkpoints.newest().unwrap().is_none());
}

#[test]
fn only_the_last_ones_stay() {
    let (_folder, checkpoints) = checkpoints(2);
    for round in [8, 9, 10, 999, 1000] {
        checkpoints.save(&state_at(round)).unwrap();
    }
    assert_eq!(names(&checkpoints), ["round-1000", "round-999"]);
    assert_eq!(newest_round(&checkpoints), 1000);
}

#[test]
fn a_round_done_again_replaces_its_checkpoint() {
    let (_folder, checkpoints) = checkpoints(3);
    checkpoints.save(&state_at(5)).unwrap();
    let again = RunState { wall_s: 1.0, ..state_at(5) };
    checkpoints.save(&again).unwrap();
    assert_eq!(checkpoints.newest().unwrap().unwrap().state, again);
    assert_eq!(names(&checkpoints), ["round-005"]);
}

/// Writes the first bytes of the adapter, then the disk is full.
fn full_disk(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.ends_with(ADAPTER) {
        fs::write(path, &bytes[..bytes.len() / 2])?;
        return Err(io::ErrorKind::StorageFull.into());
    }
    disk::write_synced(path, bytes)
}

#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let (_folder, mut checkpoints) = checkpoints(1);
    checkpoints.save(&state_at(3)).unwrap();
    checkpoints.write = full_disk;
    let error = checkpoints.save(&state_at(4)).unwrap_err().to_string();
    assert!(error.contains("round-004") && error.contains("no storage space"), "{error}");
    assert_eq!(names(&checkpoints), ["round-003"], "the half of a checkpoint still takes room");
    assert_eq!(newest_round(&checkpoints), 3);
    // Even when the round is done again over a checkpoint of its own.
    checkpoints.save(&state_at(3)).unwrap_err();
    assert_eq!(newest_round(&checkpoints), 3);
}

#[test]
fn what_a_crash_left_is_not_a_checkpoint() {
    let (_folder, checkpoints) = checkpoints(3);
    checkpoints.save(&state_at(3)).unwrap();
    let half = checkpoints.folder.join(".round-004.tmp");
    fs::create_dir(&half).unwrap();
    fs::write(half.join(STATE), "{").unwrap();
    assert_eq!(newest_round(&checkpoints), 3);
    checkpoints.save(&state_at(4)).unwrap();
    assert_eq!(names(&checkpoints), ["round-003", "round-004"]);
}

#[test]
fn a_broken_checkpoint_falls_back_to_the_one_before_with_a_warning() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("state.json", |path| fs::write(path.join(STATE), "{\"version\": 1").unwrap()),
        ("state.json", |path| fs::remove_file(path.join(STATE)).unwrap()),
        ("adapter.safetensors", |path| fs::remove_file(path.join(ADAPTER)).unwrap()),
        ("adapter.safetensors", |path| {
            let bytes = fs::read(path.join(ADAPTER)).unwrap();
            fs::write(path.join(ADAPTER), &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("scaling", |path| {
            let none: Vec<(String, TensorView<'_>)> = vec![];
            fs::write(path.join(ADAPTER), safetensors::serialize(none, None).unwrap()).unwrap();
        }),
        ("it is of round 3", |path| {
            fs::copy(path.with_file_name("round-003").join(STATE), path.join(STATE)).unwrap();
        }),
    ];
    for (named, damage) in damages {
        let (_folder, checkpoints) = checkpoints(3);
        checkpoints.save(&state_at(3)).unwrap();
        damage(&checkpoints.save(&state_at(4)).unwrap());
        let restored = checkpoints.newest().unwrap().unwrap();
        assert_eq!(restored.state, state_at(3));
        assert!(restored.warnings.len() == 1 && restored.warnings[0].contains(named), "{:?}", restored.warnings);
        assert!(restored.warnings[0].contains("round-004"), "{:?}", restored.warnings);
    }
}

#[test]
fn when_none_can_be_read_every_reason_is_told() {
    let (_folder, checkpoints) = checkpoints(3);
    for round in [1, 2] {
        let path = checkpoints.save(&state_at(round)).unwrap();
        fs::write(path.join(STATE), "nonsense").unwrap();
    }
    let error = checkpoints.newest().unwrap_err().to_string();
    assert!(error.contains("round-001") && error.contains("round-002"), "{error}");
}

#[test]
fn another_version_is_told_apart_from_a_broken_file() {
    let (_folder, checkpoints) = checkpoints(3);
    checkpoints.save(&state_at(1)).unwrap();
    let path = checkpoints.save(&state_at(2)).unwrap().join(STATE);
    for version in [RUN_STATE_VERSION - 1, RUN_STATE_VERSION + 1] {
        fs::write(&path, format!(r#"{{"version": {version}, "whatever": "comes"}}"#)).unwrap();
        let error = checkpoints.newest().unwrap_err();
        assert!(matches!(error, CheckpointError::OtherVersion { found, .. } if found == version), "{error}");
        assert!(error.to_string().contains("the release that wrote it"), "{error}");
    }
}

#[test]
fn a_state_that_would_not_read_back_is_refused_at_once() {
    let (_folder, checkpoints) = checkpoints(3);
    checkpoints.save(&state_at(1)).unwrap();
    let mut state = state_at(2);
    state.history[0].silos[0].measured.loss = f64::NAN;
    let error = checkpoints.save(&state).unwrap_err();
    assert!(matches!(error, CheckpointError::Unrepresentable { round: 2, .. }), "{error}");
    assert_eq!(newest_round(&checkpoints), 1);
}
