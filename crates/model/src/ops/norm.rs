//! Layer normalisation of a sum, as transformer blocks use it: the residual is added inside.

use super::fast::Fast;
use super::reference::Reference;
use super::{NormWeights, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{D, Tensor};
use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{Element, NormOutput, NormSaved, layer_norm_backward, layer_norm_forward};
use std::rc::Rc;

fn check(x: &Value, residual: Option<&Value>, weights: &NormWeights) -> Result<(), Error> {
    let shape = (x.rows(), x.columns());
    if weights.scale.len() != x.columns() || residual.is_some_and(|r| (r.rows(), r.columns()) != shape) {
        let width = weights.scale.len();
        return Err(Error::shape(format!("layer norm of width {width} over {x:?} and a residual of {residual:?}")));
    }
    Ok(())
}

pub(super) fn forward<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    residual: Option<&Value>,
    weights: &'a NormWeights,
) -> Result<Value, Error> {
    check(x, residual, weights)?;
    let x = tape.node(x)?;
    let residual = residual.map(|value| tape.node(value)).transpose()?;
    let (rows, hidden, len) = (x.rows, x.columns, x.values.len());
    let parts = [x.slot, residual.as_ref().and_then(|node| node.slot)];
    let slot = tape.slot(parts.iter().any(Option::is_some));
    let mut y = tape.elements(len);
    let mut saved = (slot.is_some() && tape.records()).then(|| (tape.elements(len), tape.pools.floats.take(rows)));
    let output =
        NormOutput { y: &mut y, sum: None, saved: saved.as_mut().map(|(normed, rstd)| NormSaved { normed, rstd }) };
    let other = residual.as_ref().map(|node| &node.values[..]);
    layer_norm_forward(&x.values, other, &weights.scale, &weights.shift, weights.epsilon, output);
    if let (Some(slot), Some((normed, rstd))) = (slot, saved) {
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let mut ds = back.elements(len);
            layer_norm_backward(&normed, &rstd, &weights.scale, &dy, Write::Overwrite, &mut ds);
            // Both addends have the gradient of their sum.
            let ds = Rc::new(ds);
            for slot in parts.into_iter().flatten() {
                back.add(slot, ds.clone());
            }
            Ok(())
        });
    }
    Ok(tape.value(hidden, y, slot))
}

pub(super) fn reference(
    ops: &Reference<'_>,
    x: &Value,
    residual: Option<&Value>,
    weights: &NormWeights,
) -> Result<Value, Error> {
    check(x, residual, weights)?;
    let mut sum = (*ops.tensor(x)?).clone();
    if let Some(residual) = residual {
        sum = (sum + &*ops.tensor(residual)?)?;
    }
    let centred = sum.broadcast_sub(&sum.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + f64::from(weights.epsilon))?.sqrt()?)?;
    let vector = |values: &[f32]| Tensor::new(values, normed.device());
    let y = normed.broadcast_mul(&vector(&weights.scale)?)?.broadcast_add(&vector(&weights.shift)?)?;
    Ok(ops.value(y)?)
}
