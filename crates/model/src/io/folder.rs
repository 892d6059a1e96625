//! Folders that appear whole or not at all, and the JSON files in them.

use super::IoError;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

/// Largest JSON file that is read; the index of a model with a thousand layers stays far below it.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Fills a new folder: `fill` writes into a temporary one beside it, which takes its name when all is on the disk.
/// After an error nothing is left behind. What a process leaves there that is killed, the next one for the same folder removes.
///
/// # Errors
/// When `target` is there and not empty, when `fill` errs, or the disk does.
pub fn write_folder(target: &Path, fill: impl FnOnce(&Path) -> Result<(), IoError>) -> Result<(), IoError> {
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let occupied =
        target.exists() && (!target.is_dir() || target.read_dir().map_err(IoError::at(target))?.next().is_some());
    if occupied {
        return Err(IoError::NotEmpty { path: target.into() });
    }
    fs::create_dir_all(parent).map_err(IoError::at(parent))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Always the same name, so that it is found again, and one that nobody would give a folder of their own.
    let temporary = parent.join(format!(".{name}.fedpipe.tmp"));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(IoError::at(&temporary))?;
    }
    fs::create_dir(&temporary).map_err(IoError::at(parent))?;
    let written = fill(&temporary).and_then(|()| put(&temporary, target));
    if written.is_err() {
        // The first error says why; a full disk needs the room back.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

/// Gives a folder that is filled its name, when its files are on the disk.
fn put(temporary: &Path, target: &Path) -> Result<(), IoError> {
    for entry in temporary.read_dir().map_err(IoError::at(target))? {
        let path = entry.map_err(IoError::at(target))?.path();
        if path.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(IoError::at(&path))?;
        }
    }
    if target.exists() {
        fs::remove_dir(target).map_err(IoError::at(target))?;
    }
    fs::rename(temporary, target).map_err(IoError::at(target))
}

/// Writes a JSON file for people to read, too.
///
/// # Errors
/// When it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), IoError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| IoError::Json { path: path.into(), reason: format!("cannot be written: {e}") })?;
    text.push('\n');
    write_text(path, &text)
}

pub(super) fn write_text(path: &Path, text: &str) -> Result<(), IoError> {
    File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(IoError::at(path))
}

/// The object in a JSON file, its keys in their order.
///
/// # Errors
/// When the file cannot be read, is too large, or holds no object.
pub fn read_json(path: &Path) -> Result<Map<String, Value>, IoError> {
    parse_json(path, &read_bounded(path)?)
}

pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, IoError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(IoError::at(path))?;
    let read = file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(IoError::at(path))?;
    if read as u64 > MAX_JSON_BYTES {
        let reason = format!("larger than {MAX_JSON_BYTES} bytes, so not what it should be");
        return Err(IoError::Json { path: path.into(), reason });
    }
    Ok(bytes)
}

pub(super) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, IoError> {
    let error = |reason: String| IoError::Json { path: path.into(), reason };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(error("not a JSON object".into())),
        Err(e) => Err(error(format!("not JSON: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_with_its_parents() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/b");
        write_folder(&target, |folder| write_text(&folder.join("x"), "1")).unwrap();
        assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "1");
        assert_eq!(root.path().join("a").read_dir().unwrap().count(), 1, "a temporary folder was left behind");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = root.path().join("plain");
            fs::create_dir(&plain).unwrap();
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
            assert_eq!(mode(&target), mode(&plain), "the folder is not as readable as any other");
        }
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let result = write_folder(&target, |folder| {
            write_text(&folder.join("x"), "1")?;
            Err(IoError::NotEmpty { path: "elsewhere".into() })
        });
        assert!(result.is_err());
        assert_eq!(root.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_a_process_left_that_was_killed_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let mut temporary = std::path::PathBuf::new();
        write_folder(&target, |folder| {
            temporary = folder.to_path_buf();
            Ok(())
        })
        .unwrap();
        fs::create_dir(&temporary).unwrap();
        write_text(&temporary.join("half"), "1").unwrap();
        write_folder(&target, |folder| write_text(&folder.join("x"), "1")).unwrap();
        assert_eq!(root.path().read_dir().unwrap().count(), 1, "what was left is still there");
        assert_eq!(target.read_dir().unwrap().count(), 1, "what was left is part of the new folder");
    }

    #[test]
    fn only_an_empty_folder_is_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        fs::create_dir(&target).unwrap();
        write_folder(&target, |folder| write_text(&folder.join("x"), "1")).unwrap();
        let error = write_folder(&target, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("out is not empty"), "{error}");
        assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "1");
        let error = write_folder(&target.join("x"), |_| Ok(())).unwrap_err();
        assert!(matches!(error, IoError::NotEmpty { .. }), "{error}");
    }

    #[test]
    fn json_that_is_no_object_is_refused_with_its_path() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("c.json");
        write_json(&path, &[1]).unwrap();
        assert!(read_json(&path).unwrap_err().to_string().ends_with("c.json: not a JSON object"));
        write_text(&path, "{").unwrap();
        assert!(read_json(&path).unwrap_err().to_string().contains("c.json: not JSON: "));
    }
}
