//! The CPU's hot loops, on plain slices: products over frozen weights (f32, bf16, int8, low-bit codes) with low-rank
//! factors beside them, attention over ragged batches, norms, activations, embeddings, dropout, cross-entropy, AdamW.
//! Forward and backward, over activations of f32 or bf16 ([`Element`]). Knows nothing of models.
//!
//! Every function is safe, checks the lengths of its slices (a mismatch is a bug of the caller and panics) and runs on the
//! best instruction set of the processor, see [`Path`]. Work is shared out over the current rayon pool; results are
//! bit-identical for every number of threads.
//!
//! Working memory is kept per thread: at most about 16 MiB for a product's left side (more only where 112 rows of it take
//! more), a few hundred KiB for the expanded tile of the right side, for attention two tiles of `64 · length` scores and a
//! few copies of one head, and what [`linear_cross_entropy`] says.
#![expect(unsafe_code, reason = "vector instructions and disjoint writes from several threads, behind safe functions")]

mod activation;
mod adamw;
mod add;
mod attention;
mod codes;
mod cross_entropy;
pub mod dense;
mod dispatch;
mod dropout;
mod element;
mod embedding;
mod frozen;
mod gemm;
mod heap;
mod int8;
mod linear;
mod map;
mod norm;
mod rotary;
mod scratch;
mod shared;
mod vector;

pub use activation::Activation;
pub use adamw::{AdamW, Parameter};
pub use add::add_into;
pub use attention::{AttentionShape, Mask, attention_backward, attention_forward};
pub use codes::{CodeBook, pack_codes, unpack_codes};
pub use cross_entropy::{IGNORED, TokenLoss, linear_cross_entropy};
pub use dispatch::{PATH_VARIABLE, Path, PathError};
pub use dropout::dropout;
pub use element::Element;
pub use embedding::gather;
pub use frozen::{FrozenMatrix, Storage};
pub use gemm::PANEL;
pub use heap::{CountingAllocator, keep_freed_memory};
pub use linear::{
    InputGradient, LinearGradient, LinearLayer, LinearOutput, LowRankFactors, factor_gradient, linear_backward,
    linear_forward,
};
pub use map::{MappedFile, map_file};
pub use norm::{NormOutput, NormSaved, layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward};
pub use rotary::RotaryTable;
pub use scratch::free_working_memory;
