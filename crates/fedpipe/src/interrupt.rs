//! Ctrl-C: the first asks for an orderly end, the second ends at once.

use fedpipe_core::Stop;

/// Exit code after the second Ctrl-C: 128 + SIGINT, as shells have it.
pub const INTERRUPTED_EXIT_CODE: i32 = 130;

/// From now on Ctrl-C (and SIGTERM) requests `stop`; a second one exits with [`INTERRUPTED_EXIT_CODE`].
///
/// # Errors
/// When the process has a handler already or the system refuses one.
pub fn stop_on_interrupt(stop: &Stop) -> Result<(), ctrlc::Error> {
    let stop = stop.clone();
    ctrlc::set_handler(move || {
        if stop.requested() {
            std::process::exit(INTERRUPTED_EXIT_CODE);
        }
        stop.request();
        eprintln!("stopping after the current step; press Ctrl-C again to end at once");
    })
}
