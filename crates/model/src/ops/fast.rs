//! The operations over `fedpipe-kernels`, on a tape.
//!
//! Each operation lives in a file of its own, forward and backward beside each other: forward computes the value and, where
//! a parameter is among what led to it, records a closure that holds what the gradient needs.

use super::pool::{Buffer, Pool};
use super::{
    AttentionShape, Block, Classified, ClassifierHead, HeadTargets, KvCache, NormWeights, Offsets, Ops, Pass,
    Positions, TokenLoss, Value,
};
use crate::Error;
use crate::adapter::Adapters;
use crate::nn::Linear;
#[cfg(test)]
use crate::parameters::ParameterId;
use crate::parameters::{Gradients, Parameters};
use bytemuck::Pod;
use fedpipe_kernels::{Activation, Element, FrozenMatrix, InputGradient, RotaryTable, add_into};
use std::rc::Rc;
use std::sync::Arc;

/// A tensor `[rows, columns]` on the tape.
pub(super) struct Node<E> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Rc<Buffer<E>>,
    /// Where its gradient is collected; `None` when no parameter led to it.
    pub(super) slot: Option<Slot>,
}

/// Index of a gradient on the tape.
#[derive(Clone, Copy)]
pub(super) struct Slot(usize);

/// Buffers of activations, and of what stays in f32.
#[derive(Clone)]
pub(super) struct Pools<E> {
    pub(super) elements: Rc<Pool<E>>,
    pub(super) floats: Rc<Pool<f32>>,
}

/// What is kept of a forward pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Nothing; nothing trains.
    Nothing,
    /// Which values a parameter led to, for a pass that will be run again.
    Slots,
    /// What backward needs.
    Records,
}

type Record<'a, E> = Box<dyn FnOnce(&mut Backward<'_, E>) -> Result<(), Error> + 'a>;

/// One pass over a model.
pub(super) struct Fast<'a, E: Element> {
    pub(super) parameters: &'a Parameters,
    pub(super) adapters: &'a Adapters,
    pub(super) pools: Pools<E>,
    records: Vec<Record<'a, E>>,
    slots: usize,
    keep: Keep,
    recompute: bool,
}

impl<'a, E: Element + Pod> Fast<'a, E> {
    pub(super) fn new(
        parameters: &'a Parameters,
        adapters: &'a Adapters,
        pools: Pools<E>,
        pass: Pass,
        recompute: bool,
    ) -> Self {
        let keep = match pass {
            Pass::Inference => Keep::Nothing,
            Pass::Training => Keep::Records,
        };
        Self { parameters, adapters, pools, records: vec![], slots: 0, keep, recompute }
    }

    /// Whether anything trains in this pass.
    pub(super) fn trains(&self) -> bool {
        self.keep != Keep::Nothing
    }

    /// Whether an operation with a tracked output has to keep what its gradient needs.
    pub(super) fn records(&self) -> bool {
        self.keep == Keep::Records
    }

    /// A slot for a value that a parameter led to.
    pub(super) fn slot(&mut self, tracked: bool) -> Option<Slot> {
        if !tracked || !self.trains() {
            return None;
        }
        self.slots += 1;
        Some(Slot(self.slots - 1))
    }

    /// Starts with a value of `rows` rows, whose number most others follow.
    pub(super) fn start(&self, rows: usize) {
        self.pools.elements.start(rows);
        self.pools.floats.start(rows);
    }

    pub(super) fn elements(&self, len: usize) -> Buffer<E> {
        self.pools.elements.take(len)
    }

    pub(super) fn node(&self, value: &Value) -> Result<Rc<Node<E>>, Error> {
        value.downcast()
    }

    pub(super) fn value(&self, columns: usize, values: Buffer<E>, slot: Option<Slot>) -> Value {
        let rows = values.len().checked_div(columns).unwrap_or(0);
        Value::new(rows, columns, Rc::new(Node { rows, columns, values: Rc::new(values), slot }))
    }

    /// The same tensor, with its gradient collected elsewhere.
    fn alias(&self, node: &Node<E>, slot: Option<Slot>) -> Value {
        let Node { rows, columns, .. } = *node;
        Value::new(rows, columns, Rc::new(Node { rows, columns, values: node.values.clone(), slot }))
    }

    /// Keeps a record for backward. Call it where [`Fast::records`] says so.
    pub(super) fn record(&mut self, record: impl FnOnce(&mut Backward<'_, E>) -> Result<(), Error> + 'a) {
        self.records.push(Box::new(record));
    }

    /// Another pass over the same parameters, with slots and records of its own.
    fn inner(&self, keep: Keep) -> Self {
        Self { records: vec![], slots: 0, keep, pools: self.pools.clone(), ..*self }
    }

    /// Goes back over the records with what `slots` holds already.
    fn run_back(&mut self, slots: Vec<Option<Rc<Buffer<E>>>>, gradients: &mut Gradients) -> Result<Slots<E>, Error> {
        let mut back = Backward { slots, gradients, pools: &self.pools };
        back.slots.resize_with(self.slots, || None);
        for record in std::mem::take(&mut self.records).into_iter().rev() {
            record(&mut back)?;
        }
        Ok(back.slots)
    }

    fn checkpoint(&mut self, x: &Value, block: &Block<'a>) -> Result<Value, Error> {
        let node = self.node(x)?;
        let mut dry = self.inner(Keep::Slots);
        let slot = dry.slot(node.slot.is_some());
        let start = dry.alias(&node, slot);
        let output = block(&mut dry, &start)?;
        let output = dry.node(&output)?;
        let slot = self.slot(output.slot.is_some());
        let result = self.alias(&output, slot);
        if let Some(slot) = slot {
            let (mut again, block) = (self.inner(Keep::Records), block.clone());
            self.record(move |back| {
                let Some(gradient) = back.take(slot) else { return Ok(()) };
                let inner_slot = again.slot(node.slot.is_some());
                let start = again.alias(&node, inner_slot);
                let output = block(&mut again, &start)?;
                let end = again.node(&output)?.slot;
                drop(output);
                let mut slots: Slots<E> = Vec::new();
                slots.resize_with(again.slots, || None);
                if let Some(Slot(end)) = end {
                    slots[end] = Some(gradient);
                }
                let mut slots = again.run_back(slots, back.gradients)?;
                if let (Some(Slot(from)), Some(to)) = (inner_slot, node.slot)
                    && let Some(gradient) = slots[from].take()
                {
                    back.add(to, gradient);
                }
                Ok(())
            });
        }
        Ok(result)
    }
}

type Slots<E> = Vec<Option<Rc<Buffer<E>>>>;

/// The way back: gradients of values, as they are collected.
pub(super) struct Backward<'b, E> {
    slots: Slots<E>,
    pub(super) gradients: &'b mut Gradients,
    pub(super) pools: &'b Pools<E>,
}

impl<E: Element> Backward<'_, E> {
    /// The whole gradient of a value, once every operation that read it has been gone back over; `None` when none has.
    pub(super) fn take(&mut self, slot: Slot) -> Option<Rc<Buffer<E>>> {
        self.slots[slot.0].take()
    }

    pub(super) fn elements(&self, len: usize) -> Buffer<E> {
        self.pools.elements.take(len)
    }

    pub(super) fn floats(&self, len: usize) -> Buffer<f32> {
        self.pools.floats.take(len)
    }

    /// Adds a gradient that may have other readers.
    pub(super) fn add(&mut self, slot: Slot, gradient: Rc<Buffer<E>>) {
        match self.slots[slot.0].take() {
            None => self.slots[slot.0] = Some(gradient),
            Some(sum) => {
                self.slots[slot.0] = Some(sum);
                self.accumulate(slot, |sum| add_into(&gradient, sum));
            }
        }
    }

    /// Lets an operation write the gradient of a value of `len` elements, or add to what there is.
    pub(super) fn write(&mut self, slot: Option<Slot>, len: usize, body: impl FnOnce(InputGradient<'_, E>)) {
        let Some(Slot(slot)) = slot else { return body(InputGradient::None) };
        let gradient = match self.slots[slot].take() {
            None => {
                let mut gradient = self.elements(len);
                body(InputGradient::Overwrite(&mut gradient));
                gradient
            }
            Some(sum) => {
                let mut sum = self.own(sum);
                body(InputGradient::Accumulate(&mut sum));
                sum
            }
        };
        self.slots[slot] = Some(Rc::new(gradient));
    }

    /// Lets an operation add to a gradient that there is.
    pub(super) fn accumulate(&mut self, slot: Slot, body: impl FnOnce(&mut [E])) {
        if let Some(sum) = self.slots[slot.0].take() {
            let mut sum = self.own(sum);
            body(&mut sum);
            self.slots[slot.0] = Some(Rc::new(sum));
        }
    }

    /// A gradient to change: itself, or a copy where something else still reads it.
    pub(super) fn own(&self, gradient: Rc<Buffer<E>>) -> Buffer<E> {
        Rc::try_unwrap(gradient).unwrap_or_else(|shared| {
            let mut copy = self.elements(shared.len());
            copy.copy_from_slice(&shared);
            copy
        })
    }
}

impl<'a, E: Element + Pod> Ops<'a> for Fast<'a, E> {
    fn embed(&mut self, tables: &[(&'a FrozenMatrix, &[u32])]) -> Result<Value, Error> {
        super::rows::embed(self, tables)
    }

    fn linears(&mut self, x: &Value, layers: &[&'a Linear]) -> Result<Vec<Value>, Error> {
        super::linear::forward(self, x, layers)
    }

    fn norm(&mut self, x: &Value, residual: Option<&Value>, weights: &'a NormWeights) -> Result<Value, Error> {
        super::norm::forward(self, x, residual, weights)
    }

    fn sum_and_norm(&mut self, x: &Value, residual: &Value, weights: &'a NormWeights) -> Result<[Value; 2], Error> {
        super::norm::with_sum(self, x, residual, weights)
    }

    fn add(&mut self, x: &Value, y: &Value) -> Result<Value, Error> {
        super::elementwise::add(self, x, y)
    }

    fn activation(&mut self, x: &Value, kind: Activation) -> Result<Value, Error> {
        super::elementwise::activation(self, x, kind)
    }

    fn gate(&mut self, gate: &Value, up: &Value, kind: Activation) -> Result<Value, Error> {
        super::elementwise::gate(self, gate, up, kind)
    }

    fn rotary(&mut self, x: &Value, table: &Arc<RotaryTable>, positions: &Positions) -> Result<Value, Error> {
        super::rotary::forward(self, x, table, positions)
    }

    fn split(&mut self, x: &Value, widths: &[usize]) -> Result<Vec<Value>, Error> {
        super::split::forward(self, x, widths)
    }

    fn tanh(&mut self, x: &Value) -> Result<Value, Error> {
        super::elementwise::tanh(self, x)
    }

    fn attention(
        &mut self,
        qkv: [&Value; 3],
        queries: &Offsets,
        keys: &Offsets,
        shape: AttentionShape,
    ) -> Result<Value, Error> {
        super::attention::forward(self, qkv, queries, keys, shape)
    }

    fn cached_attention(
        &mut self,
        qkv: [&Value; 3],
        offsets: &Offsets,
        cache: (&mut KvCache, usize),
        shape: AttentionShape,
    ) -> Result<Value, Error> {
        super::cached::forward(self, qkv, offsets, cache, shape)
    }

    fn select(&mut self, x: &Value, rows: &Offsets) -> Result<Value, Error> {
        super::rows::select(self, x, rows)
    }

    fn classify(&mut self, x: &Value, head: ClassifierHead, targets: HeadTargets<'_>) -> Result<Classified, Error> {
        super::classify::forward(self, x, head, targets)
    }

    fn token_loss(&mut self, x: &Value, head: &FrozenMatrix, targets: &[u32]) -> Result<TokenLoss, Error> {
        super::vocabulary::loss(self, x, head, targets)
    }

    fn logits(&mut self, x: &Value, head: &FrozenMatrix) -> Result<Vec<f32>, Error> {
        super::vocabulary::logits(self, x, head)
    }

    fn block(&mut self, x: &Value, block: &Block<'a>) -> Result<Value, Error> {
        if self.recompute && self.records() { self.checkpoint(x, block) } else { block(self, x) }
    }

    fn constant(&mut self, rows: usize, columns: usize, bytes: &[u8]) -> Result<Value, Error> {
        self.start(rows);
        let mut values = self.elements(rows * columns);
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        if to.len() != bytes.len() {
            return Err(Error::shape(format!("{} bytes for a value of [{rows}, {columns}]", bytes.len())));
        }
        to.copy_from_slice(bytes);
        Ok(self.value(columns, values, None))
    }

    fn bytes(&self, x: &Value) -> Result<Vec<u8>, Error> {
        Ok(bytemuck::cast_slice(&self.node(x)?.values).to_vec())
    }

    fn read(&self, x: &Value) -> Result<Vec<f32>, Error> {
        Ok(self.node(x)?.values.iter().map(|x| x.to_f32()).collect())
    }

    fn backward(&mut self, gradients: &mut Gradients) -> Result<(), Error> {
        self.run_back(vec![], gradients).map(|_| ())
    }

    #[cfg(test)]
    fn leaf(&mut self, id: ParameterId) -> Result<Value, Error> {
        let matrix = self.parameters.get(id);
        let mut values = self.elements(matrix.data().len());
        values.iter_mut().zip(matrix.data()).for_each(|(to, from)| *to = E::from_f32(*from));
        let slot = self.slot(true);
        self.record(move |back| {
            if let Some(gradient) = slot.and_then(|slot| back.take(slot)) {
                back.gradients.get_mut(id).iter_mut().zip(gradient.iter()).for_each(|(to, g)| *to += g.to_f32());
            }
            Ok(())
        });
        Ok(self.value(matrix.cols(), values, slot))
    }

    #[cfg(test)]
    fn backward_from(&mut self, ys: &[Value], upstream: &[Vec<f32>], gradients: &mut Gradients) -> Result<(), Error> {
        let mut slots: Slots<E> = Vec::new();
        slots.resize_with(self.slots, || None);
        for (y, upstream) in ys.iter().zip(upstream) {
            if let Some(Slot(slot)) = self.node(y)?.slot {
                let mut gradient = self.elements(upstream.len());
                gradient.iter_mut().zip(upstream).for_each(|(to, from)| *to = E::from_f32(*from));
                slots[slot] = Some(Rc::new(gradient));
            }
        }
        self.run_back(slots, gradients).map(|_| ())
    }
}
