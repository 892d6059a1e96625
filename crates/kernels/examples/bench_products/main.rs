//! Speed of the products over frozen weights, beside the machine's own limit and, in f32, beside the `gemm` crate.
//!
//! ```text
//! cargo run --release -p fedpipe-kernels --example bench_products -- [--models minilm,llama-1b] [--tokens 64,512]
//!     [--quick] [--limit] [--peer] [--json PATH]
//! ```
//!
//! `--quick` measures less often, `--limit` measures the limit alone, `--peer` only what the `gemm` crate can do too.
//! The crate stops at AVX2 unless it is built with `--features bench-gemm-avx512`; ours runs on the same instructions
//! beside it. `FEDPIPE_KERNELS` and `RAYON_NUM_THREADS` work as everywhere.
#![expect(unsafe_code, reason = "the limit is measured with the instructions themselves, and the peer takes pointers")]

mod limit;
mod options;
mod peer;
mod report;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fedpipe_kernels::{CodeBook, Element, FrozenMatrix, Path, pack_codes};
use half::bf16;

use limit::{Instruction, Limits, Memory};
use options::Options;
use report::{Direction, Row, Who};

/// How often everything is measured; the better one counts.
const PASSES: usize = 2;

/// `[out, in]` of the distinct weights of a model.
struct Model {
    name: &'static str,
    shapes: &'static [(usize, usize)],
}

const MODELS: [Model; 4] = [
    Model { name: "minilm", shapes: &[(384, 384), (1536, 384), (384, 1536)] },
    Model { name: "bert-base", shapes: &[(768, 768), (3072, 768), (768, 3072)] },
    Model { name: "smollm-135m", shapes: &[(576, 576), (192, 576), (1536, 576), (576, 1536)] },
    Model { name: "llama-1b", shapes: &[(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)] },
];

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)) {
        // On a thread of the pool, as training is: one from outside would be woken after every product, its own or the peer's.
        Ok(options) => rayon::scope(|_| run(&options)),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> ExitCode {
    let path = Path::active();
    println!("{}, {} threads, path {path}", report::processor(), rayon::current_num_threads());
    let mut limits = Limits::default();
    let mut memory = Memory::new();
    let mut rows = Vec::new();
    if options.limit_only {
        (0..options.rounds).for_each(|_| {
            measure_all(&mut limits, path);
            memory.measure();
        });
    } else {
        // Everything twice, minutes apart: what disturbs a processor lasts for seconds.
        for _ in 0..PASSES {
            let found = measure_once(options, path, &mut memory);
            rows = match rows.is_empty() {
                true => found,
                false => rows.into_iter().zip(found).map(|(a, b)| a.best(b)).collect(),
            };
            measure_all(&mut limits, path);
        }
        report::print_header();
        report::print_rows(&rows);
        report::print_summary(&rows, memory.gb_s);
    }
    report::print_limits(&limits, memory.gb_s);
    let Some(file) = &options.json else { return ExitCode::SUCCESS };
    match std::fs::write(file, report::json(path, &limits, memory.gb_s, &rows)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

/// Every product of the models that are asked for.
fn measure_once(options: &Options, path: Path, memory: &mut Memory) -> Vec<Row> {
    let mut rows = Vec::new();
    for model in MODELS.iter().filter(|model| options.models.contains(&model.name)) {
        for &shape in model.shapes {
            let mut bench = Bench::new(model.name, shape, path, options);
            for &tokens in &options.tokens {
                memory.measure();
                rows.extend(bench.measure(tokens, options.rounds));
            }
        }
    }
    rows
}

fn measure_all(limits: &mut Limits, path: Path) {
    limits.measure(Instruction::of(path, true));
    limits.measure(Instruction::of(path, false));
}

/// One weight in every format, and who multiplies with it.
struct Bench {
    model: &'static str,
    shape: (usize, usize),
    weights: Vec<f32>,
    cases: Vec<Case>,
}

struct Case {
    who: Who,
    path: Path,
    store: &'static str,
    /// Nothing for the peer, which takes the weights as they are.
    matrix: Option<FrozenMatrix>,
}

impl Bench {
    fn new(model: &'static str, shape @ (rows, columns): (usize, usize), path: Path, options: &Options) -> Self {
        let weights = values(rows * columns);
        let f32_on = |path| Case {
            who: Who::Fedpipe,
            path,
            store: "f32",
            matrix: Some(FrozenMatrix::f32(rows, columns, &weights)),
        };
        let mut cases = Vec::new();
        if !options.peer_only {
            let ours = |store, matrix| Case { who: Who::Fedpipe, path, store, matrix: Some(matrix) };
            cases.push(f32_on(path));
            cases.push(ours("bf16", FrozenMatrix::bf16(rows, columns, &weights)));
            cases.push(ours("int8", FrozenMatrix::int8(rows, columns, &weights)));
            cases.push(ours("nf4", nf4(rows, columns)));
        }
        if let Some(path) = peer::path() {
            if !cases.iter().any(|case| case.store == "f32" && case.path == path) {
                cases.push(f32_on(path));
            }
            cases.push(Case { who: Who::Gemm, path, store: "f32", matrix: None });
        }
        let bench = Self { model, shape, weights, cases };
        bench.check_same_product();
        bench
    }

    /// All cases of f32 weights compute the same thing, or there is nothing to compare.
    fn check_same_product(&self) {
        const TOKENS: usize = 5;
        let (rows, columns) = self.shape;
        let mut passes = Passes::<f32>::new(TOKENS, self.shape);
        let mut seen: Option<Vec<f32>> = None;
        for case in self.cases.iter().filter(|case| case.store == "f32") {
            case.forward(&mut passes, &self.weights);
            case.backward(&mut passes, &self.weights);
            let found = [passes.y.as_slice(), &passes.dx].concat();
            let tolerance = 1e-5 * rows.max(columns) as f32;
            let seen = seen.get_or_insert_with(|| found.clone());
            let worst = seen.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance, "{} on {} is {worst} off", case.who, case.path);
        }
    }

    /// Every case in turn, `rounds` times over, the limits among them; the fastest of each counts.
    fn measure(&mut self, tokens: usize, rounds: usize) -> Vec<Row> {
        let (rows, columns) = self.shape;
        let (mut wide, mut narrow) = (Passes::<f32>::new(tokens, self.shape), Passes::<bf16>::new(tokens, self.shape));
        let mut limits = Limits::default();
        let mut best = vec![[Duration::MAX; 2]; self.cases.len()];
        for _ in 0..rounds {
            for (case, best) in self.cases.iter().zip(&mut best) {
                limits.measure(case.instruction());
                let took = match &case.matrix {
                    Some(matrix) if case.multiplies_bf16() => [
                        fastest(|| case.path.scope(|| narrow.forward(matrix))),
                        fastest(|| case.path.scope(|| narrow.backward(matrix))),
                    ],
                    _ => [
                        fastest(|| case.forward(&mut wide, &self.weights)),
                        fastest(|| case.backward(&mut wide, &self.weights)),
                    ],
                };
                best.iter_mut().zip(took).for_each(|(best, took)| *best = (*best).min(took));
            }
        }
        let row = |case: &Case, direction, took: Duration| Row {
            model: self.model,
            rows,
            columns,
            tokens,
            who: case.who,
            path: case.path,
            store: case.store,
            direction,
            gflops: 2.0 * (tokens * rows * columns) as f64 / took.as_secs_f64() / 1e9,
            weights_gb_s: case.bytes(&self.weights) as f64 / took.as_secs_f64() / 1e9,
            limit_gflops: limits.gflops(case.instruction()),
        };
        let cases = self.cases.iter().zip(best);
        cases
            .flat_map(|(case, [forward, backward])| {
                [row(case, Direction::Forward, forward), row(case, Direction::Backward, backward)]
            })
            .collect()
    }
}

impl Case {
    fn instruction(&self) -> Instruction {
        Instruction::of(self.path, self.store == "f32")
    }

    /// Of the weights, as stored.
    fn bytes(&self, weights: &[f32]) -> usize {
        self.matrix.as_ref().map_or(size_of_val(weights), FrozenMatrix::bytes)
    }

    /// Activations are bf16 where products are, as in training: over narrow weights, where the path multiplies bf16.
    fn multiplies_bf16(&self) -> bool {
        self.path.multiplies_bf16() && self.store != "f32"
    }

    fn forward(&self, passes: &mut Passes<f32>, weights: &[f32]) {
        match &self.matrix {
            Some(matrix) => self.path.scope(|| passes.forward(matrix)),
            None => peer::product(black_box(&passes.x), weights, passes.columns, &mut passes.y),
        }
    }

    fn backward(&self, passes: &mut Passes<f32>, weights: &[f32]) {
        match &self.matrix {
            Some(matrix) => self.path.scope(|| passes.backward(matrix)),
            None => peer::product_transposed(black_box(&passes.dy), weights, passes.columns, &mut passes.dx),
        }
    }
}

/// What goes into the two products of a weight, and what comes out.
struct Passes<E> {
    tokens: usize,
    columns: usize,
    x: Vec<E>,
    y: Vec<E>,
    dy: Vec<E>,
    dx: Vec<E>,
}

impl<E: Element> Passes<E> {
    fn new(tokens: usize, (rows, columns): (usize, usize)) -> Self {
        let values = |len| values(len).into_iter().map(E::from_f32).collect::<Vec<E>>();
        let (x, dy) = (values(tokens * columns), values(tokens * rows));
        Self { tokens, columns, y: vec![E::default(); dy.len()], dx: vec![E::default(); x.len()], x, dy }
    }

    fn forward(&mut self, matrix: &FrozenMatrix) {
        matrix.product(black_box(&self.x), self.tokens, None, &mut self.y);
    }

    fn backward(&mut self, matrix: &FrozenMatrix) {
        matrix.product_transposed(black_box(&self.dy), self.tokens, &mut self.dx);
    }
}

/// The fastest of the calls that fit in a few milliseconds, at least one.
fn fastest(mut call: impl FnMut()) -> Duration {
    const LONG_ENOUGH: Duration = Duration::from_millis(8);
    let mut best = Duration::MAX;
    let begin = Instant::now();
    loop {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed());
        if begin.elapsed() >= LONG_ENOUGH {
            return best;
        }
    }
}

/// Codes and a table made up: what they are does not change the speed.
fn nf4(rows: usize, columns: usize) -> FrozenMatrix {
    const BLOCK: usize = 64;
    let len = rows * columns;
    let codes: Vec<u8> = (0..len).map(|i| (i * 37 % 251) as u8 >> 4).collect();
    let book = CodeBook { bits: 4, table: values(16) };
    FrozenMatrix::from_codes(rows, columns, &book, pack_codes(4, &codes), vec![1.0; len.div_ceil(BLOCK)], BLOCK)
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 37 % 251) as f32 / 125.0 - 1.0).collect()
}
