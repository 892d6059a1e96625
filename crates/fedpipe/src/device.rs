//! The measured profile of this machine, kept so that every run on it plans with the same numbers.

use crate::disk;
use crate::error::AppError;
use crate::run::Surroundings;
use crate::setup::{Setup, cache_dir};
use fedpipe_core::{DeviceProfile, Event};
use fedpipe_model::{ProfileSettings, measure_device};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Raised when the cost model or the kernels change, so that old profiles are measured anew.
const VERSION: u32 = 7;
/// Bytes of the largest profile that is read.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    profile: DeviceProfile,
}

/// The kept profile of this machine with this model, completed by the formats that it lacks, and the seconds that these
/// took. What is kept is never measured again: plans with other formats stay comparable.
///
/// # Errors
/// When a measured step fails or a stop is requested. A profile that cannot be read is measured again.
pub fn profile(
    setup: &Setup,
    settings: &ProfileSettings,
    around: &Surroundings<'_>,
) -> Result<(DeviceProfile, Option<f64>), AppError> {
    let Some(mut kept) = cache_dir().and_then(|dir| read(&file(&dir, setup, settings))) else {
        return measure(setup, settings, around);
    };
    let formats = settings.formats.iter().copied().filter(|format| !kept.time.contains_key(format)).collect();
    let missing = ProfileSettings { formats, ..settings.clone() };
    if missing.formats.is_empty() {
        return Ok((kept, None));
    }
    let start = Instant::now();
    let measured = measure_device(&setup.base, &setup.spec, &missing, &**around.meter, around.stop)?;
    for (format, memory) in measured.memory {
        kept.memory.entry(format).or_insert(memory);
    }
    kept.time.extend(measured.time);
    save(setup, settings, &kept, around);
    Ok((kept, Some(start.elapsed().as_secs_f64())))
}

/// A new profile of this machine with this model, which is kept, and the seconds that it took.
///
/// # Errors
/// When a measured step fails or a stop is requested.
pub fn measure(
    setup: &Setup,
    settings: &ProfileSettings,
    around: &Surroundings<'_>,
) -> Result<(DeviceProfile, Option<f64>), AppError> {
    let start = Instant::now();
    let profile = measure_device(&setup.base, &setup.spec, settings, &**around.meter, around.stop)?;
    save(setup, settings, &profile, around);
    Ok((profile, Some(start.elapsed().as_secs_f64())))
}

/// Keeps a profile; that it cannot be kept is a warning.
fn save(setup: &Setup, settings: &ProfileSettings, profile: &DeviceProfile, around: &Surroundings<'_>) {
    let kept = match cache_dir().map(|dir| file(&dir, setup, settings)) {
        Some(path) => keep(&path, profile).map_err(|error| format!("{}: {error}", path.display())),
        None => Err("this user has no cache folder; name one with FEDPIPE_CACHE_DIR".into()),
    };
    if let Err(reason) = kept {
        let message = format!(
            "the profile of this machine is not kept, so the next run measures again and may plan otherwise: {reason}"
        );
        around.observer.observe(&Event::Warning { message });
    }
}

/// One file for every machine, model and setting but the formats; the release is part of the name because kernels change
/// with it.
fn file(dir: &Path, setup: &Setup, settings: &ProfileSettings) -> PathBuf {
    let kinds: Vec<&str> = setup.spec.candidates.iter().map(|c| c.id.as_str()).collect();
    let settings = ProfileSettings { formats: Vec::new(), ..settings.clone() };
    let key = format!(
        "{VERSION} {} {} {settings:?} {kinds:?} {:?} {} {}",
        env!("CARGO_PKG_VERSION"),
        setup.spec.fingerprint,
        setup.spec.head,
        cfg!(debug_assertions),
        fedpipe_model::device_name(),
    );
    let digest = Sha256::digest(key.as_bytes());
    let name: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    dir.join("profiles").join(format!("{name}.json"))
}

fn read(path: &Path) -> Option<DeviceProfile> {
    let kept: Kept = serde_json::from_slice(&disk::read_bounded(path, MAX_BYTES).ok()?).ok()?;
    (kept.version == VERSION).then_some(kept.profile)
}

fn keep(path: &Path, profile: &DeviceProfile) -> std::io::Result<()> {
    let kept = Kept { version: VERSION, profile: profile.clone() };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    disk::replace(path, &serde_json::to_vec_pretty(&kept)?)
}
