//! What was measured: as a table, in summary, and as JSON.

use std::fmt;
use std::time::SystemTime;

use fedpipe_kernels::Path;
use serde_json::{Value, json};

use crate::limit::Limits;

/// Who multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Fedpipe,
    Gemm,
}

/// `x · Wᵀ` or `dy · W`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fedpipe => "fedpipe",
            Self::Gemm => "gemm",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "x·Wᵀ",
            Self::Backward => "dy·W",
        })
    }
}

/// One product.
pub struct Row {
    pub model: &'static str,
    /// Of the weight: outputs.
    pub rows: usize,
    /// Of the weight: inputs.
    pub columns: usize,
    pub tokens: usize,
    pub who: Who,
    pub path: Path,
    pub store: &'static str,
    pub direction: Direction,
    pub gflops: f64,
    pub limit_gflops: f64,
    /// Stored weights over time: what counts where few tokens read each weight once.
    pub weights_gb_s: f64,
}

impl Row {
    fn share(&self) -> f64 {
        self.gflops / self.limit_gflops
    }

    /// The better of two measurements of one product.
    pub fn best(self, other: Self) -> Self {
        Self {
            gflops: self.gflops.max(other.gflops),
            limit_gflops: self.limit_gflops.max(other.limit_gflops),
            weights_gb_s: self.weights_gb_s.max(other.weights_gb_s),
            ..self
        }
    }

    /// Length of the sums.
    fn depth(&self) -> usize {
        match self.direction {
            Direction::Forward => self.columns,
            Direction::Backward => self.rows,
        }
    }

    fn same_product(&self, other: &Self) -> bool {
        (self.model, self.rows, self.columns, self.tokens, self.direction)
            == (other.model, other.rows, other.columns, other.tokens, other.direction)
    }
}

pub fn print_header() {
    println!(
        "{:<12} {:>9} {:>6} {:<5} {:<7} {:<10} {:<5} {:>9} {:>9} {:>6} {:>7}",
        "model", "[out,in]", "tokens", "", "who", "path", "store", "GFLOP/s", "limit", "share", "GB/s"
    );
}

pub fn print_rows(rows: &[Row]) {
    for row in rows {
        println!(
            "{:<12} {:>9} {:>6} {:<5} {:<7} {:<10} {:<5} {:>9.1} {:>9.1} {:>6.2} {:>7.1}",
            row.model,
            format!("{}x{}", row.rows, row.columns),
            row.tokens,
            row.direction,
            row.who,
            row.path.name(),
            row.store,
            row.gflops,
            row.limit_gflops,
            row.share(),
            row.weights_gb_s
        );
    }
}

pub fn print_limits(limits: &Limits, memory_gb_s: f64) {
    for (instruction, gflops) in limits.iter() {
        println!("limit: {gflops:.1} GFLOP/s ({instruction})");
    }
    println!("limit: {memory_gb_s:.1} GB/s (reading memory)");
}

pub fn print_summary(rows: &[Row], memory_gb_s: f64) {
    for (name, value) in summary(rows, memory_gb_s) {
        println!("{name}: {value:.3}");
    }
}

/// The figures that one looks at first, in order; those that nothing was measured for are left out.
fn summary(rows: &[Row], memory_gb_s: f64) -> Vec<(String, f64)> {
    let mut lines = Vec::new();
    let mut add = |name: String, values: Vec<f64>, pick: fn(Vec<f64>) -> f64| {
        if !values.is_empty() {
            lines.push((name, pick(values)));
        }
    };
    let large = |store: &'static str| {
        rows.iter().filter(move |row| row.who == Who::Fedpipe && row.store == store && row.tokens >= 512)
    };
    let shares = || large("bf16").map(Row::share).collect::<Vec<_>>();
    add("bf16, tokens >= 512: least share of the limit".into(), shares(), least);
    add("bf16, tokens >= 512: median share".into(), shares(), median);
    let deep = |range: std::ops::Range<usize>| {
        large("bf16").filter(|row| range.contains(&row.depth())).map(Row::share).collect::<Vec<_>>()
    };
    add("bf16, tokens >= 512, sums over < 1024: median share".into(), deep(0..1024), median);
    add("bf16, tokens >= 512, sums over >= 2048: median share".into(), deep(2048..usize::MAX), median);
    for store in ["nf4", "int8"] {
        let times = || {
            let ratio = |row: &Row| Some(large("bf16").find(|bf16| bf16.same_product(row))?.gflops / row.gflops);
            large(store).filter_map(ratio).collect::<Vec<_>>()
        };
        add(format!("{store}, tokens >= 512: median time over bf16's"), times(), median);
        add(format!("{store}, tokens >= 512: most time over bf16's"), times(), most);
    }
    // Weights that no cache holds.
    let far = |row: &&Row| row.rows * row.columns >= 1 << 24;
    for (store, tokens) in ["f32", "bf16", "int8", "nf4"].into_iter().flat_map(|store| [(store, 1), (store, 8)]) {
        let forward = |row: &&Row| row.who == Who::Fedpipe && row.direction == Direction::Forward && row.store == store;
        let path = rows.first().map(|row| row.path);
        let own = rows.iter().filter(forward).filter(far).filter(|row| row.tokens == tokens && Some(row.path) == path);
        let shares = own.map(|row| row.weights_gb_s / memory_gb_s).collect();
        add(
            format!("{store}, {tokens} tokens, x·Wᵀ of 2^24 weights: median share of the memory's speed"),
            shares,
            median,
        );
    }
    if let Some(path) = rows.iter().find(|row| row.who == Who::Gemm).map(|row| row.path) {
        let ratios = || {
            let peers = rows.iter().filter(|row| row.who == Who::Gemm && row.tokens >= 64);
            let ratio = |peer: &Row| {
                let ours = rows.iter().find(|ours| {
                    ours.who == Who::Fedpipe && ours.store == "f32" && ours.path == path && ours.same_product(peer)
                });
                Some(ours?.gflops / peer.gflops)
            };
            peers.filter_map(ratio).collect::<Vec<_>>()
        };
        add(format!("f32 over the gemm crate, instructions of {path}, tokens >= 64: least ratio"), ratios(), least);
        add(format!("f32 over the gemm crate, instructions of {path}, tokens >= 64: median ratio"), ratios(), median);
    }
    lines
}

fn least(values: Vec<f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

fn most(values: Vec<f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// Everything, for `bench/run.py`.
pub fn json(path: Path, limits: &Limits, memory_gb_s: f64, rows: &[Row]) -> String {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let row = |row: &Row| {
        json!({
            "model": row.model, "rows": row.rows, "columns": row.columns, "tokens": row.tokens,
            "direction": match row.direction { Direction::Forward => "forward", Direction::Backward => "backward" },
            "who": row.who.to_string(), "path": row.path.name(), "store": row.store,
            "gflops": row.gflops, "weights_gb_s": row.weights_gb_s, "limit_gflops": row.limit_gflops, "share": row.share(),
        })
    };
    let object = |pairs: &mut dyn Iterator<Item = (String, f64)>| {
        Value::Object(pairs.map(|(name, value)| (name, value.into())).collect())
    };
    let limits = object(&mut limits.iter().map(|(instruction, gflops)| (instruction.to_string(), gflops)));
    let summary = object(&mut summary(rows, memory_gb_s).into_iter());
    let all = json!({
        "unix_time_s": since_1970.as_secs(),
        "processor": processor(),
        "threads": rayon::current_num_threads(),
        "path": path.name(),
        "limit_gflops": limits,
        "memory_gb_s": memory_gb_s,
        "summary": summary,
        "products": rows.iter().map(row).collect::<Vec<_>>(),
    });
    format!("{all:#}\n")
}

/// The processor's name where the system tells it, else its architecture.
pub fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}
