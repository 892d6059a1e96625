//! What is attached to frozen weights, and the parameters that train.

mod singular;

pub(crate) use singular::{Sensitivity, Triplets, normalised};

use crate::parameters::{ParameterId, Parameters};
use fedpipe_core::{Adapter, LowRank, Matrix, Purpose, Seed, WeightId};
use rand_core::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Low-rank paths beside one weight: `y += scaling · (B·A + B₀·A₀)·x`.
#[derive(Debug, Clone)]
pub struct Attached {
    /// Factors that train.
    pub trained: Option<Trained>,
    /// Factors that are applied and never change.
    pub fixed: Option<Arc<LowRank>>,
    /// PEFT's alpha / r.
    pub scaling: f32,
}

/// Factors among [`Parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// A `[rank, in]`.
    pub a: ParameterId,
    /// B `[out, rank]`.
    pub b: ParameterId,
}

/// What is attached to the base model, by weight.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    by_weight: BTreeMap<WeightId, Attached>,
    dropout: Option<(f32, Seed)>,
}

impl Adapters {
    /// Nothing attached.
    pub fn none() -> Self {
        Self::default()
    }

    /// A finished adapter, applied and not trained.
    pub fn constant(adapter: &Adapter) -> Self {
        let mut adapters = Self::default();
        adapters.fix(&adapter.factors, adapter.scaling);
        adapters
    }

    /// Attaches something to a weight.
    pub fn insert(&mut self, id: WeightId, attached: Attached) {
        self.by_weight.insert(id, attached);
    }

    /// Applies factors beside what trains.
    fn fix(&mut self, fixed: &BTreeMap<WeightId, LowRank>, scaling: f32) {
        for (id, factors) in fixed {
            let attached = Attached { trained: None, fixed: None, scaling };
            let attached = self.by_weight.entry(id.clone()).or_insert(attached);
            attached.fixed = Some(Arc::new(factors.clone()));
        }
    }

    /// What is attached to a weight.
    pub fn get(&self, id: &WeightId) -> Option<&Attached> {
        self.by_weight.get(id)
    }

    /// Sets dropout for one pass: probability, and the seed of the pass.
    pub fn set_dropout(&mut self, probability: f64, seed: Seed) {
        self.dropout = (probability > 0.0).then_some((probability as f32, seed));
    }

    /// Key and probability of the dropout before the trained factors of a weight.
    pub(crate) fn dropout_of(&self, id: &WeightId) -> Option<(u64, f32)> {
        self.dropout.map(|(probability, seed)| (seed.named(id.as_str()).0, probability))
    }
}

/// An adapter in training: parameters for its factors and its head.
#[derive(Debug, Clone)]
pub struct Trainable {
    /// The values.
    pub parameters: Parameters,
    scaling: f32,
    factors: BTreeMap<WeightId, Trained>,
    head: BTreeMap<String, ParameterId>,
}

impl Trainable {
    /// Parameters that start at the values of `adapter`.
    pub fn new(adapter: &Adapter) -> Self {
        let mut parameters = Parameters::default();
        let factors = adapter.factors.iter().map(|(id, low_rank)| {
            let a = parameters.add(low_rank.a().clone());
            (id.clone(), Trained { a, b: parameters.add(low_rank.b().clone()) })
        });
        let factors = factors.collect();
        let head = parameters.add_head(&adapter.head);
        Self { parameters, scaling: adapter.scaling, factors, head }
    }

    /// What the base model sees: what trains, with `fixed` beside it or alone.
    pub fn attached(&self, fixed: &BTreeMap<WeightId, LowRank>) -> Adapters {
        let mut adapters = Adapters::default();
        for (id, &trained) in &self.factors {
            adapters.insert(id.clone(), Attached { trained: Some(trained), fixed: None, scaling: self.scaling });
        }
        adapters.fix(fixed, self.scaling);
        adapters
    }

    /// The parameters of the factors, by weight.
    pub fn factors(&self) -> &BTreeMap<WeightId, Trained> {
        &self.factors
    }

    /// The head's parameters by name.
    pub fn head(&self) -> &BTreeMap<String, ParameterId> {
        &self.head
    }

    /// The values as they are now.
    ///
    /// # Panics
    /// Never: factors keep the shapes that they came with.
    pub fn adapter(&self) -> Adapter {
        let values = |id: ParameterId| self.parameters.get(id).clone();
        let factors = self.factors.iter().filter_map(|(id, trained)| {
            LowRank::new(values(trained.a), values(trained.b)).ok().map(|low_rank| (id.clone(), low_rank))
        });
        let head = self.head.iter().map(|(name, &id)| (name.clone(), values(id)));
        Adapter { scaling: self.scaling, factors: factors.collect(), head: head.collect() }
    }
}

/// A head to start from: weights normal with deviation 0.02 as Hugging Face initialises BERT's classifier, biases zero.
///
/// `shapes` holds rows and columns by name; every name that ends in `bias` is a bias.
pub fn fresh_head(shapes: &BTreeMap<String, (usize, usize)>, seed: Seed) -> fedpipe_core::Head {
    let fresh = |(name, &(rows, cols)): (&String, &(usize, usize))| {
        let mut normal = Normal::new(seed.derive(Purpose::Init, 0, None).named(name));
        let bias = name.ends_with("bias");
        let values = Matrix::from_fn(rows, cols, |_, _| if bias { 0.0 } else { (0.02 * normal.next()) as f32 });
        (name.clone(), values)
    };
    shapes.iter().map(fresh).collect()
}

/// Standard normal numbers by the Box–Muller transform.
pub(crate) struct Normal(fedpipe_core::SeedStream);

impl Normal {
    pub(crate) fn new(seed: Seed) -> Self {
        Self(seed.stream())
    }

    pub(crate) fn next(&mut self) -> f64 {
        let mut uniform = || (f64::from(self.0.next_u32()) + 0.5) / 2f64.powi(32);
        (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
    }
}
