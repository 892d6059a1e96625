//! The names that a configuration may use, each table once; the first of each is the default.

use fedpipe_core::Schedule;

/// `task.kind`.
pub const TASKS: &[&str] = &["classification", "pair", "span-qa", "instruct", "lm"];
/// `task.template`.
pub const TEMPLATES: &[&str] = &["auto", "chat", "plain"];
/// `task.format`.
pub const FORMATS: &[&str] = &["completion", "messages", "alpaca"];
/// `data.on_bad_record`.
pub const ON_BAD_RECORD: &[&str] = &["error", "skip"];
/// `federation.method`.
pub const METHODS: &[&str] = &["fedpipe"];
/// `federation.importance`.
pub const IMPORTANCES: &[&str] = &["svd-sensitivity", "gradient", "uniform", "random"];
/// `adapter.target_modules` for the weights of attention.
pub const ATTENTION: &str = "attention";
/// `adapter.target_modules` for all linear layers; PEFT's name.
pub const ALL_LINEAR: &str = fedpipe_model::ALL_LINEAR;
/// `federation.aggregation`.
pub const AGGREGATIONS: &[&str] = &["product", "zero-pad"];
/// `federation.codec`.
pub const CODECS: &[&str] = &["f32", "bf16"];
/// `federation.partition.kind`.
pub const PARTITIONS: &[&str] = &["dirichlet", "iid", "column"];
/// `training.lr_scheduler_type`, in the words of `transformers`, with what each means.
pub const SCHEDULES: [(&str, Schedule); 3] =
    [("linear", Schedule::Linear), ("cosine", Schedule::Cosine), ("constant", Schedule::Constant)];
/// The names in [`SCHEDULES`].
pub const SCHEDULERS: &[&str] = &[SCHEDULES[0].0, SCHEDULES[1].0, SCHEDULES[2].0];
/// `plan.base_formats`; a test holds it to [`fedpipe_core::BaseFormat::ALL`].
pub const BASE_FORMATS: &[&str] = &["f32", "bf16", "int8", "nf8", "nf4", "nf3", "nf2"];

#[cfg(test)]
mod tests {
    use super::{AGGREGATIONS, BASE_FORMATS, CODECS, IMPORTANCES, METHODS, SCHEDULERS, SCHEDULES};
    use fedpipe_core::BaseFormat;
    use fedpipe_federation::{aggregate, codec, importance, method};

    /// A name is accepted exactly when the engine has a row for it.
    #[test]
    fn the_names_are_those_of_the_tables() {
        assert_eq!(METHODS, method::METHODS.iter().map(|row| row.name).collect::<Vec<_>>());
        assert_eq!(IMPORTANCES, importance::MEASURES.iter().map(|measure| measure.name()).collect::<Vec<_>>());
        assert_eq!(AGGREGATIONS, aggregate::AGGREGATORS.iter().map(|rule| rule.name()).collect::<Vec<_>>());
        assert_eq!(CODECS, codec::CODECS.iter().map(|(codec, _)| codec.name()).collect::<Vec<_>>());
    }

    /// The names are the core's own, by which a schedule is written into files.
    #[test]
    fn every_schedule_is_what_its_name_says() {
        assert_eq!(SCHEDULERS, SCHEDULES.map(|(name, _)| name));
        for (name, schedule) in SCHEDULES {
            assert_eq!(serde_json::to_value(schedule).unwrap(), name);
        }
    }

    #[test]
    fn every_base_format_can_be_named() {
        assert_eq!(BASE_FORMATS, BaseFormat::ALL.map(BaseFormat::name));
    }
}
