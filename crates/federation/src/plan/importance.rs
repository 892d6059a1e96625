//! What every silo plans by: the federation's importance of the weights, and its own.

use fedpipe_core::{SiloId, WeightId};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Scores by weight.
pub type Scores = BTreeMap<WeightId, f64>;

/// Importance by silo: (1 − μ)·I + μ·I_i, with I the federation's and I_i the silo's own; a silo without scores of its own
/// plans by the federation's alone. That the two are mixed at all is this project's choice; μ = 0 is arXiv 2404.06448.
#[derive(Debug, Clone, Copy)]
pub struct Importance<'a> {
    /// I, summing to 1.
    pub federation: &'a Scores,
    /// I_i of the silos that have one, each summing to 1.
    pub own: &'a BTreeMap<SiloId, Scores>,
    /// μ, from 0 to 1.
    pub own_share: f64,
}

static NOBODYS: BTreeMap<SiloId, Scores> = BTreeMap::new();

/// The federation's alone.
impl<'a> From<&'a Scores> for Importance<'a> {
    fn from(federation: &'a Scores) -> Self {
        Self { federation, own: &NOBODYS, own_share: 0.0 }
    }
}

impl<'a> Importance<'a> {
    /// What `silo` plans by; borrowed where that is the federation's.
    pub fn of(&self, silo: &SiloId) -> Cow<'a, Scores> {
        let Some(own) = self.own.get(silo).filter(|_| self.own_share > 0.0) else {
            return Cow::Borrowed(self.federation);
        };
        let mixed = |(weight, shared): (&WeightId, &f64)| {
            let own = own.get(weight).copied().unwrap_or(0.0);
            (weight.clone(), (1.0 - self.own_share) * shared + self.own_share * own)
        };
        Cow::Owned(self.federation.iter().map(mixed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: ¾·(0.6, 0.4) + ¼·(0.2, 0.8) = (0.5, 0.5).
    #[test]
    fn a_silo_mixes_its_own_scores_with_those_of_all() {
        let scores = |x: f64, y: f64| -> Scores { [("x".into(), x), ("y".into(), y)].into() };
        let (federation, own) = (scores(0.6, 0.4), [("a".into(), scores(0.2, 0.8))].into());
        let mixed =
            |silo: &str, own_share| Importance { federation: &federation, own: &own, own_share }.of(&silo.into());
        let a = mixed("a", 0.25);
        assert!((a[&"x".into()] - 0.5).abs() < 1e-12 && (a[&"y".into()] - 0.5).abs() < 1e-12, "{a:?}");
        assert_eq!(*mixed("a", 1.0), own[&"a".into()]);
        for silo_and_share in [("b", 0.25), ("a", 0.0)] {
            let alone = mixed(silo_and_share.0, silo_and_share.1);
            assert!(matches!(alone, Cow::Borrowed(scores) if *scores == federation), "nothing is copied");
        }
    }
}
