//! A silo of this process: its data, its base model, its measured hardware.

use crate::cache::{CacheLimits, Prefix, PrefixCache};
use crate::data::Dataset;
use crate::ops::OpsKind;
use crate::probe::probe;
use crate::profile::{HeapMeter, peak_of};
use crate::{BaseModel, Error, StepReport, Training, train};
use fedpipe_core::{
    CacheUse, CandidateWeight, DeviceProfile, Event, Failure, FailureKind, LengthStats, Measured, Observer, Outcome,
    SiloId, SiloProfile, Stop, Task, TrainWork, Trainer, Update, WeightId, Work,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What a silo is given by its configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct SiloSettings {
    /// Its name.
    pub silo: SiloId,
    /// Memory that training may take, in MiB.
    pub memory_mib: u64,
    /// Speed relative to this machine.
    pub speed: f64,
    /// Bandwidth of its link in Mbit/s.
    pub bandwidth_mbps: f64,
    /// MiB that it may send and receive in a round together.
    pub data_cap_mib: Option<f64>,
    /// How the output of frozen layers is kept; `None` when it is not.
    pub cache: Option<CacheSettings>,
}

/// How a silo keeps the output of frozen layers ([`PrefixCache`]). In memory it takes what the plan leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes on the disk beside that; 0 for none.
    pub disk_bytes: u64,
    /// Where they are written.
    pub folder: PathBuf,
}

/// Memory that a silo may take beyond its own before its work is lost, as a share. Simulated silos share one process,
/// whose first work pays for buffers that later work finds: a result must not hang on that.
const OVERRUN: f64 = 1.25;

/// Trains on one silo's data in this process.
pub struct SiloTrainer {
    settings: SiloSettings,
    base: Arc<BaseModel>,
    candidates: Vec<CandidateWeight>,
    data: Dataset,
    device: Arc<DeviceProfile>,
    meter: Arc<dyn HeapMeter>,
    /// From one task to the next; taken out while a task uses it.
    cache: Mutex<Option<PrefixCache>>,
}

/// A task that came to its end.
struct Done {
    outcome: Outcome,
    sensitivity: BTreeMap<WeightId, f64>,
    measured: Measured,
}

impl SiloTrainer {
    /// A silo with `data`, over a base model that may be shared.
    pub fn new(
        settings: SiloSettings,
        base: Arc<BaseModel>,
        candidates: Vec<CandidateWeight>,
        data: Dataset,
        device: Arc<DeviceProfile>,
        meter: Arc<dyn HeapMeter>,
    ) -> Self {
        Self { settings, base, candidates, data, device, meter, cache: Mutex::default() }
    }

    /// The cache for `work`: the one of the task before if it keeps the same layers within the same limits, else a new
    /// one. `None` without layers that stay as they are.
    fn take_cache(&self, work: &TrainWork) -> Option<PrefixCache> {
        let settings = self.settings.cache.as_ref()?;
        let before = self.cache.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outline = self.base.outline();
        let layer_of = |id: &WeightId| Some(self.candidates.iter().find(|weight| &weight.id == id)?.layer);
        let prefix = Prefix::of(work, self.data.len(), outline.layers, layer_of)?;
        let all_texts = (self.data.tokens() * outline.hidden * work.base_format.activations().value_bytes()) as u64;
        let limits = CacheLimits {
            ram_bytes: work.spare_bytes.min(all_texts),
            disk_bytes: settings.disk_bytes,
            folder: settings.folder.clone(),
        };
        let kept = before.filter(|cache| cache.prefix() == &prefix && cache.limits() == &limits);
        Some(kept.unwrap_or_else(|| PrefixCache::new(prefix, limits)))
    }

    /// Keeps a cache for the next task; what it did since `before`, if it was asked at all.
    fn keep_cache(&self, cache: PrefixCache, before: CacheUse) -> Option<CacheUse> {
        let used = cache.used();
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(cache);
        let (lookups, hits) = (used.lookups - before.lookups, used.hits - before.hits);
        (lookups > 0).then_some(CacheUse { lookups, hits, ..used })
    }

    fn work(
        &self,
        task: &Task,
        stop: &Stop,
        on_step: &mut (dyn FnMut(StepReport) + Send),
        warn: &dyn Fn(String),
    ) -> Result<Done, Error> {
        let (mut tokens, mut repeated_tokens, mut loss, mut steps) = (0, 0, 0.0, 0);
        let mut count = |report: StepReport| {
            (tokens, loss, steps) = (tokens + report.tokens, loss + report.loss, report.step);
            repeated_tokens += report.repeated;
            on_step(report);
        };
        let encoder = self.base.encoder(task.work.base_format())?;
        let objective = self.base.objective(&self.data.targets, task.work.base_format())?;
        let mut cache = match &task.work {
            Work::Train(work) => self.take_cache(work),
            Work::Probe(_) => None,
        };
        let before = cache.as_ref().map_or(CacheUse::default(), PrefixCache::used);
        let start = Instant::now();
        let (peak, outcome) = peak_of(&*self.meter, || match &task.work {
            Work::Probe(work) => {
                probe(&*encoder, &objective, &self.candidates, &self.data, work, task.seed, stop, &mut count)
                    .map(|scores| (Outcome::Scores(scores), BTreeMap::new()))
            }
            Work::Train(work) => {
                let training =
                    Training { kind: OpsKind::Fast, encoder: &*encoder, objective: &objective, cache: cache.as_mut() };
                train(training, &self.data, work, task.seed, stop, &mut count)
                    .map(|trained| (Outcome::Trained(trained.adapter), trained.sensitivity))
            }
        });
        let compute_s = start.elapsed().as_secs_f64();
        let loss = loss / f64::max(steps as f64, 1.0);
        if let Some(trouble) = cache.as_mut().and_then(PrefixCache::take_trouble) {
            warn(format!("silo {}: {trouble}", self.settings.silo));
        }
        let cache = cache.and_then(|cache| self.keep_cache(cache, before));
        let peak_bytes = encoder.bytes() + self.base.own_head_bytes(&objective) + peak;
        let (outcome, sensitivity) = outcome?;
        let measured = Measured { steps, tokens, repeated_tokens, loss, compute_s, peak_bytes, cache };
        Ok(Done { outcome, sensitivity, measured })
    }
}

impl Trainer for SiloTrainer {
    fn enrol(&self) -> Result<SiloProfile, Failure> {
        Ok(SiloProfile {
            silo: self.settings.silo.clone(),
            examples: self.data.len() as u64,
            lengths: LengthStats::of(self.data.lengths()),
            memory_mib: self.settings.memory_mib,
            speed: self.settings.speed,
            bandwidth_mbps: self.settings.bandwidth_mbps,
            data_cap_mib: self.settings.data_cap_mib,
            cache_bytes: self.settings.cache.as_ref().map_or(0, |cache| cache.disk_bytes),
            device: (*self.device).clone(),
        })
    }

    fn run(&self, task: &Task, observer: &dyn Observer, stop: &Stop) -> Result<Update, Failure> {
        let mut on_step = |report: StepReport| {
            observer.observe(&Event::Step {
                round: task.round,
                silo: task.silo.clone(),
                step: report.step,
                steps: task.work.steps(),
                loss: report.loss,
                tokens: report.tokens,
            });
        };
        let warn = |message: String| observer.observe(&Event::Warning { message });
        match self.work(task, stop, &mut on_step, &warn) {
            Ok(Done { measured, .. }) if memory(&measured) > OVERRUN * (self.settings.memory_mib << 20) as f64 => {
                let (took, has) = (memory(&measured) / f64::from(1 << 20), self.settings.memory_mib);
                let reason = format!("took {took:.1} MiB of its {has} MiB; a real silo of that size would have failed");
                Err(Failure::of(task, FailureKind::OutOfMemory, reason))
            }
            Ok(Done { outcome, sensitivity, measured }) => Ok(Update {
                round: task.round,
                silo: task.silo.clone(),
                examples: self.data.len() as u64,
                outcome,
                measured,
                sensitivity,
            }),
            Err(error) => {
                let kind = match error {
                    Error::Stopped { .. } => FailureKind::Stopped,
                    _ => FailureKind::Crashed,
                };
                Err(Failure::of(task, kind, error.to_string()))
            }
        }
    }
}

/// Bytes that the work took, cached activations included.
fn memory(measured: &Measured) -> f64 {
    measured.peak_bytes as f64 + measured.cache.map_or(0.0, |cache| cache.ram_bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Targets;
    use fedpipe_core::{Adapter, BaseFormat, Head, LearningRate, LowRank, Seed};
    use std::path::Path;

    struct NoMeter;

    impl HeapMeter for NoMeter {
        fn current_bytes(&self) -> u64 {
            0
        }

        fn peak_bytes(&self) -> u64 {
            0
        }

        fn reset_peak(&self) {}
    }

    /// A silo of two texts over the two layers of the fixture.
    fn trainer(cache: Option<CacheSettings>) -> SiloTrainer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/bert-tiny");
        let base = Arc::new(BaseModel::open(&folder).unwrap());
        let settings = SiloSettings {
            silo: "a".into(),
            memory_mib: 1,
            speed: 1.0,
            bandwidth_mbps: 1.0,
            data_cap_mib: None,
            cache,
        };
        let candidates = base.outline().candidates.clone();
        let data = Dataset::pack(&[vec![2, 5, 3], vec![2, 3]], Targets::Classes(vec![0, 1]));
        let device = DeviceProfile {
            device: String::new(),
            memory: Default::default(),
            time: Default::default(),
            adapter_s_per_token_rank: 0.0,
            step_overhead_s: 0.0,
        };
        SiloTrainer::new(settings, base, candidates, data, Arc::new(device), Arc::new(NoMeter))
    }

    fn work(trainer: &SiloTrainer, lowest: usize, base_format: BaseFormat) -> TrainWork {
        let weights = trainer.candidates.iter().filter(|weight| weight.layer >= lowest);
        let factors = weights.map(|w| (w.id.clone(), LowRank::fresh(2, w.inputs, w.outputs, Seed(1)))).collect();
        TrainWork {
            adapter: Adapter { scaling: 1.0, factors, head: Head::new() },
            fixed: Default::default(),
            base_format,
            recompute: false,
            batch_size: 2,
            steps: 1,
            learning_rate: LearningRate::constant(1e-3),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dropout: 0.0,
            spare_bytes: 1 << 30,
            sensitivity: false,
        }
    }

    #[test]
    fn a_cache_lasts_from_task_to_task_until_the_frozen_layers_are_others() {
        let settings = CacheSettings { disk_bytes: 0, folder: std::env::temp_dir() };
        let trainer = trainer(Some(settings));
        let upper = work(&trainer, 1, BaseFormat::F32);
        let mut cache = trainer.take_cache(&upper).unwrap();
        let hidden = trainer.base.outline().hidden;
        assert_eq!(cache.limits().ram_bytes, (5 * hidden * 4) as u64, "no more than the two texts take");
        cache.insert(&[2, 3], &[7; 8]);
        assert_eq!(trainer.keep_cache(cache, CacheUse::default()), None, "nobody asked it anything");

        let mut cache = trainer.take_cache(&upper).unwrap();
        let before = cache.used();
        assert!(cache.get(&[2, 3], &mut [0; 8]) && !cache.get(&[2], &mut [0; 8]));
        let used = CacheUse { lookups: 2, hits: 1, ram_bytes: 8, disk_bytes: 0 };
        assert_eq!(trainer.keep_cache(cache, before), Some(used));

        let other = trainer.take_cache(&work(&trainer, 1, BaseFormat::Bf16)).unwrap();
        assert_eq!(other.used(), CacheUse::default(), "another format of the base");
        assert!(trainer.take_cache(&work(&trainer, 0, BaseFormat::F32)).is_none(), "nothing is frozen");
    }

    #[test]
    fn without_the_setting_there_is_no_cache() {
        let trainer = trainer(None);
        assert!(trainer.take_cache(&work(&trainer, 1, BaseFormat::F32)).is_none());
    }
}
