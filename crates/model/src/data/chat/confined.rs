//! Where templates run: on a stack that suffices for what their fuel can build, and printing nothing that is nested deep.
//!
//! minijinja parses nesting to a bound, but walks a long chain of operators, and a value that a loop put into itself again
//! and again, by recursion: on an ordinary stack either ends the process.

use super::error::ChatError;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::thread::{Builder, scope};

/// A KiB for each of the steps that a template has, and of the bytes of its source. Only what is used takes memory.
pub(super) const STACK_BYTES: usize = 256 << 20;
/// Deepest nesting of a value that is printed; what tools are described by has a dozen levels.
const MAX_PRINTED_DEPTH: usize = 64;
/// Most values within a value that is printed.
const MAX_PRINTED_VALUES: usize = 1 << 16;

/// Runs `work` on a stack of [`STACK_BYTES`].
///
/// # Errors
/// When the system gives no thread, or `work` panics.
pub(super) fn confined<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    let error = |reason: String| ChatError::Render { reason };
    scope(|threads| {
        let thread = Builder::new().name("chat template".into()).stack_size(STACK_BYTES).spawn_scoped(threads, work);
        let thread = thread.map_err(|e| error(format!("there is no thread for it: {e}")))?;
        thread.join().map_err(|_| error("it made the template engine panic".into()))
    })
}

/// Lets values that are nested deep, or hold the same value over and over, be printed no more.
pub(super) fn bound_printing(environment: &mut Environment<'_>) {
    environment.set_formatter(|output, state, value| {
        check_shape(value)?;
        minijinja::escape_formatter(output, state, value)
    });
}

/// That a value prints in bounded time and depth.
pub(super) fn check_shape(value: &Value) -> Result<(), Error> {
    let error = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("a value is printed that {what}")));
    let mut waiting = vec![(value.clone(), 0)];
    let mut seen = 0;
    while let Some((value, depth)) = waiting.pop() {
        seen += 1;
        if depth > MAX_PRINTED_DEPTH {
            return error(&format!("nests more than {MAX_PRINTED_DEPTH} lists"));
        }
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            continue;
        }
        let is_map = value.kind() == ValueKind::Map;
        for item in value.try_iter()? {
            if seen + waiting.len() > MAX_PRINTED_VALUES {
                return error(&format!("holds more than {MAX_PRINTED_VALUES} others"));
            }
            if is_map {
                waiting.push((value.get_item(&item)?, depth + 1));
            }
            waiting.push((item, depth + 1));
        }
    }
    Ok(())
}
