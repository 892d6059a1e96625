//! The command line.

use std::path::PathBuf;

use crate::MODELS;

/// What to measure.
pub struct Options {
    pub models: Vec<&'static str>,
    pub tokens: Vec<usize>,
    pub rounds: usize,
    pub limit_only: bool,
    pub peer_only: bool,
    pub json: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// With a message for the user.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            models: MODELS.iter().map(|model| model.name).collect(),
            tokens: vec![1, 8, 64, 512, 2048],
            rounds: 4,
            limit_only: false,
            peer_only: false,
            json: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--models" => options.models = value()?.split(',').map(model).collect::<Result<_, _>>()?,
                "--tokens" => options.tokens = value()?.split(',').map(tokens).collect::<Result<_, _>>()?,
                "--json" => options.json = Some(value()?.into()),
                "--quick" => options.rounds = 1,
                "--limit" => options.limit_only = true,
                "--peer" => options.peer_only = true,
                other => return Err(format!("{other}: unknown; see the head of bench_products/main.rs")),
            }
        }
        Ok(options)
    }
}

fn model(name: &str) -> Result<&'static str, String> {
    let known = MODELS.map(|model| model.name);
    known.into_iter().find(|known| *known == name).ok_or(format!("no model {name}; there are {}", known.join(", ")))
}

fn tokens(number: &str) -> Result<usize, String> {
    number.parse().ok().filter(|&tokens| tokens > 0).ok_or(format!("{number}: not a number of tokens"))
}
