//! A silo of this process: its data, its base model, its measured hardware.

use crate::data::Dataset;
use crate::probe::probe;
use crate::profile::{HeapMeter, peak_of};
use crate::{BaseModel, Error, StepReport, train};
use fedpipe_core::{
    CandidateWeight, DeviceProfile, Event, Failure, FailureKind, LengthStats, Measured, Observer, Outcome, SiloId,
    SiloProfile, Stop, Task, Trainer, Update, Work,
};
use std::sync::Arc;
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
        Self { settings, base, candidates, data, device, meter }
    }

    fn work(
        &self,
        task: &Task,
        stop: &Stop,
        on_step: &mut dyn FnMut(StepReport),
    ) -> Result<(Outcome, Measured), Error> {
        let (mut tokens, mut loss, mut steps) = (0, 0.0, 0);
        let mut count = |report: StepReport| {
            (tokens, loss, steps) = (tokens + report.tokens, loss + report.loss, report.step);
            on_step(report);
        };
        let encoder = self.base.encoder(task.work.base_format())?;
        let head = self.base.outline().head_module;
        let start = Instant::now();
        let (peak, outcome) = peak_of(&*self.meter, || match &task.work {
            Work::Probe(work) => {
                probe(&*encoder, head, &self.candidates, &self.data, work, task.seed, stop, &mut count)
                    .map(Outcome::Scores)
            }
            Work::Train(work) => {
                train(&*encoder, head, &self.data, work, task.seed, stop, &mut count).map(Outcome::Trained)
            }
        });
        let compute_s = start.elapsed().as_secs_f64();
        let loss = loss / f64::max(steps as f64, 1.0);
        Ok((outcome?, Measured { steps, tokens, loss, compute_s, peak_bytes: encoder.bytes() + peak }))
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
        match self.work(task, stop, &mut on_step) {
            Ok((_, measured)) if measured.peak_bytes as f64 > OVERRUN * (self.settings.memory_mib << 20) as f64 => {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let (took, has) = (mib(measured.peak_bytes), self.settings.memory_mib);
                let reason = format!("took {took:.1} MiB of its {has} MiB; a real silo of that size would have failed");
                Err(Failure::of(task, FailureKind::OutOfMemory, reason))
            }
            Ok((outcome, measured)) => Ok(Update {
                round: task.round,
                silo: task.silo.clone(),
                examples: self.data.len() as u64,
                outcome,
                measured,
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
