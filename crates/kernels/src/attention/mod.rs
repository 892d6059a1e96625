//! Attention over a ragged batch: sequences packed end to end, no padding.
//!
//! The scores of one head are made in tiles of a few rows, so a thread holds `TILE · length` scores and never the whole
//! matrix; the backward pass makes them again from the log-sum-exp, as FlashAttention does (Dao et al. 2022).
//!
//! Arithmetic is in f32, but for elements in bf16 where the path multiplies these ([`Path::multiplies_bf16`](crate::Path)):
//! there every product multiplies in bf16 with f32 sums, the probabilities and their gradients being rounded to bf16 for it, as
//! in PyTorch's autocast. Scores, softmax and sums stay in f32.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod backward;
mod forward;

pub use backward::attention_backward;
pub use forward::attention_forward;

use crate::gemm::Strided;

/// Rows whose scores are held at once: queries, or keys in the backward pass of AVX-512.
const TILE: usize = 64;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL_WORK: usize = 1 << 16;
/// Multiply-adds of a head's scores that are worth a job of their own.
const JOB_WORK: usize = 1 << 18;

/// The heads of an attention layer.
///
/// Queries are `[tokens, heads·head_dim]`, keys and values `[tokens, kv_heads·head_dim]`; query head `h` attends to key
/// head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor on the scores, positive, usually `1/√head_dim`.
    pub scale: f32,
}

/// Which keys of its sequence a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// The last query all of them, the one before it one fewer, and so on. With as many queries as keys, a token sees
    /// itself and those before it; with fewer, the queries are the last tokens, as in generation with a cache.
    Causal,
    /// Of those the last so many, at least one: a sliding window.
    Window(usize),
}

impl Mask {
    /// The keys, of `n`, that query `query` of `m` sees.
    fn seen(self, query: usize, m: usize, n: usize) -> Range<usize> {
        match self {
            Self::Full => 0..n,
            Self::Causal => 0..n - m + query + 1,
            Self::Window(width) => {
                let end = n - m + query + 1;
                end.saturating_sub(width)..end
            }
        }
    }

    /// The keys, of `n`, that any of some queries of `m` sees.
    #[cfg(target_arch = "x86_64")]
    fn seen_by_any(self, queries: Range<usize>, m: usize, n: usize) -> Range<usize> {
        self.seen(queries.start, m, n).start..self.seen(queries.end - 1, m, n).end
    }

    /// The queries, of `m`, that see key `key` of `n`.
    #[cfg(target_arch = "x86_64")]
    fn seeing(self, key: usize, m: usize, n: usize) -> Range<usize> {
        match self {
            Self::Full => 0..m,
            Self::Causal => (key + m).saturating_sub(n)..m,
            Self::Window(width) => {
                let end = (key + m).saturating_add(width).saturating_sub(n).min(m);
                (key + m).saturating_sub(n).min(end)..end
            }
        }
    }
}

impl AttentionShape {
    /// Columns of the queries and the output.
    fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys and the values.
    fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads for each key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Checks the shape and the offsets, and returns the query tokens and the key tokens.
    fn check(&self, queries: &[usize], keys: &[usize]) -> (usize, usize) {
        assert!(self.heads > 0 && self.kv_heads > 0 && self.head_dim > 0, "attention without heads: {self:?}");
        assert!(self.heads.is_multiple_of(self.kv_heads), "kv_heads divides heads: {self:?}");
        assert!(self.scale > 0.0, "the scale is positive: {self:?}");
        assert!(self.mask != Mask::Window(0), "a query sees a key at least: {self:?}");
        assert_eq!(queries.len(), keys.len(), "as many sequences of queries as of keys");
        for offsets in [queries, keys] {
            assert_eq!(offsets.first(), Some(&0), "offsets start at 0");
            assert!(offsets.is_sorted(), "offsets never fall");
        }
        for (i, (queries, keys)) in queries.windows(2).zip(keys.windows(2)).enumerate() {
            let (m, n) = (queries[1] - queries[0], keys[1] - keys[0]);
            assert!(m == 0 || n > 0, "sequence {i} has {m} queries but no keys");
            let full = self.mask == Mask::Full;
            assert!(full || m <= n, "sequence {i} has {m} queries but {n} keys, and the mask is {:?}", self.mask);
        }
        (queries[queries.len() - 1], keys[keys.len() - 1])
    }

    /// The work, cut by sequences and by heads.
    fn jobs(&self, queries: &[usize], keys: &[usize]) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (queries, keys) in queries.windows(2).zip(keys.windows(2)) {
            let (queries, keys) = (queries[0]..queries[1], keys[0]..keys[1]);
            let work = queries.len() * keys.len() * self.group() * self.head_dim;
            let together = (JOB_WORK / work.max(1)).clamp(1, self.kv_heads);
            for first in (0..self.kv_heads).step_by(together) {
                let kv_heads = first..self.kv_heads.min(first + together);
                jobs.push(Job { queries: queries.clone(), keys: keys.clone(), kv_heads });
            }
        }
        jobs
    }

    /// Whether the work is worth several threads.
    fn is_parallel(&self, jobs: &[Job]) -> bool {
        let scores: usize = jobs.iter().map(|job| job.queries.len() * job.keys.len() * job.kv_heads.len()).sum();
        scores * self.group() * self.head_dim >= SERIAL_WORK && rayon::current_num_threads() > 1
    }
}

/// Some heads of one sequence.
struct Job {
    /// Tokens of the queries.
    queries: Range<usize>,
    /// Tokens of the keys.
    keys: Range<usize>,
    kv_heads: Range<usize>,
}

impl Job {
    /// Query heads that attend to a key head.
    fn heads(shape: &AttentionShape, kv_head: usize) -> Range<usize> {
        kv_head * shape.group()..(kv_head + 1) * shape.group()
    }
}

/// One head of a sequence: rows of a packed tensor `width` columns wide, from token `start`.
fn head_of<E>(data: &[E], width: usize, start: usize, column: usize) -> Strided<'_, E> {
    Strided { data: &data[start * width + column..], row_stride: width }
}

/// Elements from one row of a tile of scores to the next: rows start on cache lines.
fn scores_stride(keys: usize) -> usize {
    keys.next_multiple_of(16)
}
