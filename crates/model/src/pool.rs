//! Where steps run.

/// Runs `work` on a thread of the pool that the kernels share their work over. A thread from outside sleeps while each of
/// their short parallel stretches runs, thousands a second, and has to be woken after it; one of the pool takes part.
pub fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
