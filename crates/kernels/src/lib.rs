//! The CPU's hot loops, on plain slices: products over frozen weights (f32, bf16, low-bit codes), thin dense products,
//! attention over ragged batches, norms, activations, AdamW. Forward and backward. Knows nothing of models.
//!
//! Every function is safe, checks the lengths of its slices (a mismatch is a bug of the caller and panics) and runs on the
//! best instruction set of the processor, see [`Path`]. Work is shared out over the current rayon pool; results are
//! bit-identical for every number of threads.
//!
//! Working memory is kept per thread: at most about 16 MiB for a product's left side (more only where 112 rows of it take
//! more), a few hundred KiB for the expanded tile of the right side, and `64 · length` scores for attention.
#![expect(unsafe_code, reason = "vector instructions and disjoint writes from several threads, behind safe functions")]

mod activation;
mod adamw;
mod attention;
mod codes;
pub mod dense;
mod dispatch;
mod frozen;
mod gemm;
mod heap;
mod map;
mod norm;
mod scratch;
mod shared;
mod vector;

pub use activation::Activation;
pub use adamw::{AdamW, Parameter};
pub use attention::{AttentionShape, attention_backward, attention_forward};
pub use codes::{CodeBook, pack_codes, unpack_codes};
pub use dispatch::{PATH_VARIABLE, Path, PathError};
pub use frozen::{FrozenMatrix, Storage};
pub use heap::{CountingAllocator, keep_freed_memory};
pub use map::{MappedFile, map_file};
pub use norm::{layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward};
