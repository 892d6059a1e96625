//! Layer norm and RMS norm of a sum, as transformer blocks use them: the residual is added inside.

use super::fast::{Fast, Slot};
use super::reference::Reference;
use super::{NormKind, NormWeights, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{D, Tensor};
use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{
    Element, InputGradient, NormOutput, NormSaved, layer_norm_backward, layer_norm_forward, rms_norm_backward,
    rms_norm_forward,
};

impl NormWeights {
    fn forward<E: Element>(&self, x: &[E], residual: Option<&[E]>, output: NormOutput<'_, E>) {
        let Self { scale, kind, epsilon } = self;
        match kind {
            NormKind::Layer { shift } => layer_norm_forward(x, residual, scale, shift, *epsilon, output),
            NormKind::Rms => rms_norm_forward(x, residual, scale, *epsilon, output),
        }
    }

    fn backward<E: Element>(&self, normed: &[E], rstd: &[f32], dy: &[E], write: Write, dx: &mut [E]) {
        match &self.kind {
            NormKind::Layer { .. } => layer_norm_backward(normed, rstd, &self.scale, dy, write, dx),
            NormKind::Rms => rms_norm_backward(normed, rstd, &self.scale, dy, write, dx),
        }
    }

    fn check(&self, x: &Value, residual: Option<&Value>) -> Result<(), Error> {
        let (width, shape) = (self.scale.len(), (x.rows(), x.columns()));
        let fits = width > 0 && x.columns().is_multiple_of(width);
        if !fits || residual.is_some_and(|r| (r.rows(), r.columns()) != shape) {
            return Err(Error::shape(format!("norm of width {width} over {x:?} and a residual of {residual:?}")));
        }
        Ok(())
    }
}

pub(super) fn forward<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    residual: Option<&Value>,
    weights: &'a NormWeights,
) -> Result<Value, Error> {
    run(tape, x, residual, weights, None).map(|(y, _)| y)
}

/// The sum, and its norm.
pub(super) fn with_sum<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    residual: &Value,
    weights: &'a NormWeights,
) -> Result<[Value; 2], Error> {
    let mut sum = tape.elements(x.rows() * x.columns());
    let (y, slot) = run(tape, x, Some(residual), weights, Some(&mut sum))?;
    Ok([tape.value(x.columns(), sum, slot), y])
}

/// The norm, and where the gradient of the sum is collected.
fn run<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    residual: Option<&Value>,
    weights: &'a NormWeights,
    sum: Option<&mut [E]>,
) -> Result<(Value, Option<Slot>), Error> {
    weights.check(x, residual)?;
    let x = tape.node(x)?;
    let residual = residual.map(|value| tape.node(value)).transpose()?;
    let (columns, len) = (x.columns, x.values.len());
    let parts = [x.slot, residual.as_ref().and_then(|node| node.slot)];
    let tracked = parts.iter().any(Option::is_some);
    let (slot, sum_slot) = (tape.slot(tracked), tape.slot(tracked));
    let mut y = tape.elements(len);
    let rows = len / weights.scale.len();
    let mut saved = (tracked && tape.records()).then(|| (tape.elements(len), tape.pools.floats.take(rows)));
    let saving = saved.as_mut().map(|(normed, rstd)| NormSaved { normed, rstd });
    let other = residual.as_ref().map(|node| &node.values[..]);
    weights.forward(&x.values, other, NormOutput { y: &mut y, sum, saved: saving });
    if let (Some(slot), Some(sum_slot), Some((normed, rstd))) = (slot, sum_slot, saved) {
        tape.record(move |back| {
            if let Some(dy) = back.take(slot) {
                back.write(Some(sum_slot), len, |ds| match ds {
                    InputGradient::None => {}
                    InputGradient::Overwrite(ds) => weights.backward(&normed, &rstd, &dy, Write::Overwrite, ds),
                    InputGradient::Accumulate(ds) => weights.backward(&normed, &rstd, &dy, Write::Accumulate, ds),
                });
            }
            // Both addends have the gradient of their sum.
            if let Some(ds) = back.take(sum_slot) {
                for slot in parts.into_iter().flatten() {
                    back.add(slot, ds.clone());
                }
            }
            Ok(())
        });
    }
    Ok((tape.value(columns, y, slot), sum_slot))
}

/// The sum, and its norm.
pub(super) fn reference(
    ops: &Reference<'_>,
    x: &Value,
    residual: Option<&Value>,
    weights: &NormWeights,
) -> Result<[Value; 2], Error> {
    weights.check(x, residual)?;
    let mut sum = (*ops.tensor(x)?).clone();
    if let Some(residual) = residual {
        sum = (sum + &*ops.tensor(residual)?)?;
    }
    let groups = sum.reshape(((), weights.scale.len()))?;
    let vector = |values: &[f32]| Tensor::new(values, groups.device());
    let centred = match weights.kind {
        NormKind::Layer { .. } => groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?,
        NormKind::Rms => groups.clone(),
    };
    let square = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(square + f64::from(weights.epsilon))?.sqrt()?)?;
    let mut y = normed.broadcast_mul(&vector(&weights.scale)?)?;
    if let NormKind::Layer { shift } = &weights.kind {
        y = y.broadcast_add(&vector(shift)?)?;
    }
    Ok([ops.value(sum.clone())?, ops.value(y.reshape(sum.shape())?)?])
}
