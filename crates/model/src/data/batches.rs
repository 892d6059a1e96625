//! The order in which a silo sees its examples.

use fedpipe_core::{Seed, SeedStream};
use rand_core::Rng;

/// Endless batches of example indices: each epoch is a fresh shuffle, and a batch may reach over an epoch's end.
///
/// A silo with fewer examples than a batch holds gets batches of all its examples. With nothing to draw from (no
/// examples, or batches of none) there are no batches at all.
#[derive(Debug, Clone)]
pub struct Batches {
    order: Vec<usize>,
    /// How many of `order` this epoch has used.
    used: usize,
    size: usize,
    stream: SeedStream,
}

impl Batches {
    /// Batches of `size` out of `examples`; the same seed gives the same batches.
    pub fn new(examples: usize, size: usize, seed: Seed) -> Self {
        Self { order: (0..examples).collect(), used: examples, size: size.min(examples), stream: seed.stream() }
    }

    /// Fisher and Yates's shuffle. The bound's remainder biases a draw by less than 2⁻³² for any number of examples
    /// that fits in memory.
    fn shuffle(&mut self) {
        for last in (1..self.order.len()).rev() {
            let draw = (u128::from(self.stream.next_u64()) * (last as u128 + 1)) >> 64;
            self.order.swap(last, draw as usize);
        }
        self.used = 0;
    }
}

impl Iterator for Batches {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Vec<usize>> {
        if self.size == 0 {
            return None;
        }
        let mut batch = Vec::with_capacity(self.size);
        while batch.len() < self.size {
            if self.used == self.order.len() {
                self.shuffle();
            }
            let take = (self.size - batch.len()).min(self.order.len() - self.used);
            batch.extend_from_slice(&self.order[self.used..self.used + take]);
            self.used += take;
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_holds_every_example_once(examples in 1usize..60, size in 1usize..80, seed: u64) {
            let mut drawn: Vec<usize> = Vec::new();
            for batch in Batches::new(examples, size, Seed(seed)) {
                prop_assert_eq!(batch.len(), size.min(examples));
                drawn.extend(batch);
                if drawn.len() >= 3 * examples {
                    break;
                }
            }
            for epoch in drawn.chunks_exact(examples).take(3) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..examples).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_seed_alone_decides_the_order() {
        let first = |seed| Batches::new(100, 7, Seed(seed)).take(40).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn nothing_to_draw_from_gives_no_batches_instead_of_an_endless_loop() {
        assert_eq!(Batches::new(0, 8, Seed(1)).next(), None);
        assert_eq!(Batches::new(8, 0, Seed(1)).next(), None);
    }

    #[test]
    fn every_example_comes_first_about_as_often() {
        let mut first = [0u32; 4];
        for seed in 0..4000 {
            first[Batches::new(4, 1, Seed(seed)).next().unwrap()[0]] += 1;
        }
        // 1000 expected; the standard deviation is 27.
        assert!(first.iter().all(|&n| (850..1150).contains(&n)), "{first:?}");
    }
}
