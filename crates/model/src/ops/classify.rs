//! Heads that train whole and their losses: over the few rows that a pooler makes, or the narrow ones over all tokens.
//! In f32.

use super::fast::{Backward, Fast};
use super::reference::Reference;
use super::{Classified, ClassifierHead, HeadActivation, HeadTargets, Offsets, TrainedLinear, Value};
use crate::Error;
use crate::parameters::Parameters;
use bytemuck::Pod;
use candle_core::{D, Device, Tensor};
use fedpipe_kernels::Element;
use fedpipe_kernels::dense::{Matrix, Write, matmul};
use std::rc::Rc;

/// Outputs of the head, where everything fits.
fn check(parameters: &Parameters, x: &Value, head: ClassifierHead, targets: HeadTargets<'_>) -> Result<usize, Error> {
    let shape = |id| (parameters.get(id).rows(), parameters.get(id).cols());
    let mut width = x.columns();
    for layer in head.inner.map(|(layer, _)| layer).into_iter().chain([head.output]) {
        let (weight, bias) = (shape(layer.weight), layer.bias.map(shape));
        if weight.1 != width || bias.is_some_and(|bias| bias != (1, weight.0)) {
            return Err(Error::shape(format!("a head of weight {weight:?} and bias {bias:?} over {x:?}")));
        }
        width = weight.0;
    }
    match targets {
        HeadTargets::None => {}
        HeadTargets::Classes(labels) => {
            if labels.len() != x.rows() {
                return Err(Error::shape(format!("{} labels for {} sequences", labels.len(), x.rows())));
            }
            if let Some(label) = labels.iter().find(|&&label| label as usize >= width) {
                return Err(Error::shape(format!("label {label} of {width} classes")));
            }
        }
        HeadTargets::Spans { offsets, places } => {
            if width != SPAN_ENDS || offsets.last() != Some(&x.rows()) || offsets.len() != places.len() + 1 {
                let sequences = offsets.len().saturating_sub(1);
                let reason = format!("{} spans of {sequences} sequences by {width} outputs over {x:?}", places.len());
                return Err(Error::shape(reason));
            }
            for (sequence, place) in offsets.windows(2).zip(places) {
                let rows = sequence[1].saturating_sub(sequence[0]);
                if let Some(place) = place.iter().find(|&&place| place as usize >= rows) {
                    return Err(Error::shape(format!("a span that begins or ends at row {place} of {rows}")));
                }
            }
        }
    }
    Ok(width)
}

/// Outputs of a head that finds spans: where they begin, where they end.
const SPAN_ENDS: usize = 2;

impl HeadActivation {
    fn apply(self, x: f32) -> f32 {
        match self {
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
        }
    }

    /// The slope where the activation's output is y.
    fn slope(self, y: f32) -> f32 {
        match self {
            Self::Tanh => 1.0 - y * y,
            Self::Relu => f32::from(y > 0.0),
        }
    }
}

impl TrainedLinear {
    fn weight(self, parameters: &Parameters) -> Matrix<'_> {
        let weight = parameters.get(self.weight);
        Matrix::new(weight.rows(), weight.cols(), weight.data())
    }

    /// x·Wᵀ + bias, for x `[rows, inputs]`.
    fn forward(self, parameters: &Parameters, rows: usize, x: &[f32]) -> Vec<f32> {
        let weight = self.weight(parameters);
        let zeros = || vec![0.0; rows * weight.rows()];
        let mut y = self.bias.map_or_else(zeros, |bias| parameters.get(bias).data().repeat(rows));
        matmul(Matrix::new(rows, weight.columns(), x), weight.transposed(), 1.0, Write::Accumulate, &mut y);
        y
    }

    /// Adds the gradients of weight and bias, from x and dy `[rows, outputs]`.
    fn collect<E: Element>(self, back: &mut Backward<'_, E>, rows: usize, x: &[f32], dy: &[f32]) {
        let (inputs, outputs) = (x.len() / rows.max(1), dy.len() / rows.max(1));
        let to = back.gradients.get_mut(self.weight);
        let dy_matrix = Matrix::new(rows, outputs, dy);
        matmul(dy_matrix.transposed(), Matrix::new(rows, inputs, x), 1.0, Write::Accumulate, to);
        if let Some(bias) = self.bias {
            let to = back.gradients.get_mut(bias);
            for row in dy.chunks_exact(outputs) {
                to.iter_mut().zip(row).for_each(|(to, slope)| *to += slope);
            }
        }
    }

    /// dy·W, the gradient of x.
    fn backward(self, parameters: &Parameters, rows: usize, dy: &[f32]) -> Vec<f32> {
        let weight = self.weight(parameters);
        let mut dx = vec![0.0; rows * weight.columns()];
        matmul(Matrix::new(rows, weight.rows(), dy), weight, 1.0, Write::Overwrite, &mut dx);
        dx
    }
}

pub(super) fn forward<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    head: ClassifierHead,
    targets: HeadTargets<'_>,
) -> Result<Classified, Error> {
    let parameters = tape.parameters;
    let outputs = check(parameters, x, head, targets)?;
    let node = tape.node(x)?;
    let rows = node.rows;
    let wide: Vec<f32> = node.values.iter().map(|x| x.to_f32()).collect();
    let inner = head.inner.map(|(layer, activation)| {
        let mut y = layer.forward(parameters, rows, &wide);
        y.iter_mut().for_each(|y| *y = activation.apply(*y));
        y
    });
    let logits = head.output.forward(parameters, rows, inner.as_ref().unwrap_or(&wide));
    let (loss, slopes) = match targets {
        HeadTargets::None => return Ok(Classified { logits, loss: None }),
        HeadTargets::Classes(labels) => cross_entropy(&logits, outputs, labels),
        HeadTargets::Spans { offsets, places } => span_cross_entropy(&logits, offsets, places),
    };
    if tape.records() {
        tape.record(move |back| {
            head.output.collect(back, rows, inner.as_ref().unwrap_or(&wide), &slopes);
            if head.inner.is_none() && node.slot.is_none() {
                return Ok(());
            }
            let mut gradient = head.output.backward(parameters, rows, &slopes);
            if let (Some((layer, activation)), Some(y)) = (head.inner, &inner) {
                gradient.iter_mut().zip(y).for_each(|(dy, &y)| *dy *= activation.slope(y));
                layer.collect(back, rows, &wide, &gradient);
                gradient = layer.backward(parameters, rows, &gradient);
            }
            if let Some(slot) = node.slot {
                let mut dx = back.elements(gradient.len());
                dx.iter_mut().zip(gradient).for_each(|(dx, value)| *dx = E::from_f32(value));
                back.add(slot, Rc::new(dx));
            }
            Ok(())
        });
    }
    Ok(Classified { logits, loss: Some(loss) })
}

/// The mean over all rows, and its gradient `[rows, classes]`.
fn cross_entropy(logits: &[f32], classes: usize, labels: &[u32]) -> (f64, Vec<f32>) {
    let rows = labels.len();
    let mut loss = 0.0;
    let mut slopes = logits.to_vec();
    for (row, &label) in slopes.chunks_exact_mut(classes).zip(labels) {
        loss += surprise(row, label as usize);
        row.iter_mut().for_each(|slope| *slope /= rows as f32);
    }
    (loss / rows.max(1) as f64, slopes)
}

/// −log softmax(logits)[right]; the logits become its gradient.
fn surprise(logits: &mut [f32], right: usize) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - highest).exp()).sum();
    let loss = total.ln() - f64::from(logits[right] - highest);
    logits.iter_mut().for_each(|logit| *logit = (f64::from(*logit - highest).exp() / total) as f32);
    logits[right] -= 1.0;
    loss
}

/// The mean over both ends of all spans, and its gradient `[rows, 2]`.
fn span_cross_entropy(logits: &[f32], offsets: &Offsets, places: &[[u32; SPAN_ENDS]]) -> (f64, Vec<f32>) {
    let ends = SPAN_ENDS * places.len().max(1);
    let (mut loss, mut slopes) = (0.0, vec![0.0; logits.len()]);
    for (sequence, place) in offsets.windows(2).zip(places) {
        let rows = SPAN_ENDS * sequence[0]..SPAN_ENDS * sequence[1];
        for (end, &right) in place.iter().enumerate() {
            let mut column: Vec<f32> = logits[rows.clone()].iter().skip(end).step_by(SPAN_ENDS).copied().collect();
            loss += surprise(&mut column, right as usize);
            let to = slopes[rows.clone()].iter_mut().skip(end).step_by(SPAN_ENDS);
            to.zip(column).for_each(|(to, slope)| *to = slope / ends as f32);
        }
    }
    (loss / ends as f64, slopes)
}

pub(super) fn reference(
    ops: &mut Reference<'_>,
    x: &Value,
    head: ClassifierHead,
    targets: HeadTargets<'_>,
) -> Result<Classified, Error> {
    check(ops.parameters, x, head, targets)?;
    let mut x = (*ops.tensor(x)?).clone();
    if let Some((layer, activation)) = head.inner {
        x = reference_linear(ops, &x, layer)?;
        x = match activation {
            HeadActivation::Tanh => x.tanh()?,
            HeadActivation::Relu => x.relu()?,
        };
    }
    let logits = reference_linear(ops, &x, head.output)?;
    let values = logits.flatten_all()?.to_vec1()?;
    let loss = match targets {
        HeadTargets::None => return Ok(Classified { logits: values, loss: None }),
        HeadTargets::Classes(labels) => reference_cross_entropy(&logits, labels)?,
        HeadTargets::Spans { offsets, places } => {
            let of = |(sequence, place): (&[usize], &[u32; SPAN_ENDS])| {
                // Ends as rows, their places as classes.
                let ends = logits.narrow(0, sequence[0], sequence[1] - sequence[0])?.t()?.contiguous()?;
                reference_cross_entropy(&ends, place)
            };
            let losses = offsets.windows(2).zip(places).map(of).collect::<Result<Vec<_>, Error>>()?;
            Tensor::stack(&losses, 0)?.mean_all()?
        }
    };
    let value = f64::from(loss.to_scalar::<f32>()?);
    ops.loss = Some(loss);
    Ok(Classified { logits: values, loss: Some(value) })
}

/// The mean cross-entropy of rows of logits.
fn reference_cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor, Error> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_probabilities = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let labels = Tensor::new(labels, &Device::Cpu)?.unsqueeze(1)?;
    Ok(log_probabilities.gather(&labels, 1)?.mean_all()?.neg()?)
}

fn reference_linear(ops: &Reference<'_>, x: &Tensor, layer: TrainedLinear) -> Result<Tensor, Error> {
    let y = x.matmul(&ops.variable(layer.weight).t()?)?;
    Ok(match layer.bias {
        Some(bias) => y.broadcast_add(ops.variable(bias))?,
        None => y,
    })
}
