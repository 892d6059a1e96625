//! Importance from the adapters in training: what the probe said, corrected by what the rounds say.

use fedpipe_core::WeightId;
use std::collections::BTreeMap;

/// What the new estimate counts for beside what is known.
const NEW_SHARE: f64 = 0.5;

type Scores = BTreeMap<WeightId, f64>;

/// One silo's sensitivities ([`fedpipe_core::Update::sensitivity`]), each divided by what its rank is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensed {
    /// Its examples, the weight of its word.
    pub examples: u64,
    /// By weight that it trained.
    pub by_weight: Scores,
}

/// `scores` after one more look at them.
///
/// The planner's objective says that a weight of importance I, trained at rank r, gains I·u(r). What the factors of rank r
/// are seen to matter is thus I·u(r) up to a constant of the silo, and sensitivity over u(r) estimates I up to that
/// constant. The constant is chosen so that the weights that the silo trained keep the mass that they hold together: it says
/// nothing of the others. Estimates are averaged by weight over the silos that trained it, by examples, scaled to the mass
/// that all weights held that anybody trained, and mixed half and half with what was known: one round is one sample, and a
/// weight that trained long has less left to gain. Weights that nobody trained stay as they are.
pub fn refreshed(scores: &Scores, silos: &[Sensed]) -> Scores {
    let mut sums: BTreeMap<&WeightId, (f64, f64)> = BTreeMap::new();
    for silo in silos {
        let held: f64 = silo.by_weight.keys().filter_map(|weight| scores.get(weight)).sum();
        let seen: f64 = silo.by_weight.iter().filter(|(id, _)| scores.contains_key(id)).map(|(_, seen)| seen).sum();
        if seen <= 0.0 || held <= 0.0 {
            continue;
        }
        for (weight, sensitivity) in &silo.by_weight {
            let (sum, examples) = sums.entry(weight).or_default();
            *sum += silo.examples as f64 * sensitivity * held / seen;
            *examples += silo.examples as f64;
        }
    }
    let means: BTreeMap<&WeightId, f64> = (sums.into_iter())
        .filter(|(weight, (_, examples))| *examples > 0.0 && scores.contains_key(weight))
        .map(|(weight, (sum, examples))| (weight, sum / examples))
        .collect();
    let held: f64 = means.keys().filter_map(|weight| scores.get(weight)).sum();
    let scale = held / means.values().sum::<f64>().max(f64::MIN_POSITIVE);
    let look = |(weight, &known): (&WeightId, &f64)| {
        let new = means.get(weight).map_or(known, |mean| mean * scale);
        (weight.clone(), (1.0 - NEW_SHARE) * known + NEW_SHARE * new)
    };
    scores.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores<const N: usize>(values: [(&str, f64); N]) -> Scores {
        values.map(|(weight, score)| (weight.into(), score)).into()
    }

    fn close(found: &Scores, expected: Scores) {
        assert!(found.keys().eq(expected.keys()));
        for (weight, score) in &expected {
            assert!((found[weight] - score).abs() < 1e-12, "{weight}: {found:?}");
        }
    }

    /// By hand. I = (0.4, 0.2, 0.3, 0.1). Silo 1 (300 examples) saw x and y at 1 and 2: mass 0.6, so (0.2, 0.4). Silo 2 (100)
    /// saw y and z at 4 and 1: mass 0.5, so (0.4, 0.1). Means x 0.2, y 0.4, z 0.1 are 0.7 of a mass of 0.9; scaled by 9/7 and
    /// mixed half and half: x ½(0.4 + 9/35), y ½(0.2 + 18/35), z ½(0.3 + 4.5/35); nobody trained w.
    #[test]
    fn estimates_keep_the_mass_of_what_trained() {
        let known = scores([("w", 0.1), ("x", 0.4), ("y", 0.2), ("z", 0.3)]);
        let silos = [
            Sensed { examples: 300, by_weight: scores([("x", 1.0), ("y", 2.0)]) },
            Sensed { examples: 100, by_weight: scores([("y", 4.0), ("z", 1.0)]) },
        ];
        let found = refreshed(&known, &silos);
        let half = |known: f64, new: f64| 0.5 * (known + new / 35.0);
        let expected = [("w", 0.1), ("x", half(0.4, 9.0)), ("y", half(0.2, 18.0)), ("z", half(0.3, 4.5))];
        close(&found, scores(expected));
        assert!((found.values().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    /// Two silos that disagree on one weight meet by their examples: x at (0.75, 0.25) and (0.25, 0.75) is 0.5 when both
    /// have the same.
    #[test]
    fn silos_are_averaged_by_examples() {
        let known = scores([("x", 0.5), ("y", 0.5)]);
        let silo = |examples, x: f64| Sensed { examples, by_weight: scores([("x", x), ("y", 4.0 - x)]) };
        close(&refreshed(&known, &[silo(10, 3.0), silo(10, 1.0)]), scores([("x", 0.5), ("y", 0.5)]));
        close(&refreshed(&known, &[silo(30, 3.0), silo(10, 1.0)]), scores([("x", 0.5625), ("y", 0.4375)]));
    }

    #[test]
    fn silence_changes_nothing() {
        let known = scores([("x", 0.6), ("y", 0.4), ("z", 0.0)]);
        let silo = |by_weight| Sensed { examples: 10, by_weight };
        for quiet in [scores([]), scores([("x", 0.0), ("y", 0.0)]), scores([("z", 1.0)]), scores([("unknown", 1.0)])] {
            close(&refreshed(&known, &[silo(quiet)]), known.clone());
        }
        close(&refreshed(&known, &[]), known.clone());
        let none = Sensed { examples: 0, by_weight: scores([("x", 1.0), ("y", 2.0)]) };
        close(&refreshed(&known, &[none]), known);
    }
}
