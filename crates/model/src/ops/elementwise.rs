//! Activations, gates and sums.

use super::Value;
use super::fast::Fast;
use super::reference::Reference;
use crate::Error;
use bytemuck::Pod;
use fedpipe_kernels::{Activation, Element, add_into};
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

fn check_pair(what: &str, x: &Value, y: &Value) -> Result<(), Error> {
    if (x.rows(), x.columns()) == (y.rows(), y.columns()) {
        return Ok(());
    }
    Err(Error::shape(format!("{what} of {x:?} and {y:?}")))
}

pub(super) fn gate<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    gate: &Value,
    up: &Value,
    kind: Activation,
) -> Result<Value, Error> {
    check_pair("a gated unit", gate, up)?;
    let (gate, up) = (tape.node(gate)?, tape.node(up)?);
    let mut y = tape.elements(up.values.len());
    kind.gate_forward(&gate.values, &up.values, &mut y);
    let columns = up.columns;
    let slot = tape.slot(gate.slot.is_some() || up.slot.is_some());
    if let Some(slot) = slot.filter(|_| tape.records()) {
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let [mut dgate, mut dup] = [back.elements(dy.len()), back.elements(dy.len())];
            kind.gate_backward(&gate.values, &up.values, &dy, &mut dgate, &mut dup);
            for (slot, gradient) in [(gate.slot, dgate), (up.slot, dup)] {
                if let Some(slot) = slot {
                    back.add(slot, Rc::new(gradient));
                }
            }
            Ok(())
        });
    }
    Ok(tape.value(columns, y, slot))
}

pub(super) fn reference_gate(ops: &Reference<'_>, gate: &Value, up: &Value, kind: Activation) -> Result<Value, Error> {
    check_pair("a gated unit", gate, up)?;
    let gate = reference(ops, gate, kind)?;
    Ok(ops.value((&*ops.tensor(&gate)? * &*ops.tensor(up)?)?)?)
}

pub(super) fn add<E: Element + Pod>(tape: &mut Fast<'_, E>, x: &Value, y: &Value) -> Result<Value, Error> {
    check_pair("a sum", x, y)?;
    let (x, y) = (tape.node(x)?, tape.node(y)?);
    let mut sum = tape.elements(x.values.len());
    sum.copy_from_slice(&x.values);
    add_into(&y.values, &mut sum);
    let parts = [x.slot, y.slot];
    let slot = tape.slot(parts.iter().any(Option::is_some));
    if let Some(slot) = slot.filter(|_| tape.records()) {
        tape.record(move |back| {
            if let Some(gradient) = back.take(slot) {
                for slot in parts.into_iter().flatten() {
                    back.add(slot, gradient.clone());
                }
            }
            Ok(())
        });
    }
    Ok(tape.value(x.columns, sum, slot))
}

pub(super) fn reference_add(ops: &Reference<'_>, x: &Value, y: &Value) -> Result<Value, Error> {
    check_pair("a sum", x, y)?;
    Ok(ops.value((&*ops.tensor(x)? + &*ops.tensor(y)?)?)?)
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
