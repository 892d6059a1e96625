//! Linear layers over one input, with low-rank factors beside their frozen weights, in one pass over memory.
//!
//! `y = x·Wᵀ + bias + Σ_f low_f·B_fᵀ` with `low_f = scale_f · x_f·A_fᵀ`, where `x_f` is `x`, or what dropout left of it.
//! Nothing is added up in memory: the low sides only make the depth of the frozen product longer.

use crate::dispatch::{Path, multiversion};
use crate::element::Element;
use crate::frozen::FrozenMatrix;
use crate::gemm::{
    Across, Factor, Input, Kernel, Operand, Output, Side, Strided, Target, TargetBase, Term, for_each, sum_of_products,
};
use crate::shared::SharedSlice;
use crate::vector::multiply_add;

/// A pair of low-rank factors beside a weight `[out, in]`: `y += scale · (x·Aᵀ)·Bᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct LowRankFactors<'a> {
    /// `A` `[rank, in]`.
    pub a: &'a [f32],
    /// `B` `[out, rank]`.
    pub b: &'a [f32],
    /// Rows of `A`.
    pub rank: usize,
    /// Factor on their product, PEFT's alpha / r.
    pub scale: f32,
}

/// A frozen weight, its bias and the factors beside it.
#[derive(Clone, Copy, Debug)]
pub struct LinearLayer<'a> {
    /// `W` `[out, in]`.
    pub weight: &'a FrozenMatrix,
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
    /// Added to the weight, in this order.
    pub factors: &'a [LowRankFactors<'a>],
}

impl LinearLayer<'_> {
    fn check(&self) {
        let (outputs, inputs) = (self.weight.rows(), self.weight.columns());
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), outputs, "bias is [out]");
        }
        for factors in self.factors {
            assert!(factors.rank > 0, "factors of rank 0");
            assert_eq!(factors.a.len(), factors.rank * inputs, "A is [rank, in]");
            assert_eq!(factors.b.len(), outputs * factors.rank, "B is [out, rank]");
        }
    }
}

/// What a layer's forward pass writes.
#[derive(Debug)]
pub struct LinearOutput<'a, E> {
    /// `[tokens, out]`.
    pub y: &'a mut [E],
    /// `scale · x·Aᵀ` of every pair of factors, `[tokens, rank]`: kept for the gradient of `B`.
    pub lows: Vec<&'a mut [f32]>,
    /// For every pair of factors what it reads in place of `x`, `[tokens, in]`; empty where none does.
    pub dropped: Vec<Option<&'a [E]>>,
}

/// The forward pass of several layers over one `x` `[tokens, in]`, which is read and packed once.
///
/// Arithmetic is in bf16 with f32 sums where the processor has that and the weight is not stored in f32, else in f32.
///
/// # Panics
/// When a slice does not have its length, or the layers' inputs differ in width or in arithmetic.
pub fn linear_forward<E: Element>(
    x: &[E],
    tokens: usize,
    layers: &[LinearLayer<'_>],
    outputs: &mut [LinearOutput<'_, E>],
) {
    assert_eq!(layers.len(), outputs.len(), "one output for each layer");
    let Some(first) = layers.first() else { return };
    let kernel = kernel_of(layers);
    let width = first.weight.columns();
    assert_eq!(x.len(), tokens * width, "x is [tokens, in]");
    let source = Strided { data: x, row_stride: width };
    let stored = stored(layers);
    // What dropout left for one pair of factors; a side that only its low side is made of.
    let own: Vec<Vec<Option<Strided<'_, E>>>> = outputs
        .iter()
        .map(|output| output.dropped.iter().map(|x| x.map(|data| Strided { data, row_stride: width })).collect())
        .collect();
    let mut inputs =
        vec![Input { left: Operand { source: &source, across: Across::Rows }, depth: width, factors: vec![] }];
    let mut sums = Vec::with_capacity(layers.len());
    for (i, (layer, output)) in layers.iter().zip(outputs).enumerate() {
        layer.check();
        assert_eq!(layer.weight.columns(), width, "layers over one input are of one width");
        assert_eq!(output.y.len(), tokens * layer.weight.rows(), "y is [tokens, out]");
        assert_eq!(output.lows.len(), layer.factors.len(), "one low side for each pair of factors");
        let mut terms =
            vec![Term { side: Side::Input(0), right: Operand { source: layer.weight, across: Across::Rows } }];
        for (f, (factors, low)) in layer.factors.iter().zip(&mut output.lows).enumerate() {
            assert_eq!(low.len(), tokens * factors.rank, "a low side is [tokens, rank]");
            let (a, b) = &stored[i][f];
            let factor = Factor {
                right: Operand { source: a, across: Across::Rows },
                rank: factors.rank,
                scale: factors.scale,
                low: SharedSlice::new(low),
            };
            let side = match own[i].get(f).and_then(Option::as_ref) {
                None => {
                    inputs[0].factors.push(factor);
                    Side::Low(0, inputs[0].factors.len() - 1)
                }
                Some(dropped) => {
                    assert_eq!(dropped.data.len(), x.len(), "what dropout left is [tokens, in]");
                    let left = Operand { source: dropped, across: Across::Rows };
                    inputs.push(Input { left, depth: width, factors: vec![factor] });
                    Side::Low(inputs.len() - 1, 0)
                }
            };
            terms.push(Term { side, right: Operand { source: b, across: Across::Rows } });
        }
        let columns = layer.weight.rows();
        let base = layer.bias.map_or(TargetBase::Zero, TargetBase::Bias);
        let output = SharedSlice::new(&mut *output.y);
        sums.push(Output { terms, columns, target: Target { output, offset: 0, stride: columns, scale: 1.0, base } });
    }
    sum_of_products(kernel, tokens, &inputs, &sums);
}

/// What a layer's backward pass reads and writes.
#[derive(Debug)]
pub struct LinearGradient<'a, E> {
    /// The gradient of `y`, `[tokens, out]`.
    pub dy: &'a [E],
    /// Receives `scale · dy·B` of every pair of factors, `[tokens, rank]`: what the gradient of `A` is made of.
    pub lows: Vec<&'a mut [f32]>,
    /// For every pair of factors where its gradient by what it read goes, `[tokens, in]`, in place of `dx`; empty where
    /// none had an input of its own. What dropout took is still to be taken from it.
    pub dropped: Vec<Option<&'a mut [E]>>,
}

/// Where the gradient of an input goes.
#[derive(Debug)]
pub enum InputGradient<'a, E> {
    /// Nobody asks for it; only the low sides are computed.
    None,
    /// `dx = …`.
    Overwrite(&'a mut [E]),
    /// `dx += …`.
    Accumulate(&'a mut [E]),
}

/// The backward pass of [`linear_forward`]: `dx = Σ_layers dy·W + Σ_f low_f·A_f`, in one sum.
///
/// # Panics
/// As [`linear_forward`].
pub fn linear_backward<E: Element>(
    tokens: usize,
    layers: &[LinearLayer<'_>],
    gradients: &mut [LinearGradient<'_, E>],
    dx: InputGradient<'_, E>,
) {
    assert_eq!(layers.len(), gradients.len(), "one gradient for each layer");
    let Some(first) = layers.first() else { return };
    let kernel = kernel_of(layers);
    let width = first.weight.columns();
    let stored = stored(layers);
    let sources: Vec<Strided<'_, E>> = layers
        .iter()
        .zip(&*gradients)
        .map(|(layer, gradient)| Strided { data: gradient.dy, row_stride: layer.weight.rows() })
        .collect();
    let (mut inputs, mut terms, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (layer, gradient)) in layers.iter().zip(gradients).enumerate() {
        layer.check();
        let depth = layer.weight.rows();
        assert_eq!(layer.weight.columns(), width, "layers over one input are of one width");
        assert_eq!(gradient.dy.len(), tokens * depth, "dy is [tokens, out]");
        assert_eq!(gradient.lows.len(), layer.factors.len(), "one low side for each pair of factors");
        terms.push(Term { side: Side::Input(i), right: Operand { source: layer.weight, across: Across::Columns } });
        let mut factors = Vec::with_capacity(layer.factors.len());
        let mut dropped = gradient.dropped.iter_mut();
        for (f, (pair, low)) in layer.factors.iter().zip(&mut gradient.lows).enumerate() {
            assert_eq!(low.len(), tokens * pair.rank, "a low side is [tokens, rank]");
            let (a, b) = &stored[i][f];
            factors.push(Factor {
                right: Operand { source: b, across: Across::Columns },
                rank: pair.rank,
                scale: pair.scale,
                low: SharedSlice::new(low),
            });
            let term = Term { side: Side::Low(i, f), right: Operand { source: a, across: Across::Columns } };
            match dropped.next().and_then(Option::as_mut) {
                None => terms.push(term),
                Some(own) => {
                    assert_eq!(own.len(), tokens * width, "the gradient of what dropout left is [tokens, in]");
                    sums.push(output(vec![term], width, own, TargetBase::Zero));
                }
            }
        }
        inputs.push(Input { left: Operand { source: &sources[i], across: Across::Rows }, depth, factors });
    }
    match dx {
        InputGradient::None => {}
        InputGradient::Overwrite(dx) => {
            assert_eq!(dx.len(), tokens * width, "dx is [tokens, in]");
            sums.push(output(terms, width, dx, TargetBase::Zero));
        }
        InputGradient::Accumulate(dx) => {
            assert_eq!(dx.len(), tokens * width, "dx is [tokens, in]");
            sums.push(output(terms, width, dx, TargetBase::Output));
        }
    }
    sum_of_products(kernel, tokens, &inputs, &sums);
}

fn output<'a, E>(terms: Vec<Term<'a>>, columns: usize, to: &'a mut [E], base: TargetBase<'a>) -> Output<'a, E> {
    let target = Target { output: SharedSlice::new(to), offset: 0, stride: columns, scale: 1.0, base };
    Output { terms, columns, target }
}

fn kernel_of(layers: &[LinearLayer<'_>]) -> Kernel {
    let mut kernels = layers.iter().map(|layer| layer.weight.kernel(Path::current()));
    let kernel = kernels.next().unwrap_or_else(|| Kernel::f32(Path::current()));
    assert!(kernels.all(|other| other == kernel), "layers over one input multiply in one arithmetic");
    kernel
}

type Stored<'a> = (Strided<'a>, Strided<'a>);

/// A and B of every pair of factors of every layer, as they lie.
fn stored<'a>(layers: &[LinearLayer<'a>]) -> Vec<Vec<Stored<'a>>> {
    let of = |layer: &LinearLayer<'a>| {
        let inputs = layer.weight.columns();
        let pair = |f: &LowRankFactors<'a>| {
            (Strided { data: f.a, row_stride: inputs }, Strided { data: f.b, row_stride: f.rank })
        };
        layer.factors.iter().map(pair).collect()
    };
    layers.iter().map(of).collect()
}

/// Columns of one job of [`factor_gradient`].
const COLUMNS: usize = 64;
/// Rows of a factor whose sums stay in registers.
const RANKS: usize = 4;

/// The gradient of a factor, `gradient = lowᵀ·x` `[rank, width]`, from `low` `[tokens, rank]` and `x` `[tokens, width]`.
///
/// With `low = scale · dy·B` and the layer's input it is the gradient of `A`; with `low = scale · x·Aᵀ` and `dy` it is
/// the gradient of `Bᵀ`. In f32, whatever the element.
///
/// # Panics
/// When a slice does not have its length.
pub fn factor_gradient<E: Element>(low: &[f32], rank: usize, x: &[E], width: usize, gradient: &mut [f32]) {
    assert_eq!(gradient.len(), rank * width, "the gradient is [rank, width]");
    if gradient.is_empty() {
        return;
    }
    let tokens = low.len() / rank;
    assert_eq!(low.len(), tokens * rank, "low is [tokens, rank]");
    assert_eq!(x.len(), tokens * width, "x is [tokens, width]");
    let path = Path::current();
    let parallel = tokens * width * rank >= 1 << 17 && rayon::current_num_threads() > 1;
    let to = SharedSlice::new(gradient);
    for_each(width.div_ceil(COLUMNS), parallel, |job| {
        let first = job * COLUMNS;
        let columns = first..width.min(first + COLUMNS);
        let mut sums = vec![[0f32; COLUMNS]; rank];
        column_sums(path, low, x, width, columns.clone(), &mut sums);
        for (k, sums) in sums.iter().enumerate() {
            // SAFETY: jobs differ in their columns.
            unsafe { to.slice(k * width + first, columns.len()) }.copy_from_slice(&sums[..columns.len()]);
        }
    });
}

multiversion!(fn column_sums<E: Element>(
    low: &[f32],
    x: &[E],
    width: usize,
    columns: std::ops::Range<usize>,
    sums: &mut [[f32; COLUMNS]],
) = column_sums_body);

#[inline(always)]
fn column_sums_body<const FMA: bool, E: Element>(
    low: &[f32],
    x: &[E],
    width: usize,
    columns: std::ops::Range<usize>,
    sums: &mut [[f32; COLUMNS]],
) {
    let rank = sums.len();
    for (block, sums) in sums.chunks_mut(RANKS).enumerate() {
        let mut held = [[0f32; COLUMNS]; RANKS];
        for (x, low) in x.chunks_exact(width).zip(low.chunks_exact(rank)) {
            let mut wide = [0f32; COLUMNS];
            let x = &x[columns.clone()];
            if let Ok(x) = <&[E; COLUMNS]>::try_from(x) {
                wide = std::array::from_fn(|j| x[j].to_f32());
            } else {
                wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.to_f32());
            }
            let low = &low[block * RANKS..];
            let factors: [f32; RANKS] = std::array::from_fn(|k| low.get(k).copied().unwrap_or(0.0));
            for (held, factor) in held.iter_mut().zip(factors) {
                for (sum, x) in held.iter_mut().zip(wide) {
                    *sum = multiply_add::<FMA>(factor, x, *sum);
                }
            }
        }
        sums.copy_from_slice(&held[..sums.len()]);
    }
}
