//! The columns of a value as values of their own: what a fused projection gives.

use super::Value;
use super::fast::Fast;
use super::reference::Reference;
use crate::Error;
use bytemuck::Pod;
use fedpipe_kernels::Element;
use std::rc::Rc;

fn check(x: &Value, widths: &[usize]) -> Result<(), Error> {
    if widths.iter().sum::<usize>() == x.columns() {
        return Ok(());
    }
    Err(Error::shape(format!("columns {widths:?} of {x:?}")))
}

pub(super) fn forward<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    x: &Value,
    widths: &[usize],
) -> Result<Vec<Value>, Error> {
    check(x, widths)?;
    let x = tape.node(x)?;
    let (rows, columns) = (x.rows, x.columns);
    let mut parts = Vec::with_capacity(widths.len());
    let mut slots = Vec::with_capacity(widths.len());
    let mut first = 0;
    for &width in widths {
        let mut part = tape.elements(rows * width);
        for (to, from) in part.chunks_exact_mut(width.max(1)).zip(x.values.chunks_exact(columns.max(1))) {
            to.copy_from_slice(&from[first..first + width]);
        }
        let slot = tape.slot(x.slot.is_some());
        parts.push(tape.value(width, part, slot));
        slots.push((slot, first, width));
        first += width;
    }
    if let (Some(to), true) = (x.slot, tape.records()) {
        tape.record(move |back| {
            let found: Vec<_> = slots
                .into_iter()
                .filter_map(|(slot, first, width)| slot.and_then(|slot| back.take(slot)).map(|dy| (dy, first, width)))
                .collect();
            if found.is_empty() {
                return Ok(());
            }
            let mut dx = back.elements(rows * columns);
            dx.fill(E::default());
            for (dy, first, width) in found {
                for (to, from) in dx.chunks_exact_mut(columns).zip(dy.chunks_exact(width.max(1))) {
                    to[first..first + width].copy_from_slice(from);
                }
            }
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(parts)
}

pub(super) fn reference(ops: &Reference<'_>, x: &Value, widths: &[usize]) -> Result<Vec<Value>, Error> {
    check(x, widths)?;
    let x = ops.tensor(x)?;
    let mut first = 0;
    let part = |&width: &usize| {
        first += width;
        Ok(ops.value(x.narrow(1, first - width, width)?.contiguous()?)?)
    };
    widths.iter().map(part).collect()
}
