//! Rotary position embedding.

use super::fast::Fast;
use super::reference::Reference;
use super::{Positions, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{Device, Tensor};
use fedpipe_kernels::{Element, RotaryTable};
use std::rc::Rc;
use std::sync::Arc;

fn check(x: &Value, table: &RotaryTable, positions: &[u32]) -> Result<usize, Error> {
    let beyond = positions.iter().any(|&position| position as usize >= table.positions());
    if !x.columns().is_multiple_of(table.head_dim()) || x.rows() != positions.len() || beyond {
        let (dim, held) = (table.head_dim(), table.positions());
        let what = format!("heads of {dim} at {} of {held} positions over {x:?}", positions.len());
        return Err(Error::shape(format!("rotary embedding of {what}")));
    }
    Ok(x.columns() / table.head_dim())
}

pub(super) fn forward<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    x: &Value,
    table: &Arc<RotaryTable>,
    positions: &Positions,
) -> Result<Value, Error> {
    let heads = check(x, table, positions)?;
    let x = tape.node(x)?;
    let mut y = tape.elements(x.values.len());
    y.copy_from_slice(&x.values);
    table.forward(positions, heads, &mut y);
    let slot = tape.slot(x.slot.is_some());
    if let (Some(slot), Some(to), true) = (slot, x.slot, tape.records()) {
        let (table, positions) = (table.clone(), positions.clone());
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let mut dx = back.own(dy);
            table.backward(&positions, heads, &mut dx);
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(tape.value(x.columns, y, slot))
}

pub(super) fn reference(
    ops: &Reference<'_>,
    x: &Value,
    table: &RotaryTable,
    positions: &[u32],
) -> Result<Value, Error> {
    let heads = check(x, table, positions)?;
    let (rows, half) = (x.rows(), table.head_dim() / 2);
    // Turning (1, 0) gives the cosine and the sine.
    let mut units: Vec<f32> = [vec![1.0; half], vec![0.0; half]].concat().repeat(rows);
    table.forward(positions, 1, &mut units);
    let units = Tensor::from_vec(units, (rows, 1, 2, half), &Device::Cpu)?;
    let (cos, sin) = (units.narrow(2, 0, 1)?, units.narrow(2, 1, 1)?);
    let x = ops.tensor(x)?;
    let pairs = x.reshape((rows, heads, 2, half))?;
    let (first, second) = (pairs.narrow(2, 0, 1)?, pairs.narrow(2, 1, 1)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Ok(ops.value(Tensor::cat(&[turned_first, turned_second], 2)?.reshape(x.shape())?)?)
}
