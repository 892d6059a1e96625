//! A short measured profile of this machine with one model: how much memory and time a training step takes.
//!
//! Steps of the real training code run over synthetic texts; differences between settings give the coefficients:
//! with T tokens, d layers from the lowest adapted one upwards and R the sum of the ranks,
//! peak(T, d, R) = fixed + T·(workspace + d·layer + R·adapter) + 16·parameters bytes for either format of activations, and
//! seconds(T, d, R) = overhead + T·(layers·forward + d·backward + R·adapter).

use crate::adapter::fresh_head;
use crate::arch::Backbone;
use crate::data::{Dataset, Span, Spans, Targets};
use crate::evaluate::loss_of;
use crate::ops::{IGNORED, OpsKind};
use crate::{BaseModel, Error, Training, train};
use fedpipe_core::{
    ActivationFormat, Adapter, BaseFormat, CandidateWeight, DeviceProfile, LearningRate, LowRank, MemoryCoefficients,
    ModelSpec, Seed, Stop, TimeCoefficients, TrainWork,
};
use std::collections::BTreeMap;
use std::time::Instant;

/// Counts the bytes that this process has allocated. The binary implements it over its global allocator.
pub trait HeapMeter: Send + Sync {
    /// Bytes allocated now.
    fn current_bytes(&self) -> u64;
    /// Most bytes allocated at once since the last reset.
    fn peak_bytes(&self) -> u64;
    /// Starts a new peak.
    fn reset_peak(&self);
}

/// Bytes that `body` allocates at most beyond what was there before, and its result. What kernels keep from call to call
/// is freed before, so that all they need counts.
pub(crate) fn peak_of<R>(meter: &dyn HeapMeter, body: impl FnOnce() -> R) -> (u64, R) {
    fedpipe_kernels::free_working_memory();
    meter.reset_peak();
    let before = meter.current_bytes();
    let result = body();
    (meter.peak_bytes().saturating_sub(before), result)
}

/// What is profiled.
#[derive(Debug, Clone)]
pub struct ProfileSettings {
    /// Base formats to time.
    pub formats: Vec<BaseFormat>,
    /// Tokens of a synthetic text.
    pub text_tokens: usize,
    /// What is learnt of it.
    pub targets: ProfiledTargets,
    /// Texts in the larger batch; the smaller has a quarter.
    pub batch_size: usize,
    /// Rank of the adapters; the wider measurement has four times as much.
    pub rank: usize,
    /// Repetitions of a timed step; the fastest counts.
    pub repetitions: usize,
    /// Dropout of the adapters, which keeps masks and masked inputs.
    pub dropout: f64,
}

/// What is learnt of a synthetic text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfiledTargets {
    /// Its class.
    Class,
    /// Where in it an answer stands.
    Span,
    /// So many tokens at its end.
    Written(usize),
}

impl Default for ProfileSettings {
    fn default() -> Self {
        Self {
            formats: BaseFormat::ALL.to_vec(),
            text_tokens: 96,
            targets: ProfiledTargets::Class,
            batch_size: 8,
            rank: 4,
            repetitions: 5,
            dropout: 0.0,
        }
    }
}

/// Measures this machine with `base`.
///
/// # Errors
/// When a format cannot be loaded or a step fails, and [`Error::Stopped`] when `stop` was requested.
pub fn measure_device(
    base: &BaseModel,
    spec: &ModelSpec,
    settings: &ProfileSettings,
    meter: &dyn HeapMeter,
    stop: &Stop,
) -> Result<DeviceProfile, Error> {
    let bench = Bench { base, spec, settings, meter, stop };
    let (layers, batch) = (spec.layers as f64, settings.batch_size);
    let mut memory = BTreeMap::new();
    // Of the two formats of activations the last one measured counts: the narrower, when both are.
    let (mut adapter_s_per_token_rank, mut step_overhead_s) = (0.0, 0.0);
    for activations in ActivationFormat::ALL {
        let Some(&format) = settings.formats.iter().find(|format| format.activations() == activations) else {
            continue;
        };
        let encoder = base.encoder(format)?;
        let of = |texts, tokens, lowest, rank, recompute| {
            bench.step(&*encoder, format, Setting { texts, tokens, lowest, rank, recompute })
        };
        let step = |texts, tokens, lowest, rank| of(texts, tokens, lowest, rank, false);
        let top = spec.layers.saturating_sub(1);
        step(batch, settings.text_tokens, 0, settings.rank)?;
        let small = step(batch.div_ceil(4), settings.text_tokens, 0, settings.rank)?;
        let shallow = step(batch, settings.text_tokens, top, settings.rank)?;
        let deep = step(batch, settings.text_tokens, 0, settings.rank)?;
        let wide = step(batch, settings.text_tokens, 0, 4 * settings.rank)?;
        let tiny = step(1, 2, top, settings.rank)?;
        let again = of(batch, settings.text_tokens, 0, settings.rank, true)?;
        let input_bytes = (spec.hidden * activations.value_bytes()) as f64;
        memory.insert(activations, coefficients(&small, &shallow, &deep, &wide, &again, input_bytes));
        let per_rank = (wide.seconds - deep.seconds) / (wide.tokens * (wide.ranks - deep.ranks));
        (adapter_s_per_token_rank, step_overhead_s) = (per_rank.max(0.0), tiny.seconds);
    }
    let mut time = BTreeMap::new();
    for &format in &settings.formats {
        let encoder = base.encoder(format)?;
        let forward = bench.forward(&*encoder)?;
        let (tokens, rank) = (settings.text_tokens, settings.rank);
        let setting = Setting { texts: batch, tokens, lowest: 0, rank, recompute: false };
        let step = bench.step(&*encoder, format, setting)?;
        let forward_s_per_token_layer = forward / (step.tokens * layers);
        let adapters = step.tokens * step.ranks * adapter_s_per_token_rank;
        let backward = (step.seconds - step_overhead_s - adapters - forward).max(0.0);
        let backward_s_per_token_layer = backward / (step.tokens * layers);
        time.insert(format, TimeCoefficients { forward_s_per_token_layer, backward_s_per_token_layer });
        base.release(format);
    }
    Ok(DeviceProfile { device: device_name(), memory, time, adapter_s_per_token_rank, step_overhead_s })
}

/// This machine, as far as it matters to a step: processor, threads and kernel path.
pub fn device_name() -> String {
    let threads = rayon::current_num_threads();
    format!("{}, {threads} threads, {} kernels", processor(), fedpipe_kernels::Path::active())
}

/// The processor's name where the system tells it, else its architecture.
fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_string()
}

struct Bench<'a> {
    base: &'a BaseModel,
    spec: &'a ModelSpec,
    settings: &'a ProfileSettings,
    meter: &'a dyn HeapMeter,
    stop: &'a Stop,
}

/// What a step is measured with.
#[derive(Clone, Copy)]
struct Setting {
    texts: usize,
    /// Of each text.
    tokens: usize,
    /// Lowest layer that is adapted.
    lowest: usize,
    rank: usize,
    recompute: bool,
}

/// One measured setting; `bytes` without adapters, gradients and optimizer.
struct Step {
    tokens: f64,
    depth: f64,
    ranks: f64,
    bytes: f64,
    seconds: f64,
}

impl Bench<'_> {
    fn texts(&self, texts: usize, tokens: usize) -> Dataset {
        let ids = (0..tokens as u32).map(|i| i % self.base.outline().vocabulary as u32).collect::<Vec<_>>();
        let targets = match self.settings.targets {
            ProfiledTargets::Class => Targets::Classes(vec![0; texts]),
            ProfiledTargets::Span => {
                let span = |window| Span { question: window, window, start: 0, end: 0 };
                Targets::Spans(Spans { places: (0..texts as u32).map(span).collect(), questions: None })
            }
            ProfiledTargets::Written(written) => {
                let read = tokens.saturating_sub(written.max(1));
                let next = (0..tokens).map(|place| if place < read { IGNORED } else { 0 });
                Targets::Tokens(next.cycle().take(texts * tokens).collect())
            }
        };
        Dataset::pack(&vec![ids; texts], targets)
    }

    fn adapter(&self, lowest: usize, rank: usize) -> Adapter {
        let adapted = self.spec.candidates.iter().filter(|c| c.layer >= lowest);
        let fresh = |c: &CandidateWeight| (c.id.clone(), LowRank::fresh(rank, c.inputs, c.outputs, Seed(0)));
        Adapter { scaling: 1.0, factors: adapted.map(fresh).collect(), head: fresh_head(&self.spec.head, Seed(0)) }
    }

    fn step(&self, encoder: &dyn Backbone, base_format: BaseFormat, setting: Setting) -> Result<Step, Error> {
        let Setting { texts, tokens, lowest, rank, recompute } = setting;
        let data = self.texts(texts, tokens);
        let objective = self.base.objective(&data.targets, base_format)?;
        let adapter = self.adapter(lowest, rank);
        let (parameters, ranks) = (adapter.parameters(), adapter.factors.len() * rank);
        let work = TrainWork {
            adapter,
            fixed: BTreeMap::new(),
            base_format,
            recompute,
            batch_size: texts,
            steps: self.settings.repetitions,
            learning_rate: LearningRate::constant(1e-4),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dropout: self.settings.dropout,
            spare_bytes: 0,
            sensitivity: false,
        };
        let (mut last, mut fastest) = (Instant::now(), f64::INFINITY);
        let (peak, result) = peak_of(self.meter, || {
            let training = Training { kind: OpsKind::Fast, encoder, objective: &objective, cache: None };
            train(training, &data, &work, Seed(0), self.stop, &mut |_| {
                fastest = fastest.min(last.elapsed().as_secs_f64());
                last = Instant::now();
            })
        });
        result?;
        Ok(Step {
            tokens: (texts * tokens) as f64,
            depth: (self.spec.layers - lowest) as f64,
            ranks: ranks as f64,
            bytes: peak as f64 - 16.0 * parameters as f64,
            seconds: fastest,
        })
    }

    /// Seconds of the fastest forward pass without adapters.
    fn forward(&self, encoder: &dyn Backbone) -> Result<f64, Error> {
        let data = self.texts(self.settings.batch_size, self.settings.text_tokens);
        let objective = self.base.objective(&data.targets, encoder.format())?;
        let mut head_only = self.adapter(usize::MAX, self.settings.rank);
        head_only.factors.clear();
        let mut fastest = f64::INFINITY;
        for _ in 0..self.settings.repetitions {
            let start = Instant::now();
            loss_of(encoder, &objective, &head_only, &data)?;
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        Ok(fastest)
    }
}

/// Solves the memory coefficients from five settings, none below zero; `again` is `deep` with every layer computed again. The
/// input of a layer is known.
fn coefficients(
    small: &Step,
    shallow: &Step,
    deep: &Step,
    wide: &Step,
    again: &Step,
    input_bytes: f64,
) -> MemoryCoefficients {
    let adapter = ((wide.bytes - deep.bytes) / (wide.tokens * (wide.ranks - deep.ranks)).max(1.0)).max(0.0);
    let deeper = deep.bytes - shallow.bytes - deep.tokens * adapter * (deep.ranks - shallow.ranks);
    let layer = (deeper / (deep.tokens * (deep.depth - shallow.depth)).max(1.0)).max(0.0);
    // From two deep steps: the last layer may keep less than the others (a classifier reads its first tokens alone), and
    // the difference belongs to what does not depend on the depth.
    let per_token = (deep.bytes - small.bytes) / (deep.tokens - small.tokens).max(1.0);
    let workspace = (per_token - deep.depth * layer - deep.ranks * adapter).max(0.0);
    let explained = deep.tokens * (workspace + deep.depth * layer + deep.ranks * adapter);
    let fixed = (deep.bytes - explained).max(0.0);
    let one_layer = layer + adapter * again.ranks / again.depth.max(1.0);
    let again = (again.bytes - fixed) / again.tokens.max(1.0) - again.depth * input_bytes - one_layer;
    MemoryCoefficients {
        layer_bytes_per_token: layer,
        layer_input_bytes_per_token: input_bytes,
        workspace_bytes_per_token: workspace,
        recompute_workspace_bytes_per_token: again.max(0.0),
        adapter_bytes_per_token_rank: adapter,
        fixed_bytes: fixed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_coefficients_come_back_from_their_own_formula() {
        let step = |tokens: f64, depth: f64, ranks: f64| Step {
            tokens,
            depth,
            ranks,
            bytes: 5000.0 + tokens * (700.0 + depth * 300.0 + ranks * 2.0),
            seconds: 0.0,
        };
        let found = coefficients(
            &step(10.0, 6.0, 96.0),
            &step(40.0, 1.0, 16.0),
            &step(40.0, 6.0, 96.0),
            &step(40.0, 6.0, 384.0),
            // Six inputs of 20 bytes, the inside of one layer with its 16 ranks, and 900 bytes beside them.
            &Step { bytes: 5000.0 + 40.0 * (6.0 * 20.0 + 300.0 + 16.0 * 2.0 + 900.0), ..step(40.0, 6.0, 96.0) },
            20.0,
        );
        for (found, expected) in [
            (found.layer_bytes_per_token, 300.0),
            (found.workspace_bytes_per_token, 700.0),
            (found.recompute_workspace_bytes_per_token, 900.0),
            (found.adapter_bytes_per_token_rank, 2.0),
            (found.fixed_bytes, 5000.0),
        ] {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}
