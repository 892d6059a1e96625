//! `events.jsonl`: every event on a line of its own, for programs.

use super::{ReportContext, Reporter};
use fedpipe_core::{EVENT_VERSION, Event};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::SystemTime;

/// Bytes that are looked at together for the end of the last line; most events are shorter.
const BLOCK_BYTES: usize = 16 << 10;

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
    let (whole, length) = whole_lines(&mut file)?;
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(file)
}

/// Bytes up to the end of the last line, and all of them. Looked for from the end on, since a long run tells much.
fn whole_lines(file: &mut (impl Read + Seek)) -> io::Result<(u64, u64)> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let block = &mut buffer[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(place) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok((start + place as u64 + 1, length));
        }
        end = start;
    }
    Ok((0, length))
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
    use std::io::Cursor;

    /// Counts what is read of it.
    struct Counted(Cursor<Vec<u8>>, usize);

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 += read;
            Ok(read)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn the_last_line_is_found_from_the_end_on_wherever_it_ends() {
        for (before, after) in [
            (0, 0),
            (0, 5),
            (5, 0),
            (5, 5),
            (1, BLOCK_BYTES - 1),
            (1, BLOCK_BYTES),
            (1, BLOCK_BYTES + 1),
            (BLOCK_BYTES, 2 * BLOCK_BYTES + 3),
        ] {
            // `before` bytes of which the last ends a line, and `after` bytes of a torn one.
            let mut bytes = vec![b'x'; before + after];
            if before > 0 {
                bytes[before - 1] = b'\n';
            }
            let found = whole_lines(&mut Cursor::new(bytes)).unwrap();
            assert_eq!(found, (before as u64, (before + after) as u64));
        }
        let mut long = Counted(Cursor::new(b"an event\n".repeat(1_000_000)), 0);
        long.0.get_mut().extend(b"torn");
        assert_eq!(whole_lines(&mut long).unwrap(), (9_000_000, 9_000_004));
        assert_eq!(long.1, BLOCK_BYTES, "all of the file is read at every resume");
    }

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
