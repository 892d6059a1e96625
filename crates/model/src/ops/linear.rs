//! Products with frozen weights, with low-rank factors beside them.

use super::Value;
use super::fast::{Fast, Slot};
use super::pool::Buffer;
use super::reference::Reference;
use crate::Error;
use crate::adapter::Trained;
use crate::nn::Linear;
use bytemuck::Pod;
use candle_core::Tensor;
use fedpipe_core::LowRank;
use fedpipe_kernels::dense::Write;
use fedpipe_kernels::{
    Element, LinearGradient, LinearLayer, LinearOutput, LowRankFactors, dropout, factor_gradient, linear_backward,
    linear_forward,
};

fn check(x: &Value, layers: &[&Linear]) -> Result<(), Error> {
    match layers.iter().find(|layer| layer.weight().columns() != x.columns()) {
        None => Ok(()),
        Some(layer) => Err(Error::shape(format!(
            "{} takes inputs of width {}, not {}",
            layer.id(),
            layer.weight().columns(),
            x.columns()
        ))),
    }
}

/// A layer with what the adapters hold for it: its trained factors first, if there are any, then its fixed ones.
struct Job<'a> {
    linear: &'a Linear,
    trained: Option<Trained>,
    factors: Vec<LowRankFactors<'a>>,
    /// Key and probability of the dropout before the trained factors.
    dropout: Option<(u64, f32)>,
}

impl<'a> Job<'a> {
    fn of<E: Element>(tape: &Fast<'a, E>, linear: &'a Linear) -> Self {
        let Some(attached) = tape.adapters.get(linear.id()) else {
            return Self { linear, trained: None, factors: vec![], dropout: None };
        };
        let trained = attached.trained.map(|Trained { a, b }| {
            let (a, b) = (tape.parameters.get(a), tape.parameters.get(b));
            LowRankFactors { a: a.data(), b: b.data(), rank: a.rows(), scale: attached.scaling }
        });
        let fixed = attached.fixed.as_deref().map(|fixed: &LowRank| LowRankFactors {
            a: fixed.a().data(),
            b: fixed.b().data(),
            rank: fixed.rank(),
            scale: attached.scaling,
        });
        Self {
            linear,
            trained: attached.trained,
            factors: trained.into_iter().chain(fixed).collect(),
            // Dropout belongs to what trains; factors that are only applied stay whole.
            dropout: attached.trained.and_then(|_| tape.adapters.dropout_of(linear.id())),
        }
    }

    fn layer(&self) -> LinearLayer<'_> {
        LinearLayer { weight: self.linear.weight(), bias: self.linear.bias(), factors: &self.factors }
    }
}

pub(super) fn forward<'a, E: Element + Pod>(
    tape: &mut Fast<'a, E>,
    x: &Value,
    layers: &[&'a Linear],
) -> Result<Vec<Value>, Error> {
    check(x, layers)?;
    let x = tape.node(x)?;
    let tokens = x.rows;
    let jobs: Vec<Job<'a>> = layers.iter().map(|layer| Job::of(tape, layer)).collect();
    let mut ys: Vec<Buffer<E>> = jobs.iter().map(|job| tape.elements(tokens * job.linear.weight().rows())).collect();
    let mut lows: Vec<Vec<Buffer<f32>>> =
        jobs.iter().map(|job| job.factors.iter().map(|f| tape.pools.floats.take(tokens * f.rank)).collect()).collect();
    let dropped: Vec<Option<Buffer<E>>> = jobs
        .iter()
        .map(|job| {
            job.dropout.map(|(key, probability)| {
                let mut left = tape.elements(x.values.len());
                dropout(&x.values, probability, key, Write::Overwrite, &mut left);
                left
            })
        })
        .collect();
    let mut outputs: Vec<LinearOutput<'_, E>> = ys
        .iter_mut()
        .zip(&mut lows)
        .zip(&dropped)
        .map(|((y, lows), dropped)| LinearOutput {
            y,
            lows: lows.iter_mut().map(|low| &mut **low).collect(),
            dropped: dropped.iter().map(|left| Some(&**left)).collect(),
        })
        .collect();
    let views: Vec<LinearLayer<'_>> = jobs.iter().map(Job::layer).collect();
    linear_forward(&x.values, tokens, &views, &mut outputs);
    drop((outputs, views));
    drop(dropped);

    let tracked = |job: &Job<'_>| job.trained.is_some() || x.slot.is_some();
    let slots: Vec<Option<Slot>> = jobs.iter().map(|job| tape.slot(tracked(job))).collect();
    let columns: Vec<usize> = jobs.iter().map(|job| job.linear.weight().rows()).collect();
    if tape.records() && slots.iter().any(Option::is_some) {
        // Only a gradient of A needs x again, and only one of B the trained factors' low side.
        let kept = jobs.iter().any(|job| job.trained.is_some()).then(|| x.values.clone());
        let kept_lows: Vec<Option<Buffer<f32>>> = lows
            .into_iter()
            .zip(&jobs)
            .map(|(lows, job)| lows.into_iter().next().filter(|_| job.trained.is_some()))
            .collect();
        let (slot, slots) = (x.slot, slots.clone());
        tape.record(move |back| {
            let mut used = Vec::with_capacity(jobs.len());
            for ((job, low), slot) in jobs.iter().zip(&kept_lows).zip(slots) {
                if let Some(dy) = slot.and_then(|slot| back.take(slot)) {
                    used.push((job, low, dy));
                }
            }
            let Some((first, ..)) = used.first() else { return Ok(()) };
            let len = tokens * first.linear.weight().columns();
            let mut lows: Vec<Vec<Buffer<f32>>> = used
                .iter()
                .map(|(job, ..)| job.factors.iter().map(|f| back.floats(tokens * f.rank)).collect())
                .collect();
            let mut dropped: Vec<Option<Buffer<E>>> = used
                .iter()
                .map(|(job, ..)| (job.dropout.is_some() && slot.is_some()).then(|| back.elements(len)))
                .collect();
            let views: Vec<LinearLayer<'_>> = used.iter().map(|(job, ..)| job.layer()).collect();
            let mut gradients: Vec<LinearGradient<'_, E>> = used
                .iter()
                .zip(&mut lows)
                .zip(&mut dropped)
                .map(|(((_, _, dy), lows), dropped)| LinearGradient {
                    dy,
                    lows: lows.iter_mut().map(|low| &mut **low).collect(),
                    dropped: dropped.iter_mut().map(|own| Some(&mut **own)).collect(),
                })
                .collect();
            back.write(slot, len, |dx| linear_backward(tokens, &views, &mut gradients, dx));
            drop((gradients, views));
            // What reached the dropped inputs of the trained factors goes on through the same masks.
            for ((job, ..), own) in used.iter().zip(&dropped) {
                if let (Some((key, probability)), Some(own), Some(slot)) = (job.dropout, own, slot) {
                    back.accumulate(slot, |dx| dropout(own, probability, key, Write::Accumulate, dx));
                }
            }
            for ((job, low, dy), back_lows) in used.iter().zip(&lows) {
                if let (Some(trained), Some(low), Some(x)) = (job.trained, low, &kept) {
                    let width = job.linear.weight().columns();
                    let rank = job.factors[0].rank;
                    let left = job.dropout.map(|(key, probability)| {
                        let mut left = back.elements(x.len());
                        dropout(x, probability, key, Write::Overwrite, &mut left);
                        left
                    });
                    let mut gradient = back.floats(rank * width);
                    factor_gradient(&back_lows[0], rank, left.as_deref().unwrap_or(x), width, &mut gradient);
                    add(&gradient, back.gradients.get_mut(trained.a));
                    let outputs = job.linear.weight().rows();
                    let mut gradient = back.floats(rank * outputs);
                    factor_gradient(low, rank, dy, outputs, &mut gradient);
                    add_transposed(&gradient, outputs, back.gradients.get_mut(trained.b));
                }
            }
            Ok(())
        });
    }
    Ok(ys.into_iter().zip(columns).zip(slots).map(|((y, columns), slot)| tape.value(columns, y, slot)).collect())
}

fn add(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// Adds `from` `[rows, columns]` to `to` `[columns, rows]`.
fn add_transposed(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    for (j, to) in to.chunks_exact_mut(rows).enumerate() {
        to.iter_mut().zip(from.iter().skip(j).step_by(columns)).for_each(|(to, from)| *to += from);
    }
}

pub(super) fn reference(ops: &Reference<'_>, x: &Value, layers: &[&Linear]) -> Result<Vec<Value>, Error> {
    check(x, layers)?;
    let x = ops.tensor(x)?;
    let one = |layer: &&Linear| {
        let weight = layer.weight();
        let dense = Tensor::from_vec(weight.dequantize(), (weight.rows(), weight.columns()), x.device())?;
        let mut y = x.matmul(&dense.t()?)?;
        if let Some(bias) = layer.bias() {
            y = y.broadcast_add(&Tensor::new(bias, x.device())?)?;
        }
        let Some(attached) = ops.adapters.get(layer.id()) else { return Ok(y) };
        let low_rank = |x: &Tensor, a: &Tensor, b: &Tensor| -> candle_core::Result<Tensor> {
            x.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(attached.scaling)
        };
        if let Some(Trained { a, b }) = attached.trained {
            let seen = match ops.adapters.dropout_of(layer.id()) {
                None => (*x).clone(),
                Some((key, probability)) => (&*x * mask(&x, key, probability)?)?,
            };
            y = (y + low_rank(&seen, ops.variable(a), ops.variable(b))?)?;
        }
        if let Some(fixed) = &attached.fixed {
            let constant = |m: &fedpipe_core::Matrix| Tensor::from_slice(m.data(), (m.rows(), m.cols()), x.device());
            y = (y + low_rank(&x, &constant(fixed.a())?, &constant(fixed.b())?)?)?;
        }
        Ok(y)
    };
    layers.iter().map(|layer| one(layer).and_then(|y| ops.value(y)).map_err(Error::from)).collect()
}

/// What dropout multiplies x by.
fn mask(x: &Tensor, key: u64, probability: f32) -> candle_core::Result<Tensor> {
    let mut mask = vec![0f32; x.elem_count()];
    dropout(&vec![1f32; mask.len()], probability, key, Write::Overwrite, &mut mask);
    Tensor::from_vec(mask, x.shape(), x.device())
}
