//! Attention over keys and values of earlier tokens, for generation.

use super::fast::Fast;
use super::reference::Reference;
use super::{AttentionShape, Offsets, Value};
use crate::Error;
use bytemuck::Pod;
use candle_core::{Device, Tensor};
use fedpipe_kernels::{Element, attention_forward};
use rayon::prelude::*;
use std::any::Any;
use std::fmt;

/// Keys and values of the tokens that a language model has read so far, for every sequence and layer: it grows with each
/// sequence by itself, in the element type of the activations.
///
/// A pass over new tokens adds to it layer by layer and counts them once the last layer is done; what a pass that failed
/// left behind is overwritten by the next one.
pub struct KvCache {
    lengths: Vec<usize>,
    layers: Vec<Option<Box<dyn Layer>>>,
}

/// [`Past`] of either element type.
trait Layer: Any + Send {
    fn as_any(&mut self) -> &mut dyn Any;

    /// The sequences `parents` take the place of those that there are.
    fn select(&mut self, parents: &[usize]);
}

impl<E: Element> Layer for Past<E> {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn select(&mut self, parents: &[usize]) {
        for rows in [&mut self.keys, &mut self.values] {
            *rows = parents.iter().map(|&parent| rows[parent].clone()).collect();
        }
    }
}

/// Keys and values of one layer: for every sequence `[tokens, kv_heads · head_dim]`.
struct Past<E> {
    keys: Vec<Vec<E>>,
    values: Vec<Vec<E>>,
}

impl KvCache {
    /// An empty one for `sequences` sequences and a model of `layers` layers.
    pub fn new(sequences: usize, layers: usize) -> Self {
        Self { lengths: vec![0; sequences], layers: (0..layers).map(|_| None).collect() }
    }

    /// Tokens read of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Goes on with copies of the sequences `parents`, in this order, in place of those that there are: the running texts
    /// of a beam search.
    ///
    /// # Errors
    /// When there is no such sequence.
    pub fn select(&mut self, parents: &[usize]) -> Result<(), Error> {
        if let Some(parent) = parents.iter().find(|&&parent| parent >= self.lengths.len()) {
            return Err(Error::shape(format!("sequence {parent} of a cache of {}", self.lengths.len())));
        }
        self.lengths = parents.iter().map(|&parent| self.lengths[parent]).collect();
        self.layers.iter_mut().flatten().for_each(|layer| layer.select(parents));
        Ok(())
    }

    /// Counts the new tokens of a pass, `offsets[i]..offsets[i + 1]` of sequence i.
    pub(crate) fn advance(&mut self, offsets: &[usize]) {
        for (length, pair) in self.lengths.iter_mut().zip(offsets.windows(2)) {
            *length += pair[1] - pair[0];
        }
    }

    /// Adds new keys and values `[tokens, width]` to a layer.
    fn extend<E: Element>(
        &mut self,
        layer: usize,
        offsets: &[usize],
        width: usize,
        [keys, values]: [&[E]; 2],
    ) -> Result<&Past<E>, Error> {
        let (sequences, layers) = (self.lengths.len(), self.layers.len());
        let misfit = || Error::shape(format!("layer {layer} of a cache of {layers} layers, {sequences} sequences"));
        if offsets.len() != sequences + 1 {
            return Err(misfit());
        }
        let place = self.layers.get_mut(layer).ok_or_else(misfit)?;
        let empty = || (0..sequences).map(|_| Vec::new()).collect();
        let past = place.get_or_insert_with(|| Box::new(Past::<E> { keys: empty(), values: empty() }));
        let past: &mut Past<E> = past.as_any().downcast_mut().ok_or_else(misfit)?;
        for (new, old) in [(keys, &mut past.keys), (values, &mut past.values)] {
            for ((rows, pair), length) in old.iter_mut().zip(offsets.windows(2)).zip(&self.lengths) {
                rows.truncate(length * width);
                rows.extend_from_slice(&new[pair[0] * width..pair[1] * width]);
            }
        }
        Ok(past)
    }
}

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvCache of {} layers, {:?} tokens", self.layers.len(), self.lengths)
    }
}

fn check([q, k, v]: [&Value; 3], offsets: &Offsets, shape: AttentionShape) -> Result<(), Error> {
    let (rows, width) = (offsets.last().copied().unwrap_or(0), shape.kv_heads * shape.head_dim);
    let fits = |x: &Value, columns: usize| (x.rows(), x.columns()) == (rows, columns);
    let ordered = offsets.first() == Some(&0) && offsets.is_sorted();
    let grouped = shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads);
    if ordered && grouped && fits(q, shape.heads * shape.head_dim) && fits(k, width) && fits(v, width) {
        return Ok(());
    }
    Err(Error::shape(format!("cached attention of {shape:?} over {q:?}, {k:?}, {v:?}")))
}

pub(super) fn forward<E: Element + Pod>(
    tape: &mut Fast<'_, E>,
    qkv: [&Value; 3],
    offsets: &Offsets,
    (cache, layer): (&mut KvCache, usize),
    shape: AttentionShape,
) -> Result<Value, Error> {
    check(qkv, offsets, shape)?;
    let [q, k, v] = [tape.node(qkv[0])?, tape.node(qkv[1])?, tape.node(qkv[2])?];
    if [&q, &k, &v].iter().any(|node| node.slot.is_some()) {
        return Err(Error::shape("a cache keeps no gradients; nothing may train in its pass".into()));
    }
    let past = cache.extend(layer, offsets, k.columns, [&k.values, &v.values])?;
    let (width, key_width, shape) = (q.columns, k.columns, shape.kernel());
    let mut out = tape.elements(q.values.len());
    let mut log_sum_exp = tape.pools.floats.take(q.rows * shape.heads);
    // Every sequence by itself, over its own growing rows: they are never copied together.
    let (mut jobs, mut outs, mut logs) = (Vec::with_capacity(offsets.len()), &mut out[..], &mut log_sum_exp[..]);
    for (i, pair) in offsets.windows(2).enumerate() {
        let rows = pair[1] - pair[0];
        let (out, log, queries);
        (out, outs) = std::mem::take(&mut outs).split_at_mut(rows * width);
        (log, logs) = std::mem::take(&mut logs).split_at_mut(rows * shape.heads);
        queries = &q.values[pair[0] * width..pair[1] * width];
        jobs.push((rows, queries, &past.keys[i], &past.values[i], out, log));
    }
    jobs.into_par_iter().filter(|job| job.0 > 0).for_each(|(rows, q, k, v, out, log)| {
        attention_forward(&shape, &[0, rows], &[0, k.len() / key_width], q, k, v, out, log);
    });
    Ok(tape.value(width, out, None))
}

pub(super) fn reference(
    ops: &Reference<'_>,
    qkv: [&Value; 3],
    offsets: &Offsets,
    (cache, layer): (&mut KvCache, usize),
    shape: AttentionShape,
) -> Result<Value, Error> {
    check(qkv, offsets, shape)?;
    let [k, v] = [qkv[1], qkv[2]].map(|x| Ok::<Vec<f32>, Error>(ops.tensor(x)?.flatten_all()?.to_vec1()?));
    let width = qkv[1].columns();
    let past = cache.extend(layer, offsets, width, [&k?, &v?])?;
    let mut keys = vec![0];
    keys.extend(past.keys.iter().scan(0, |end, rows| {
        *end += rows.len() / width;
        Some(*end)
    }));
    let packed = |rows: &[Vec<f32>]| {
        let tensor = Tensor::from_vec(rows.concat(), (keys[keys.len() - 1], width), &Device::Cpu)?;
        Ok::<Value, Error>(ops.value(tensor)?)
    };
    let (k, v) = (packed(&past.keys)?, packed(&past.values)?);
    super::attention::reference(ops, [qkv[0], &k, &v], offsets, &keys.into(), shape)
}
