//! A silo of this process: its data, its base model, its measured hardware.

use crate::data::Dataset;
use crate::probe::probe;
use crate::profile::{HeapMeter, peak_of};
use crate::{BaseModel, Error, StepReport, train};
use fedpipe_core::{
    BaseFormat, CandidateWeight, DeviceProfile, Event, Failure, FailureKind, LengthStats, Measured, Observer, Outcome,
    SiloId, SiloProfile, Stop, Task, Trainer, Update, Work,
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
        let encoder = self.base.encoder(base_format(&task.work))?;
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

fn base_format(work: &Work) -> BaseFormat {
    match work {
        Work::Probe(work) => work.base_format,
        Work::Train(work) => work.base_format,
    }
}

fn steps(work: &Work) -> usize {
    match work {
        Work::Probe(work) => work.steps,
        Work::Train(work) => work.steps,
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
                steps: steps(&task.work),
                loss: report.loss,
                tokens: report.tokens,
            });
        };
        match self.work(task, stop, &mut on_step) {
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
