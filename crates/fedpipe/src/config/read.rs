//! Takes typed values out of the tree: every key is named once, where it is read, with its default and its range.

use super::problem::{Place, Problem, nearest};
use super::source::{Node, Table, Value};
use super::{AUTO, Auto};
use std::cell::RefCell;
use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Collects the problems of one reading, so that a person sees all of them at once.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A value that can be taken out of the tree, with what a person calls it.
pub(super) trait FromValue: Sized {
    const NOUN: &'static str;

    fn from_value(value: &Value) -> Option<Self>;
}

macro_rules! from_value {
    ($type:ty, $noun:literal, $($pattern:pat => $value:expr),+) => {
        impl FromValue for $type {
            const NOUN: &'static str = $noun;

            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    $($pattern => $value,)+
                    _ => None,
                }
            }
        }
    };
}

from_value!(String, "a string", Value::String(v) => Some(v.clone()));
from_value!(PathBuf, "a path as a string", Value::String(v) => Some(v.into()));
from_value!(bool, "true or false", Value::Boolean(v) => Some(*v));
from_value!(i64, "an integer", Value::Integer(v) => Some(*v));
from_value!(f64, "a number", Value::Float(v) => Some(*v), Value::Integer(v) => Some(*v as f64));

/// A number that a range is given for.
pub(super) trait Number: FromValue + PartialOrd + Debug + Display + Copy {}
impl Number for i64 {}
impl Number for f64 {}

/// One table while it is read. What nobody asked for by [`Section::finish`] is an unknown key.
pub(super) struct Section<'p> {
    problems: &'p Problems,
    /// How a person addresses the table, for example `[training]`.
    title: String,
    /// Where the table stands; nowhere when it was left out.
    at: Option<Place>,
    table: Table,
    asked: Vec<&'static str>,
    missing: Vec<&'static str>,
}

impl<'p> Section<'p> {
    pub fn new(problems: &'p Problems, title: String, node: Option<Node>) -> Self {
        let empty = |at| Self {
            problems,
            title: title.clone(),
            at,
            table: Table::new(),
            asked: Vec::new(),
            missing: Vec::new(),
        };
        match node {
            None => empty(None),
            Some(Node { value: Value::Table(table), at }) => Self { table, ..empty(Some(at)) },
            Some(Node { value, at }) => {
                problems.add(Problem::new(format!("{title} must be a table, not {}", value.noun()), at.clone()));
                empty(Some(at))
            }
        }
    }

    pub fn problems(&self) -> &'p Problems {
        self.problems
    }

    /// Where the value under `key` stands.
    pub fn place_of(&self, key: &str) -> Option<Place> {
        self.table.get(key).map(|entry| entry.node.at.clone())
    }

    /// The value under `key` before it is taken.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.table.get(key).map(|entry| &entry.node.value)
    }

    /// Adds a problem of the whole table.
    pub fn conflict(&self, title: &str) {
        self.problems.add(Problem::new(title, self.at.clone()));
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The table under `key`; empty when it was left out.
    pub fn section(&mut self, key: &'static str) -> Section<'p> {
        let node = self.take(key);
        let title = match self.title.starts_with('[') {
            true => format!("[{}.{key}]", self.title.trim_matches(['[', ']'])),
            false => format!("[{key}]"),
        };
        Section::new(self.problems, title, node)
    }

    /// The value under `key`, whatever it is.
    pub fn take(&mut self, key: &'static str) -> Option<Node> {
        self.asked.push(key);
        self.table.remove(key).map(|entry| entry.node)
    }

    /// Says that `key` has to be there.
    pub fn miss(&mut self, key: &'static str) {
        self.missing.push(key);
    }

    /// The value under `key`, if it is there.
    pub fn optional<T: FromValue>(&mut self, key: &'static str) -> Option<T> {
        let node = self.take(key)?;
        self.read(key, &node)
    }

    /// The value under `key`, which has to be there.
    pub fn required<T: FromValue + Default>(&mut self, key: &'static str) -> T {
        if !self.has(key) {
            self.miss(key);
        }
        self.optional(key).unwrap_or_default()
    }

    /// The number under `key`, within `range`; `default` when it was left out.
    pub fn number<T: Number>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T {
        let Some(node) = self.take(key) else { return default };
        self.read(key, &node).and_then(|value| self.within(key, value, &range, &node.at)).unwrap_or(default)
    }

    /// The number under `key`, within `range`, if it is there.
    pub fn optional_number<T: Number>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T> {
        let node = self.take(key)?;
        self.read(key, &node).and_then(|value| self.within(key, value, &range, &node.at))
    }

    /// The number under `key`, within `range`, or `"auto"`; `default` when it was left out.
    pub fn auto_number<T: Number>(&mut self, key: &'static str, default: Auto<T>, range: RangeInclusive<T>) -> Auto<T> {
        let at = self.place_of(key);
        match (self.auto(key, default), at) {
            (Auto::Given(value), Some(at)) => self.within(key, value, &range, &at).map_or(default, Auto::Given),
            (value, _) => value,
        }
    }

    /// A count under `key`, or `"auto"`.
    pub fn auto_count(&mut self, key: &'static str, default: Auto<usize>, range: RangeInclusive<usize>) -> Auto<usize> {
        let range = *range.start() as i64..=*range.end() as i64;
        let of = default.given().map_or(Auto::Auto, |value| Auto::Given(value as i64));
        let count = self.auto_number(key, of, range).given().map(usize::try_from);
        count.map_or(Auto::Auto, |count| count.map_or(default, Auto::Given))
    }

    /// The value under `key`, or `"auto"`; `default` when it was left out.
    pub fn auto<T: FromValue>(&mut self, key: &'static str, default: Auto<T>) -> Auto<T> {
        match self.take(key) {
            None => default,
            Some(Node { value: Value::String(text), .. }) if text == AUTO => Auto::Auto,
            Some(node) => match T::from_value(&node.value) {
                Some(value) => Auto::Given(value),
                None => {
                    self.wrong_type(key, &format!("\"{AUTO}\" or {}", T::NOUN), &node);
                    default
                }
            },
        }
    }

    /// A count under `key`.
    pub fn count(&mut self, key: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let range = *range.start() as i64..=*range.end() as i64;
        usize::try_from(self.number(key, default as i64, range)).unwrap_or(default)
    }

    /// One of `names` under `key`; the first when it was left out.
    pub fn choice(&mut self, key: &'static str, names: &'static [&'static str]) -> &'static str {
        let first = names.first().copied().unwrap_or_default();
        let Some(node) = self.take(key) else { return first };
        self.read::<String>(key, &node).and_then(|name| self.one_of(key, &name, names, &node.at)).unwrap_or(first)
    }

    /// The list under `key`, each item with its place; `None` when it was left out, is no list or is empty.
    pub fn list<T: FromValue>(&mut self, key: &'static str) -> Option<Vec<(T, Place)>> {
        let node = self.take(key)?;
        let Value::Array(items) = &node.value else {
            self.wrong_type(key, "a list", &node);
            return None;
        };
        if items.is_empty() {
            self.problems.add(Problem::new(format!("{key} is empty"), node.at));
            return None;
        }
        Some(items.iter().filter_map(|item| Some((self.read(key, item)?, item.at.clone()))).collect())
    }

    /// The list of strings under `key`, which may be empty; empty when it was left out.
    pub fn strings(&mut self, key: &'static str) -> Vec<String> {
        if matches!(self.peek(key), Some(Value::Array(items)) if items.is_empty()) {
            self.take(key);
        }
        self.list(key).unwrap_or_default().into_iter().map(|(item, _)| item).collect()
    }

    /// A growing list of counts under `key`; `default` when it was left out.
    pub fn counts(&mut self, key: &'static str, default: &[usize], range: RangeInclusive<usize>) -> Vec<usize> {
        let Some(items) = self.list::<i64>(key) else { return default.to_vec() };
        let range = *range.start() as i64..=*range.end() as i64;
        let mut counts: Vec<usize> = Vec::new();
        for (value, at) in items {
            let Some(value) = self.within(key, value, &range, &at).and_then(|v| usize::try_from(v).ok()) else {
                continue;
            };
            if counts.last().is_some_and(|&last| last >= value) {
                self.problems.add(Problem::new(format!("{key} must grow from item to item"), at));
                break;
            }
            counts.push(value);
        }
        counts
    }

    /// A value of `node`, or a problem.
    pub fn read<T: FromValue>(&self, key: &str, node: &Node) -> Option<T> {
        let value = T::from_value(&node.value);
        if value.is_none() {
            self.wrong_type(key, T::NOUN, node);
        }
        value
    }

    /// `name` when it is one of `names`, or a problem.
    pub fn one_of(&self, key: &str, name: &str, names: &'static [&'static str], at: &Place) -> Option<&'static str> {
        let found = names.iter().copied().find(|&known| known == name);
        if found.is_none() {
            let problem = Problem::new(format!("unknown {key} `{name}`"), at.clone());
            self.problems.add(problem.nearest(name, names.iter().copied()));
        }
        found
    }

    /// `value` when it is within `range`, or a problem.
    pub fn within<T: Number>(&self, key: &str, value: T, range: &RangeInclusive<T>, at: &Place) -> Option<T> {
        let inside = range.contains(&value);
        if !inside {
            let title = format!("{key} must be between {:?} and {:?}, not {value}", range.start(), range.end());
            self.problems.add(Problem::new(title, at.clone()));
        }
        inside.then_some(value)
    }

    fn wrong_type(&self, key: &str, expected: &str, node: &Node) {
        let title = format!("{key} must be {expected}, not {}", node.value.noun());
        self.problems.add(Problem::new(title, node.at.clone()));
    }

    /// Reports the keys that nobody asked for and those that are missing.
    pub fn finish(self) {
        let mut known = self.asked;
        known.extend(self.missing.iter().filter(|key| !known.contains(key)).copied().collect::<Vec<_>>());
        let mut misspelt = Vec::new();
        for (key, entry) in &self.table {
            misspelt.extend(nearest(key, &known));
            let problem = Problem::new(format!("unknown key `{key}` in {}", self.title), entry.key_at.clone());
            self.problems.add(problem.nearest(key, known.iter().copied()));
        }
        // A missing key that was only misspelt is one problem, not two.
        for key in self.missing.iter().filter(|key| !misspelt.contains(key)) {
            self.problems.add(Problem::new(format!("{} needs `{key}`", self.title), self.at.clone()));
        }
    }
}
