//! Activations.

use super::Value;
use super::fast::Fast;
use super::reference::Reference;
use crate::Error;
use bytemuck::Pod;
use fedpipe_kernels::{Activation, Element};
use std::rc::Rc;

pub(super) fn activation<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    x: &Value,
    kind: Activation,
) -> Result<Value, Error> {
    let x = tape.node(x)?;
    let mut y = tape.elements(x.values.len());
    kind.forward(&x.values, &mut y);
    let columns = x.columns;
    let slot = tape.slot(x.slot.is_some());
    if let (Some(slot), Some(to), true) = (slot, x.slot, tape.records()) {
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let mut dx = back.elements(dy.len());
            kind.backward(&x.values, &dy, &mut dx);
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(tape.value(columns, y, slot))
}

pub(super) fn reference(ops: &Reference<'_>, x: &Value, kind: Activation) -> Result<Value, Error> {
    let x = ops.tensor(x)?;
    let y = match kind {
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Silu => x.silu()?,
    };
    Ok(ops.value(y)?)
}

/// tanh of the few rows that a pooler makes: plain loops.
pub(super) fn tanh<E: Element + Pod>(tape: &mut Fast<'_, E>, x: &Value) -> Result<Value, Error> {
    let x = tape.node(x)?;
    let mut y = tape.elements(x.values.len());
    y.iter_mut().zip(x.values.iter()).for_each(|(y, x)| *y = E::from_f32(x.to_f32().tanh()));
    let slot = tape.slot(x.slot.is_some());
    let value = tape.value(x.columns, y, slot);
    if let (Some(slot), Some(to), true) = (slot, x.slot, tape.records()) {
        let y = tape.node(&value)?.values.clone();
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let mut dx = back.elements(dy.len());
            for ((dx, dy), y) in dx.iter_mut().zip(dy.iter()).zip(y.iter()) {
                *dx = E::from_f32(dy.to_f32() * (1.0 - y.to_f32() * y.to_f32()));
            }
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(value)
}

pub(super) fn reference_tanh(ops: &Reference<'_>, x: &Value) -> Result<Value, Error> {
    Ok(ops.value(ops.tensor(x)?.tanh()?)?)
}
