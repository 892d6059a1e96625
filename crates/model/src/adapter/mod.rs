//! What is attached to frozen weights, and the parameters that train.

mod singular;

pub use singular::{Sensitivity, Triplets};

use crate::ops::LoraFactors;
use candle_core::{Device, Result, Tensor, Var};
use fedpipe_core::{Adapter, LowRank, Matrix, Purpose, Seed, WeightId};
use rand_core::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is attached to one weight.
#[derive(Debug, Clone)]
pub enum Attached {
    /// Low-rank factors, trained or constant.
    Lora(LoraFactors),
    /// The singular-value form of the importance probe.
    Singular(Triplets),
}

/// What is attached to the base model, by weight.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    by_weight: BTreeMap<WeightId, Attached>,
    dropout: Option<(f64, Seed)>,
}

impl Adapters {
    /// Nothing attached.
    pub fn none() -> Self {
        Self::default()
    }

    /// A finished adapter, applied and not trained.
    ///
    /// # Errors
    /// When candle fails.
    pub fn constant(adapter: &Adapter) -> Result<Self> {
        let mut adapters = Self::default();
        for (id, factors) in &adapter.factors {
            adapters.insert(id.clone(), Attached::Lora(constant_factors(factors, adapter.scaling)?));
        }
        Ok(adapters)
    }

    /// Attaches something to a weight.
    pub fn insert(&mut self, id: WeightId, attached: Attached) {
        self.by_weight.insert(id, attached);
    }

    /// What is attached to a weight.
    pub fn get(&self, id: &WeightId) -> Option<&Attached> {
        self.by_weight.get(id)
    }

    /// Sets dropout for one forward pass: probability, and the seed of the pass.
    pub fn set_dropout(&mut self, probability: f64, seed: Seed) {
        self.dropout = (probability > 0.0).then_some((probability, seed));
    }

    /// A mask of 0 and 1/(1 − p) shaped like x, or `None` without dropout.
    pub(crate) fn dropout_mask(&self, id: &WeightId, x: &Tensor) -> Result<Option<Tensor>> {
        let Some((probability, seed)) = self.dropout else { return Ok(None) };
        let kept = (1.0 / (1.0 - probability)) as f32;
        let threshold = (probability * 2f64.powi(32)) as u32;
        let mut stream = seed.named(id.as_str()).stream();
        let mask: Vec<f32> =
            (0..x.elem_count()).map(|_| if stream.next_u32() < threshold { 0.0 } else { kept }).collect();
        Tensor::from_vec(mask, x.shape(), x.device()).map(Some)
    }
}

impl LoraFactors {
    /// The low-rank path alone, composed of candle operations: the trained factors see `dropped`, the fixed ones x.
    pub(crate) fn composed(&self, dropped: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut low = dropped.matmul(&self.a.t()?)?.matmul(&self.b.t()?)?;
        if let Some(fixed) = &self.fixed {
            let (a, b) = (tensor(fixed.a())?, tensor(fixed.b())?);
            low = (low + x.matmul(&a.t()?)?.matmul(&b.t()?)?)?;
        }
        low * f64::from(self.scaling)
    }
}

fn constant_factors(factors: &LowRank, scaling: f32) -> Result<LoraFactors> {
    Ok(LoraFactors { a: tensor(factors.a())?, b: tensor(factors.b())?, fixed: None, scaling })
}

/// A constant CPU tensor `[rows, cols]`.
pub(crate) fn tensor(matrix: &Matrix) -> Result<Tensor> {
    Tensor::from_slice(matrix.data(), (matrix.rows(), matrix.cols()), &Device::Cpu)
}

/// A trained CPU tensor `[rows, cols]`.
fn variable(matrix: &Matrix) -> Result<Var> {
    Var::from_slice(matrix.data(), (matrix.rows(), matrix.cols()), &Device::Cpu)
}

/// The values of a tensor `[rows, cols]`.
fn matrix(tensor: &Tensor) -> Result<Matrix> {
    let (rows, cols) = tensor.dims2()?;
    let data = tensor.flatten_all()?.to_vec1()?;
    Matrix::new(rows, cols, data).map_err(|e| candle_core::Error::Msg(e.to_string()))
}

/// An adapter in training: variables for its factors and its head.
#[derive(Debug)]
pub struct Trainable {
    scaling: f32,
    factors: BTreeMap<WeightId, (Var, Var)>,
    head: BTreeMap<String, Var>,
}

impl Trainable {
    /// Variables that start at the values of `adapter`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn new(adapter: &Adapter) -> Result<Self> {
        let mut factors = BTreeMap::new();
        for (id, low_rank) in &adapter.factors {
            factors.insert(id.clone(), (variable(low_rank.a())?, variable(low_rank.b())?));
        }
        let mut head = BTreeMap::new();
        for (name, values) in &adapter.head {
            head.insert(name.clone(), variable(values)?);
        }
        Ok(Self { scaling: adapter.scaling, factors, head })
    }

    /// What the base model sees: the variables, with `fixed` beside them or alone.
    ///
    /// # Errors
    /// When candle fails.
    pub fn attached(&self, fixed: &BTreeMap<WeightId, LowRank>) -> Result<Adapters> {
        let mut adapters = Adapters::default();
        for (id, factors) in fixed {
            if !self.factors.contains_key(id) {
                adapters.insert(id.clone(), Attached::Lora(constant_factors(factors, self.scaling)?));
            }
        }
        for (id, (a, b)) in &self.factors {
            let lora = LoraFactors {
                a: a.as_tensor().clone(),
                b: b.as_tensor().clone(),
                fixed: fixed.get(id).cloned().map(Arc::new),
                scaling: self.scaling,
            };
            adapters.insert(id.clone(), Attached::Lora(lora));
        }
        Ok(adapters)
    }

    /// The head's variables by name.
    pub fn head(&self) -> &BTreeMap<String, Var> {
        &self.head
    }

    /// Every variable, in a fixed order.
    pub fn variables(&self) -> Vec<Var> {
        let factors = self.factors.values().flat_map(|(a, b)| [a.clone(), b.clone()]);
        factors.chain(self.head.values().cloned()).collect()
    }

    /// The values as they are now.
    ///
    /// # Errors
    /// When candle fails.
    pub fn adapter(&self) -> Result<Adapter> {
        let mut factors = BTreeMap::new();
        for (id, (a, b)) in &self.factors {
            let low_rank = LowRank::new(matrix(a)?, matrix(b)?).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
            factors.insert(id.clone(), low_rank);
        }
        let mut head = BTreeMap::new();
        for (name, values) in &self.head {
            head.insert(name.clone(), matrix(values)?);
        }
        Ok(Adapter { scaling: self.scaling, factors, head })
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
