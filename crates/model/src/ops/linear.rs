//! Products with frozen weights, alone and with low-rank factors beside them.

use super::{Ops, slices};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Error, Layout, Result, Shape, Tensor};
use fedpipe_core::LowRank;
use fedpipe_kernels::FrozenMatrix;
use fedpipe_kernels::dense::{Matrix, Write, matmul};
use std::sync::Arc;

/// A low-rank path beside a frozen weight: y += scaling · (B·A + B₀·A₀)·x.
#[derive(Debug, Clone)]
pub struct LoraFactors {
    /// Trained A `[rank, in]`.
    pub a: Tensor,
    /// Trained B `[out, rank]`.
    pub b: Tensor,
    /// Factors that are applied and never change.
    pub fixed: Option<Arc<LowRank>>,
    /// PEFT's alpha / r.
    pub scaling: f32,
}

impl Ops {
    /// y = x·Wᵀ + bias: x `[tokens, in]`, W `[out, in]`, y `[tokens, out]`.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn linear(self, x: &Tensor, weight: &Arc<FrozenMatrix>, bias: Option<&Arc<[f32]>>) -> Result<Tensor> {
        check(x, weight)?;
        match self {
            Self::Reference => {
                let dense = Tensor::from_vec(weight.dequantize(), (weight.rows(), weight.columns()), x.device())?;
                let y = x.matmul(&dense.t()?)?;
                bias.map_or(Ok(y.clone()), |b| y.broadcast_add(&Tensor::new(&**b, x.device())?))
            }
            Self::Fast => x.apply_op1(Linear { weight: weight.clone(), bias: bias.cloned() }),
        }
    }

    /// [`Ops::linear`] with low-rank factors; gradients flow to x and to the trained factors.
    ///
    /// # Errors
    /// When the shapes disagree or candle fails.
    pub fn lora_linear(
        self,
        x: &Tensor,
        weight: &Arc<FrozenMatrix>,
        bias: Option<&Arc<[f32]>>,
        lora: &LoraFactors,
    ) -> Result<Tensor> {
        check(x, weight)?;
        match self {
            Self::Reference => {
                let mut low = x.matmul(&lora.a.t()?)?.matmul(&lora.b.t()?)?;
                if let Some(fixed) = &lora.fixed {
                    let (a, b) = (constant(fixed.a(), x.device())?, constant(fixed.b(), x.device())?);
                    low = (low + x.matmul(&a.t()?)?.matmul(&b.t()?)?)?;
                }
                self.linear(x, weight, bias)? + (low * f64::from(lora.scaling))?
            }
            Self::Fast => {
                let op = LoraLinear {
                    base: Linear { weight: weight.clone(), bias: bias.cloned() },
                    fixed: lora.fixed.clone(),
                    scaling: lora.scaling,
                };
                x.apply_op3(&lora.a, &lora.b, op)
            }
        }
    }
}

fn constant(matrix: &fedpipe_core::Matrix, device: &Device) -> Result<Tensor> {
    Tensor::from_slice(matrix.data(), (matrix.rows(), matrix.cols()), device)
}

fn check(x: &Tensor, weight: &FrozenMatrix) -> Result<()> {
    let (_, width) = x.dims2()?;
    if width == weight.columns() {
        return Ok(());
    }
    Err(Error::Msg(format!("a [{}, {}] weight cannot take an input of width {width}", weight.rows(), weight.columns())))
}

struct Linear {
    weight: Arc<FrozenMatrix>,
    bias: Option<Arc<[f32]>>,
}

impl Linear {
    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let tokens = x.len() / self.weight.columns();
        let mut y = vec![0.0; tokens * self.weight.rows()];
        self.weight.product(x, tokens, self.bias.as_deref(), &mut y);
        y
    }

    /// dx = dy·W.
    fn backward(&self, dy: &[f32]) -> Vec<f32> {
        let tokens = dy.len() / self.weight.rows();
        let mut dx = vec![0.0; tokens * self.weight.columns()];
        self.weight.product_transposed(dy, tokens, &mut dx);
        dx
    }

    fn output_shape(&self, input: &Layout) -> Shape {
        (input.dims()[0], self.weight.rows()).into()
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.forward(slices::of(storage, layout)?)), self.output_shape(layout)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = slices::with(dy, |dy| Ok(self.backward(dy)))?;
        slices::tensor(dx, x.shape()).map(Some)
    }
}

/// The frozen product and both thin ones in one node: only x is kept for backward, x·Aᵀ is computed again.
struct LoraLinear {
    base: Linear,
    fixed: Option<Arc<LowRank>>,
    scaling: f32,
}

impl LoraLinear {
    /// y += scaling · (x·Aᵀ)·Bᵀ, with the rank in the shape of A.
    fn add_low_rank(&self, x: &[f32], a: &[f32], b: &[f32], y: &mut [f32]) {
        let (inputs, outputs) = (self.base.weight.columns(), self.base.weight.rows());
        let (tokens, rank) = (x.len() / inputs, a.len() / inputs);
        let u = low(x, tokens, a, rank, inputs);
        let (u, b) = (Matrix::new(tokens, rank, &u), Matrix::new(outputs, rank, b));
        matmul(u, b.transposed(), self.scaling, Write::Accumulate, y);
    }

    /// scaling · dy·B `[tokens, rank]`.
    fn low_gradient(&self, dy: &[f32], b: &[f32]) -> Vec<f32> {
        let outputs = self.base.weight.rows();
        let (tokens, rank) = (dy.len() / outputs, b.len() / outputs);
        product(Matrix::new(tokens, outputs, dy), Matrix::new(outputs, rank, b), self.scaling)
    }

    /// dx += du·A.
    fn add_through(&self, du: &[f32], a: &[f32], dx: &mut [f32]) {
        let inputs = self.base.weight.columns();
        let rank = a.len() / inputs;
        let (du, a) = (Matrix::new(dx.len() / inputs, rank, du), Matrix::new(rank, inputs, a));
        matmul(du, a, 1.0, Write::Accumulate, dx);
    }

    /// The gradient of x through the frozen weight and both low-rank paths.
    fn input_gradient(&self, dy: &[f32], du: &[f32], a: &[f32]) -> Vec<f32> {
        let mut dx = self.base.backward(dy);
        self.add_through(du, a, &mut dx);
        if let Some(fixed) = &self.fixed {
            let du = self.low_gradient(dy, fixed.b().data());
            self.add_through(&du, fixed.a().data(), &mut dx);
        }
        dx
    }
}

/// x·Aᵀ `[tokens, rank]`.
fn low(x: &[f32], tokens: usize, a: &[f32], rank: usize, inputs: usize) -> Vec<f32> {
    product(Matrix::new(tokens, inputs, x), Matrix::new(rank, inputs, a).transposed(), 1.0)
}

/// scale · left·right.
fn product(left: Matrix<'_>, right: Matrix<'_>, scale: f32) -> Vec<f32> {
    let mut output = vec![0.0; left.rows() * right.columns()];
    matmul(left, right, scale, Write::Overwrite, &mut output);
    output
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (slices::of(x, lx)?, slices::of(a, la)?, slices::of(b, lb)?);
        let mut y = self.base.forward(x);
        self.add_low_rank(x, a, b, &mut y);
        if let Some(fixed) = &self.fixed {
            self.add_low_rank(x, fixed.a().data(), fixed.b().data(), &mut y);
        }
        Ok((CpuStorage::F32(y), self.base.output_shape(lx)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rank, inputs) = a.dims2()?;
        let outputs = self.base.weight.rows();
        let tokens = x.dims()[0];
        let (dx, da, db) = slices::with(dy, |dy| {
            let du = slices::with(b, |b| Ok(self.low_gradient(dy, b)))?;
            slices::with(a, |a_values| {
                let dx = x.track_op().then(|| self.input_gradient(dy, &du, a_values));
                // Factors that are only applied have no gradient, and none is computed.
                let (da, db) = slices::with(x, |x| {
                    let da = a.track_op().then(|| {
                        let du = Matrix::new(tokens, rank, &du).transposed();
                        product(du, Matrix::new(tokens, inputs, x), 1.0)
                    });
                    let db = b.track_op().then(|| {
                        let u = low(x, tokens, a_values, rank, inputs);
                        product(
                            Matrix::new(tokens, outputs, dy).transposed(),
                            Matrix::new(tokens, rank, &u),
                            self.scaling,
                        )
                    });
                    Ok((da, db))
                })?;
                Ok((dx, da, db))
            })
        })?;
        let tensor =
            |values: Option<Vec<f32>>, like: &Tensor| values.map(|v| slices::tensor(v, like.shape())).transpose();
        Ok((tensor(dx, x)?, tensor(da, a)?, tensor(db, b)?))
    }
}
