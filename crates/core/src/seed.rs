//! Random streams, each derived from (run seed, purpose, round, silo) and from nothing else.
//!
//! A stream never depends on how many numbers another stream has drawn, so a resumed run, a run with one silo
//! missing and a run on other threads all see the same numbers.

use crate::SiloId;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The generator behind every stream.
pub type SeedStream = ChaCha8Rng;

/// What a stream is for; two purposes never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Splitting one data set over the silos.
    Partition,
    /// Which silos take part in a round.
    Cohort,
    /// Initial values of adapters and of the head.
    Init,
    /// The order of a silo's examples.
    Batches,
    /// Dropout masks.
    Dropout,
    /// The importance probe.
    Probe,
    /// The tokens of a generated text: the round is the step, the silo the number of the text.
    Sampling,
}

impl Purpose {
    fn label(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Cohort => "cohort",
            Self::Init => "init",
            Self::Batches => "batches",
            Self::Dropout => "dropout",
            Self::Probe => "probe",
            Self::Sampling => "sampling",
        }
    }
}

/// The seed of a run, or of one task of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// A seed of its own for one purpose in one round on one silo (or on the server, with `None`).
    pub fn derive(self, purpose: Purpose, round: u32, silo: Option<&SiloId>) -> Seed {
        let digest = Sha256::new()
            .chain_update(self.0.to_le_bytes())
            .chain_update(purpose.label().as_bytes())
            .chain_update([0])
            .chain_update(round.to_le_bytes())
            .chain_update([u8::from(silo.is_some())])
            .chain_update(silo.map_or("", SiloId::as_str).as_bytes())
            .finalize();
        let mut first = [0u8; 8];
        first.copy_from_slice(&digest[..8]);
        Seed(u64::from_le_bytes(first))
    }

    /// A seed of its own for one named thing, such as a weight.
    pub fn named(self, name: &str) -> Seed {
        self.derive(Purpose::Init, 0, Some(&SiloId::new(name)))
    }

    /// The numbers of this seed.
    pub fn stream(self) -> SeedStream {
        ChaCha8Rng::seed_from_u64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_derivation_changes_the_seed() {
        let (a, b) = (SiloId::from("a"), SiloId::from("b"));
        let seeds = [
            Seed(1).derive(Purpose::Cohort, 0, None),
            Seed(2).derive(Purpose::Cohort, 0, None),
            Seed(1).derive(Purpose::Init, 0, None),
            Seed(1).derive(Purpose::Cohort, 1, None),
            Seed(1).derive(Purpose::Cohort, 0, Some(&a)),
            Seed(1).derive(Purpose::Cohort, 0, Some(&b)),
        ];
        for (i, x) in seeds.iter().enumerate() {
            assert_eq!(seeds.iter().position(|y| x == y), Some(i), "two derivations gave one seed");
        }
    }

    /// Computed with Python: `int.from_bytes(hashlib.sha256(struct.pack("<Q", 42) + b"cohort\0" +
    /// struct.pack("<I", 3) + b"\x01" + b"clinic").digest()[:8], "little")`. A change here breaks old checkpoints.
    #[test]
    fn the_derivation_stays_what_it_was() {
        let seed = Seed(42).derive(Purpose::Cohort, 3, Some(&SiloId::from("clinic")));
        assert_eq!(seed.0, 11_611_339_704_967_347_783);
    }
}
