//! GELU with the error function, as BERT computes it.

use super::{Ops, slices};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use fedpipe_kernels as kernels;

impl Ops {
    /// x·Φ(x) elementwise, Φ the normal distribution function (arXiv 1606.08415).
    ///
    /// # Errors
    /// When candle fails.
    pub fn gelu(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Reference => x.gelu_erf(),
            Self::Fast => x.apply_op1(Gelu),
        }
    }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slices::of(storage, layout)?;
        let mut y = vec![0.0; x.len()];
        kernels::Activation::Gelu.forward(x, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        slices::with(x, |x| {
            slices::with(dy, |dy| {
                kernels::Activation::Gelu.backward(x, dy, &mut dx);
                Ok(())
            })
        })?;
        slices::tensor(dx, x.shape()).map(Some)
    }
}
