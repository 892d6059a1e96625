//! The folder that a run leaves behind, held by one process at a time.

use crate::checkpoint::Checkpoints;
use crate::config::{Config, ConfigError};
use crate::disk;
use crate::error::AppError;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";

/// A run's folder. The resolved `config.toml` is written first and marks it as one.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held until the value is dropped; none when the folder was opened for reading only.
    _lock: Option<File>,
}

/// A folder that cannot be used as a run's.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// A run would be overwritten.
    #[error("{} holds another run; go on with it (--resume DIR), or write elsewhere (--output DIR)", .0.display())]
    HoldsRun(PathBuf),
    /// Somebody's files would be mixed with the run's.
    #[error("{} is not empty and holds no run; write elsewhere (--output DIR)", .0.display())]
    NotEmpty(PathBuf),
    /// No folder can be there: something on the way is a file, say, or may not be written to.
    #[error("no folder can be made at {}: {error}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The folder is there, but nothing may be written to it.
    #[error(
        "nothing may be written to {}: {error}; change its permissions, or write a new run elsewhere (--output DIR)",
        path.display()
    )]
    ReadOnly {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is nothing to go on with.
    #[error("{} holds no run: it has no {CONFIG}", .0.display())]
    NoRun(PathBuf),
    /// Two processes would write to it.
    #[error("{} is in use by another fedpipe process", .0.display())]
    InUse(PathBuf),
    /// The configuration cannot be written as TOML.
    #[error("the configuration cannot be written: {0}")]
    Config(#[from] toml::ser::Error),
    /// The system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl RunDirError {
    /// Whether the user chose a folder that cannot be used, rather than the system refusing a good one.
    pub fn is_users(&self) -> bool {
        use io::ErrorKind::{AlreadyExists, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::HoldsRun(_) | Self::NotEmpty(_) | Self::ReadOnly { .. } | Self::NoRun(_) | Self::InUse(_) => true,
            // `/proc` says that a folder in it is not found.
            Self::Unusable { error, .. } => {
                matches!(error.kind(), AlreadyExists | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem)
            }
            Self::Config(_) | Self::Io { .. } => false,
        }
    }

    /// A lock that cannot be made in the folder `path`.
    fn of_lock(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly { path: path.to_path_buf(), error }
            }
            _ => Self::Io { path: path.join(LOCK), error },
        }
    }
}

impl RunDir {
    /// A folder for a new run of `config`, at its `output.dir`.
    ///
    /// # Errors
    /// When the folder holds another run or anything else, is in use, or cannot be written.
    pub fn create(config: &Config) -> Result<Self, RunDirError> {
        let path = config.output.dir.clone();
        Self::check_free(&path)?;
        fs::create_dir_all(&path).map_err(|error| RunDirError::Unusable { path: path.clone(), error })?;
        let dir = Self::locked(&path)?;
        // Another process may have been faster between the first look and the lock.
        if path.join(CONFIG).exists() {
            return Err(RunDirError::HoldsRun(path));
        }
        dir.write(CONFIG, config.to_toml()?.as_bytes())?;
        Ok(dir)
    }

    /// Whether a new run may be made at `path`, before anything is done for it.
    ///
    /// # Errors
    /// When the folder holds another run or anything else.
    pub fn check_free(path: &Path) -> Result<(), RunDirError> {
        if path.join(CONFIG).exists() {
            return Err(RunDirError::HoldsRun(path.to_path_buf()));
        }
        let at = |error| RunDirError::Unusable { path: path.to_path_buf(), error };
        // What a process left that died before the configuration was there is not a run.
        let left = [LOCK.to_string(), disk::temporary_name(CONFIG)];
        let foreign = |entry: io::Result<fs::DirEntry>| {
            entry.map_or(true, |entry| !left.iter().any(|name| entry.file_name() == name.as_str()))
        };
        match path.exists() && fs::read_dir(path).map_err(at)?.any(foreign) {
            true => Err(RunDirError::NotEmpty(path.to_path_buf())),
            false => Ok(()),
        }
    }

    /// Removes the folder of a run that failed before its first checkpoint: there is nothing to go on with, and the
    /// same command can be given again.
    pub fn discard_unless_begun(self) {
        if !self.path.join(CHECKPOINTS).exists() {
            // What cannot be removed stays; the error that led here is the one to show.
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    /// The folder of a run that goes on.
    ///
    /// # Errors
    /// When it holds no run, is in use, or cannot be written.
    pub fn resume(path: &Path) -> Result<Self, RunDirError> {
        if !Self::holds_run(path) {
            return Err(RunDirError::NoRun(path.to_path_buf()));
        }
        Self::locked(path)
    }

    /// The folder of a run, to read from; it may be in use.
    ///
    /// # Errors
    /// When it holds no run.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        if !Self::holds_run(path) {
            return Err(RunDirError::NoRun(path.to_path_buf()));
        }
        Ok(Self { path: path.to_path_buf(), _lock: None })
    }

    /// Whether the folder holds a run.
    pub fn holds_run(path: &Path) -> bool {
        path.join(CONFIG).is_file()
    }

    fn locked(path: &Path) -> Result<Self, RunDirError> {
        let at = |error| RunDirError::of_lock(path, error);
        let lock = File::create(path.join(LOCK)).map_err(at)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(RunDirError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(error)) => Err(at(error)),
        }
    }

    /// Writes a file of the run, whole or not at all.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, RunDirError> {
        let path = self.path.join(name);
        disk::replace(&path, bytes).map_err(|error| RunDirError::Io { path: path.clone(), error })?;
        Ok(path)
    }

    /// Writes a folder of the run anew: `write` makes one beside `path`, which takes the place of the one that may be there
    /// when it is whole. A process that is killed meanwhile leaves the old one or the new one, if not under its own name, and
    /// the next one that writes it removes what is left.
    ///
    /// # Errors
    /// When `write` errs, after which the old one is still there, or the system refuses.
    pub fn write_folder(&self, path: &Path, write: impl FnOnce(&Path) -> Result<(), AppError>) -> Result<(), AppError> {
        let at = |error| RunDirError::Io { path: path.to_path_buf(), error };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (new, old) = (path.with_file_name(format!(".{name}.new")), path.with_file_name(format!(".{name}.old")));
        disk::remove_folder(&new).map_err(at)?;
        write(&new)?;
        // A folder cannot be renamed onto another.
        if path.exists() {
            disk::remove_folder(&old).map_err(at)?;
            fs::rename(path, &old).map_err(at)?;
        }
        fs::rename(&new, path).and_then(|()| disk::sync_folder(&self.path)).map_err(at)?;
        Ok(disk::remove_folder(&old).map_err(at)?)
    }

    /// The run's resolved configuration, with the folder that it lies in now.
    ///
    /// # Errors
    /// When somebody changed it into one that cannot be used.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(&self.path.join(CONFIG), &[])?;
        config.output.dir.clone_from(&self.path);
        Ok(config)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints, of which the last `keep` stay.
    pub fn checkpoints(&self, keep: usize) -> Checkpoints {
        Checkpoints::new(self.path.join(CHECKPOINTS), keep)
    }

    /// The federation's adapter in Hugging Face PEFT's format.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// The adapter at one rank, for servers that know no other.
    pub fn adapter_serving(&self) -> PathBuf {
        self.path.join("adapter-serving")
    }
}

/// Names of the files that [`RunDir::write`] gets.
pub mod file {
    /// The plan, for programs.
    pub const PLAN_JSON: &str = "plan.json";
    /// The plan, for people.
    pub const PLAN_MD: &str = "plan.md";
    /// Importance and ranks as heat maps.
    pub const PLAN_SVG: &str = "plan.svg";
    /// The plan that holds at the end, for programs, where it is another.
    pub const PLAN_FINAL_JSON: &str = "plan-final.json";
    /// The same for people, with what changed and why.
    pub const PLAN_FINAL_MD: &str = "plan-final.md";
    /// [`crate::summary::Summary`].
    pub const SUMMARY: &str = "summary.json";
    /// [`crate::report::html`].
    pub const REPORT: &str = "report.html";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let text = r#"
            model.path = "m"
            data = { train = ["a.tsv"], test = ["b.tsv"] }
            output.dir = "somewhere"
            silos = [{ name = "a", memory_mib = 1 }]
        "#;
        let mut config = Config::parse("run.toml".as_ref(), text, &[]).unwrap();
        config.output.dir = dir.to_path_buf();
        config
    }

    #[test]
    fn a_new_folder_holds_the_resolved_configuration() {
        let parent = tempfile::tempdir().unwrap();
        let config = config(&parent.path().join("runs/a"));
        let run = RunDir::create(&config).unwrap();
        assert_eq!(run.config().unwrap(), config);
    }

    #[test]
    fn a_moved_run_is_read_where_it_lies_now() {
        let parent = tempfile::tempdir().unwrap();
        drop(RunDir::create(&config(&parent.path().join("a"))).unwrap());
        fs::rename(parent.path().join("a"), parent.path().join("b")).unwrap();
        let moved = RunDir::open(&parent.path().join("b")).unwrap();
        assert_eq!(moved.config().unwrap().output.dir, parent.path().join("b"));
    }

    #[test]
    fn another_run_is_never_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let config = config(&parent.path().join("a"));
        drop(RunDir::create(&config).unwrap());
        let before = fs::read(config.output.dir.join(CONFIG)).unwrap();
        let error = RunDir::create(&config).unwrap_err();
        assert!(error.is_users() && error.to_string().contains("--resume"), "{error}");
        assert_eq!(fs::read(config.output.dir.join(CONFIG)).unwrap(), before);
    }

    #[test]
    fn somebody_elses_folder_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("thesis.tex"), "…").unwrap();
        assert!(matches!(RunDir::create(&config(parent.path())), Err(RunDirError::NotEmpty(_))));
        for file in ["thesis.tex", "thesis.tex/run"] {
            let error = RunDir::create(&config(&parent.path().join(file))).unwrap_err();
            assert!(error.is_users() && matches!(error, RunDirError::Unusable { .. }), "{error}");
        }
        assert!(matches!(RunDir::resume(parent.path()), Err(RunDirError::NoRun(_))));
        assert!(matches!(RunDir::open(parent.path()), Err(RunDirError::NoRun(_))));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Killed after it took the lock, and while it wrote the configuration.
    #[test]
    fn a_folder_in_which_a_process_died_before_its_run_began_is_free() {
        for left in [&[LOCK][..], &[LOCK, ".config.toml.tmp"]] {
            let parent = tempfile::tempdir().unwrap();
            left.iter().for_each(|name| fs::write(parent.path().join(name), "[mod").unwrap());
            let config = config(parent.path());
            assert_eq!(RunDir::create(&config).unwrap().config().unwrap(), config);
            assert_eq!(names(parent.path()), [LOCK, CONFIG]);
        }
    }

    #[test]
    fn an_export_gives_way_to_a_whole_one_alone_and_what_a_kill_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let run = RunDir::create(&config(parent.path())).unwrap();
        let path = run.adapter();
        let put = |folder: &Path, text: &str| {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("adapter.txt"), text).unwrap();
        };
        let text = |folder: &Path| fs::read_to_string(folder.join("adapter.txt")).unwrap();
        let write = |content: &str| {
            run.write_folder(&path, |folder| {
                put(folder, content);
                Ok(())
            })
        };
        write("first").unwrap();
        let failed = run.write_folder(&path, |folder| {
            put(folder, "half");
            assert_eq!(text(&path), "first", "the old one goes before there is a new one");
            Err(AppError::other("the disk is full"))
        });
        assert!(failed.is_err() && text(&path) == "first");
        // The failure left its half, as a kill would.
        write("second").unwrap();
        assert_eq!(text(&path), "second");
        assert_eq!(names(parent.path()), [LOCK, "adapter", CONFIG]);

        // Killed between the two renamings: the last good one has another name until there is a new one.
        let old = parent.path().join(".adapter.old");
        fs::rename(&path, &old).unwrap();
        put(&parent.path().join(".adapter.new"), "third");
        let written = run.write_folder(&path, |folder| {
            assert_eq!(text(&old), "second");
            put(folder, "third");
            Ok(())
        });
        assert!(written.is_ok() && text(&path) == "third");
        assert_eq!(names(parent.path()), [LOCK, "adapter", CONFIG]);
    }

    #[test]
    fn one_process_holds_a_run_others_may_read_it() {
        let parent = tempfile::tempdir().unwrap();
        let config = config(&parent.path().join("a"));
        let held = RunDir::create(&config).unwrap();
        assert!(matches!(RunDir::resume(held.path()), Err(RunDirError::InUse(_))));
        assert!(RunDir::open(held.path()).is_ok());
        let path = held.path().to_path_buf();
        drop(held);
        assert!(RunDir::resume(&path).is_ok());
    }

    #[test]
    fn a_disk_without_room_is_not_the_users_fault_and_a_file_in_the_way_is() {
        let of = |kind: io::ErrorKind| RunDirError::Unusable { path: "runs/a".into(), error: kind.into() }.is_users();
        assert!(of(io::ErrorKind::NotADirectory) && of(io::ErrorKind::PermissionDenied));
        assert!(!of(io::ErrorKind::StorageFull));
    }

    /// Whoever runs the tests may be allowed everything, so that no folder refuses.
    #[test]
    fn a_folder_that_may_not_be_written_to_is_the_users_to_mend() {
        let of = |kind: io::ErrorKind| RunDirError::of_lock("runs/a".as_ref(), kind.into());
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
            let error = of(kind);
            assert!(error.is_users() && error.to_string().starts_with("nothing may be written to runs/a: "), "{error}");
        }
        assert!(!of(io::ErrorKind::StorageFull).is_users());
    }
}
