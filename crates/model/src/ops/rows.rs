//! Rows by their number: embeddings, and the rows that a task reads.

use super::fast::Fast;
use super::reference::Reference;
use super::{Offsets, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{Device, Tensor};
use fedpipe_kernels::{Element, FrozenMatrix, gather};
use std::rc::Rc;

fn check(tables: &[(&FrozenMatrix, &[u32])]) -> Result<(usize, usize), Error> {
    let Some((first, ids)) = tables.first() else { return Err(Error::shape("an embedding without a table".into())) };
    let (tokens, hidden) = (ids.len(), first.columns());
    for (table, ids) in tables {
        if ids.len() != tokens || table.columns() != hidden {
            return Err(Error::shape("tables of one embedding have one width and one row for each token".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= table.rows()) {
            return Err(Error::shape(format!("row {id} of an embedding of {} rows", table.rows())));
        }
    }
    Ok((tokens, hidden))
}

pub(super) fn embed<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    tables: &[(&FrozenMatrix, &[u32])],
) -> Result<Value, Error> {
    let (tokens, hidden) = check(tables)?;
    tape.start(tokens);
    let mut sum = tape.elements(tokens * hidden);
    gather(tables, &mut sum);
    Ok(tape.value(hidden, sum, None))
}

pub(super) fn reference_embed(ops: &Reference<'_>, tables: &[(&FrozenMatrix, &[u32])]) -> Result<Value, Error> {
    let (tokens, hidden) = check(tables)?;
    let (mut sum, mut row) = (vec![0f32; tokens * hidden], vec![0f32; hidden]);
    for (table, ids) in tables {
        for (to, &id) in sum.chunks_exact_mut(hidden).zip(*ids) {
            table.row_into(id as usize, &mut row);
            to.iter_mut().zip(&row).for_each(|(to, from)| *to += from);
        }
    }
    Ok(ops.value(Tensor::from_vec(sum, (tokens, hidden), &Device::Cpu)?)?)
}

fn check_rows(x: &Value, rows: &[usize]) -> Result<(), Error> {
    match rows.iter().find(|&&row| row >= x.rows()) {
        None => Ok(()),
        Some(row) => Err(Error::shape(format!("row {row} of {x:?}"))),
    }
}

pub(super) fn select<E: Element + Pod>(tape: &mut Fast<'_, E>, x: &Value, rows: &Offsets) -> Result<Value, Error> {
    check_rows(x, rows)?;
    let x = tape.node(x)?;
    let (width, len) = (x.columns, x.values.len());
    let mut y = tape.elements(rows.len() * width);
    for (to, &row) in y.chunks_exact_mut(width).zip(rows.iter()) {
        to.copy_from_slice(&x.values[row * width..][..width]);
    }
    let slot = tape.slot(x.slot.is_some());
    if let (Some(slot), Some(to), true) = (slot, x.slot, tape.records()) {
        let rows = rows.clone();
        tape.record(move |back| {
            let Some(dy) = back.take(slot) else { return Ok(()) };
            let mut dx = back.elements(len);
            dx.fill(E::default());
            for (dy, &row) in dy.chunks_exact(width).zip(rows.iter()) {
                for (dx, dy) in dx[row * width..][..width].iter_mut().zip(dy) {
                    *dx = E::from_f32(dx.to_f32() + dy.to_f32());
                }
            }
            back.add(to, Rc::new(dx));
            Ok(())
        });
    }
    Ok(tape.value(width, y, slot))
}

pub(super) fn reference_select(ops: &Reference<'_>, x: &Value, rows: &Offsets) -> Result<Value, Error> {
    check_rows(x, rows)?;
    let indices: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    let indices = Tensor::from_vec(indices, rows.len(), &Device::Cpu)?;
    Ok(ops.value(ops.tensor(x)?.index_select(&indices, 0)?)?)
}
