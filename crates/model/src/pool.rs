//! Where steps run.

use crate::Error;
use rayon::ThreadPoolBuilder;
use std::num::NonZero;
use std::thread::available_parallelism;

/// Runs `work` on a thread of the pool that the kernels share their work over. A thread from outside sleeps while each of
/// their short parallel stretches runs, thousands a second, and has to be woken after it; one of the pool takes part.
pub fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Gives the process's pool at most so many threads, and no more than the machine has; what the environment says of it
/// (`RAYON_NUM_THREADS`) does not count then. To be called before anything is computed.
///
/// # Errors
/// [`Error::Threads`] when the pool has another number of threads already.
pub fn limit_threads(most: usize) -> Result<(), Error> {
    let asked = available_parallelism().map_or(most, |there| most.min(NonZero::get(there)));
    if ThreadPoolBuilder::new().num_threads(asked).build_global().is_ok() {
        return Ok(());
    }
    let has = rayon::current_num_threads();
    if has == asked { Ok(()) } else { Err(Error::Threads { asked, has }) }
}
