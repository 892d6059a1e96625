//! One function an operation. Models are written against [`Ops`] only.
//!
//! Every operation exists twice: *reference*, composed of candle operations and differentiated by candle, on any
//! device; and *fast*, a candle custom operation with its own backward over `fedpipe-kernels`, on the CPU. The
//! conformance tests hold the two together, forward and backward.
//!
//! Sequences are packed end to end: a batch is `[tokens, width]` with offsets, never padded on the fast path.

mod attention;
mod gelu;
mod linear;
mod loss;
mod norm;
mod slices;
#[cfg(test)]
mod tests;

pub use attention::AttentionShape;
pub use linear::LoraFactors;
pub use loss::cross_entropy;
pub use norm::NormWeights;

/// Which implementation of the operations to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ops {
    /// Composed of candle's operations.
    Reference,
    /// Fused kernels with their own backward pass; CPU only.
    #[default]
    Fast,
}
