//! Splitting one data set over silos, to simulate sites that see different texts.

use fedpipe_core::{Purpose, Seed, SeedStream, SiloId};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Gamma};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draws of a Dirichlet split before it is given up.
pub const MAX_DRAWS: usize = 200;

/// How examples are split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Partition {
    /// Shuffled and dealt out evenly.
    Iid,
    /// For every label, the silos' shares of its examples are drawn from a symmetric Dirichlet distribution
    /// (Hsu et al., arXiv 1909.06335, applied by label): the smaller α, the more lopsided.
    Dirichlet {
        /// α, above 0.
        alpha: f64,
    },
    /// By the value of a column, such as a site. Values that are names of silos go to them; when none is, whole groups
    /// are dealt out, the largest first and always to the silo with the fewest examples so far.
    Column {
        /// The column.
        name: String,
    },
}

/// What is known of each example, in the order of the data.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// The label of each.
    pub labels: &'a [usize],
    /// The value of the partition's column for each, when there is such a column.
    pub sites: Option<&'a [String]>,
}

/// Examples that cannot be split.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PartitionError {
    /// No silo.
    #[error("there is no silo to give examples to; add a [[silos]] table")]
    NoSilos,
    /// Fewer examples than it takes.
    #[error(
        "{examples} examples are too few for {silos} silos of at least {min_examples} each; use fewer silos or more data"
    )]
    TooFew {
        /// Examples.
        examples: usize,
        /// Silos.
        silos: usize,
        /// Examples that each should have.
        min_examples: usize,
    },
    /// α makes no distribution.
    #[error("the Dirichlet partition's alpha is {0}; it must be a finite number above 0")]
    Alpha(f64),
    /// No draw gave every silo enough.
    #[error(
        "no Dirichlet draw out of {MAX_DRAWS} with alpha {alpha} left each of {silos} silos {min_examples} examples; raise \
         alpha, use fewer silos or another seed"
    )]
    Draws {
        /// α.
        alpha: f64,
        /// Silos.
        silos: usize,
        /// Examples that each should have.
        min_examples: usize,
    },
    /// The data has no such column.
    #[error("the data has no column `{0}` to split by")]
    NoColumn(String),
    /// Some values are names of silos and some are not.
    #[error(
        "column `{column}` has the value `{value}`, which is no silo, though other values are; name the silos after the \
         values, or give them names that are no values to have the groups dealt out"
    )]
    UnknownSite {
        /// The column.
        column: String,
        /// The value.
        value: String,
    },
    /// A silo got fewer examples than it needs.
    #[error(
        "column `{column}` leaves silo {silo} {examples} examples, and it needs {min_examples}; leave the silo out"
    )]
    Starved {
        /// The column.
        column: String,
        /// Which silo.
        silo: SiloId,
        /// What it got.
        examples: usize,
        /// What it should have.
        min_examples: usize,
    },
}

/// Indices of examples by silo, ascending.
pub type Split = BTreeMap<SiloId, Vec<usize>>;

impl Partition {
    /// Gives every example to exactly one of `silos` and each silo at least `min_examples` (and at least one).
    ///
    /// # Errors
    /// When that cannot be done, with what to change.
    pub fn split(
        &self,
        examples: Examples<'_>,
        silos: &[SiloId],
        min_examples: usize,
        seed: Seed,
    ) -> Result<Split, PartitionError> {
        let (n, min_examples) = (examples.labels.len(), min_examples.max(1));
        if silos.is_empty() {
            return Err(PartitionError::NoSilos);
        }
        if n < silos.len().saturating_mul(min_examples) {
            return Err(PartitionError::TooFew { examples: n, silos: silos.len(), min_examples });
        }
        let mut stream = seed.derive(Purpose::Partition, 0, None).stream();
        let shares = match self {
            Self::Iid => iid(n, silos.len(), &mut stream),
            Self::Dirichlet { alpha } => dirichlet(examples.labels, silos.len(), *alpha, min_examples, &mut stream)?,
            Self::Column { name } => {
                let sites = examples.sites.filter(|sites| sites.len() == n);
                let shares = by_site(name, sites.ok_or_else(|| PartitionError::NoColumn(name.clone()))?, silos)?;
                if let Some((share, silo)) = shares.iter().zip(silos).find(|(share, _)| share.len() < min_examples) {
                    let (column, silo, examples) = (name.clone(), silo.clone(), share.len());
                    return Err(PartitionError::Starved { column, silo, examples, min_examples });
                }
                shares
            }
        };
        let sorted = |mut share: Vec<usize>| {
            share.sort_unstable();
            share
        };
        Ok(silos.iter().cloned().zip(shares.into_iter().map(sorted)).collect())
    }
}

fn iid(n: usize, silos: usize, stream: &mut SeedStream) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(stream);
    (0..silos).map(|silo| order[silo * n / silos..(silo + 1) * n / silos].to_vec()).collect()
}

fn dirichlet(
    labels: &[usize],
    silos: usize,
    alpha: f64,
    min_examples: usize,
    stream: &mut SeedStream,
) -> Result<Vec<Vec<usize>>, PartitionError> {
    let gamma = Gamma::new(alpha, 1.0).ok().filter(|_| alpha.is_finite()).ok_or(PartitionError::Alpha(alpha))?;
    let mut by_label: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, &label) in labels.iter().enumerate() {
        by_label.entry(label).or_default().push(index);
    }
    for _ in 0..MAX_DRAWS {
        let mut shares = vec![Vec::new(); silos];
        for indices in by_label.values() {
            let mut indices = indices.clone();
            indices.shuffle(stream);
            let mut start = 0;
            for (share, end) in shares.iter_mut().zip(cuts(indices.len(), silos, &gamma, stream)) {
                share.extend_from_slice(&indices[start..end]);
                start = end;
            }
        }
        if shares.iter().all(|share| share.len() >= min_examples) {
            return Ok(shares);
        }
    }
    Err(PartitionError::Draws { alpha, silos, min_examples })
}

/// Where each silo's share of `n` examples ends, ascending and ending at `n`. Gamma variates over their sum are Dirichlet.
fn cuts(n: usize, silos: usize, gamma: &Gamma<f64>, stream: &mut SeedStream) -> Vec<usize> {
    let mut draws: Vec<f64> = (0..silos).map(|_| gamma.sample(stream)).collect();
    let mut total: f64 = draws.iter().sum();
    if total <= 0.0 || !total.is_finite() {
        // A tiny alpha underflows; its limit is one silo that takes all.
        draws = vec![0.0; silos];
        draws[stream.random_range(0..silos)] = 1.0;
        total = 1.0;
    }
    let mut sum = 0.0;
    let mut ends: Vec<usize> = draws
        .iter()
        .map(|draw| {
            sum += draw / total;
            ((sum * n as f64).round() as usize).min(n)
        })
        .collect();
    if let Some(last) = ends.last_mut() {
        *last = n;
    }
    ends
}

fn by_site(column: &str, sites: &[String], silos: &[SiloId]) -> Result<Vec<Vec<usize>>, PartitionError> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, site) in sites.iter().enumerate() {
        groups.entry(site).or_default().push(index);
    }
    let position = |site: &str| silos.iter().position(|silo| silo.as_str() == site);
    let mut shares = vec![Vec::new(); silos.len()];
    if groups.keys().any(|site| position(site).is_some()) {
        for (site, indices) in groups {
            let unknown = || PartitionError::UnknownSite { column: column.into(), value: site.into() };
            shares[position(site).ok_or_else(unknown)?].extend(indices);
        }
        return Ok(shares);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for group in groups {
        if let Some(least) = shares.iter_mut().min_by_key(|share| share.len()) {
            least.extend(group);
        }
    }
    Ok(shares)
}

#[cfg(test)]
mod tests;
