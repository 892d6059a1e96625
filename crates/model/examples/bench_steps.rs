//! Speed and memory of training steps as the product runs them, on the texts and batches of `bench/peft_steps.py`.
//!
//! ```text
//! cargo run --release -p fedpipe-model --example bench_steps -- [--base bf16] [--sort] [--steps 12] [--batch 16]
//!     [--max-length 256] [--model FOLDER] [--data FILE] [--lm PROMPT,COMPLETION]
//! ```
//!
//! LoRA of rank 8 on query, key, value and the attention's output, over frozen weights in the format `--base`: a
//! classification, or with `--lm` the next token of texts made of two columns, every token of them. Prints one line of
//! JSON; the first two steps are left out of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use fedpipe_core::{Adapter, BaseFormat, LearningRate, LowRank, Purpose, Seed, Stop, TrainWork};
use fedpipe_kernels::{CountingAllocator, Path as KernelPath, keep_freed_memory};
use fedpipe_model::adapter::fresh_head;
use fedpipe_model::data::{Batches, Columns, Dataset, Example, Labels, read};
use fedpipe_model::head::HeadKind;
use fedpipe_model::ops::OpsKind;
use fedpipe_model::{BaseModel, Training, train};
use mimalloc::MiMalloc;
use serde_json::{Value, json};

/// As in the binary, so that memory is what the product takes.
#[global_allocator]
static HEAP: CountingAllocator<MiMalloc> = CountingAllocator::new(MiMalloc);

const RANK: usize = 8;
const SCALING: f32 = 2.0;
/// Steps that warm up.
const LEFT_OUT: usize = 2;
/// Text j of the benchmark is line (j · `STRIDE`) mod lines of the file, which is sorted by label: a prime, so that no
/// line comes twice. The peer has the same.
const STRIDE: u64 = 2_654_435_761;

struct Options {
    base: BaseFormat,
    sort: bool,
    steps: usize,
    batch: usize,
    max_length: usize,
    model: PathBuf,
    data: PathBuf,
    /// Columns of a language model's texts; a classification without.
    lm: Option<(String, String)>,
}

fn main() -> ExitCode {
    keep_freed_memory();
    match Options::parse(std::env::args().skip(1)).and_then(|options| measure(&options)) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            base: BaseFormat::Bf16,
            sort: false,
            steps: 12,
            batch: 16,
            max_length: 256,
            model: "assets/models/all-MiniLM-L6-v2".into(),
            data: "assets/data/20newsgroups-train.tsv".into(),
            lm: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--base" => options.base = value()?.parse()?,
                "--sort" => options.sort = true,
                "--steps" => options.steps = value()?.parse()?,
                "--batch" => options.batch = value()?.parse()?,
                "--max-length" => options.max_length = value()?.parse()?,
                "--model" => options.model = value()?.into(),
                "--data" => options.data = value()?.into(),
                "--lm" => {
                    let columns = value()?;
                    let (prompt, completion) =
                        columns.split_once(',').ok_or("--lm takes two columns, such as mr,ref")?;
                    options.lm = Some((prompt.into(), completion.into()));
                }
                other => return Err(format!("{other}: unknown; see the head of bench_steps.rs").into()),
            }
        }
        if options.steps <= LEFT_OUT || options.batch == 0 {
            return Err(format!("at least {} steps and one text a batch are needed", LEFT_OUT + 1).into());
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Result<Value, Box<dyn Error>> {
    let base = BaseModel::open(&options.model)?;
    let data = texts(options, &base)?;
    let order = if options.sort { by_length(&data, options.batch) } else { (0..data.len()).collect() };
    let expected: Vec<u64> = order.chunks(options.batch).map(|batch| data.subset(batch).tokens() as u64).collect();
    let seed = Seed(0);
    let data = arranged(&data, &order, options.batch, seed);
    let encoder = base.encoder(options.base)?;
    let work = work(options, &base, &data, seed)?;

    HEAP.reset_peak();
    let (mut steps, mut last_loss, mut start) = (Vec::new(), f64::NAN, Instant::now());
    let objective = base.objective(&data.targets, options.base)?;
    let training = Training { kind: OpsKind::Fast, encoder: &*encoder, objective: &objective, cache: None };
    train(training, &data, &work, seed, &Stop::default(), &mut |report| {
        steps.push((report.tokens, start.elapsed().as_secs_f64()));
        (last_loss, start) = (report.loss, Instant::now());
    })?;
    if !steps.iter().map(|&(tokens, _)| tokens).eq(expected) {
        return Err("the batches are not those that were asked for: `train` draws them differently now".into());
    }

    let timed = &steps[LEFT_OUT..];
    let tokens: u64 = timed.iter().map(|&(tokens, _)| tokens).sum();
    let seconds: f64 = timed.iter().map(|&(_, seconds)| seconds).sum();
    let squares: usize = data.lengths().map(|length| length * length).sum();
    Ok(json!({
        "who": "fedpipe",
        "base": options.base.name(),
        "dropout": false,
        "sorted": options.sort,
        "compiled": false,
        "batch": options.batch,
        "max_length": options.max_length,
        "threads": rayon::current_num_threads(),
        "path": KernelPath::active().name(),
        "steps": timed.len(),
        "step_ms": 1e3 * seconds / timed.len() as f64,
        "tokens_per_s": tokens as f64 / seconds,
        "tokens": tokens,
        "mean_length": data.tokens() as f64 / data.len() as f64,
        "mean_context": squares as f64 / data.tokens() as f64,
        "last_loss": last_loss,
        "peak_rss_mib": peak_rss_mib(),
        "peak_allocated_mib": HEAP.peak_bytes() as f64 / f64::from(1 << 20),
        "each_step": steps.iter().map(|&(tokens, seconds)| json!([tokens, 1e3 * seconds])).collect::<Vec<_>>(),
    }))
}

/// The texts of all steps, in the order that both sides of the comparison number them.
fn texts(options: &Options, base: &BaseModel) -> Result<Dataset, Box<dyn Error>> {
    let columns = match &options.lm {
        None => Columns::default(),
        Some((prompt, completion)) => Columns { label: Some(completion.clone()), ..Columns::of_text(prompt) },
    };
    let lines = read(&options.data, &columns)?;
    let count = options.batch * options.steps;
    if count > lines.len() {
        return Err(format!("{count} texts are needed, the file has {}", lines.len()).into());
    }
    let line = |text: usize| (text as u64 * STRIDE % lines.len() as u64) as usize;
    let mut chosen: Vec<Example> = (0..count).map(|text| lines[line(text)].clone()).collect();
    let encoder = base.text_encoder(options.max_length)?;
    if options.lm.is_none() {
        return Ok(encoder.examples(&chosen, &Labels::of(&lines)?)?);
    }
    chosen.iter_mut().for_each(|example| example.text = format!("{}\n{}", example.text, example.label));
    let data = encoder.documents(&chosen, None)?;
    match data.lengths().max() {
        Some(longest) if longest > options.max_length => Err(format!("a text has {longest} tokens").into()),
        _ => Ok(data),
    }
}

/// Batches of texts of like length, themselves in a mixed order: block i comes i · s-th, with the least s from 0.6 of
/// their number upwards that meets every block.
fn by_length(data: &Dataset, batch: usize) -> Vec<usize> {
    let lengths: Vec<usize> = data.lengths().collect();
    let mut order: Vec<usize> = (0..data.len()).collect();
    order.sort_by_key(|&text| lengths[text]);
    let blocks: Vec<&[usize]> = order.chunks(batch).collect();
    let count = blocks.len();
    let stride = (3 * count / 5..).find(|&stride| gcd(stride, count) == 1).unwrap_or(1);
    (0..count).flat_map(|block| blocks[block * stride % count].iter().copied()).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The texts placed so that `train`, which shuffles them by its seed, meets them in `order`.
fn arranged(data: &Dataset, order: &[usize], batch: usize, seed: Seed) -> Dataset {
    let drawn = Batches::new(order.len(), batch, seed.derive(Purpose::Batches, 0, None)).flatten();
    let mut place = vec![0; order.len()];
    for (index, &text) in drawn.zip(order) {
        place[index] = text;
    }
    data.subset(&place)
}

fn work(options: &Options, base: &BaseModel, data: &Dataset, seed: Seed) -> Result<TrainWork, Box<dyn Error>> {
    let classes = data.classes().iter().max().map(|&last| last as usize + 1);
    // The architecture's own choice of weights: those of attention.
    let spec = base.spec(&[], classes.map_or(HeadKind::Vocabulary, HeadKind::Classes))?;
    let fresh = |id: &str, inputs, outputs| LowRank::fresh(RANK, inputs, outputs, seed.named(id));
    let adapted = spec.candidates.iter();
    Ok(TrainWork {
        adapter: Adapter {
            scaling: SCALING,
            factors: adapted.map(|w| (w.id.clone(), fresh(w.id.as_str(), w.inputs, w.outputs))).collect(),
            head: fresh_head(&spec.head, seed),
        },
        fixed: BTreeMap::new(),
        base_format: options.base,
        batch_size: options.batch,
        steps: options.steps,
        learning_rate: LearningRate::constant(1e-3),
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        dropout: 0.0,
        spare_bytes: 0,
        recompute: false,
    })
}

/// The most memory that the process ever had resident, where the system tells it.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?;
    kib.parse::<f64>().ok().map(|kib| kib / 1024.0)
}
