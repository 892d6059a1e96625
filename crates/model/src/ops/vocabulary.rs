//! The frozen output head of a language model: its loss over packed tokens, and the logits of a few.

use super::Value;
use super::fast::Fast;
use super::reference::Reference;
use crate::Error;
use bytemuck::Pod;
use candle_core::{D, Device, Tensor};
use fedpipe_kernels::{Element, FrozenMatrix, IGNORED, TokenLoss, linear_cross_entropy};
use std::rc::Rc;

fn check(x: &Value, head: &FrozenMatrix, targets: Option<&[u32]>) -> Result<(), Error> {
    if head.columns() != x.columns() {
        return Err(Error::shape(format!("an output head of width {} over {x:?}", head.columns())));
    }
    let targets = targets.unwrap_or_default();
    if let Some(target) = targets.iter().find(|&&target| target != IGNORED && target as usize >= head.rows()) {
        return Err(Error::shape(format!("target {target} of a vocabulary of {}", head.rows())));
    }
    Ok(())
}

fn check_loss(x: &Value, head: &FrozenMatrix, targets: &[u32]) -> Result<(), Error> {
    if targets.len() != x.rows() {
        return Err(Error::shape(format!("{} targets for {} tokens", targets.len(), x.rows())));
    }
    check(x, head, Some(targets))
}

pub(super) fn loss<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    x: &Value,
    head: &FrozenMatrix,
    targets: &[u32],
) -> Result<TokenLoss, Error> {
    check_loss(x, head, targets)?;
    let x = tape.node(x)?;
    let to = x.slot.filter(|_| tape.records());
    let mut dx = to.map(|_| tape.elements(x.values.len()));
    let found = linear_cross_entropy(&x.values, head, None, targets, dx.as_deref_mut());
    // The gradient comes with the loss: a tile of logits is made once.
    if let (Some(to), Some(dx)) = (to, dx) {
        tape.record(move |back| {
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(found)
}

pub(super) fn logits<E: Element + Pod>(tape: &Fast<'_, E>, x: &Value, head: &FrozenMatrix) -> Result<Vec<f32>, Error> {
    check(x, head, None)?;
    let x = tape.node(x)?;
    let wide: Vec<f32> = x.values.iter().map(|x| x.to_f32()).collect();
    let mut logits = vec![0.0; x.rows * head.rows()];
    head.product(&wide, x.rows, None, &mut logits);
    Ok(logits)
}

fn reference_product(ops: &Reference<'_>, x: &Value, head: &FrozenMatrix) -> Result<Tensor, Error> {
    let weight = Tensor::from_vec(head.dequantize(), (head.rows(), head.columns()), &Device::Cpu)?;
    Ok(ops.tensor(x)?.matmul(&weight.t()?)?)
}

pub(super) fn reference_loss(
    ops: &mut Reference<'_>,
    x: &Value,
    head: &FrozenMatrix,
    targets: &[u32],
) -> Result<TokenLoss, Error> {
    check_loss(x, head, targets)?;
    let rows: Vec<u32> = (0..targets.len() as u32).filter(|&row| targets[row as usize] != IGNORED).collect();
    let counted = rows.len();
    if counted == 0 {
        return Ok(TokenLoss { mean: 0.0, counted });
    }
    let targets: Vec<u32> = rows.iter().map(|&row| targets[row as usize]).collect();
    let rows = Tensor::from_vec(rows, counted, &Device::Cpu)?;
    let logits = reference_product(ops, x, head)?.index_select(&rows, 0)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_probabilities = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let targets = Tensor::from_vec(targets, (counted, 1), &Device::Cpu)?;
    let loss = log_probabilities.gather(&targets, 1)?.mean_all()?.neg()?;
    let mean = f64::from(loss.to_scalar::<f32>()?);
    ops.loss = Some(loss);
    Ok(TokenLoss { mean, counted })
}

pub(super) fn reference_logits(ops: &Reference<'_>, x: &Value, head: &FrozenMatrix) -> Result<Vec<f32>, Error> {
    check(x, head, None)?;
    Ok(reference_product(ops, x, head)?.flatten_all()?.to_vec1()?)
}
