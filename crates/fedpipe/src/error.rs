//! What ends the program early, and the exit code that it gives.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum AppError {
    /// The user's input was wrong; exit code 2.
    User {
        /// What is wrong, and where.
        what: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Anything else; exit code 1.
    Other(Box<dyn Error + Send + Sync>),
    /// The user ended it; exit code 1.
    Stopped(String),
    /// Whoever read standard output has heard enough; exit code 0, and nothing is said.
    OutputClosed,
}

impl AppError {
    /// The user's input was wrong.
    pub fn user(what: impl fmt::Display) -> Self {
        Self::User { what: what.to_string(), hint: None }
    }

    /// Anything else.
    pub fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// Adds what to do about a user's error.
    #[must_use]
    pub fn hint(self, hint: impl fmt::Display) -> Self {
        match self {
            Self::User { what, .. } => Self::User { what, hint: Some(hint.to_string()) },
            other => other,
        }
    }

    /// An error of writing to standard output.
    pub fn output(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::other(error),
        }
    }

    /// The exit code: 0, 1 or 2.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Other(_) | Self::Stopped(_) => ExitCode::from(1),
            Self::User { .. } => ExitCode::from(2),
        }
    }
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { what, hint: None } => f.write_str(what),
            Self::User { what, hint: Some(hint) } => write!(f, "{what}\n  hint: {hint}"),
            Self::Stopped(what) => f.write_str(what),
            Self::OutputClosed => f.write_str("standard output is closed"),
            Self::Other(error) => {
                write!(f, "{error}")?;
                let mut source = error.source();
                while let Some(cause) = source {
                    write!(f, "\n  cause: {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
        }
    }
}

impl Error for AppError {}

impl From<crate::config::ConfigError> for AppError {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::user(error)
    }
}

impl From<crate::run_dir::RunDirError> for AppError {
    fn from(error: crate::run_dir::RunDirError) -> Self {
        if error.is_users() { Self::user(error) } else { Self::other(error) }
    }
}

impl From<crate::checkpoint::CheckpointError> for AppError {
    fn from(error: crate::checkpoint::CheckpointError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_hint_and_the_causes_are_shown() {
        let user = AppError::user("no such run: runs/a").hint("start one with fedpipe run CONFIG");
        assert_eq!(user.to_string(), "no such run: runs/a\n  hint: start one with fedpipe run CONFIG");

        #[derive(Debug, thiserror::Error)]
        #[error("the report cannot be written")]
        struct Outer(#[source] io::Error);
        let other = AppError::other(Outer(io::Error::other("disk full")));
        assert_eq!(other.to_string(), "the report cannot be written\n  cause: disk full");
    }

    #[test]
    fn exit_codes_tell_the_users_errors_from_others() {
        let code = |error: AppError| format!("{:?}", error.exit_code());
        assert_eq!(code(AppError::user("x")), format!("{:?}", ExitCode::from(2)));
        assert_eq!(code(AppError::other("x")), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(AppError::output(io::ErrorKind::BrokenPipe.into())), format!("{:?}", ExitCode::SUCCESS));
    }
}
