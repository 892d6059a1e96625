use super::*;
use proptest::prelude::*;

fn silos(n: usize) -> Vec<SiloId> {
    (0..n).map(|i| SiloId::new(format!("silo-{i}"))).collect()
}

fn labels(n: usize) -> Vec<usize> {
    (0..n).map(|i| i * i % 5).collect()
}

fn split(partition: &Partition, n: usize, k: usize, seed: u64) -> Result<Split, PartitionError> {
    let labels = labels(n);
    partition.split(Examples { labels: &labels, sites: None }, &silos(k), 1, Seed(seed))
}

proptest! {
    #[test]
    fn every_example_goes_to_exactly_one_silo(n in 1usize..200, k in 1usize..9, alpha in 0.05f64..100.0, seed: u64) {
        let sites: Vec<String> = (0..n).map(|i| format!("site {}", i % 7)).collect();
        let labels = labels(n);
        for partition in [Partition::Iid, Partition::Dirichlet { alpha }, Partition::Column { name: "site".into() }] {
            let examples = Examples { labels: &labels, sites: Some(&sites) };
            match partition.split(examples, &silos(k), 1, Seed(seed)) {
                Ok(split) => {
                    prop_assert_eq!(split.len(), k);
                    prop_assert!(split.values().all(|share| !share.is_empty()));
                    let mut all: Vec<usize> = split.into_values().flatten().collect();
                    all.sort_unstable();
                    prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
                }
                Err(PartitionError::TooFew { .. }) => prop_assert!(n < k),
                Err(PartitionError::Draws { .. }) => prop_assert!(matches!(partition, Partition::Dirichlet { .. }), "only Dirichlet draws"),
                Err(PartitionError::Starved { .. }) => prop_assert!(k > n.min(7)),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    for partition in [Partition::Iid, Partition::Dirichlet { alpha: 0.5 }] {
        assert_eq!(split(&partition, 100, 4, 1), split(&partition, 100, 4, 1));
        assert_ne!(split(&partition, 100, 4, 1), split(&partition, 100, 4, 2));
    }
}

#[test]
fn iid_shares_differ_by_at_most_one() {
    let sizes: Vec<usize> = split(&Partition::Iid, 103, 4, 7).unwrap().values().map(Vec::len).collect();
    assert!(sizes.iter().all(|&size| size == 25 || size == 26), "{sizes:?}");
}

/// α → ∞ gives every silo the same share of every label, α → 0 gives every label to one silo.
#[test]
fn alpha_says_how_lopsided_the_labels_are() {
    let n = 5000;
    let labels = labels(n);
    let largest_share = |alpha: f64| {
        let split = split(&Partition::Dirichlet { alpha }, n, 3, 3).unwrap();
        let of_label_1 = |share: &Vec<usize>| share.iter().filter(|&&i| labels[i] == 1).count();
        let all: usize = split.values().map(of_label_1).sum();
        split.values().map(of_label_1).max().unwrap() as f64 / all as f64
    };
    assert!((largest_share(1e6) - 1.0 / 3.0).abs() < 0.01);
    assert!(largest_share(1e-3) > 0.99);
}

#[test]
fn impossible_splits_say_what_to_change() {
    let message = |partition: &Partition, n, k| split(partition, n, k, 1).unwrap_err().to_string();
    assert!(message(&Partition::Iid, 3, 0).starts_with("there is no silo"));
    assert!(message(&Partition::Iid, 3, 4).starts_with("3 examples are too few for 4 silos"));
    assert!(message(&Partition::Dirichlet { alpha: 0.0 }, 9, 2).contains("alpha is 0"));
    assert!(message(&Partition::Dirichlet { alpha: f64::NAN }, 9, 2).contains("alpha is NaN"));
    assert!(message(&Partition::Dirichlet { alpha: 1e-6 }, 100, 8).contains("raise alpha"));
    assert!(message(&Partition::Column { name: "site".into() }, 9, 2).contains("no column `site`"));
}

#[test]
fn a_column_of_silo_names_decides_alone_and_a_stranger_in_it_is_an_error() {
    let site = |names: &[&str]| names.iter().map(|n| (*n).to_string()).collect::<Vec<_>>();
    let column = Partition::Column { name: "site".into() };
    let run = |sites: &[String]| {
        column.split(Examples { labels: &vec![0; sites.len()], sites: Some(sites) }, &silos(2), 1, Seed(1))
    };
    let split = run(&site(&["silo-1", "silo-0", "silo-1"])).unwrap();
    assert_eq!(split.into_values().collect::<Vec<_>>(), [vec![1], vec![0, 2]]);
    let error = run(&site(&["silo-1", "silo-0", "elsewhere"])).unwrap_err();
    assert!(matches!(error, PartitionError::UnknownSite { value, .. } if value == "elsewhere"));
    let error = run(&site(&["silo-1", "silo-1"])).unwrap_err();
    assert!(matches!(error, PartitionError::Starved { examples: 0, .. }));
    // No value is a silo: the groups are dealt out whole, c (3), then a (2), then b (1) to the smaller silo.
    let split = run(&site(&["a", "b", "c", "a", "c", "c"])).unwrap();
    assert_eq!(split.into_values().collect::<Vec<_>>(), [vec![2, 4, 5], vec![0, 1, 3]]);
}
