//! `tensorboard/events.out.tfevents.*`: scalars by round.
//!
//! A file is a sequence of records: length as `u64`, masked CRC-32C of the length, data, masked CRC-32C of the data,
//! all little-endian (`tensorflow/core/lib/io/record_writer.h`). The data is an `Event` message of `event.proto`; of
//! it and of `summary.proto` the few fields written here are encoded by hand; TensorBoard 2.21 reads them back alike.

use super::{ReportContext, Reporter, format::mib};
use fedpipe_core::{Event, Metrics, RoundRecord};
use std::fs::{self, File};
use std::io::{self, Write};
use std::time::SystemTime;

struct TensorBoard<W> {
    out: W,
    /// Rounds completed, where the final evaluation is drawn.
    round: u32,
}

pub fn open(context: &ReportContext<'_>) -> io::Result<Box<dyn Reporter>> {
    let folder = context.run.path().join("tensorboard");
    fs::create_dir_all(&folder)?;
    // A resumed run adds a file; TensorBoard reads all files of a folder as one run.
    let name = format!("events.out.tfevents.{}.fedpipe.{}", now_s() as u64, std::process::id());
    Ok(Box::new(TensorBoard::new(File::create(folder.join(name))?)?))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl<W: Write> TensorBoard<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&record(&message(now_s(), &version())))?;
        Ok(Self { out, round: 0 })
    }

    fn scalars(&mut self, round: u32, scalars: &[(String, f64)]) -> io::Result<()> {
        self.out.write_all(&record(&message(now_s(), &summary(round, scalars))))?;
        self.out.flush()
    }
}

impl<W: Write + Send> Reporter for TensorBoard<W> {
    fn report(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Started { completed, .. } => self.round = *completed,
            Event::RoundFinished(record) => {
                self.round = record.round;
                self.scalars(record.round, &of_round(record))?;
            }
            Event::Replanned { round, silo, slowness, .. } => {
                self.scalars(*round, &[(format!("planned_slowness/{silo}"), *slowness)])?;
            }
            Event::Evaluated(metrics) => self.scalars(self.round, &of_metrics("final", metrics))?,
            _ => {}
        }
        Ok(())
    }
}

fn of_metrics(prefix: &str, metrics: &Metrics) -> Vec<(String, f64)> {
    let (name, value) = metrics.headline();
    vec![(format!("{prefix}/{name}"), value), (format!("{prefix}/loss"), metrics.loss)]
}

fn of_round(record: &RoundRecord) -> Vec<(String, f64)> {
    let mut scalars = record.metrics.as_ref().map_or_else(Vec::new, |metrics| of_metrics("evaluation", metrics));
    scalars.push(("round/seconds".into(), record.seconds));
    scalars.push(("round/failures".into(), record.failures.len() as f64));
    for silo in &record.silos {
        let name = &silo.silo;
        scalars.push((format!("loss/{name}"), silo.measured.loss));
        scalars.push((format!("seconds/{name}"), silo.seconds));
        scalars.push((format!("peak_memory_mib/{name}"), mib(silo.measured.peak_bytes as f64)));
        if let Some(slowness) = silo.slowness {
            scalars.push((format!("slowness/{name}"), slowness));
        }
        if let Some(cache) = silo.measured.cache {
            scalars.push((format!("cache_hit_share/{name}"), cache.hits as f64 / cache.lookups.max(1) as f64));
        }
    }
    scalars
}

/// A record around `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// The mask keeps a checksum of data that holds checksums from being weak (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// `Event { double wall_time = 1; … }`
fn message(wall_time: f64, rest: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    key(&mut message, 1, FIXED64);
    message.extend(wall_time.to_le_bytes());
    message.extend(rest);
    message
}

/// `string file_version = 3`
fn version() -> Vec<u8> {
    let mut message = Vec::new();
    bytes(&mut message, 3, b"brain.Event:2");
    message
}

/// `int64 step = 2; Summary summary = 5`, with `Summary { repeated Value value = 1 }` and
/// `Value { string tag = 1; float simple_value = 2 }`
fn summary(step: u32, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut values = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = Vec::new();
        bytes(&mut scalar, 1, tag.as_bytes());
        key(&mut scalar, 2, FIXED32);
        scalar.extend((*value as f32).to_le_bytes());
        bytes(&mut values, 1, &scalar);
    }
    let mut message = Vec::new();
    key(&mut message, 2, 0);
    varint(&mut message, u64::from(step));
    bytes(&mut message, 5, &values);
    message
}

fn key(message: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(message, field << 3 | wire_type);
}

fn bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(message, field, BYTES);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    /// The CRC-32C of RFC 3720 B.4, bit by bit, so that the check shares nothing with the crate.
    fn slow_crc(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
        })
    }

    fn unmask(masked: &[u8]) -> u32 {
        u32::from_le_bytes(masked.try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15)
    }

    /// The data of every record, its checksums checked.
    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(unmask(&file[8..12]), slow_crc(&file[..8]));
            let data = &file[12..12 + length];
            assert_eq!(unmask(&file[12 + length..16 + length]), slow_crc(data));
            records.push(data);
            file = &file[16 + length..];
        }
        records
    }

    /// Fields of a message: number, and the varint or the bytes.
    fn fields(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = take_varint(&mut message);
            let (number, payload) = match key & 7 {
                0 => (take_varint(&mut message), 0),
                1 => (0, 8),
                2 => (0, take_varint(&mut message) as usize),
                5 => (0, 4),
                other => panic!("wire type {other}"),
            };
            let (payload, rest) = message.split_at(payload);
            fields.push((key >> 3, number, payload));
            message = rest;
        }
        fields
    }

    fn take_varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = message[0];
            *message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(slow_crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_record_reads_back() {
        let mut board = TensorBoard::new(Vec::new()).unwrap();
        fixture::events().iter().for_each(|event| board.report(event).unwrap());
        let records = records(&board.out);
        assert_eq!(fields(records[0])[1], (3, 0, b"brain.Event:2".as_slice()));
        assert_eq!(records.len(), 1 + 8 + 1 + 1);

        let mut seen = Vec::new();
        for record in &records[1..] {
            let event = fields(record);
            assert!(f64::from_le_bytes(event[0].2.try_into().unwrap()) > 1.7e9);
            let (step, values) = (event[1].1, event[2].2);
            for (_, _, value) in fields(values) {
                let scalar = fields(value);
                let tag = std::str::from_utf8(scalar[0].2).unwrap().to_string();
                seen.push((step, tag, f32::from_le_bytes(scalar[1].2.try_into().unwrap())));
            }
        }
        let state = fixture::state();
        let second = &state.history[1];
        let accuracy = second.metrics.as_ref().unwrap().accuracy.unwrap() as f32;
        for expected in [
            (2, "evaluation/accuracy".to_string(), accuracy),
            (2, "loss/bank".to_string(), second.silos[0].measured.loss as f32),
            (3, "round/failures".to_string(), 1.0),
            (4, "slowness/edge".to_string(), 1.0),
            (5, "planned_slowness/edge".to_string(), 1.4),
            (6, "cache_hit_share/edge".to_string(), 15.0 / 80.0),
            (8, "final/loss".to_string(), fixture::metrics().loss as f32),
        ] {
            assert!(seen.contains(&expected), "{expected:?} is not in {seen:?}");
        }
        assert!(!seen.iter().any(|(step, tag, _)| *step == 3 && tag == "loss/edge"));
    }

    #[test]
    fn long_numbers_take_several_bytes() {
        let mut message = Vec::new();
        varint(&mut message, 300);
        assert_eq!(message, [0xac, 0x02]);
    }
}
