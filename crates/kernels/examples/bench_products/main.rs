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

use fedpipe_kernels::{CodeBook, FrozenMatrix, Path, pack_codes};

use limit::{Instruction, Limits, Memory};
use options::Options;
use report::{Direction, Row, Who};

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
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
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
        report::print_header();
        for model in MODELS.iter().filter(|model| options.models.contains(&model.name)) {
            for &shape in model.shapes {
                let mut bench = Bench::new(model.name, shape, path, &options);
                for &tokens in &options.tokens {
                    memory.measure();
                    let found = bench.measure(tokens, options.rounds);
                    report::print_rows(&found);
                    rows.extend(found);
                }
            }
        }
        measure_all(&mut limits, path);
        report::print_summary(&rows, memory.gb_s);
    }
    report::print_limits(&limits, memory.gb_s);
    let Some(file) = options.json else { return ExitCode::SUCCESS };
    match std::fs::write(&file, report::json(path, &limits, memory.gb_s, &rows)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
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
            matrix: Some(FrozenMatrix::from_f32(rows, columns, weights.clone())),
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
        let (x, dy) = (values(TOKENS * columns), values(TOKENS * rows));
        let mut seen: Option<Vec<f32>> = None;
        for case in self.cases.iter().filter(|case| case.store == "f32") {
            let mut found = vec![0.0; TOKENS * (rows + columns)];
            let (y, dx) = found.split_at_mut(TOKENS * rows);
            case.forward(&x, &self.weights, self.shape, y);
            case.backward(&dy, &self.weights, self.shape, dx);
            let seen = seen.get_or_insert_with(|| found.clone());
            let tolerance = 1e-5 * rows.max(columns) as f32;
            let worst = seen.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance, "{} on {} is {worst} off", case.who, case.path);
        }
    }

    /// Every case in turn, `rounds` times over, the limits among them; the fastest of each counts.
    fn measure(&mut self, tokens: usize, rounds: usize) -> Vec<Row> {
        let (rows, columns) = self.shape;
        let (x, dy) = (values(tokens * columns), values(tokens * rows));
        let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
        let mut limits = Limits::default();
        let mut best = vec![[Duration::MAX; 2]; self.cases.len()];
        for _ in 0..rounds {
            for (case, best) in self.cases.iter().zip(&mut best) {
                limits.measure(case.instruction());
                let weights = &self.weights;
                best[0] = best[0].min(fastest(|| case.forward(black_box(&x), weights, self.shape, &mut y)));
                best[1] = best[1].min(fastest(|| case.backward(black_box(&dy), weights, self.shape, &mut dx)));
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

    fn forward(&self, x: &[f32], weights: &[f32], (_, columns): (usize, usize), y: &mut [f32]) {
        match &self.matrix {
            Some(matrix) => self.path.scope(|| matrix.product(x, x.len() / columns, None, y)),
            None => peer::product(x, weights, columns, y),
        }
    }

    fn backward(&self, dy: &[f32], weights: &[f32], (rows, columns): (usize, usize), dx: &mut [f32]) {
        match &self.matrix {
            Some(matrix) => self.path.scope(|| matrix.product_transposed(dy, dy.len() / rows, dx)),
            None => peer::product_transposed(dy, weights, columns, dx),
        }
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
