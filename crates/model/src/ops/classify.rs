//! The head of a classifier and its loss, over the few rows that a pooler makes. In f32.

use super::fast::Fast;
use super::reference::Reference;
use super::{Classified, ClassifierHead, Value};
use crate::Error;
use crate::parameters::Parameters;
use bytemuck::Pod;
use candle_core::{D, Device, Tensor};
use fedpipe_kernels::Element;
use fedpipe_kernels::dense::{Matrix, Write, matmul};
use std::rc::Rc;

/// Classes of the head, where everything fits.
fn check(parameters: &Parameters, x: &Value, head: ClassifierHead, labels: Option<&[u32]>) -> Result<usize, Error> {
    let shape = |id| (parameters.get(id).rows(), parameters.get(id).cols());
    let (weight, bias) = (shape(head.weight), head.bias.map(shape));
    let classes = weight.0;
    if weight.1 != x.columns() || bias.is_some_and(|bias| bias != (1, classes)) {
        return Err(Error::shape(format!("a head of weight {weight:?} and bias {bias:?} over {x:?}")));
    }
    if let Some(labels) = labels {
        if labels.len() != x.rows() {
            return Err(Error::shape(format!("{} labels for {} sequences", labels.len(), x.rows())));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::shape(format!("label {label} of {classes} classes")));
        }
    }
    Ok(classes)
}

pub(super) fn forward<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    head: ClassifierHead,
    labels: Option<&[u32]>,
) -> Result<Classified, Error> {
    let parameters = tape.parameters;
    let classes = check(parameters, x, head, labels)?;
    let node = tape.node(x)?;
    let (rows, hidden) = (node.rows, node.columns);
    let wide: Vec<f32> = node.values.iter().map(|x| x.to_f32()).collect();
    let weight = Matrix::new(classes, hidden, parameters.get(head.weight).data());
    let mut logits: Vec<f32> =
        head.bias.map_or_else(|| vec![0.0; rows * classes], |bias| parameters.get(bias).data().repeat(rows));
    matmul(Matrix::new(rows, hidden, &wide), weight.transposed(), 1.0, Write::Accumulate, &mut logits);
    let Some(labels) = labels else { return Ok(Classified { logits, loss: None }) };

    let mut loss = 0.0;
    let mut slopes = logits.clone();
    for (row, &label) in slopes.chunks_exact_mut(classes).zip(labels) {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
        loss += total.ln() - f64::from(row[label as usize] - highest);
        row.iter_mut().for_each(|logit| *logit = (f64::from(*logit - highest).exp() / total) as f32);
        row[label as usize] -= 1.0;
        row.iter_mut().for_each(|slope| *slope /= rows as f32);
    }
    if tape.records() {
        tape.record(move |back| {
            let slopes_of = Matrix::new(rows, classes, &slopes);
            let to = back.gradients.get_mut(head.weight);
            matmul(slopes_of.transposed(), Matrix::new(rows, hidden, &wide), 1.0, Write::Accumulate, to);
            if let Some(bias) = head.bias {
                let to = back.gradients.get_mut(bias);
                for row in slopes.chunks_exact(classes) {
                    to.iter_mut().zip(row).for_each(|(to, slope)| *to += slope);
                }
            }
            if let Some(slot) = node.slot {
                let mut wide = vec![0.0; rows * hidden];
                matmul(slopes_of, weight, 1.0, Write::Overwrite, &mut wide);
                let mut dx = back.elements(wide.len());
                dx.iter_mut().zip(wide).for_each(|(dx, value)| *dx = E::from_f32(value));
                back.add(slot, Rc::new(dx));
            }
            Ok(())
        });
    }
    Ok(Classified { logits, loss: Some(loss / rows.max(1) as f64) })
}

pub(super) fn reference(
    ops: &mut Reference<'_>,
    x: &Value,
    head: ClassifierHead,
    labels: Option<&[u32]>,
) -> Result<Classified, Error> {
    check(ops.parameters, x, head, labels)?;
    let mut logits = ops.tensor(x)?.matmul(&ops.variable(head.weight).t()?)?;
    if let Some(bias) = head.bias {
        logits = logits.broadcast_add(ops.variable(bias))?;
    }
    let values = logits.flatten_all()?.to_vec1()?;
    let Some(labels) = labels else { return Ok(Classified { logits: values, loss: None }) };
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_probabilities = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let labels = Tensor::new(labels, &Device::Cpu)?.unsqueeze(1)?;
    let loss = log_probabilities.gather(&labels, 1)?.mean_all()?.neg()?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    ops.loss = Some(loss);
    Ok(Classified { logits: values, loss: Some(value) })
}
