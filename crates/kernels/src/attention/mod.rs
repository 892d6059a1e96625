//! Attention over a ragged batch: sequences packed end to end, no padding.
//!
//! The scores of one head are made in tiles of a few query rows by all keys, so a thread holds `TILE · length` scores and
//! never the whole matrix; the backward pass makes them again from the log-sum-exp, as FlashAttention does (Dao et al.
//! 2022).

mod backward;
mod forward;

pub use backward::attention_backward;
pub use forward::attention_forward;

use crate::gemm::Strided;

/// Query rows whose scores are held at once.
const TILE: usize = 64;
/// Multiply-adds below which a second thread costs more than it brings.
const SERIAL_WORK: usize = 1 << 16;

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
    /// Whether a token sees only itself and those before it in its sequence.
    pub causal: bool,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f32,
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

    /// Checks the shape and the offsets, and returns the tokens.
    fn check(&self, offsets: &[usize]) -> usize {
        assert!(self.heads > 0 && self.kv_heads > 0 && self.head_dim > 0, "attention without heads: {self:?}");
        assert!(self.heads.is_multiple_of(self.kv_heads), "kv_heads divides heads: {self:?}");
        assert_eq!(offsets.first(), Some(&0), "offsets start at 0");
        assert!(offsets.is_sorted(), "offsets never fall");
        offsets[offsets.len() - 1]
    }

    /// Whether the work is worth several threads.
    fn is_parallel(&self, offsets: &[usize]) -> bool {
        let scores: usize = offsets.windows(2).map(|pair| (pair[1] - pair[0]).pow(2)).sum();
        scores * self.query_width() >= SERIAL_WORK && rayon::current_num_threads() > 1
    }

    /// Keys that the query rows below `end` of a sequence of `len` tokens see together.
    fn visible(&self, end: usize, len: usize) -> usize {
        if self.causal { end } else { len }
    }
}

/// One head of a sequence: `rows` of a packed tensor `width` columns wide, from token `start`.
fn head_of(data: &[f32], width: usize, start: usize, column: usize) -> Strided<'_> {
    Strided { data: &data[start * width + column..], row_stride: width }
}

/// Elements from one row of a tile of scores to the next: rows start on cache lines.
fn scores_stride(keys: usize) -> usize {
    keys.next_multiple_of(16)
}
