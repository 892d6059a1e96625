//! Files into texts, and texts into tokens: made once in parallel and kept for the next run, with what cannot be used left
//! out where that is asked for.

use crate::config::Config;
use crate::disk;
use crate::error::AppError;
use crate::report::Loading;
use crate::setup::cache_dir;
use crate::task::Task;
use fedpipe_model::data::{Columns, Dataset, Example, OnBadRecord, TextEncoder, read_records};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::{Duration, Instant, SystemTime};

/// Raised when texts become other tokens than before.
const VERSION: u32 = 1;
/// Tokens that are made again in this time are not worth a file.
const WORTH_KEEPING: Duration = Duration::from_secs(1);
/// Tokens that nobody asked for this long are deleted when new ones are kept.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Reads what a configuration names.
pub struct Loader<'a> {
    on_bad: OnBadRecord,
    loading: &'a Loading,
    /// Where tokens are kept, if anywhere.
    folder: Option<PathBuf>,
    worth_keeping: Duration,
    /// What a person should know: what was left out, and what could not be kept.
    pub notices: Vec<String>,
}

impl<'a> Loader<'a> {
    /// For the data of a configuration.
    pub fn new(config: &Config, loading: &'a Loading) -> Self {
        Self {
            on_bad: config.data.on_bad_record,
            loading,
            folder: cache_dir().filter(|_| config.data.keep_tokens).map(|dir| dir.join("tokens")),
            worth_keeping: WORTH_KEEPING,
            notices: Vec::new(),
        }
    }

    /// The records of files, one file after the other.
    ///
    /// # Errors
    /// When a file cannot be read, or a record cannot be used and may not be left out.
    pub fn read(&mut self, paths: &[PathBuf], columns: &Columns) -> Result<Vec<Example>, AppError> {
        let mut all = Vec::new();
        for path in paths {
            self.loading.reads(path);
            let mut records = read_records(path, columns, self.on_bad, &|| self.loading.count())?;
            if let Some(first) = records.reasons.first() {
                self.skip(records.skipped, records.skipped + records.examples.len() as u64, first);
            }
            all.append(&mut records.examples);
        }
        Ok(all)
    }

    fn skip(&mut self, skipped: u64, all: u64, first: &dyn fmt::Display) {
        self.notices.push(format!("{skipped} of {all} records are left out, the first because of this: {first}"));
    }

    /// The texts of examples, for what is learnt. Examples that cannot be used are taken out where they may be left out.
    ///
    /// # Errors
    /// When an example cannot be used and may not be left out, or none can.
    pub fn encode(
        &mut self,
        task: &Task,
        encoder: &TextEncoder,
        examples: &mut Vec<Example>,
    ) -> Result<Dataset, AppError> {
        let all = examples.len() as u64;
        let path = match &self.folder {
            Some(folder) => Some(folder.join(name(task, encoder, self.on_bad, examples)?)),
            None => None,
        };
        let data = match path.as_deref().and_then(read) {
            Some((data, left_out)) => {
                // What is wrong with it is said anew: it may be on another line by now.
                let first = left_out.places.first().and_then(|&place| examples.get(place)).cloned();
                let reason = first.and_then(|first| task.texts(encoder, slice::from_ref(&first)).err());
                if let Some(reason) = reason {
                    self.skip(left_out.places.len() as u64, all, &reason);
                }
                left_out.remove_from(examples);
                data
            }
            None => {
                let start = Instant::now();
                let made = self.make(task, encoder, examples)?;
                if let Some(path) = path.filter(|_| start.elapsed() >= self.worth_keeping)
                    && let Err(error) = keep(&path, &made)
                {
                    let (path, what) =
                        (path.display(), "the tokens of the texts are not kept, so the next run makes them");
                    self.notices.push(format!("{what} again: {path}: {error}"));
                }
                made.0
            }
        };
        Ok(data)
    }

    fn make(
        &mut self,
        task: &Task,
        encoder: &TextEncoder,
        examples: &mut Vec<Example>,
    ) -> Result<(Dataset, LeftOut), AppError> {
        let all = examples.len();
        let begin = |texts: usize| self.loading.encodes(texts as u64);
        begin(all);
        match (task.texts(encoder, examples), self.on_bad) {
            (Ok(data), _) => Ok((data, LeftOut::default())),
            (Err(error), OnBadRecord::Error) => Err(error),
            (Err(error), OnBadRecord::Skip) => {
                begin(all);
                let refused = |(place, example)| Some((place, task.texts(encoder, slice::from_ref(example)).err()?));
                let refused: Vec<_> = examples.par_iter().enumerate().filter_map(refused).collect();
                let Some((_, first)) = refused.first().filter(|_| refused.len() < all) else {
                    // What every text is refused for is not for one record to mend.
                    return Err(error);
                };
                begin(all - refused.len());
                self.skip(refused.len() as u64, all as u64, first);
                let left_out = LeftOut { places: refused.into_iter().map(|(place, _)| place).collect() };
                left_out.remove_from(examples);
                Ok((task.texts(encoder, examples)?, left_out))
            }
        }
    }
}

/// Examples that could not be used.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct LeftOut {
    /// Their places, rising.
    places: Vec<usize>,
}

impl LeftOut {
    fn remove_from(&self, examples: &mut Vec<Example>) {
        let (mut left_out, mut places) = (self.places.iter().peekable(), 0..);
        examples.retain(|_| places.next().is_none_or(|place| left_out.next_if_eq(&&place).is_none()));
    }
}

/// The file of these texts' tokens: a digest of all that they hang on.
fn name(task: &Task, encoder: &TextEncoder, on_bad: OnBadRecord, examples: &[Example]) -> Result<String, AppError> {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text.as_bytes());
    };
    add(&format!("{VERSION} {} {on_bad:?}", env!("CARGO_PKG_VERSION")));
    add(&task.identity());
    add(&encoder.identity()?);
    for example in examples {
        add(&example.text);
        // No second text is not an empty one.
        add(if example.second.is_some() { "2" } else { "1" });
        add(example.second.as_deref().unwrap_or_default());
        add(&example.label);
    }
    Ok(format!("{}.safetensors", hex(&digest.finalize()[..16])))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Kept tokens; none where there are none, or they are damaged.
fn read(path: &Path) -> Option<(Dataset, LeftOut)> {
    let bytes = fs::read(path).ok()?;
    let (sum, bytes) = bytes.split_first_chunk()?;
    if u32::from_le_bytes(*sum) != crc32c::crc32c(bytes) {
        return None;
    }
    let (data, note) = Dataset::from_bytes(bytes)?;
    let left_out = serde_json::from_str(&note).ok()?;
    // That they are still asked for; if it cannot be noted, they are made again sooner.
    let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    Some((data, left_out))
}

/// Keeps tokens for this user's eyes alone, and lets old ones go.
fn keep(path: &Path, (data, left_out): &(Dataset, LeftOut)) -> io::Result<()> {
    let bytes = data.to_bytes(serde_json::to_string(left_out)?).map_err(io::Error::other)?;
    if let Some(folder) = path.parent() {
        disk::create_private_folder(folder)?;
        for entry in fs::read_dir(folder)?.flatten() {
            let age = entry.metadata().and_then(|it| it.modified()).map(|at| at.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > KEPT_FOR) {
                // What stays for now is met again.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    let mut file = crc32c::crc32c(&bytes).to_le_bytes().to_vec();
    file.extend(bytes);
    disk::replace(path, &file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_model::BaseModel;
    use fedpipe_model::data::{Labels, Origin, Targets};

    fn example(line: u64, label: &str) -> Example {
        let origin = Origin::new("notes.tsv".as_ref(), line);
        Example { text: format!("note {line}"), second: None, label: label.into(), site: None, origin }
    }

    /// What is made of three notes, the second of which has a label that nobody learns, and which notes are left.
    fn encode(folder: &Path, loading: &Loading) -> (Result<Dataset, AppError>, Vec<Example>, Vec<String>) {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/fixtures/encoders/roberta");
        let base = BaseModel::open(fixture.as_ref()).unwrap();
        let mut examples = vec![example(1, "b"), example(2, "?"), example(3, "a")];
        let mut loader = Loader {
            on_bad: OnBadRecord::Skip,
            loading,
            folder: Some(folder.into()),
            worth_keeping: Duration::ZERO,
            notices: Vec::new(),
        };
        let task = Task::Classification(Labels::from_names(vec!["a".into(), "b".into()]));
        let made = loader.encode(&task, &base.text_encoder(16).unwrap(), &mut examples);
        (made, examples, loader.notices)
    }

    fn kept(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn tokens_are_made_once_and_bad_examples_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        let loading = Loading::new(true);
        let (made, left, notices) = encode(&tokens, &loading);
        let made = made.unwrap();
        assert_eq!((made.len(), made.classes()), (2, &[1, 0][..]));
        assert_eq!(left, [example(1, "b"), example(3, "a")]);
        assert_eq!(notices.len(), 1);
        assert!(notices[0].starts_with("1 of 3 records are left out, the first because of this: notes.tsv:2: "));

        // What is kept is what is read: other tokens in its place come back.
        let [path] = &kept(&tokens)[..] else { panic!("one file") };
        let other = Dataset::pack(&[[7], [8]], Targets::Classes(vec![0, 0]));
        let (_, left_out) = read(path).unwrap();
        assert_eq!(left_out.places, [1]);
        keep(path, &(other.clone(), left_out)).unwrap();
        let (again, left_again, notices_again) = encode(&tokens, &loading);
        assert_eq!((again.unwrap(), left_again, notices_again), (other, left.clone(), notices.clone()));

        // A damaged file is made anew.
        let mut bytes = fs::read(path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, &bytes).unwrap();
        let (anew, left_anew, notices_anew) = encode(&tokens, &loading);
        assert_eq!((anew.unwrap(), left_anew, notices_anew), (made.clone(), left, notices));
        assert_eq!(read(path).unwrap().0, made);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_said_and_nothing_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (made, _, notices) = encode(&file.path().join("tokens"), &Loading::new(true));
        assert_eq!(made.unwrap().len(), 2);
        assert!(notices[1].starts_with("the tokens of the texts are not kept, so the next run makes them again: "));
    }

    #[test]
    fn old_tokens_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old.safetensors");
        let file = File::create(&old).unwrap();
        file.set_modified(SystemTime::now() - KEPT_FOR - Duration::from_secs(60)).unwrap();
        drop(file);
        encode(folder.path(), &Loading::new(true)).0.unwrap();
        assert!(!old.exists() && kept(folder.path()).len() == 1);
    }
}
