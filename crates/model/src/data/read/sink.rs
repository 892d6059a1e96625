//! Where readers put their records, and what becomes of bad ones.

use super::{DataError, Example};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Errors of skipped records that are kept to be shown.
const MAX_SHOWN: usize = 10;

/// What is done with a record that cannot be used: one that does not follow its format, is not UTF-8, is too long or has
/// no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRecord {
    /// The file is refused.
    #[default]
    Error,
    /// The record is left out and counted.
    Skip,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Records {
    /// The records that can be used, in their order.
    pub examples: Vec<Example>,
    /// How many cannot.
    pub skipped: u64,
    /// What is wrong with the first few of them, and where.
    pub reasons: Vec<DataError>,
}

/// Takes the records of one file.
pub(super) struct Sink<'a> {
    on_bad: OnBadRecord,
    on_record: &'a dyn Fn(),
    records: Records,
}

impl<'a> Sink<'a> {
    pub(super) fn new(on_bad: OnBadRecord, on_record: &'a dyn Fn()) -> Self {
        Self { on_bad, on_record, records: Records::default() }
    }

    /// Takes a record, or what is wrong with it alone; the error is that of a record that may not be skipped.
    pub(super) fn take(&mut self, record: Result<Example, DataError>) -> Result<(), DataError> {
        (self.on_record)();
        match (record, self.on_bad) {
            (Ok(example), _) => self.records.examples.push(example),
            (Err(error), OnBadRecord::Error) => return Err(error),
            (Err(error), OnBadRecord::Skip) => {
                self.records.skipped += 1;
                if self.records.reasons.len() < MAX_SHOWN {
                    self.records.reasons.push(error);
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, path: &Path) -> Result<Records, DataError> {
        let mut records = self.records;
        match records.examples.is_empty() {
            false => Ok(records),
            true if records.reasons.is_empty() => Err(DataError::NoExamples { path: path.into() }),
            true => Err(records.reasons.swap_remove(0)),
        }
    }
}
