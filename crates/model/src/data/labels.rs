//! The classes of a classification task.

use super::{DataError, Example};
use std::collections::BTreeSet;

/// The classes in their order; a class's number is its place.
///
/// Whole numbers are ordered by value, so that labels 0, 1, … keep their numbers; all other labels as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// The labels of `examples`.
    ///
    /// # Errors
    /// When there are fewer than two.
    pub fn of<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Result<Self, DataError> {
        let distinct: BTreeSet<&str> = examples.into_iter().map(|e| e.label.as_str()).collect();
        let mut names: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
        if names.len() < 2 {
            return Err(DataError::TooFewLabels { only: names.pop() });
        }
        if names.iter().all(|name| name.parse::<i64>().is_ok()) {
            names.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
        }
        Ok(Self(names))
    }

    /// The labels that an adapter was exported with, in their order.
    pub fn from_names(names: Vec<String>) -> Self {
        Self(names)
    }

    /// The number of classes.
    #[expect(clippy::len_without_is_empty, reason = "there are always some")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The names in order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The class's name.
    pub fn name(&self, class: usize) -> Option<&str> {
        self.0.get(class).map(String::as_str)
    }

    /// The number of the class with this name.
    pub fn class(&self, name: &str) -> Option<u32> {
        self.0.iter().position(|n| n == name).map(|i| i as u32)
    }

    /// The class of an example.
    ///
    /// # Errors
    /// When its label is not among these.
    pub fn class_of(&self, example: &Example) -> Result<u32, DataError> {
        self.class(&example.label).ok_or_else(|| DataError::UnknownLabel {
            origin: example.origin.clone(),
            label: example.label.clone(),
            known: self.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;

    fn example(label: &str, line: u64) -> Example {
        let origin = Origin::new("test.tsv".as_ref(), line);
        Example { text: String::new(), label: label.into(), second: None, site: None, origin }
    }

    fn labels(names: &[&str]) -> Labels {
        Labels::of(&names.iter().map(|name| example(name, 2)).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_order_does_not_depend_on_the_examples_and_numbers_keep_their_value() {
        assert_eq!(labels(&["trade", "acq", "trade"]).names(), ["acq", "trade"]);
        assert_eq!(labels(&["10", "9", "0"]).names(), ["0", "9", "10"]);
        assert_eq!(labels(&["10", "9", "x"]).names(), ["10", "9", "x"]);
    }

    #[test]
    fn an_unknown_label_is_named_with_its_file_and_line() {
        let error = labels(&["acq", "earn"]).class_of(&example("grain", 17)).unwrap_err();
        assert_eq!(error.to_string(), "test.tsv:17: the label `grain` is not among the 2 labels of the training data");
        assert_eq!(labels(&["acq", "earn"]).class_of(&example("earn", 1)).unwrap(), 1);
    }

    #[test]
    fn one_label_is_too_few() {
        let error = Labels::of(&[example("acq", 2)]).unwrap_err();
        assert_eq!(error.to_string(), "a classifier needs at least two labels, but the training data have only `acq`");
    }
}
