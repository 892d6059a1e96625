//! What can be wrong with data.

use super::Origin;
use std::path::PathBuf;

/// Data that cannot be used, with the place where it went wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The extension belongs to no reader.
    #[error("{}: no reader for this kind of file; use one of {}; all but .parquet may be compressed, with {} after that", path.display(), listed(&super::EXTENSIONS), listed(&super::COMPRESSIONS))]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// A column is not there.
    #[error("{origin}: there is no column `{column}`{}; the columns are {}", did_you_mean(.nearest), quoted(.present))]
    MissingColumn {
        /// The header's line, or the record's.
        origin: Origin,
        /// The column that was asked for.
        column: String,
        /// The columns that are there.
        present: Vec<String>,
        /// The one whose name is closest, if any is close.
        nearest: Option<String>,
    },
    /// A column is there more than once.
    #[error("{origin}: the column `{column}` is there more than once; rename or remove all but one")]
    AmbiguousColumn {
        /// The header's line.
        origin: Origin,
        /// The column.
        column: String,
    },
    /// No example is in the file.
    #[error("{}: there are no examples in it", path.display())]
    NoExamples {
        /// The file.
        path: PathBuf,
    },
    /// Text that is not UTF-8.
    #[error("{origin}: the text is not UTF-8; convert the file, for example with `iconv -t UTF-8`")]
    NotUtf8 {
        /// Where.
        origin: Origin,
    },
    /// A chat template that cannot be used.
    #[error("{}: {reason}", path.display())]
    Chat {
        /// The model.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A prompt and its completion that cannot be learnt.
    #[error("{origin}: {reason}")]
    Completion {
        /// Where.
        origin: Origin,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Answers that cannot be found in their passage.
    #[error("{origin}: {reason}")]
    Answers {
        /// Where.
        origin: Origin,
        /// What is wrong.
        reason: String,
    },
    /// A record that does not follow its format.
    #[error("{origin}: {reason}")]
    Malformed {
        /// Where.
        origin: Origin,
        /// What is wrong.
        reason: String,
    },
    /// A column that must say something is empty.
    #[error("{origin}: the column `{column}` is empty")]
    EmptyValue {
        /// Where.
        origin: Origin,
        /// The column.
        column: String,
    },
    /// A label that the training data do not have.
    #[error("{origin}: the label `{label}` is not among the {known} labels of the training data")]
    UnknownLabel {
        /// Where.
        origin: Origin,
        /// The label.
        label: String,
        /// How many labels the training data have.
        known: usize,
    },
    /// Too few classes.
    #[error("a classifier needs at least two labels, but the training data have {}", match .only { Some(label) => format!("only `{label}`"), None => "none".into() })]
    TooFewLabels {
        /// The one label, if there is one.
        only: Option<String>,
    },
    /// The tokenizer is missing or cannot be used.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The tokenizer and the model do not belong together.
    #[error("the tokenizer gives token {token}, but the model knows {vocabulary} tokens; they do not belong together")]
    TokenOutOfVocabulary {
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

fn listed(extensions: &[&str]) -> String {
    extensions.iter().map(|extension| format!(".{extension}")).collect::<Vec<_>>().join(", ")
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
