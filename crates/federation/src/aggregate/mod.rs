//! Merge rules for the factors of one weight. Weighted by examples, silo by silo; ranks may differ.

mod product;
mod svd;
mod zero_pad;

pub use product::Product;
pub use zero_pad::ZeroPad;

use crate::UnknownName;
use fedpipe_core::{Aggregator, LowRank, Matrix};

/// Every merge rule.
pub const AGGREGATORS: &[&dyn Aggregator] = &[&Product, &ZeroPad];

/// The merge rule of that name.
///
/// # Errors
/// When no row of [`AGGREGATORS`] has the name.
pub fn by_name(name: &str) -> Result<&'static dyn Aggregator, UnknownName> {
    AGGREGATORS
        .iter()
        .copied()
        .find(|rule| rule.name() == name)
        .ok_or_else(|| UnknownName::new("aggregator", name, AGGREGATORS.iter().map(|rule| rule.name())))
}

/// Factors whose rank is `rank` by construction: A from `a(component, input)`, B from `b(output, component)`.
#[expect(clippy::expect_used, reason = "both factors are built with the same rank two lines above")]
fn low_rank(
    (rank, inputs, outputs): (usize, usize, usize),
    a: impl FnMut(usize, usize) -> f32,
    b: impl FnMut(usize, usize) -> f32,
) -> LowRank {
    let a = Matrix::from_fn(rank, inputs, a);
    let b = Matrix::from_fn(outputs, rank, b);
    LowRank::new(a, b).expect("one rank")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_found_by_its_name_and_conforms() {
        for rule in AGGREGATORS {
            assert_eq!(by_name(rule.name()).unwrap().name(), rule.name());
            fedpipe_testkit::aggregator_conformance(*rule);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = by_name("produkt").err().unwrap();
        assert_eq!(error.to_string(), "there is no aggregator `produkt`; there is product, zero-pad");
    }
}
