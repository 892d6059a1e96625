//! `events.jsonl`: every event on a line of its own, for programs.

use super::{ReportContext, Reporter};
use fedpipe_core::{EVENT_VERSION, Event};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::SystemTime;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<E> {
    /// [`EVENT_VERSION`].
    version: u32,
    /// Seconds since 1970-01-01 UTC.
    time_s: f64,
    #[serde(flatten)]
    event: E,
}

struct Events {
    file: File,
}

pub fn open(context: &ReportContext<'_>) -> io::Result<Box<dyn Reporter>> {
    Ok(Box::new(Events { file: open_for_append(&context.run.path().join("events.jsonl"))? }))
}

/// Opens the file at its end; what a crash left of a line is removed first, so that every line is an event.
fn open_for_append(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut written = Vec::new();
    file.read_to_end(&mut written)?;
    let whole = written.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    if whole < written.len() {
        file.set_len(whole as u64)?;
    }
    Ok(file)
}

impl Reporter for Events {
    fn report(&mut self, event: &Event) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line = Line { version: EVENT_VERSION, time_s: now.as_millis() as f64 / 1e3, event };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        // One write a line, without a buffer: what was said before a kill is on the disk.
        self.file.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use std::fs;

    #[test]
    fn every_event_reads_back_and_a_resumed_run_appends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let events = fixture::events();
        for session in 0..2 {
            let mut reporter = Events { file: open_for_append(&path).unwrap() };
            events.iter().for_each(|event| reporter.report(event).unwrap());
            if session == 0 {
                // Killed in the middle of a line.
                reporter.file.write_all(b"{\"version\":1,\"ti").unwrap();
            }
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2 * events.len());
        for (line, event) in lines.iter().zip(events.iter().chain(&events)) {
            let line: Line<Event> = serde_json::from_str(line).unwrap();
            assert_eq!((line.version, &line.event), (EVENT_VERSION, event));
            assert!(line.time_s > 1.7e9);
        }
    }
}
