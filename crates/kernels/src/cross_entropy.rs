//! The cross-entropy of a language model's head: a product over the vocabulary and its softmax, never held whole.
//!
//! Tiles of tokens and vocabulary are multiplied, and what the softmax needs of each is folded into a running maximum and
//! sum, as in flash attention (Dao et al. 2022). The gradient comes along in the same pass, against the running maximum
//! and put right when that grows, so a tile's logits are made once.

use std::ops::Range;

use rayon::prelude::*;

use crate::dispatch::{Path, multiversion};
use crate::element::{Element, round};
use crate::frozen::{FrozenMatrix, RowsFrom};
use crate::gemm::{Across, Extents, Operand, Rows, Strided, Target, TargetBase, product};
use crate::scratch::Scratch;
use crate::shared::SharedSlice;
use crate::vector::{LEAST_JOBS, exp, max, multiply_add, rows_a_job, sum};

/// The target of a token that does not count.
pub const IGNORED: u32 = u32::MAX;

/// Most tokens of a tile: as many as share one expansion of the weight.
const TOKENS: usize = 1024;
/// Rows of the weight of a tile.
const ENTRIES: usize = 1024;

/// A loss over tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLoss {
    /// Nats a counted token; 0 if none counts.
    pub mean: f64,
    /// Tokens whose target is not [`IGNORED`].
    pub counted: usize,
}

/// The mean cross-entropy of `softmax(x · Wᵀ + bias)` against `targets`, and its gradient by `x`, which overwrites `dx`.
///
/// `x`, `dx` are `[tokens, hidden]`, `weight` `[vocabulary, hidden]`, `bias` `[vocabulary]`, `targets` `[tokens]`. Tokens
/// whose target is [`IGNORED`] cost nothing, count nothing and have a gradient of 0.
///
/// `[tokens, vocabulary]` is never held: working memory is at most 1024 · 1024 logits and, with a gradient, 1024 ·
/// `hidden` sums, all f32, 24 bytes for each of 1024 tokens, 4 bytes for each token, and what a product takes.
///
/// # Panics
/// When a slice does not have its length, or a target is beyond the vocabulary.
pub fn linear_cross_entropy<E: Element>(
    x: &[E],
    weight: &FrozenMatrix,
    bias: Option<&[f32]>,
    targets: &[u32],
    mut dx: Option<&mut [E]>,
) -> TokenLoss {
    let (vocabulary, hidden) = (weight.rows(), weight.columns());
    assert_eq!(x.len(), targets.len() * hidden, "x is [tokens, hidden]");
    assert!(bias.is_none_or(|bias| bias.len() == vocabulary), "bias is [vocabulary]");
    if let Some(dx) = dx.as_deref_mut() {
        assert_eq!(dx.len(), x.len(), "dx is [tokens, hidden]");
        dx.fill(E::default());
    }
    let counts = |&token: &u32| targets[token as usize] != IGNORED;
    let counted: Vec<u32> = (0..targets.len() as u32).filter(counts).collect();
    if let Some(beyond) = targets.iter().find(|&&target| target != IGNORED && target as usize >= vocabulary) {
        panic!("target {beyond} of a vocabulary of {vocabulary}");
    }
    let head = Head { path: Path::current(), weight, bias };
    let mut total = 0.0;
    // Tiles as even as they can be: each expands the whole weight.
    let tiles = counted.len().div_ceil(TOKENS).max(1);
    for tokens in counted.chunks(counted.len().div_ceil(tiles).max(1)) {
        let mut sums = Scratch::<f32>::take(if dx.is_some() { tokens.len() * hidden } else { 0 });
        let softmax = head.fold(&Picked { data: x, width: hidden, rows: tokens }, targets, &mut sums);
        total += softmax.iter().map(Softmax::loss).sum::<f64>();
        if let Some(dx) = dx.as_deref_mut() {
            let mut row = Scratch::<f32>::take(hidden);
            for ((&token, softmax), sums) in tokens.iter().zip(&softmax).zip(sums.chunks_exact(hidden.max(1))) {
                weight.read(head.path, softmax.target as usize, 0..hidden, &mut row);
                let scale = (softmax.sum() * counted.len() as f64).recip() as f32;
                let dx = &mut dx[token as usize * hidden..][..hidden];
                finish(head.path, sums, softmax.others as f32, &row, scale, dx);
            }
        }
    }
    TokenLoss { mean: total / counted.len().max(1) as f64, counted: counted.len() }
}

/// The softmax of one token over the part of the vocabulary that has been seen.
///
/// The target stands apart from the others: its share of the gradient, `p - 1`, is then the sum of the others' and does
/// not cancel where the model is sure.
#[derive(Clone, Copy, Debug)]
struct Softmax {
    target: u32,
    target_logit: f32,
    max: f32,
    /// Σ e^(logit - max) over all entries but the target.
    others: f64,
    /// What the last tile multiplied everything before it by: e^(former maximum - maximum).
    correction: f32,
}

impl Softmax {
    fn new(target: u32) -> Self {
        Self { target, target_logit: f32::NEG_INFINITY, max: f32::NEG_INFINITY, others: 0.0, correction: 1.0 }
    }

    /// Σ e^(logit - max) over all entries.
    fn sum(&self) -> f64 {
        self.others + (f64::from(self.target_logit) - f64::from(self.max)).exp()
    }

    /// The negative logarithm of the target's probability; exact also where that is almost 1.
    fn loss(&self) -> f64 {
        let gap = f64::from(self.max) - f64::from(self.target_logit);
        gap + (self.others + (-gap).exp_m1()).ln_1p()
    }
}

/// A head: what turns rows of x into logits.
struct Head<'a> {
    path: Path,
    weight: &'a FrozenMatrix,
    bias: Option<&'a [f32]>,
}

impl Head<'_> {
    /// Folds the whole vocabulary into the softmax of some tokens. Where `sums` `[tokens, hidden]` is not empty it becomes
    /// `Σ e^(logit - max) · W[entry]` over all entries but the target.
    fn fold<E: Element>(&self, x: &Picked<'_, E>, targets: &[u32], sums: &mut [f32]) -> Vec<Softmax> {
        let (vocabulary, hidden, tokens) = (self.weight.rows(), self.weight.columns(), x.rows.len());
        let mut softmax: Vec<_> = x.rows.iter().map(|&token| Softmax::new(targets[token as usize])).collect();
        let mut logits = Scratch::<f32>::take(tokens * ENTRIES.min(vocabulary));
        sums.fill(0.0);
        for first in (0..vocabulary).step_by(ENTRIES) {
            let entries = first..vocabulary.min(first + ENTRIES);
            let logits = &mut logits[..tokens * entries.len()];
            self.logits(x, entries.clone(), logits);
            let at_once = rows_a_job(entries.len());
            logits
                .par_chunks_mut(at_once * entries.len())
                .zip(softmax.par_chunks_mut(at_once))
                .with_min_len(LEAST_JOBS)
                .for_each(|(logits, softmax)| fold_tile(self.path, entries.clone(), logits, softmax));
            if !sums.is_empty() {
                let at_once = rows_a_job(hidden);
                sums.par_chunks_mut(at_once * hidden)
                    .zip(softmax.par_chunks(at_once))
                    .with_min_len(LEAST_JOBS)
                    .for_each(|(sums, softmax)| correct(self.path, softmax, sums));
                self.add_rows(logits, entries, sums);
            }
        }
        softmax
    }

    /// `logits = x · W[entries]ᵀ + bias[entries]`, `[tokens, entries]`.
    fn logits<E: Element>(&self, x: &Picked<'_, E>, entries: Range<usize>, logits: &mut [f32]) {
        let base = self.bias.map_or(TargetBase::Zero, |bias| TargetBase::Bias(&bias[entries.clone()]));
        product(
            self.weight.kernel(self.path),
            Operand { source: x, across: Across::Rows },
            Operand { source: &RowsFrom { matrix: self.weight, first: entries.start }, across: Across::Rows },
            Extents { rows: x.rows.len(), columns: entries.len(), depth: x.width },
            Target { output: SharedSlice::new(logits), offset: 0, stride: entries.len(), scale: 1.0, base },
        );
    }

    /// `sums += shares · W[entries]`, `[tokens, hidden]`.
    fn add_rows(&self, shares: &[f32], entries: Range<usize>, sums: &mut [f32]) {
        let hidden = self.weight.columns();
        let rows = sums.len() / hidden;
        product(
            self.weight.kernel(self.path),
            Operand { source: &Strided { data: shares, row_stride: entries.len() }, across: Across::Rows },
            Operand { source: &RowsFrom { matrix: self.weight, first: entries.start }, across: Across::Columns },
            Extents { rows, columns: hidden, depth: entries.len() },
            Target { output: SharedSlice::new(sums), offset: 0, stride: hidden, scale: 1.0, base: TargetBase::Output },
        );
    }
}

multiversion!(fn fold_tile(entries: Range<usize>, logits: &mut [f32], softmax: &mut [Softmax]) = fold_tile_body);

/// Folds a tile into each row's softmax, and turns its logits into e^(logit - max), with 0 for the target.
#[inline(always)]
fn fold_tile_body<const FMA: bool>(entries: Range<usize>, logits: &mut [f32], softmax: &mut [Softmax]) {
    for (logits, softmax) in logits.chunks_exact_mut(entries.len()).zip(softmax) {
        let former = softmax.max;
        let largest = max(logits);
        if largest > former {
            softmax.max = largest;
        }
        let target = (softmax.target as usize).checked_sub(entries.start).and_then(|at| logits.get(at).map(|_| at));
        if let Some(target) = target {
            softmax.target_logit = logits[target];
        }
        // With nothing but -∞ so far, 0 keeps ∞ - ∞ from being NaN; every share is 0 all the same.
        let max = if softmax.max == f32::NEG_INFINITY { 0.0 } else { softmax.max };
        logits.iter_mut().for_each(|logit| *logit = exp::<FMA>(*logit - max));
        if let Some(target) = target {
            logits[target] = 0.0;
        }
        softmax.correction = if former == softmax.max { 1.0 } else { (former - softmax.max).exp() };
        softmax.others = softmax.others * f64::from(softmax.correction) + f64::from(sum(logits, |share| share));
    }
}

multiversion!(fn correct(softmax: &[Softmax], sums: &mut [f32]) = correct_body);

#[inline(always)]
fn correct_body<const FMA: bool>(softmax: &[Softmax], sums: &mut [f32]) {
    let hidden = sums.len() / softmax.len();
    for (sums, softmax) in sums.chunks_exact_mut(hidden).zip(softmax) {
        if softmax.correction != 1.0 {
            sums.iter_mut().for_each(|sum| *sum *= softmax.correction);
        }
    }
}

multiversion!(
    fn finish<E: Element>(sums: &[f32], others: f32, target: &[f32], scale: f32, dx: &mut [E]) = finish_body
);

/// `dx = scale · (sums - others · W[target])`.
#[inline(always)]
fn finish_body<const FMA: bool, E: Element>(sums: &[f32], others: f32, target: &[f32], scale: f32, dx: &mut [E]) {
    for ((dx, &sum), &target) in dx.iter_mut().zip(sums).zip(target) {
        *dx = E::from_f32(scale * multiply_add::<FMA>(-others, target, sum));
    }
}

/// Some of the rows of a matrix, `width` wide, as one side of a product.
struct Picked<'a, E> {
    data: &'a [E],
    width: usize,
    rows: &'a [u32],
}

impl<E: Element> Picked<'_, E> {
    fn piece(&self, row: usize, columns: Range<usize>) -> &[E] {
        &self.data[self.rows[row] as usize * self.width + columns.start..][..columns.len()]
    }
}

impl<E: Element> Rows for Picked<'_, E> {
    fn read(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [f32]) {
        widen(path, self.piece(row, columns), to);
    }

    fn read_bf16(&self, path: Path, row: usize, columns: Range<usize>, to: &mut [u16]) {
        round_row(path, self.piece(row, columns), to);
    }
}

multiversion!(fn widen<E: Element>(from: &[E], to: &mut [f32]) = widen_body);

#[inline(always)]
fn widen_body<const FMA: bool, E: Element>(from: &[E], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
}

multiversion!(fn round_row<E: Element>(from: &[E], to: &mut [u16]) = round_row_body);

#[inline(always)]
fn round_row_body<const FMA: bool, E: Element>(from: &[E], to: &mut [u16]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = round(from.to_f32()));
}
