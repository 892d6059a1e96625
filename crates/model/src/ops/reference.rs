//! The operations composed of candle's, differentiated by candle.

use super::{
    AttentionShape, Block, Classified, ClassifierHead, HeadTargets, KvCache, NormWeights, Offsets, Ops, Positions,
    TokenLoss, Value,
};
use crate::Error;
use crate::adapter::Adapters;
use crate::nn::Linear;
use crate::parameters::{Gradients, ParameterId, Parameters};
use candle_core::{Device, Tensor, Var};
use fedpipe_kernels::{Activation, FrozenMatrix, RotaryTable};
use std::rc::Rc;
use std::sync::Arc;

/// One pass over a model.
pub(super) struct Reference<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) adapters: &'a Adapters,
    variables: Vec<(ParameterId, Var)>,
    /// What the last classification came to.
    pub(super) loss: Option<Tensor>,
}

impl<'a> Reference<'a> {
    pub(super) fn new(parameters: &'a Parameters, adapters: &'a Adapters) -> Result<Self, Error> {
        let variable = |(id, m): (ParameterId, &fedpipe_core::Matrix)| {
            Var::from_slice(m.data(), (m.rows(), m.cols()), &Device::Cpu).map(|variable| (id, variable))
        };
        let variables = parameters.iter().map(variable).collect::<candle_core::Result<_>>()?;
        Ok(Self { parameters, adapters, variables, loss: None })
    }

    pub(super) fn tensor(&self, value: &Value) -> Result<Rc<Tensor>, Error> {
        value.downcast()
    }

    pub(super) fn value(&self, tensor: Tensor) -> candle_core::Result<Value> {
        let (rows, columns) = tensor.dims2()?;
        Ok(Value::new(rows, columns, Rc::new(tensor)))
    }

    pub(super) fn variable(&self, id: ParameterId) -> &Tensor {
        self.variables[id.index()].1.as_tensor()
    }
}

impl<'a> Ops<'a> for Reference<'a> {
    fn embed(&mut self, tables: &[(&'a FrozenMatrix, &[u32])]) -> Result<Value, Error> {
        super::rows::reference_embed(self, tables)
    }

    fn linears(&mut self, x: &Value, layers: &[&'a Linear]) -> Result<Vec<Value>, Error> {
        super::linear::reference(self, x, layers)
    }

    fn norm(&mut self, x: &Value, residual: Option<&Value>, weights: &'a NormWeights) -> Result<Value, Error> {
        super::norm::reference(self, x, residual, weights).map(|[_, y]| y)
    }

    fn sum_and_norm(&mut self, x: &Value, residual: &Value, weights: &'a NormWeights) -> Result<[Value; 2], Error> {
        super::norm::reference(self, x, Some(residual), weights)
    }

    fn add(&mut self, x: &Value, y: &Value) -> Result<Value, Error> {
        super::elementwise::reference_add(self, x, y)
    }

    fn activation(&mut self, x: &Value, kind: Activation) -> Result<Value, Error> {
        super::elementwise::reference(self, x, kind)
    }

    fn gate(&mut self, gate: &Value, up: &Value, kind: Activation) -> Result<Value, Error> {
        super::elementwise::reference_gate(self, gate, up, kind)
    }

    fn rotary(&mut self, x: &Value, table: &Arc<RotaryTable>, positions: &Positions) -> Result<Value, Error> {
        super::rotary::reference(self, x, table, positions)
    }

    fn split(&mut self, x: &Value, widths: &[usize]) -> Result<Vec<Value>, Error> {
        super::split::reference(self, x, widths)
    }

    fn tanh(&mut self, x: &Value) -> Result<Value, Error> {
        super::elementwise::reference_tanh(self, x)
    }

    fn attention(
        &mut self,
        qkv: [&Value; 3],
        queries: &Offsets,
        keys: &Offsets,
        shape: AttentionShape,
    ) -> Result<Value, Error> {
        super::attention::reference(self, qkv, queries, keys, shape)
    }

    fn cached_attention(
        &mut self,
        qkv: [&Value; 3],
        offsets: &Offsets,
        cache: (&mut KvCache, usize),
        shape: AttentionShape,
    ) -> Result<Value, Error> {
        super::cached::reference(self, qkv, offsets, cache, shape)
    }

    fn select(&mut self, x: &Value, rows: &Offsets) -> Result<Value, Error> {
        super::rows::reference_select(self, x, rows)
    }

    fn classify(&mut self, x: &Value, head: ClassifierHead, targets: HeadTargets<'_>) -> Result<Classified, Error> {
        super::classify::reference(self, x, head, targets)
    }

    fn token_loss(&mut self, x: &Value, head: &FrozenMatrix, targets: &[u32]) -> Result<TokenLoss, Error> {
        super::vocabulary::reference_loss(self, x, head, targets)
    }

    fn logits(&mut self, x: &Value, head: &FrozenMatrix) -> Result<Vec<f32>, Error> {
        super::vocabulary::reference_logits(self, x, head)
    }

    fn block(&mut self, x: &Value, block: &Block<'a>) -> Result<Value, Error> {
        block(self, x)
    }

    fn constant(&mut self, rows: usize, columns: usize, bytes: &[u8]) -> Result<Value, Error> {
        let values: Vec<f32> = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        Ok(self.value(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)?)
    }

    fn bytes(&self, x: &Value) -> Result<Vec<u8>, Error> {
        Ok(bytemuck::cast_slice(&self.read(x)?).to_vec())
    }

    fn read(&self, x: &Value) -> Result<Vec<f32>, Error> {
        Ok(self.tensor(x)?.flatten_all()?.to_vec1()?)
    }

    fn backward(&mut self, gradients: &mut Gradients) -> Result<(), Error> {
        let Some(loss) = self.loss.take() else { return Ok(()) };
        let found = loss.backward()?;
        for (id, variable) in &self.variables {
            if let Some(gradient) = found.get(variable) {
                let values: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
                gradients.get_mut(*id).iter_mut().zip(values).for_each(|(to, value)| *to += value);
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn leaf(&mut self, id: ParameterId) -> Result<Value, Error> {
        Ok(self.value(self.variable(id).clone())?)
    }

    #[cfg(test)]
    fn backward_from(&mut self, ys: &[Value], upstream: &[Vec<f32>], gradients: &mut Gradients) -> Result<(), Error> {
        let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?;
        for (y, upstream) in ys.iter().zip(upstream) {
            let y = self.tensor(y)?;
            let upstream = Tensor::from_slice(upstream, y.shape(), y.device())?;
            loss = (loss + (&*y * upstream)?.sum_all()?)?;
        }
        self.loss = Some(loss);
        self.backward(gradients)
    }
}
