//! Fakes of the contracts in `fedpipe-core`, and the conformance suites that every implementation of one passes.
//!
//! A dev-dependency only: a suite panics where an implementation breaks its contract, which is how a test fails.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test support: to panic is to fail the test")]

mod conformance;
mod fakes;
mod toy;

pub use conformance::{aggregator_conformance, codec_conformance, transport_conformance};
pub use fakes::{FakeTransport, Fault, FixedClock, Recorder};
pub use toy::{ToyTrainer, toy_model, toy_profile};
