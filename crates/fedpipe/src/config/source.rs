//! The configuration as written: a tree whose every key and value knows where it stands.

use super::ConfigError;
use super::problem::{Place, Problem, Sources};
use std::collections::BTreeMap;
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: Value,
    pub at: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    /// Not within 64 bits.
    Huge,
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
}

/// Values by key.
pub(super) type Table = BTreeMap<String, Entry>;

/// A key's place and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key_at: Place,
    pub node: Node,
}

impl Value {
    /// What a person calls it.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a fraction",
            Self::Huge => "a number beyond 64 bits",
            Self::Boolean(_) => "true or false",
            Self::Datetime => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Reads the file, then lays the options over it in their order.
pub(super) fn parse(sources: &Sources) -> Result<Node, ConfigError> {
    let table = DeTable::parse(sources.text(0)).map_err(|e| ConfigError::of_toml(sources, 0, &e))?;
    let mut root = Node { value: convert_table(table.get_ref(), 0), at: Place::new(0, table.span()) };
    for source in 1..sources.len() {
        lay_over(&mut root, sources, source)?;
    }
    Ok(root)
}

fn convert_table(table: &DeTable<'_>, source: usize) -> Value {
    let entries = table.iter().map(|(key, value)| {
        let key_at = Place::new(source, key.span());
        (key.get_ref().to_string(), Entry { key_at, node: convert(value, source) })
    });
    Value::Table(entries.collect())
}

fn convert(value: &Spanned<DeValue<'_>>, source: usize) -> Node {
    let at = Place::new(source, value.span());
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) => integer_value(integer),
        DeValue::Float(float) => float_value(float),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(items.iter().map(|item| convert(item, source)).collect()),
        DeValue::Table(table) => convert_table(table, source),
    };
    Node { value, at }
}

fn integer_value(integer: &DeInteger<'_>) -> Value {
    match i64::from_str_radix(integer.as_str(), integer.radix()) {
        Ok(value) => Value::Integer(value),
        Err(_) => Value::Huge,
    }
}

fn float_value(float: &DeFloat<'_>) -> Value {
    Value::Float(float.as_str().parse().unwrap_or(f64::NAN))
}

/// Sets what one `table.key=value` says.
fn lay_over(root: &mut Node, sources: &Sources, source: usize) -> Result<(), ConfigError> {
    let text = sources.text(source);
    let whole = Place::new(source, 0..text.len());
    let Some(equals) = text.find('=') else {
        let problem = Problem::new("expected table.key=value", whole)
            .help("for example --set federation.rounds=4 or --set silos.clinic.memory_mib=2048");
        return Err(ConfigError::of(sources, vec![problem]));
    };
    let mut path = Vec::new();
    let mut start = 0;
    for part in text[..equals].split('.') {
        let trimmed = start + part.len() - part.trim_start().len();
        path.push((part.trim(), Place::new(source, trimmed..trimmed + part.trim().len())));
        start += part.len() + 1;
    }
    if path.iter().any(|(key, _)| key.is_empty()) {
        let problem = Problem::new("a part of the key is empty", whole);
        return Err(ConfigError::of(sources, vec![problem]));
    }
    let node = option_value(sources, source, equals + 1)?;
    set(root, &path, node).map_err(|problem| ConfigError::of(sources, vec![problem]))
}

/// The value behind the `=` as TOML; what is not a TOML value is a string, so that a shell needs no second quotes.
fn option_value(sources: &Sources, source: usize, start: usize) -> Result<Node, ConfigError> {
    let raw = &sources.text(source)[start..];
    // The key is blanked out to `v` at the same length, so every place in the document is one in the option.
    let document = format!("{:>start$}{raw}", "v=");
    let parsed = DeTable::parse(&document);
    if let Ok(table) = &parsed
        && let (1, Some(value)) = (table.get_ref().len(), table.get_ref().get("v"))
    {
        return Ok(convert(value, source));
    }
    let trimmed = raw.trim();
    match parsed {
        Err(error) if trimmed.is_empty() || trimmed.starts_with(['"', '\'', '[', '{']) => {
            Err(ConfigError::of_toml(sources, source, &error))
        }
        _ => {
            let at = Place::new(source, start..start + raw.len());
            Ok(Node { value: Value::String(trimmed.to_string()), at })
        }
    }
}

/// Puts `node` at `path`, through tables by key and through lists of tables by their `name`.
fn set(parent: &mut Node, path: &[(&str, Place)], node: Node) -> Result<(), Problem> {
    let [(key, at), rest @ ..] = path else {
        *parent = node;
        return Ok(());
    };
    match &mut parent.value {
        Value::Table(table) if rest.is_empty() => {
            table.insert((*key).to_string(), Entry { key_at: at.clone(), node });
            Ok(())
        }
        Value::Table(table) => {
            let fresh = || Node { value: Value::Table(Table::new()), at: at.clone() };
            let entry = table.entry((*key).to_string()).or_insert_with(|| Entry { key_at: at.clone(), node: fresh() });
            set(&mut entry.node, rest, node)
        }
        Value::Array(items) => {
            let names: Vec<String> = items.iter().filter_map(|item| item.name().map(str::to_string)).collect();
            match items.iter_mut().find(|item| item.name() == Some(key)) {
                Some(item) if !rest.is_empty() => set(item, rest, node),
                Some(_) => Err(Problem::new("a key of the silo is missing", at.clone())
                    .help(format!("for example silos.{key}.memory_mib=2048"))),
                None => Err(Problem::new(format!("no entry of the name `{key}`"), at.clone())
                    .nearest(key, names.iter().map(String::as_str))),
            }
        }
        other => Err(Problem::new(format!("cannot set a key of {}", other.noun()), at.clone())),
    }
}

impl Node {
    /// The string under `name`, by which an entry of a list is addressed.
    fn name(&self) -> Option<&str> {
        match &self.value {
            Value::Table(table) => match &table.get("name")?.node.value {
                Value::String(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
    }
}
