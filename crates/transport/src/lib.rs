//! Moves tasks to silos and updates back: [`LocalTransport`] runs every silo on a thread of this process.

mod local;

pub use local::{DEFAULT_STALL_TIMEOUT, LocalTransport};
