//! What the frozen layers at the bottom make of each text, computed once and kept.
//!
//! Below the lowest layer that trains there is neither dropout nor a gradient, so a text leaves these layers the same in
//! every epoch and every round. [`PrefixCache`] keeps that `[tokens, hidden]` as the bytes it was computed as: a value
//! from the cache is bit for bit the computed one.
//!
//! The policy is first come, first kept: what fits goes to memory, what does not goes to a spill file, and what fits in
//! neither is not kept. Nothing is ever evicted: every example is needed equally often, so to make room for one is to lose
//! another that is needed as much.

use crate::data::Dataset;
use bytemuck::Pod;
use fedpipe_core::{BaseFormat, CacheUse, LowRank, TrainWork, WeightId};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The layers whose output is kept, and all that it depends on beside the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    layer: usize,
    base_format: BaseFormat,
    /// Digest of the factors that are applied below `layer`; `None` when there are none.
    applied: Option<[u8; 32]>,
}

impl Prefix {
    /// The layers that are worth keeping while `work` trains a model of `layers` layers on `examples` texts; `None` when
    /// there are none. `layer_of` gives the layer of a weight; a weight without one counts as in the lowest.
    ///
    /// Layers below the lowest trained one may still have factors that are only applied ([`TrainWork::fixed`]): other
    /// silos train these, and every merge changes them. Cut at the lowest layer with anything attached, the prefix is
    /// frozen for good; cut at the lowest one that trains, it is longer and lasts for the round. The second is taken when
    /// the round goes through the examples often enough to save more.
    pub fn of(
        work: &TrainWork,
        examples: usize,
        layers: usize,
        layer_of: impl Fn(&WeightId) -> Option<usize>,
    ) -> Option<Self> {
        let layer_of = |weight: &WeightId| layer_of(weight).unwrap_or(0);
        let trained = work.adapter.factors.keys().map(layer_of).min().unwrap_or(layers);
        let attached = work.fixed.keys().map(layer_of).fold(trained, usize::min);
        let lookups = (work.steps * work.batch_size.min(examples)) as f64;
        let saved_within = trained as f64 * (1.0 - examples as f64 / lookups.max(1.0)).max(0.0);
        let layer = if saved_within > attached as f64 { trained } else { attached };
        let below: Vec<_> = work.fixed.iter().filter(|(weight, _)| layer_of(weight) < layer).collect();
        let applied = (!below.is_empty()).then(|| digest(work.adapter.scaling, &below));
        (layer > 0).then_some(Self { layer, base_format: work.base_format, applied })
    }

    /// Number of layers in the prefix: what is kept goes into this layer. At most the lowest layer that trains.
    pub fn layer(&self) -> usize {
        self.layer
    }
}

fn digest(scaling: f32, factors: &[(&WeightId, &LowRank)]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(scaling.to_le_bytes());
    for (weight, factors) in factors {
        digest.update((weight.as_str().len() as u64).to_le_bytes());
        digest.update(weight.as_str());
        for matrix in [factors.a(), factors.b()] {
            digest.update((matrix.rows() as u64).to_le_bytes());
            digest.update((matrix.cols() as u64).to_le_bytes());
            digest.update(bytemuck::cast_slice::<f32, u8>(matrix.data()));
        }
    }
    digest.finalize().into()
}

/// How much a cache may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes in memory.
    pub ram_bytes: u64,
    /// Bytes in the spill file; 0 for none.
    pub disk_bytes: u64,
    /// Where the spill file lies. It has no name there, so that it is gone with the process, however that ends.
    pub folder: PathBuf,
}

/// A text by its tokens: texts that are the same share a value.
type Key = [u8; 16];

fn key(text: &[u32]) -> Key {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(text));
    std::array::from_fn(|i| digest[i])
}

/// Where a value lies.
#[derive(Debug)]
enum Place {
    Ram(Range<usize>),
    Disk(Range<u64>),
}

/// The output of the frozen layers for the texts of one silo.
///
/// A spill file that cannot be written or read is given up with everything in it, so that a full disk gets its room back;
/// [`PrefixCache::take_trouble`] says why. Training goes on, more slowly.
#[derive(Debug)]
pub struct PrefixCache {
    prefix: Prefix,
    limits: CacheLimits,
    places: BTreeMap<Key, Place>,
    /// Reserved as a whole, so that it never moves and counts in full from the start.
    ram: Vec<u8>,
    spill: Option<File>,
    spill_allowed: bool,
    trouble: Option<String>,
    used: CacheUse,
    /// How the spill file is made; tests let it fail.
    open: fn(&Path) -> io::Result<File>,
}

impl PrefixCache {
    /// An empty cache. Memory is reserved at once; the spill file is made when it is needed.
    pub fn new(prefix: Prefix, limits: CacheLimits) -> Self {
        let mut ram = Vec::new();
        let reserved = usize::try_from(limits.ram_bytes).is_ok_and(|bytes| ram.try_reserve_exact(bytes).is_ok());
        let refused = || format!("no memory for {} bytes of cached activations", limits.ram_bytes);
        Self {
            trouble: (!reserved).then(refused),
            spill_allowed: limits.disk_bytes > 0,
            prefix,
            limits,
            places: BTreeMap::new(),
            ram,
            spill: None,
            used: CacheUse::default(),
            open: |folder| tempfile::tempfile_in(folder),
        }
    }

    /// What is kept.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// How much may be kept.
    pub fn limits(&self) -> &CacheLimits {
        &self.limits
    }

    /// Copies the value of `text` into `to`; without one of that length `to` is left with anything in it and the answer
    /// is no.
    pub fn get(&mut self, text: &[u32], to: &mut [u8]) -> bool {
        self.used.lookups += 1;
        let hit = match self.places.get(&key(text)) {
            Some(Place::Ram(range)) if range.len() == to.len() => {
                to.copy_from_slice(&self.ram[range.clone()]);
                true
            }
            Some(Place::Disk(range)) if range.end - range.start == to.len() as u64 => {
                let start = range.start;
                self.read(start, to)
            }
            _ => false,
        };
        self.used.hits += u64::from(hit);
        hit
    }

    /// Keeps the value of `text` if there is room; the first value of a text stays.
    pub fn insert(&mut self, text: &[u32], bytes: &[u8]) {
        let key = key(text);
        if self.places.contains_key(&key) {
            return;
        }
        let place = if bytes.len() <= self.ram.capacity() - self.ram.len() {
            let start = self.ram.len();
            self.ram.extend_from_slice(bytes);
            self.used.ram_bytes = self.ram.len() as u64;
            Place::Ram(start..self.ram.len())
        } else {
            let Some(range) = self.write(bytes) else { return };
            Place::Disk(range)
        };
        self.places.insert(key, place);
    }

    /// Fills `to` `[tokens of the batch, hidden]`, from the cache where it can. `compute` gets the texts that are missing,
    /// packed, and gives their `[tokens, hidden]`, which is kept. For a text it has to give the same bits whatever
    /// other texts come with it; else results would hang on what the cache holds.
    ///
    /// # Errors
    /// Those of `compute`.
    ///
    /// # Panics
    /// When `to` or what `compute` gives is not the same number of values for every token.
    pub fn fill<T: Pod, E>(
        &mut self,
        batch: &Dataset,
        to: &mut [T],
        compute: impl FnOnce(&Dataset) -> Result<Vec<T>, E>,
    ) -> Result<(), E> {
        let hidden = to.len() / batch.tokens().max(1);
        assert_eq!(to.len(), hidden * batch.tokens(), "as many values for every token");
        let values = |index: usize| hidden * batch.offsets[index]..hidden * batch.offsets[index + 1];
        let mut missing = Vec::new();
        for index in 0..batch.len() {
            if !self.get(batch.text(index), bytemuck::cast_slice_mut(&mut to[values(index)])) {
                missing.push(index);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let texts = batch.subset(&missing);
        let computed = compute(&texts)?;
        assert_eq!(computed.len(), hidden * texts.tokens(), "as many values for every missing token");
        for (at, &index) in missing.iter().enumerate() {
            let value = &computed[hidden * texts.offsets[at]..hidden * texts.offsets[at + 1]];
            to[values(index)].copy_from_slice(value);
            self.insert(batch.text(index), bytemuck::cast_slice(value));
        }
        Ok(())
    }

    /// Lookups and hits since the cache was made, and the bytes that it holds now.
    pub fn used(&self) -> CacheUse {
        self.used
    }

    /// What went wrong since this was last asked, for a person.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    fn read(&mut self, start: u64, to: &mut [u8]) -> bool {
        let Some(file) = &mut self.spill else { return false };
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(to));
        read.map_err(|error| self.give_up("read", &error)).is_ok()
    }

    fn write(&mut self, bytes: &[u8]) -> Option<Range<u64>> {
        let range = self.used.disk_bytes..self.used.disk_bytes + bytes.len() as u64;
        if !self.spill_allowed || range.end > self.limits.disk_bytes {
            return None;
        }
        let written = self.append(range.start, bytes);
        written.map_err(|error| self.give_up("write", &error)).ok()?;
        self.used.disk_bytes = range.end;
        Some(range)
    }

    fn append(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.spill {
            Some(file) => file,
            none => none.insert((self.open)(&self.limits.folder)?),
        };
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)
    }

    fn give_up(&mut self, what: &str, error: &io::Error) {
        let folder = self.limits.folder.display();
        let reason = format!(
            "cannot {what} the spill file of cached activations in {folder}: {error}; they are computed again from here on"
        );
        self.trouble = Some(reason);
        (self.spill, self.spill_allowed, self.used.disk_bytes) = (None, false, 0);
        self.places.retain(|_, place| matches!(place, Place::Ram(_)));
    }
}

#[cfg(test)]
mod tests;
