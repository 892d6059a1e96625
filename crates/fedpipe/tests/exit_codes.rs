//! The exit codes that `fedpipe --help` promises, from the binary itself.

#![expect(clippy::unwrap_used, reason = "a binary that cannot start has failed the test")]

use std::process::{Command, Output};

fn fedpipe(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fedpipe")).args(args).output().unwrap()
}

#[test]
fn help_and_version_are_done_with_zero() {
    for args in [["--help"], ["--version"]] {
        assert_eq!(fedpipe(&args).status.code(), Some(0));
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_the_users() {
    for args in [&["run"][..], &["ruin", "a.toml"], &["run", "a.toml", "--resume", "runs/a"], &[]] {
        let output = fedpipe(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "errors belong on standard error");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_is_the_users() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "[federation]\nronds = 3\n").unwrap();
    for command in ["run", "plan"] {
        let output = fedpipe(&[command, path.to_str().unwrap()]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("error: ") && errors.contains("did you mean `rounds`?"), "{errors}");
    }
    assert_eq!(fedpipe(&["run", "no/such.toml"]).status.code(), Some(2));
}
