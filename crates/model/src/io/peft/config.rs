//! `adapter_config.json`, read.

use super::{CONFIG, NO_TARGETS};
use crate::head;
use crate::io::{IoError, read_json};
use regex::Regex;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Variants of LoRA that compute something else than B·A; each must be off.
const UNSUPPORTED: [&str; 9] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "arrow_config",
];

/// Ways to begin that leave the base weights as they are. The others subtract the first adapter from them, so that the
/// file alone does not say what was trained.
const HARMLESS_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The part of an adapter's configuration that decides what it computes.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    rank: u64,
    alpha: f64,
    rank_stabilised: bool,
    rank_pattern: Vec<(Regex, Value)>,
    alpha_pattern: Vec<(Regex, Value)>,
    targets: Targets,
    pub(super) base_model: Option<String>,
}

#[derive(Debug)]
enum Targets {
    Every,
    None,
    Suffixes(Vec<String>),
    Pattern(Regex),
}

impl Config {
    /// Reads the configuration in `folder`.
    ///
    /// # Errors
    /// When it is missing or broken, or asks for something that would be computed wrongly, naming it.
    pub(super) fn read(folder: &Path) -> Result<Self, IoError> {
        let path = folder.join(CONFIG);
        let object = read_json(&path)?;
        refuse_unsupported(&path, &object)?;
        let config = Self {
            rank: object.get("r").and_then(Value::as_u64).unwrap_or(8),
            alpha: object.get("lora_alpha").and_then(Value::as_f64).unwrap_or(8.0),
            rank_stabilised: object.get("use_rslora") == Some(&Value::Bool(true)),
            rank_pattern: patterns(&path, &object, "rank_pattern")?,
            alpha_pattern: patterns(&path, &object, "alpha_pattern")?,
            targets: targets(&path, object.get("target_modules"))?,
            base_model: object.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            path,
        };
        Ok(config)
    }

    /// What B·A of a module with this rank is multiplied by.
    ///
    /// # Errors
    /// When the module is not targeted, or the configuration gives it another rank.
    pub(super) fn scaling(&self, module: &str, rank: usize) -> Result<f64, IoError> {
        if !self.targets(module) {
            let reason = format!("does not cover `{module}`, for which there are factors");
            return Err(IoError::key(&self.path, "target_modules", reason));
        }
        let configured = first_match(&self.rank_pattern, module).map_or(Some(self.rank), Value::as_u64);
        if configured != Some(rank as u64) {
            let configured = configured.map_or("no whole number".into(), |r| r.to_string());
            let reason = format!("gives `{module}` rank {configured}, but its factors have rank {rank}");
            return Err(IoError::key(&self.path, "r / rank_pattern", reason));
        }
        let alpha = first_match(&self.alpha_pattern, module).map_or(Some(self.alpha), Value::as_f64);
        let alpha = alpha.ok_or_else(|| {
            IoError::key(&self.path, "alpha_pattern", format!("gives `{module}` something that is no number"))
        })?;
        let rank = rank as f64;
        Ok(if self.rank_stabilised { alpha / rank.sqrt() } else { alpha / rank })
    }

    fn targets(&self, module: &str) -> bool {
        match &self.targets {
            Targets::Every => true,
            Targets::None => false,
            Targets::Suffixes(suffixes) => suffixes.iter().any(|suffix| is_suffix(suffix, module)),
            Targets::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

fn refuse_unsupported(path: &Path, object: &Map<String, Value>) -> Result<(), IoError> {
    let refuse = |key: &str, value: &Value, only: &str| Err(IoError::key(path, key, format!("is {value}; {only}")));
    let value = |key: &str| object.get(key).unwrap_or(&Value::Null);
    if value("peft_type") != "LORA" {
        return refuse("peft_type", value("peft_type"), "only \"LORA\" is supported");
    }
    if !matches!(value("bias"), Value::Null) && value("bias") != "none" {
        return refuse("bias", value("bias"), "only \"none\" is supported");
    }
    if let Some(key) = UNSUPPORTED.into_iter().find(|key| !is_off(value(key))) {
        return refuse(key, value(key), "this variant of LoRA is not supported");
    }
    if let Value::String(start) = value("init_lora_weights")
        && !HARMLESS_STARTS.contains(&start.as_str())
    {
        let hint =
            "it changes the base weights; convert the adapter with PEFT's `path_initial_model_for_weight_conversion`";
        return refuse("init_lora_weights", value("init_lora_weights"), hint);
    }
    let saved = value("modules_to_save").as_array().map_or(&[][..], Vec::as_slice);
    if let Some(other) = saved.iter().find(|saved| !head::modules().any(|module| *saved == module)) {
        let only = format!("only the modules of a head are supported: {}", head::module_names());
        return refuse("modules_to_save", other, &only);
    }
    Ok(())
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

/// PEFT's rule for the keys of a pattern: the whole module path, or its end from a dot on
/// (`peft.utils.other.get_pattern_key`). The first key that matches decides.
fn patterns(path: &Path, object: &Map<String, Value>, key: &str) -> Result<Vec<(Regex, Value)>, IoError> {
    let Some(patterns) = object.get(key).and_then(Value::as_object) else { return Ok(vec![]) };
    let compile = |(pattern, value): (&String, &Value)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
        let regex = regex.map_err(|e| IoError::key(path, key, format!("has a pattern that cannot be read: {e}")))?;
        Ok((regex, value.clone()))
    };
    patterns.iter().map(compile).collect()
}

fn first_match<'a>(patterns: &'a [(Regex, Value)], module: &str) -> Option<&'a Value> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| value)
}

fn targets(path: &Path, value: Option<&Value>) -> Result<Targets, IoError> {
    let error = |reason: String| IoError::key(path, "target_modules", reason);
    match value {
        // PEFT then takes the architecture's usual modules; which they were, the factors say.
        None | Some(Value::Null) => Ok(Targets::Every),
        Some(Value::String(name)) if name == "all-linear" => Ok(Targets::Every),
        Some(Value::String(name)) if name == NO_TARGETS => Ok(Targets::None),
        Some(Value::String(pattern)) => Regex::new(&format!("^(?:{pattern})$"))
            .map(Targets::Pattern)
            .map_err(|e| error(format!("is a pattern that cannot be read: {e}"))),
        Some(Value::Array(items)) => {
            let suffixes = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            suffixes.map(Targets::Suffixes).ok_or_else(|| error("holds something that is no text".into()))
        }
        Some(other) => Err(error(format!("is {other}; it must be a list of module names"))),
    }
}

/// Whether a module's path is `suffix` or ends in it from a dot on.
fn is_suffix(suffix: &str, module: &str) -> bool {
    module.strip_suffix(suffix).is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: Value) -> Result<Config, IoError> {
        let mut config =
            json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "output.dense"]});
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
        Config::read(folder.path())
    }

    #[test]
    fn the_scaling_follows_patterns_as_peft_matches_them() {
        let config = read(json!({
            "rank_pattern": {"attention.output.dense": 2, "layer\\.[12]\\..*query": 8},
            "alpha_pattern": {"^b.layer.3.query": 12, "output.dense": 1.0},
        }))
        .unwrap();
        assert_eq!(config.scaling("b.layer.0.query", 4).unwrap(), 2.0);
        assert_eq!(config.scaling("b.layer.1.query", 8).unwrap(), 1.0);
        assert_eq!(config.scaling("b.layer.3.query", 4).unwrap(), 3.0);
        assert_eq!(config.scaling("b.layer.0.attention.output.dense", 2).unwrap(), 0.5);
        assert_eq!(config.scaling("b.layer.0.output.dense", 4).unwrap(), 0.25);
        let error = config.scaling("b.layer.1.query", 4).unwrap_err().to_string();
        assert!(error.contains("gives `b.layer.1.query` rank 8, but its factors have rank 4"), "{error}");
        assert_eq!(read(json!({"use_rslora": true})).unwrap().scaling("query", 4).unwrap(), 4.0);
    }

    #[test]
    fn factors_of_a_module_that_is_not_targeted_are_refused() {
        let error = read(json!({})).unwrap().scaling("b.subquery", 4).unwrap_err().to_string();
        assert!(
            error.ends_with("`target_modules` does not cover `b.subquery`, for which there are factors"),
            "{error}"
        );
        assert!(read(json!({"target_modules": "all-linear"})).unwrap().scaling("b.x", 4).is_ok());
        assert!(read(json!({"target_modules": ".*\\.x"})).unwrap().scaling("b.x", 4).is_ok());
        assert!(read(json!({"target_modules": "x"})).unwrap().scaling("b.x", 4).is_err());
        assert!(read(json!({"target_modules": NO_TARGETS})).unwrap().scaling("b.x", 4).is_err());
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_by_name() {
        for (change, expected) in [
            (json!({"peft_type": "IA3"}), "`peft_type` is \"IA3\"; only \"LORA\" is supported"),
            (json!({"bias": "all"}), "`bias` is \"all\""),
            (json!({"use_dora": true}), "`use_dora` is true"),
            (json!({"target_parameters": ["x"]}), "`target_parameters` is [\"x\"]"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "`init_lora_weights` is \"pissa_niter_4\""),
            (json!({"modules_to_save": ["classifier", "pooler"]}), "`modules_to_save` is \"pooler\""),
            (json!({"rank_pattern": {"(": 1}}), "`rank_pattern` has a pattern that cannot be read"),
            (json!({"target_modules": 3}), "`target_modules` is 3"),
        ] {
            let error = read(change).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let accepted = json!({"bias": "none", "use_dora": false, "target_parameters": null, "loftq_config": {},
            "init_lora_weights": "gaussian", "modules_to_save": ["classifier", "score"]});
        assert!(read(accepted).is_ok());
    }
}
