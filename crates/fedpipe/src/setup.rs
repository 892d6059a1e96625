//! From a configuration to a federation of this process: model, texts, silos.

use crate::config::{self, Auto, Config, TargetModules};
use crate::error::AppError;
use crate::length;
use crate::report::Loading;
use crate::task::Task;
use crate::texts::Loader;
use fedpipe_core::{Chosen, DeviceProfile, Head, ModelSpec, Purpose, RunState, Seed, SiloId, Trainer};
use fedpipe_federation::partition::{Examples, Partition};
use fedpipe_federation::plan::{Tuning, TuningPatterns};
use fedpipe_model::data::{Columns, DataError, Dataset, Example, Targets};
use fedpipe_model::head::HeadKind;
use fedpipe_model::io::{ModelSource, resolve};
use fedpipe_model::ops::IGNORED;
use fedpipe_model::{
    ALL_LINEAR, BaseModel, CacheSettings, HeapMeter, ProfileSettings, ProfiledTargets, SiloSettings, SiloTrainer,
    adapter::fresh_head, limit_threads,
};
use fedpipe_transport::LocalTransport;
use regex::Regex;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that a run reads before it begins.
pub struct Setup {
    /// The base model.
    pub base: Arc<BaseModel>,
    /// The base model as the federation sees it.
    pub spec: ModelSpec,
    /// What is learnt.
    pub task: Task,
    /// The texts of every silo.
    pub train: BTreeMap<SiloId, Dataset>,
    /// The texts that the server evaluates on.
    pub test: Dataset,
    /// What a person should know of the files: what was left out of them.
    pub notices: Vec<String>,
    /// Tokens that texts are cut to.
    pub max_length: usize,
    /// Settings that were left to FedPipe and that the texts decide.
    pub chosen: Vec<Chosen>,
    silos: Vec<SiloSettings>,
}

impl Setup {
    /// Opens the model, reads and tokenises the texts and splits them over the silos. Writes nothing but tokens to the
    /// cache folder.
    ///
    /// # Errors
    /// When the model or a file cannot be used, the texts cannot be split as asked, `plan.always_tune` or `never_tune` matches
    /// nothing, or this process computes with other than `training.threads` already.
    pub fn load(config: &Config, loading: &Loading) -> Result<Self, AppError> {
        // Opening a model computes already.
        config.training.threads.map_or(Ok(()), limit_threads)?;
        let base = Arc::new(open_model(&config.model)?);
        config.training.max_length.given().map_or(Ok(()), |length| check_length(&base, length))?;
        let columns = columns(config);
        let mut loader = Loader::new(config, loading);
        let mut shared = loader.read(&config.data.train, &columns)?;
        let mut own = BTreeMap::new();
        for silo in config.silos.iter().filter(|s| !s.data.is_empty()) {
            let columns = Columns { site: None, ..columns.clone() };
            own.insert(SiloId::new(&silo.name), loader.read(&silo.data, &columns)?);
        }
        let mut test = loader.read(&config.data.test, &Columns { site: None, ..columns })?;

        let task = Task::of(&config.task, &base, shared.iter().chain(own.values().flatten()))?;
        let mut chosen = Vec::new();
        let max_length = match config.training.max_length {
            Auto::Given(length) => length,
            Auto::Auto => {
                let (length, why) = length::of(&base, &task, &mut loader, &shared, &own)?;
                chosen.push(why);
                length
            }
        };
        let counted = loading.clone();
        let encoder = base.text_encoder(max_length)?.watched(move || counted.count());
        let data = loader.encode(&task, &encoder, &mut shared)?;
        let mut train = split(config, &shared, &data)?;
        for (silo, mut examples) in own {
            train.insert(silo, loader.encode(&task, &encoder, &mut examples)?);
        }
        let train =
            train.into_iter().map(|(silo, data)| (silo, task.packed(data, &encoder).without_passages())).collect();
        let spec = base.spec(&target_modules(config), task.head())?;
        // A pattern that matches nothing is told before anything is measured.
        Tuning::of(&tuning_patterns(config), &spec.candidates, &config.adapter.ranks)?;
        let silos = config.silos.iter().map(|silo| SiloSettings {
            silo: SiloId::new(&silo.name),
            memory_mib: silo.memory_mib,
            speed: silo.speed,
            bandwidth_mbps: silo.bandwidth_mbps,
            data_cap_mib: silo.data_cap_mib,
            cache: config.training.activation_cache.then(|| cache(config)),
        });
        let test = task.packed(loader.encode(&task, &encoder, &mut test)?, &encoder);
        loading.end();
        let (notices, silos) = (loader.notices, silos.collect());
        Ok(Self { base, spec, task, train, test, notices, max_length, chosen, silos })
    }

    /// The silos of this process behind a transport.
    pub fn transport(&self, device: DeviceProfile, meter: &Arc<dyn HeapMeter>) -> LocalTransport {
        let device = Arc::new(device);
        let trainers = self.silos.iter().map(|settings| {
            let data = self
                .train
                .get(&settings.silo)
                .cloned()
                .unwrap_or_else(|| Dataset::pack(&[] as &[&[u32]], Targets::None));
            let candidates = self.spec.candidates.clone();
            let trainer =
                SiloTrainer::new(settings.clone(), self.base.clone(), candidates, data, device.clone(), meter.clone());
            (settings.silo.clone(), Arc::new(trainer) as Arc<dyn Trainer>)
        });
        LocalTransport::new(trainers.collect())
    }

    /// The head that training starts from.
    pub fn fresh_head(&self, seed: Seed) -> Head {
        fresh_head(&self.spec.head, seed.derive(Purpose::Init, 0, None))
    }

    /// What is measured of this machine for the plans of `config`.
    pub fn profile_settings(&self, config: &Config) -> ProfileSettings {
        let (texts, tokens) = self.train.values().fold((0, 0), |(n, t), data| (n + data.len(), t + data.tokens()));
        let mean = tokens.div_ceil(texts.max(1));
        // A round number, so that small changes of the data find the same profile again.
        let text_tokens = mean.next_multiple_of(16).clamp(1, self.base.outline().max_positions);
        let (formats, dropout) = (config.plan.base_formats.clone(), config.adapter.dropout);
        let targets = match self.task.head() {
            HeadKind::Classes(_) => ProfiledTargets::Class,
            HeadKind::Span => ProfiledTargets::Span,
            HeadKind::Vocabulary => ProfiledTargets::Written(written(self.train.values())),
        };
        ProfileSettings { formats, text_tokens, targets, dropout, ..ProfileSettings::default() }
    }

    /// SHA-256 of what a run learns from and is measured on, in hexadecimal: the model, the labels and every text.
    pub fn inputs(&self) -> String {
        let mut digest = Sha256::new();
        let mut add = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        add(self.spec.fingerprint.as_bytes());
        self.task.labels().iter().for_each(|name| add(name.as_bytes()));
        for (name, data) in self.train.iter().map(|(id, data)| (id.as_str(), data)).chain([("test", &self.test)]) {
            add(name.as_bytes());
            let targets: Cow<'_, [u32]> = match &data.targets {
                Targets::None => Cow::default(),
                Targets::Classes(targets) | Targets::Tokens(targets) => targets.into(),
                Targets::Spans(spans) => spans.places.iter().flat_map(|span| [span.start, span.end]).collect(),
            };
            for values in [data.ids.as_slice(), &targets] {
                add(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            }
            add(&data.offsets.iter().flat_map(|&v| (v as u64).to_le_bytes()).collect::<Vec<_>>());
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Refuses to go on with a run that would not end as it would have without the interruption.
    ///
    /// # Errors
    /// When the model, the data, the method or the seed changed since it began.
    pub fn check_unchanged(&self, config: &Config, state: &RunState) -> Result<(), AppError> {
        // The seed splits the data, so it is looked at before them.
        let changed = if state.seed != Seed(config.federation.seed) {
            "federation.seed"
        } else if state.method != config.federation.method {
            "federation.method"
        } else if state.inputs != self.inputs() {
            "the base model or the data"
        } else {
            return Ok(());
        };
        let what = format!("{changed} changed since this run began");
        Err(AppError::user(what).hint("restore what it was, or start a new run"))
    }
}

/// Tokens of a text that are learnt, on average.
fn written<'a>(train: impl Iterator<Item = &'a Dataset>) -> usize {
    let (texts, written) = train.fold((0, 0), |(texts, written), data| {
        let Targets::Tokens(next) = &data.targets else { return (texts, written) };
        (texts + data.len(), written + next.iter().filter(|&&token| token != IGNORED).count())
    });
    written.div_ceil(texts.max(1))
}

/// Opens the base model that a configuration names.
///
/// # Errors
/// When it cannot be found or read.
pub fn open_model(source: &config::ModelSource) -> Result<BaseModel, AppError> {
    let source = match source {
        config::ModelSource::Path { path } => ModelSource::Path(path.clone()),
        config::ModelSource::Hub { hub, revision } => {
            ModelSource::Hub { repository: hub.clone(), revision: Some(revision.clone()) }
        }
    };
    Ok(BaseModel::open(&resolve(&source)?)?)
}

/// How the base model is called in exports: the hub's name, or the path as the user gave it.
pub fn model_name(source: &config::ModelSource) -> String {
    match source {
        config::ModelSource::Path { path } => path.display().to_string(),
        config::ModelSource::Hub { hub, .. } => hub.clone(),
    }
}

/// The weights that a configuration decides about.
pub(crate) fn tuning_patterns(config: &Config) -> TuningPatterns {
    TuningPatterns { always: config.plan.always_tune.clone(), never: config.plan.never_tune.clone() }
}

fn target_modules(config: &Config) -> Vec<String> {
    match &config.adapter.target_modules {
        TargetModules::Attention => Vec::new(),
        TargetModules::AllLinear | TargetModules::Auto => vec![ALL_LINEAR.into()],
        TargetModules::Kinds(kinds) => kinds.clone(),
    }
}

/// # Errors
/// When texts of `max_length` tokens have no positions in the model.
pub fn check_length(base: &BaseModel, max_length: usize) -> Result<(), AppError> {
    let positions = base.outline().max_positions;
    if max_length <= positions {
        return Ok(());
    }
    let what = format!("texts of {max_length} tokens are asked for, but the model has only {positions} positions");
    Err(AppError::user(what).hint(format!("set training.max_length to at most {positions}")))
}

/// Cached activations spill into the run's folder: it is on a disk that may be written, which a folder for temporary files
/// need not be.
fn cache(config: &Config) -> CacheSettings {
    let disk_bytes = config.training.activation_cache_disk_mib << 20;
    CacheSettings { disk_bytes, folder: config.output.dir.clone() }
}

fn columns(config: &Config) -> Columns {
    let site = match &config.federation.partition {
        config::Partition::Column { name, .. } => Some(name.clone()),
        _ => None,
    };
    Columns { site, ..config.data.columns.columns() }
}

/// The shared texts, split over the silos that have no files of their own.
fn split(config: &Config, examples: &[Example], data: &Dataset) -> Result<BTreeMap<SiloId, Dataset>, AppError> {
    let silos: Vec<SiloId> = config.silos.iter().filter(|s| s.data.is_empty()).map(|s| SiloId::new(&s.name)).collect();
    if silos.is_empty() {
        return Ok(BTreeMap::new());
    }
    let partition = match &config.federation.partition {
        config::Partition::Dirichlet { alpha } => Partition::Dirichlet { alpha: *alpha },
        config::Partition::Iid => Partition::Iid,
        config::Partition::Column { name, .. } => Partition::Column { name: name.clone() },
    };
    // Texts without labels are all alike to the partition.
    let texts = data.by_example();
    let labels: Vec<usize> = match &data.targets {
        Targets::Classes(classes) => classes.iter().map(|&class| class as usize).collect(),
        Targets::None | Targets::Tokens(_) | Targets::Spans(_) => vec![0; texts.len()],
    };
    let sites = sites(&config.federation.partition, examples)?;
    // A silo should at least fill the smallest batch that it may be given.
    let min_examples = config.plan.batch_sizes.iter().copied().min().unwrap_or(1);
    let seed = Seed(config.federation.seed).derive(Purpose::Partition, 0, None);
    let parts = partition.split(Examples { labels: &labels, sites: sites.as_deref() }, &silos, min_examples, seed)?;
    let of = |indices: Vec<usize>| data.subset(&indices.into_iter().flat_map(|i| texts[i].clone()).collect::<Vec<_>>());
    Ok(parts.into_iter().map(|(silo, indices)| (silo, of(indices))).collect())
}

/// What the partition tells examples apart by, where it does so by a column.
fn sites(partition: &config::Partition, examples: &[Example]) -> Result<Option<Vec<String>>, AppError> {
    let pattern = match partition {
        config::Partition::Column { pattern: Some(pattern), .. } => Regex::new(pattern).map_err(AppError::user)?,
        _ => return Ok(examples.iter().map(|example| example.site.clone()).collect()),
    };
    let of = |example: &Example| {
        let value = example.site.as_deref().unwrap_or_default();
        let found = pattern.captures(value).and_then(|groups| groups.get(1).or(groups.get(0)));
        found.map(|found| found.as_str().to_string()).ok_or_else(|| {
            AppError::user(format!("{}: federation.partition.pattern matches nothing of {value:?}", example.origin))
        })
    };
    examples.iter().map(of).collect::<Result<Vec<_>, _>>().map(Some)
}

/// Files of a user's that are missing or malformed are the user's to mend.
impl From<DataError> for AppError {
    fn from(error: DataError) -> Self {
        Self::user(error)
    }
}

impl From<fedpipe_model::io::IoError> for AppError {
    fn from(error: fedpipe_model::io::IoError) -> Self {
        if error.is_systems() { Self::other(error) } else { Self::user(error) }
    }
}

impl From<fedpipe_model::Error> for AppError {
    fn from(error: fedpipe_model::Error) -> Self {
        match error {
            fedpipe_model::Error::Tensor(error) => Self::other(error),
            fedpipe_model::Error::Io(error) => error.into(),
            fedpipe_model::Error::Stopped { .. } => Self::Stopped("stopped before the first round".into()),
            error => Self::user(error),
        }
    }
}

impl From<fedpipe_federation::partition::PartitionError> for AppError {
    fn from(error: fedpipe_federation::partition::PartitionError) -> Self {
        Self::user(error)
    }
}

impl From<fedpipe_federation::plan::PlanError> for AppError {
    fn from(error: fedpipe_federation::plan::PlanError) -> Self {
        Self::user(error)
    }
}

impl From<fedpipe_federation::round::RoundError> for AppError {
    fn from(error: fedpipe_federation::round::RoundError) -> Self {
        Self::other(error)
    }
}

impl From<fedpipe_federation::UnknownName> for AppError {
    fn from(error: fedpipe_federation::UnknownName) -> Self {
        Self::user(error)
    }
}

/// Where measured profiles and other things that can be made again are kept: `FEDPIPE_CACHE_DIR`, or the user's cache
/// folder.
pub fn cache_dir() -> Option<PathBuf> {
    match std::env::var_os("FEDPIPE_CACHE_DIR") {
        Some(dir) if !dir.is_empty() => Some(dir.into()),
        _ => dirs::cache_dir().map(|dir| dir.join("fedpipe")),
    }
}
