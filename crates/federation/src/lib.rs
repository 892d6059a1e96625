//! Everything that decides: which weights matter, what each silo gets to train, how updates are merged, and what
//! happens in a round. No I/O, no threads, no tensor library: it works on the nouns of `fedpipe-core`.
//!
//! One table an extension point: [`importance::MEASURES`], [`aggregate::AGGREGATORS`], [`codec::CODECS`],
//! [`method::METHODS`]. A new one is a file in its folder, a row in its table, and the conformance suite of the testkit.

pub mod aggregate;
pub mod codec;
pub mod importance;
pub mod method;
pub mod partition;
pub mod plan;
pub mod round;
pub mod simulate;
pub mod tune;

/// A name that stands in no row of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{name}`; there is {known}")]
pub struct UnknownName {
    /// What the table holds, for example `aggregator`.
    pub what: &'static str,
    /// The name that was asked for.
    pub name: String,
    /// The names in the table, with commas.
    pub known: String,
}

impl UnknownName {
    fn new(what: &'static str, name: &str, known: impl Iterator<Item = &'static str>) -> Self {
        Self { what, name: name.into(), known: known.collect::<Vec<_>>().join(", ") }
    }
}
