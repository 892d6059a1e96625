//! The numbers of `scripts/golden_plans.py`, so that tests plan what HiGHS planned.

/// A linear congruential generator.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    pub(super) fn share(&mut self, bound: u64, of: u64) -> f64 {
        self.below(bound) as f64 / of as f64
    }
}
