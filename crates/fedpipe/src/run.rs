//! The main job: enrol, identify, plan, train round by round, export. Reads from top to bottom.

use crate::checkpoint::Restored;
use crate::config::{self, Auto, Config, TargetModules};
use crate::device;
use crate::error::AppError;
use crate::report::{heat, html, plan as plan_report};
use crate::run_dir::{RunDir, file};
use crate::setup::{Setup, model_name, tuning_patterns};
use crate::summary::Summary;
use fedpipe_core::{
    Adapter, BaseFormat, Chosen, Clock, Codec, Event, Method, Metrics, ModelSpec, Observer, Plan, PlanChange, RunState,
    Seed, SiloId, SiloProfile, Stop,
};
use fedpipe_federation::method::{LocalTraining, MethodSettings};
use fedpipe_federation::plan::{Deadline, Finish, Importance, Menu, PlanError, PlanSettings, SERVER_RANK};
use fedpipe_federation::round::{Adaptation, Engine, Progress, RoundSettings, check_learnt, start};
use fedpipe_federation::simulate::{SlowsDown, VirtualClock};
use fedpipe_federation::tune::LOCAL_STEPS;
use fedpipe_federation::{aggregate, codec, importance, method, plan, tune};
use fedpipe_model::data::Dataset;
use fedpipe_model::io::{AdapterInfo, AdapterTask, serving_rank, write_adapter, write_serving};
use fedpipe_model::{HeapMeter, evaluate};
use fedpipe_transport::LocalTransport;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// How a run ended.
pub enum Ending {
    /// All rounds are done; the exports are written.
    Finished(Box<Summary>),
    /// A stop was requested; the run can be resumed.
    Stopped {
        /// Rounds completed.
        rounds: u32,
    },
}

/// What a run reports to and is stopped by.
pub struct Surroundings<'a> {
    /// Receives the events.
    pub observer: &'a dyn Observer,
    /// Asks for the end.
    pub stop: &'a Stop,
    /// Counts memory.
    pub meter: &'a Arc<dyn HeapMeter>,
}

/// Runs until the rounds are done or a stop is requested, from the start or from a checkpoint of `run_dir`.
///
/// # Errors
/// When the silos cannot be enrolled or planned for, rounds fail in a row, or the exports cannot be written. What was
/// reached lies in the last checkpoint.
pub fn run(config: &Config, setup: &Setup, run_dir: &RunDir, around: &Surroundings<'_>) -> Result<Ending, AppError> {
    let mut stopwatch = Stopwatch(Instant::now());
    let rounds = config.federation.rounds;
    let checkpoints = run_dir.checkpoints(config.output.keep_checkpoints);
    let restored = checkpoints.newest()?;
    if restored.is_none() && run_dir.adapter().exists() {
        let what = format!("{} holds results, but its checkpoints are gone", run_dir.path().display());
        return Err(AppError::user(what).hint("start a new run elsewhere (--output DIR)"));
    }
    around.observer.observe(&Event::Started {
        method: config.federation.method.clone(),
        seed: config.federation.seed,
        rounds,
        completed: restored.as_ref().map_or(0, |r| r.state.round),
        clock_s: restored.as_ref().map_or(0.0, |r| r.state.clock_s),
    });
    let parts = Parts::new(config, &setup.spec)?;
    let (transport, restored) = enter(config, setup, restored, around)?;
    let engine = parts.engine(config, &transport, around);

    let mut state = match restored {
        Some(state) => state,
        None => {
            let Some(begun) = begin(config, setup, &engine, &parts)? else { return Ok(stopped(around, 0)) };
            let Some(mut state) = find_rate(config, &engine, begun)? else { return Ok(stopped(around, 0)) };
            state.wall_s = stopwatch.lap();
            around.observer.observe(&Event::Planned(state.plan.clone()));
            write_plan(run_dir, setup, &state)?;
            checkpoints.save(&state)?;
            state
        }
    };
    while state.round < rounds {
        let next = engine.round(&state, |adapter| between_rounds(config, setup, state.round + 1, adapter, around))?;
        let Progress::Done(next) = next else { return Ok(stopped(around, state.round)) };
        state = next;
        state.wall_s += stopwatch.lap();
        match checkpoints.save(&state) {
            Ok(path) => around.observer.observe(&Event::Checkpointed {
                round: state.round,
                path: path.strip_prefix(run_dir.path()).unwrap_or(&path).display().to_string(),
            }),
            // The run is worth more than one checkpoint: the one before it stays, and the next round tries again.
            Err(error) => around.observer.observe(&Event::Warning {
                message: format!("round {} is not kept, the last good checkpoint stays: {error}", state.round),
            }),
        }
    }
    check_learnt(&state)?;
    let metrics =
        measure(setup, BaseFormat::F32, &state.adapter, &setup.test.spread(config.evaluation.final_examples))?;
    around.observer.observe(&Event::Evaluated(metrics.clone()));
    state.wall_s += stopwatch.lap();
    finish(config, setup, run_dir, &state, &metrics, &parts, around)
}

/// Seconds of real time, lap by lap.
struct Stopwatch(Instant);

impl Stopwatch {
    fn lap(&mut self) -> f64 {
        std::mem::replace(&mut self.0, Instant::now()).elapsed().as_secs_f64()
    }
}

/// Enrols the silos, probes and plans for them; nothing is written but the profile of this machine. A learning rate that is to
/// be found out is left to the run: the search takes rounds.
///
/// # Errors
/// As [`run`].
pub fn plan_only(config: &Config, setup: &Setup, around: &Surroundings<'_>) -> Result<Option<RunState>, AppError> {
    let parts = Parts::new(config, &setup.spec)?;
    let (transport, _) = enter(config, setup, None, around)?;
    let mut state = begin(config, setup, &parts.engine(config, &transport, around), &parts)?;
    if let (Some(state), Auto::Auto) = (&mut state, config.training.learning_rate) {
        state.plan.chosen.push(tune::learning_rate_to_be_found());
    }
    Ok(state)
}

/// The extension points that a configuration names.
struct Parts {
    method: Box<dyn Method>,
    codec: &'static dyn Codec,
    value_bytes: f64,
    clock: VirtualClock,
    adaptation: Adaptation,
}

impl Parts {
    fn new(config: &Config, spec: &ModelSpec) -> Result<Self, AppError> {
        let federation = &config.federation;
        let training = &config.training;
        let schedule = training.schedule();
        let settings = MethodSettings {
            model: spec.clone(),
            training: LocalTraining {
                rounds: federation.rounds,
                schedule,
                warmup_ratio: training.warmup_ratio.given().unwrap_or(tune::warmup_ratio(schedule).0),
                weight_decay: training.weight_decay,
                max_grad_norm: training.max_grad_norm,
                dropout: config.adapter.dropout,
            },
            aggregator: aggregate::by_name(&federation.aggregation)?,
        };
        let (codec, value_bytes) = codec::by_name(&federation.codec)?;
        let method = (method::by_name(&federation.method)?.build)(settings);
        let slow = |silo: &config::SiloConfig| {
            let config::SlowsDownConfig { round, speed } = silo.slows_down?;
            Some((SiloId::new(&silo.name), SlowsDown { round, speed }))
        };
        let clock = VirtualClock::new(spec.clone()).with_slow_downs(config.silos.iter().filter_map(slow).collect());
        let adaptation = Adaptation {
            model: spec.clone(),
            settings: plan_settings(config, value_bytes),
            own_importance: config.plan.own_importance,
            refresh_importance: federation.refresh_importance,
            rounds: federation.rounds,
        };
        Ok(Self { method, codec, value_bytes, clock, adaptation })
    }

    fn engine<'a>(
        &'a self,
        config: &Config,
        transport: &'a LocalTransport,
        around: &'a Surroundings<'_>,
    ) -> Engine<'a> {
        Engine {
            transport,
            method: &*self.method,
            codec: self.codec,
            clock: &self.clock,
            observer: around.observer,
            stop: around.stop,
            settings: RoundSettings {
                cohort_fraction: config.federation.cohort,
                quorum_fraction: config.federation.quorum,
                deadline_enforced: true,
                max_update_norm: config.federation.max_update_norm,
            },
            adaptation: Some(&self.adaptation),
        }
    }
}

/// The silos behind a transport, over a new profile of this machine or the one that a run began with.
fn enter(
    config: &Config,
    setup: &Setup,
    restored: Option<Restored>,
    around: &Surroundings<'_>,
) -> Result<(LocalTransport, Option<RunState>), AppError> {
    for message in setup.notices.iter().cloned() {
        around.observer.observe(&Event::Warning { message });
    }
    if let Some(Restored { state, warnings }) = restored {
        for message in warnings {
            around.observer.observe(&Event::Warning { message });
        }
        setup.check_unchanged(config, &state)?;
        if let Some(profile) = state.profiles.values().next() {
            return Ok((setup.transport(profile.device.clone(), around.meter), Some(state)));
        }
    }
    let (device, measured_in_s) = device::profile(setup, &setup.profile_settings(config), around)?;
    around.observer.observe(&Event::Profiled { device: device.device.clone(), measured_in_s });
    Ok((setup.transport(device, around.meter), None))
}

/// Enrol, identify, plan. `None` when a stop was requested meanwhile.
fn begin(config: &Config, setup: &Setup, engine: &Engine<'_>, parts: &Parts) -> Result<Option<RunState>, AppError> {
    let seed = Seed(config.federation.seed);
    let head = setup.fresh_head(seed);
    let profiles = engine.enrol()?;
    let menu = menu(config);
    let probe = importance::ProbeSettings {
        rank: config.probe.rank,
        steps: config.probe.steps,
        learning_rate: config.probe.learning_rate,
        menu: Menu { batch_sizes: halvings(config.probe.batch_size), ..menu },
    };
    let measure = importance::by_name(&config.federation.importance)?;
    let identified = engine.identify(measure, &setup.spec, &profiles, &head, seed, &probe)?;
    let Progress::Done(identified) = identified else { return Ok(None) };
    let training = &config.training;
    let mut settings = plan_settings(config, parts.value_bytes);
    let mut chosen = setup.chosen.clone();
    let mut never_tune = Vec::new();
    if config.adapter.target_modules == TargetModules::Auto {
        let (never, why) = tune::target_modules(&setup.spec, &identified.importance, &settings.tuning);
        settings.tuning.never.extend(never.iter().cloned());
        never_tune = never;
        chosen.push(why);
    }
    let importance =
        Importance { federation: &identified.importance, own: &identified.own, own_share: config.plan.own_importance };
    let mut plan = planned(config, &setup.spec, &profiles, importance, &settings)?;
    plan.chosen.splice(0..0, chosen);
    if training.warmup_ratio == Auto::Auto {
        plan.chosen.push(tune::warmup_ratio(training.schedule()).1);
    }
    if config.adapter.scaling == Auto::Auto {
        plan.chosen.push(tune::scaling().1);
    }
    let scaling = config.adapter.scaling.given().unwrap_or(tune::SCALING) as f32;
    let rate = training.learning_rate.given().unwrap_or(FIRST_RATE);
    let run = (seed, setup.inputs());
    let state = start(&*parts.method, run, profiles, identified, plan, rate, (scaling, head));
    Ok(Some(RunState { never_tune, ..state }))
}

/// The state with the learning rate, where that is to be found out. `None` when a stop was requested meanwhile.
fn find_rate(config: &Config, engine: &Engine<'_>, state: RunState) -> Result<Option<RunState>, AppError> {
    if config.training.learning_rate != Auto::Auto {
        return Ok(Some(state));
    }
    match engine.learning_rate(state)? {
        Progress::Done(state) => Ok(Some(state)),
        Progress::Stopped => Ok(None),
    }
}

/// The learning rate where one is to be found out and no silo trains at any.
const FIRST_RATE: f64 = 1e-3;

fn menu(config: &Config) -> Menu {
    Menu {
        batch_sizes: config.plan.batch_sizes.clone(),
        step_multiples: config.plan.step_multiples.clone(),
        formats: config.plan.base_formats.clone(),
        recompute: config.training.recompute.given().map_or(vec![false, true], |recompute| vec![recompute]),
        ranks: config.adapter.ranks.clone(),
        batch_value: plan::BATCH_VALUE,
        step_value: plan::STEP_VALUE,
    }
}

/// The plan, with the steps of a round that are given or found out.
fn planned(
    config: &Config,
    spec: &ModelSpec,
    profiles: &BTreeMap<SiloId, SiloProfile>,
    importance: Importance<'_>,
    settings: &PlanSettings,
) -> Result<Plan, PlanError> {
    match config.training.local_steps {
        Auto::Given(_) => plan::plan(spec, profiles, importance, settings),
        Auto::Auto => tune::plan_with_steps(spec, profiles, importance, settings),
    }
}

fn plan_settings(config: &Config, value_bytes: f64) -> PlanSettings {
    let federation = &config.federation;
    PlanSettings {
        menu: menu(config),
        server_rank: federation.server_rank.given(),
        // Where they are to be found out, [`planned`] does that.
        local_steps: config.training.local_steps.given().unwrap_or_default(),
        cohort_fraction: config.federation.cohort,
        value_bytes,
        deadline: federation.deadline_s.given().map_or(Deadline::Auto, Deadline::Seconds),
        finish: federation.finish_within_h.map(|within_h| Finish { within_h, rounds: federation.rounds }),
        coverage: config.plan.coverage,
        tuning: tuning_patterns(config),
    }
}

/// Whether two configurations differ in nothing but what plans are made from, so that [`what_if`] can set them side by side.
///
/// # Errors
/// When they differ in more.
pub fn check_what_if(config: &Config, other: &Config) -> Result<(), AppError> {
    let mut same = other.clone();
    for (silo, original) in same.silos.iter_mut().zip(&config.silos) {
        (silo.memory_mib, silo.speed, silo.bandwidth_mbps, silo.data_cap_mib) =
            (original.memory_mib, original.speed, original.bandwidth_mbps, original.data_cap_mib);
    }
    same.plan.clone_from(&config.plan);
    same.federation.deadline_s = config.federation.deadline_s;
    same.federation.rounds = config.federation.rounds;
    same.federation.finish_within_h = config.federation.finish_within_h;
    same.federation.server_rank = config.federation.server_rank;
    same.training.local_steps = config.training.local_steps;
    same.training.recompute = config.training.recompute;
    same.adapter.ranks.clone_from(&config.adapter.ranks);
    if same == *config {
        return Ok(());
    }
    let hint = "it takes silos.NAME.memory_mib, speed, bandwidth_mbps and data_cap_mib, plan.coverage, batch_sizes, \
                step_multiples, base_formats, always_tune and never_tune, adapter.ranks, federation.deadline_s, finish_within_h, rounds and \
                server_rank, training.local_steps and recompute; for all else use --set";
    Err(AppError::user("--what-if changes something that is measured or learnt anew").hint(hint))
}

/// The plan that another configuration ([`check_what_if`]) would give, over what `state` measured.
///
/// # Errors
/// When there is no such plan.
pub fn what_if(other: &Config, setup: &Setup, state: &RunState) -> Result<Plan, AppError> {
    let mut profiles = state.profiles.clone();
    for silo in &other.silos {
        if let Some(profile) = profiles.get_mut(&SiloId::new(&silo.name)) {
            (profile.memory_mib, profile.speed, profile.bandwidth_mbps, profile.data_cap_mib) =
                (silo.memory_mib, silo.speed, silo.bandwidth_mbps, silo.data_cap_mib);
        }
    }
    let measured: Vec<BaseFormat> = profiles.values().flat_map(|p| p.device.time.keys().copied()).collect();
    if let Some(format) = other.plan.base_formats.iter().find(|format| !measured.contains(format)) {
        return Err(AppError::user(format!("--what-if cannot plan with {format}, which was not measured"))
            .hint("name it in plan.base_formats with --set"));
    }
    let value_bytes = codec::by_name(&other.federation.codec)?.1;
    let mut settings = plan_settings(other, value_bytes);
    settings.tuning.never.extend(state.never_tune.iter().cloned());
    let importance =
        Importance { federation: &state.importance, own: &state.own_importance, own_share: other.plan.own_importance };
    let mut plan = planned(other, &setup.spec, &profiles, importance, &settings)?;
    // What the planner chooses anew replaces what it chose.
    let anew = |chosen: &&Chosen| [SERVER_RANK, LOCAL_STEPS].contains(&chosen.key.as_str());
    let kept = state.plan.chosen.iter().filter(|chosen| !anew(chosen));
    plan.chosen.splice(0..0, kept.cloned());
    Ok(plan)
}

/// 1, … , n/4, n/2, n: a silo that cannot hold the probe's batch takes a smaller one.
fn halvings(n: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = std::iter::successors(Some(n), |n| (*n > 1).then_some(n / 2)).collect();
    sizes.reverse();
    sizes
}

fn stopped(around: &Surroundings<'_>, rounds: u32) -> Ending {
    around.observer.observe(&Event::Finished { rounds, stopped: true });
    Ending::Stopped { rounds }
}

/// Quality on an even selection of the test texts, in the rounds that ask for it. Over bf16, which is several times as
/// fast where the processor has it; the last evaluation, over f32, is the one that counts.
fn between_rounds(
    config: &Config,
    setup: &Setup,
    round: u32,
    adapter: &Adapter,
    around: &Surroundings<'_>,
) -> Option<Metrics> {
    let every = config.evaluation.every;
    if every == 0 || !round.is_multiple_of(every) {
        return None;
    }
    match measure(setup, BaseFormat::Bf16, adapter, &setup.test.spread(config.evaluation.examples)) {
        Ok(metrics) => Some(metrics),
        Err(error) => {
            around.observer.observe(&Event::Warning { message: format!("round {round} is not evaluated: {error}") });
            None
        }
    }
}

/// Quality over the base weights in `format`.
fn measure(setup: &Setup, format: BaseFormat, adapter: &Adapter, data: &Dataset) -> Result<Metrics, AppError> {
    let encoder = setup.base.encoder(format)?;
    let objective = setup.base.objective(&data.targets, format)?;
    Ok(evaluate(&*encoder, &objective, adapter, data)?)
}

fn write_plan(run_dir: &RunDir, setup: &Setup, state: &RunState) -> Result<(), AppError> {
    run_dir.write(file::PLAN_JSON, &serde_json::to_vec_pretty(&state.plan).map_err(AppError::other)?)?;
    run_dir.write(file::PLAN_MD, plan::markdown(&state.plan, &setup.spec, &state.profiles).as_bytes())?;
    run_dir.write(file::PLAN_SVG, plan_svg(setup, state, &state.plan).as_bytes())?;
    Ok(())
}

/// The plan that holds at the end, where it is not the first one.
fn write_final_plan(run_dir: &RunDir, setup: &Setup, state: &RunState) -> Result<(), AppError> {
    if state.plan_changes.is_empty() {
        return Ok(());
    }
    run_dir.write(file::PLAN_FINAL_JSON, &serde_json::to_vec_pretty(&state.plan).map_err(AppError::other)?)?;
    let mut text = plan::markdown(&state.plan, &setup.spec, &state.profiles);
    text += "\n## Changes since the first plan\n\n";
    for PlanChange { round, silo, reason } in &state.plan_changes {
        let whose = silo.as_ref().map_or("all silos".to_string(), |silo| format!("silo {silo}"));
        text += &format!("- after round {round}, {whose}: {reason}\n");
    }
    run_dir.write(file::PLAN_FINAL_MD, text.as_bytes())?;
    Ok(())
}

/// Writes what the run leaves behind: first what cannot fail for want of a format, then what is for people.
fn finish(
    config: &Config,
    setup: &Setup,
    run_dir: &RunDir,
    state: &RunState,
    metrics: &Metrics,
    parts: &Parts,
    around: &Surroundings<'_>,
) -> Result<Ending, AppError> {
    let summary = Summary::of(state, Some(metrics), parts.clock.name());
    run_dir.write(file::SUMMARY, &serde_json::to_vec_pretty(&summary).map_err(AppError::other)?)?;
    write_final_plan(run_dir, setup, state)?;
    export(config, setup, run_dir, &state.adapter, around)?;
    let title = run_dir.path().file_name().map_or("run".into(), |name| name.to_string_lossy());
    let config = &config.to_toml().map_err(AppError::other)?;
    let page = html::page(&html::Report { title: &title, state, model: &setup.spec, summary: &summary, config });
    if let Err(error) = run_dir.write(file::REPORT, page.as_bytes()) {
        around.observer.observe(&Event::Warning { message: format!("the report is not written: {error}") });
    }
    around.observer.observe(&Event::Finished { rounds: state.round, stopped: false });
    Ok(Ending::Finished(Box::new(summary)))
}

fn export(
    config: &Config,
    setup: &Setup,
    run_dir: &RunDir,
    adapter: &Adapter,
    around: &Surroundings<'_>,
) -> Result<(), AppError> {
    let info = AdapterInfo {
        base_model: model_name(&config.model),
        base_fingerprint: setup.spec.fingerprint.clone(),
        labels: setup.task.labels().to_vec(),
        max_length: setup.max_length,
        task: setup.task.of_adapter(),
        chat: setup.task.chat(),
        reading: setup.task.reading(),
        fan_in_fan_out: setup.base.outline().transposed,
    };
    run_dir.write_folder(&run_dir.adapter(), |path| Ok(write_adapter(path, adapter, &info)?))?;
    // No server takes a head, so only a model that writes has such a copy.
    if info.task != AdapterTask::CausalLm {
        return Ok(());
    }
    if let Err(reason) = serving_rank(adapter, &info) {
        around.observer.observe(&Event::Warning { message: format!("no serving copy is written: {reason}") });
        return Ok(());
    }
    run_dir.write_folder(&run_dir.adapter_serving(), |path| Ok(write_serving(path, adapter, &info)?))
}

/// The plan as `fedpipe plan` prints it.
pub fn plan_text(setup: &Setup, state: &RunState) -> String {
    plan_report::text(state, &setup.spec, heat::Look::of_stdout())
}

/// The plan as a drawing: an SVG file.
pub fn plan_svg(setup: &Setup, state: &RunState, plan: &Plan) -> String {
    heat::stand_alone(&[heat::importance(&setup.spec, &state.importance), heat::ranks(&setup.spec, plan)])
}
