//! Conformance: every fast operation against the reference composed of candle operations, forward and backward, over random
//! shapes and in both element types.

use super::{
    AttentionShape, Block, ClassifierHead, HeadActivation, HeadTargets, IGNORED, KvCache, NormKind, NormWeights,
    Offsets, Ops, OpsKind, Pass, Positions, TrainedLinear, Value, Workspace,
};
use crate::Error;
use crate::adapter::{Adapters, Attached, Normal, Trained};
use crate::nn::Linear;
use crate::parameters::{Gradients, ParameterId, Parameters};
use crate::quant;
use fedpipe_core::{BaseFormat, LowRank, Matrix, Seed, WeightId};
use fedpipe_kernels::{Activation, FrozenMatrix, Mask, RotaryTable};
use proptest::prelude::*;
use std::rc::Rc;
use std::sync::Arc;

/// Deterministic values of about unit size.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut normal = Normal::new(Seed(seed));
    (0..count).map(|_| normal.next() as f32).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::new(rows, cols, values(rows * cols, seed)).unwrap()
}

fn offsets(lengths: &[usize]) -> Offsets {
    std::iter::once(0)
        .chain(lengths.iter().scan(0, |sum, l| {
            Some({
                *sum += l;
                *sum
            })
        }))
        .collect()
}

/// A model of one operation over `inputs`, with parameters and adapters of its own.
struct Case<'a> {
    parameters: Parameters,
    adapters: Adapters,
    inputs: Vec<ParameterId>,
    #[expect(clippy::type_complexity, reason = "an operation over its inputs")]
    op: Box<dyn Fn(&mut dyn Ops<'a>, &[Value]) -> Result<Vec<Value>, Error> + 'a>,
}

/// The outputs, and the gradient of every parameter for fixed upstream gradients.
fn run<'a>(case: &'a Case<'a>, workspace: &Workspace) -> Vec<Vec<f32>> {
    let mut gradients = Gradients::new(&case.parameters);
    let mut ops = workspace.ops(&case.parameters, &case.adapters, Pass::Training).unwrap();
    let inputs: Vec<Value> = case.inputs.iter().map(|&id| ops.leaf(id).unwrap()).collect();
    let ys = (case.op)(&mut *ops, &inputs).unwrap();
    let mut all: Vec<Vec<f32>> = ys.iter().map(|y| ops.read(y).unwrap()).collect();
    let upstream: Vec<Vec<f32>> = ys.iter().zip(99..).map(|(y, seed)| values(y.rows() * y.columns(), seed)).collect();
    ops.backward_from(&ys, &upstream, &mut gradients).unwrap();
    all.extend(case.parameters.iter().map(|(id, _)| gradients.get(id).unwrap_or(&[]).to_vec()));
    all
}

/// Relative to the largest value, over the outputs and every gradient.
fn assert_close(reference: &[Vec<f32>], fast: &[Vec<f32>], tolerance: f32) {
    for (part, (reference, fast)) in reference.iter().zip(fast).enumerate() {
        assert_eq!(reference.len(), fast.len(), "part {part}");
        let size = reference.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
        let worst = reference.iter().zip(fast).map(|(r, f)| (r - f).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance * size, "part {part}: {worst} off at values up to {size}");
    }
}

/// The fast operation against the reference, kept and recomputed, twice over the same buffers.
fn compare<'a>(case: &'a Case<'a>, format: BaseFormat, tolerance: f32) {
    let reference = run(case, &Workspace::new(OpsKind::Reference, format, false));
    for recompute in [false, true] {
        let workspace = Workspace::new(OpsKind::Fast, format, recompute);
        let fast = run(case, &workspace);
        assert_close(&reference, &fast, tolerance);
        assert!(run(case, &workspace) == fast, "a second pass over used buffers gives the same bits");
    }
}

fn inputs(shapes: &[(usize, usize)]) -> (Parameters, Vec<ParameterId>) {
    let mut parameters = Parameters::default();
    let ids = shapes.iter().enumerate().map(|(i, &(rows, cols))| parameters.add(matrix(rows, cols, 3 + i as u64)));
    let ids = ids.collect();
    (parameters, ids)
}

/// What the fast operations see is rounded; so that only their own rounding is compared, round first.
fn rounded(parameters: &mut Parameters, format: BaseFormat) {
    if format == BaseFormat::Bf16 {
        for (_, m) in parameters.iter_mut() {
            m.data_mut().iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
        }
    }
}

/// Over activations alone: f32, and bf16 with its relative error of 2⁻⁹ at every step.
fn elementwise<'a>(
    shapes: &[(usize, usize)],
    tolerances: [f32; 2],
    op: impl Fn(&mut dyn Ops<'a>, &[Value]) -> Result<Vec<Value>, Error> + Clone + 'a,
) {
    for (format, tolerance) in [BaseFormat::F32, BaseFormat::Bf16].into_iter().zip(tolerances) {
        let (mut parameters, inputs) = inputs(shapes);
        rounded(&mut parameters, format);
        let case = Case { parameters, adapters: Adapters::none(), inputs, op: Box::new(op.clone()) };
        // The case outlives the run; 'a is that of what `op` captures.
        let case: &'a Case<'a> = Box::leak(Box::new(case));
        compare(case, format, tolerance);
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// bf16 rounds x and W to 8 bits, and everything on the way: relative errors of 2⁻⁹ each, of values up to the largest.
fn tolerance(format: BaseFormat) -> f32 {
    // Where a thin product cancels, what is left is the rounding of its terms.
    if format == BaseFormat::F32 { 2e-5 } else { 6e-2 }
}

fn format() -> impl Strategy<Value = BaseFormat> {
    proptest::sample::select(BaseFormat::ALL.to_vec())
}

fn linear(id: &str, format: BaseFormat, inputs: usize, outputs: usize, bias: bool, seed: u64) -> Linear {
    let weight = quant::frozen(format, outputs, inputs, &values(outputs * inputs, seed)).unwrap();
    Linear::new(WeightId::from(id), weight, bias.then(|| values(outputs, seed + 1).into()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Three layers over one input: with trained and fixed factors, with fixed ones alone, with none.
    #[test]
    fn linears_agree(
        tokens in 1usize..40, width in 1usize..70, outputs in 1usize..70, rank in 1usize..9, fixed in 1usize..5,
        format in format(), bias: bool, dropout: bool, tracked: bool,
    ) {
        let layers: &'static [Linear; 3] =
            leak(["a", "b", "c"].map(|id| linear(id, format, width, outputs, bias, 10 + u64::from(id.as_bytes()[0]))));
        let (mut parameters, ids) = inputs(&[(tokens, width)]);
        let trained = Trained { a: parameters.add(matrix(rank, width, 6)), b: parameters.add(matrix(outputs, rank, 7)) };
        let fixed = Arc::new(LowRank::new(matrix(fixed, width, 4), matrix(outputs, fixed, 5)).unwrap());
        let mut adapters = Adapters::none();
        let attach = |trained| Attached { trained, fixed: Some(fixed.clone()), scaling: 1.5 };
        adapters.insert(WeightId::from("a"), attach(Some(trained)));
        adapters.insert(WeightId::from("b"), attach(None));
        adapters.set_dropout(if dropout { 0.3 } else { 0.0 }, Seed(5));
        let case = Case {
            parameters, adapters, inputs: ids,
            op: Box::new(move |ops: &mut dyn Ops<'static>, x: &[Value]| {
                let start = if tracked {
                    x[0].clone()
                } else {
                    let bytes = ops.bytes(&x[0])?;
                    ops.constant(tokens, width, &bytes)?
                };
                ops.linears(&start, &layers.each_ref())
            }),
        };
        compare(leak(case), format, tolerance(format));
    }

    /// Whole rows and each of their heads; with the sum read too, as a pre-norm block does, and without.
    #[test]
    fn norms_agree(tokens in 1usize..30, width in 8usize..80, heads in 1usize..4, rms: bool) {
        // Fewer may happen to be almost equal, and what is divided by their deviation is then rounding alone.
        let weights = if rms { rms_norm(width) } else { norm(width) };
        let shape = (tokens, heads * width);
        elementwise(&[shape, shape], [2e-4, 6e-2], move |ops, x| Ok(vec![ops.norm(&x[0], Some(&x[1]), weights)?]));
        elementwise(&[shape], [2e-4, 6e-2], move |ops, x| Ok(vec![ops.norm(&x[0], None, weights)?]));
        let both = move |ops: &mut dyn Ops<'static>, x: &[Value]| Ok(ops.sum_and_norm(&x[0], &x[1], weights)?.to_vec());
        elementwise(&[shape, shape], [2e-4, 6e-2], both);
        // The gradient of a sum that alone is read.
        elementwise(&[shape, shape], [1e-5, 1e-2], move |ops, x| {
            Ok(vec![ops.sum_and_norm(&x[0], &x[1], weights)?[0].clone()])
        });
    }

    #[test]
    fn sums_agree(tokens in 1usize..30, hidden in 1usize..80) {
        elementwise(&[(tokens, hidden), (tokens, hidden)], [1e-6, 1e-2], |ops, x| Ok(vec![ops.add(&x[0], &x[1])?]));
        elementwise(&[(tokens, hidden)], [1e-6, 1e-2], |ops, x| Ok(vec![ops.add(&x[0], &x[0])?]));
    }

    #[test]
    fn rotary_embeddings_agree(positions in prop::collection::vec(0u32..50, 1..30), heads in 1usize..4, half in 1usize..20) {
        let table = Arc::new(RotaryTable::new(2 * half, 50, 10_000.0));
        let positions: Positions = positions.into();
        elementwise(&[(positions.len(), 2 * half * heads)], [1e-5, 1e-2], move |ops, x| {
            Ok(vec![ops.rotary(&x[0], &table, &positions)?])
        });
    }

    #[test]
    fn splits_agree(tokens in 1usize..30, widths in prop::collection::vec(1usize..20, 1..5), read in 1usize..5) {
        let total = widths.iter().sum();
        // Parts that nobody reads have no gradient.
        elementwise(&[(tokens, total)], [1e-6, 1e-2], move |ops, x| {
            let mut parts = ops.split(&x[0], &widths)?;
            parts.truncate(read);
            Ok(parts)
        });
    }

    #[test]
    fn activations_agree(tokens in 1usize..30, hidden in 1usize..80) {
        for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            elementwise(&[(tokens, hidden)], [1e-5, 1e-2], move |ops, x| Ok(vec![ops.activation(&x[0], kind)?]));
            let gate = move |ops: &mut dyn Ops<'static>, x: &[Value]| Ok(vec![ops.gate(&x[0], &x[1], kind)?]);
            elementwise(&[(tokens, hidden), (tokens, hidden)], [1e-5, 1e-2], gate);
        }
        elementwise(&[(tokens, hidden)], [1e-5, 2e-2], |ops, x| Ok(vec![ops.tanh(&x[0])?]));
    }

    #[test]
    fn attention_agrees(
        lengths in prop::collection::vec((0usize..30, 1usize..30), 1..6), kv_heads in 1usize..3, group in 1usize..3,
        head_dim in 1usize..20, mask in prop::sample::select(vec![Mask::Full, Mask::Causal, Mask::Window(6), Mask::Window(15)]),
    ) {
        let queries = offsets(&lengths.iter().map(|l| l.0.min(l.0 + l.1)).collect::<Vec<_>>());
        let keys = offsets(&lengths.iter().map(|l| l.0 + l.1).collect::<Vec<_>>());
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, mask };
        let (q, k) = (*queries.last().unwrap(), *keys.last().unwrap());
        if q > 0 {
            let shapes = [(q, kv_heads * group * head_dim), (k, kv_heads * head_dim), (k, kv_heads * head_dim)];
            elementwise(&shapes, [1e-4, 3e-2], move |ops, x| {
                Ok(vec![ops.attention([&x[0], &x[1], &x[2]], &queries, &keys, shape)?])
            });
        }
    }

    /// Rows may be read more than once, and the value elsewhere too.
    #[test]
    fn selection_agrees(rows in prop::collection::vec(0usize..9, 1..20), width in 1usize..30) {
        let rows: Offsets = rows.into();
        elementwise(&[(9, width)], [1e-6, 2e-2], move |ops, x| Ok(vec![ops.select(&x[0], &rows)?]));
    }

    #[test]
    fn classification_agrees(
        sequences in 1usize..12, hidden in 1usize..40, classes in 2usize..9, bias: bool,
        inner in prop::option::of((1usize..40, prop::sample::select(vec![HeadActivation::Tanh, HeadActivation::Relu]))),
    ) {
        for (format, tolerance) in [(BaseFormat::F32, 1e-4), (BaseFormat::Bf16, 1e-2)] {
            let (mut parameters, ids) = inputs(&[(sequences, hidden)]);
            rounded(&mut parameters, format);
            let mut layer = |inputs, outputs, seed| TrainedLinear {
                weight: parameters.add(matrix(outputs, inputs, seed)),
                bias: bias.then(|| parameters.add(matrix(1, outputs, seed + 1))),
            };
            let head = ClassifierHead {
                inner: inner.map(|(width, activation)| (layer(hidden, width, 6), activation)),
                output: layer(inner.map_or(hidden, |(width, _)| width), classes, 8),
            };
            let labels: Vec<u32> = (0..sequences as u32).map(|i| i * 7 % classes as u32).collect();
            check_head(&parameters, ids[0], head, HeadTargets::Classes(&labels), format, tolerance);
        }
    }

    /// Spans of sequences of any length: the logits, the loss and every gradient.
    #[test]
    fn spans_agree(lengths in prop::collection::vec(1usize..30, 1..6), hidden in 1usize..40, at in 0usize..1000) {
        let tokens = lengths.iter().sum();
        for (format, tolerance) in [(BaseFormat::F32, 1e-4), (BaseFormat::Bf16, 1e-2)] {
            let (mut parameters, ids) = inputs(&[(tokens, hidden)]);
            rounded(&mut parameters, format);
            let head = ClassifierHead::linear(parameters.add(matrix(2, hidden, 3)), Some(parameters.add(matrix(1, 2, 4))));
            let ends = |&length: &usize| [(at % length) as u32, (at / 7 % length) as u32];
            let (offsets, places) = (offsets(&lengths), lengths.iter().map(ends).collect::<Vec<_>>());
            let targets = HeadTargets::Spans { offsets: &offsets, places: &places };
            check_head(&parameters, ids[0], head, targets, format, tolerance);
        }
    }

    /// A head of any format over tokens of which some do not count: the loss, its gradient, and the logits.
    #[test]
    fn the_vocabulary_loss_agrees(
        tokens in 1usize..40, hidden in 1usize..40, vocabulary in 2usize..90, format in format(), counted in 0usize..4,
    ) {
        let (mut parameters, ids) = inputs(&[(tokens, hidden)]);
        rounded(&mut parameters, format);
        let head = quant::frozen(format, vocabulary, hidden, &values(vocabulary * hidden, 8)).unwrap();
        let target = |i: usize| if i % 4 < counted { (i * 7 % vocabulary) as u32 } else { IGNORED };
        let targets: Vec<u32> = (0..tokens).map(target).collect();
        let none = Adapters::none();
        let of = |kind| {
            let mut gradients = Gradients::new(&parameters);
            let mut ops = Workspace::new(kind, format, false).ops(&parameters, &none, Pass::Training).unwrap();
            let x = ops.leaf(ids[0]).unwrap();
            let logits = ops.logits(&x, &head).unwrap();
            let found = ops.token_loss(&x, &head, &targets).unwrap();
            ops.backward(&mut gradients).unwrap();
            let gradient = gradients.get(ids[0]).map_or(vec![0.0; tokens * hidden], <[f32]>::to_vec);
            vec![logits, vec![found.mean as f32, found.counted as f32], gradient]
        };
        assert_close(&of(OpsKind::Reference), &of(OpsKind::Fast), tolerance(format));
    }

    /// Tokens in pieces of any size, some of them none, against attention to the whole sequences at once.
    #[test]
    fn cached_attention_agrees_with_the_whole(
        pieces in prop::collection::vec(prop::collection::vec(0usize..7, 3), 1..5), kv_heads in 1usize..3,
        group in 1usize..3, head_dim in 1usize..20, format in format(),
        mask in prop::sample::select(vec![Mask::Causal, Mask::Window(1), Mask::Window(5)]),
    ) {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, mask };
        // A pass has a token at least.
        let pieces: Vec<Vec<usize>> = pieces.into_iter().filter(|piece| piece.iter().sum::<usize>() > 0).collect();
        prop_assume!(!pieces.is_empty());
        let totals: Vec<usize> = (0..3).map(|i| pieces.iter().map(|piece| piece[i]).sum()).collect();
        let whole = offsets(&totals);
        let widths = [shape.heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
        let (parameters, none) = (Parameters::default(), Adapters::none());
        for kind in [OpsKind::Reference, OpsKind::Fast] {
            let mut ops = Workspace::new(kind, format, false).ops(&parameters, &none, Pass::Inference).unwrap();
            let bytes_each = Workspace::new(kind, format, false).element_bytes();
            let qkv: Vec<Value> = widths.iter().zip(1..).map(|(&width, seed)| {
                let wide = values(whole[3] * width, seed);
                let bytes: Vec<u8> = if bytes_each == 4 {
                    bytemuck::cast_slice(&wide).to_vec()
                } else {
                    wide.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
                };
                ops.constant(whole[3], width, &bytes).unwrap()
            }).collect();
            let at_once = ops.attention([&qkv[0], &qkv[1], &qkv[2]], &whole, &whole, shape).unwrap();
            let expected = ops.read(&at_once).unwrap();
            let mut found = vec![0.0; expected.len()];
            let mut cache = KvCache::new(3, 1);
            for piece in &pieces {
                let rows: Vec<usize> = (0..3).flat_map(|i| {
                    let first = whole[i] + cache.lengths()[i];
                    first..first + piece[i]
                }).collect();
                let picked: Offsets = rows.clone().into();
                let new: Vec<Value> = qkv.iter().map(|x| ops.select(x, &picked).unwrap()).collect();
                let offsets = offsets(piece);
                let out = ops.cached_attention([&new[0], &new[1], &new[2]], &offsets, (&mut cache, 0), shape).unwrap();
                cache.advance(&offsets);
                for (row, out) in rows.iter().zip(ops.read(&out).unwrap().chunks_exact(widths[0])) {
                    found[row * widths[0]..][..widths[0]].copy_from_slice(out);
                }
            }
            assert_close(&[expected], &[found], if bytes_each == 4 { 1e-5 } else { 1e-2 });
        }
    }

    #[test]
    fn embedding_agrees(tokens in 1usize..40, hidden in 1usize..70, format in format()) {
        let table = |rows: usize, seed| leak(quant::frozen(format, rows, hidden, &values(rows * hidden, seed)).unwrap());
        let (words, places): (&'static FrozenMatrix, &'static FrozenMatrix) = (table(11, 1), table(40, 2));
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 5 % 11).collect();
        let at: Vec<u32> = (0..tokens as u32).collect();
        let (parameters, none) = (Parameters::default(), Adapters::none());
        let of = |kind| {
            let mut ops = Workspace::new(kind, format, false).ops(&parameters, &none, Pass::Inference).unwrap();
            let sum = ops.embed(&[(words, &ids), (places, &at)]).unwrap();
            vec![ops.read(&sum).unwrap()]
        };
        assert_close(&of(OpsKind::Reference), &of(OpsKind::Fast), if format == BaseFormat::F32 { 1e-6 } else { 1e-2 });
    }
}

fn norm(hidden: usize) -> &'static NormWeights {
    let kind = NormKind::Layer { shift: values(hidden, 2).into() };
    leak(NormWeights { scale: values(hidden, 1).into(), kind, epsilon: 1e-5 })
}

fn rms_norm(hidden: usize) -> &'static NormWeights {
    leak(NormWeights { scale: values(hidden, 1).into(), kind: NormKind::Rms, epsilon: 1e-5 })
}

/// Recomputation gives the very bits of a pass that kept everything, dropout and gradients through the input included.
#[test]
fn a_recomputed_block_gives_the_same_bits() {
    let layers: &'static [Linear; 2] =
        leak([linear("a", BaseFormat::Bf16, 24, 24, true, 1), linear("b", BaseFormat::Bf16, 24, 24, true, 2)]);
    let (mut parameters, ids) = inputs(&[(9, 24)]);
    let mut adapters = Adapters::none();
    for id in ["a", "b"] {
        let trained = Trained { a: parameters.add(matrix(3, 24, 6)), b: parameters.add(matrix(24, 3, 7)) };
        adapters.insert(WeightId::from(id), Attached { trained: Some(trained), fixed: None, scaling: 0.5 });
    }
    adapters.set_dropout(0.2, Seed(1));
    let op = move |ops: &mut dyn Ops<'static>, x: &[Value]| {
        let block: Block<'static> = Rc::new(move |ops, x| {
            let y = layers[0].forward(ops, x)?;
            let y = ops.activation(&y, Activation::Gelu)?;
            let y = layers[1].forward(ops, &y)?;
            ops.norm(&y, Some(x), norm(24))
        });
        let y = ops.block(&x[0], &block)?;
        Ok(vec![ops.block(&y, &block)?])
    };
    let case = leak(Case { parameters, adapters, inputs: ids, op: Box::new(op) });
    for format in [BaseFormat::Bf16, BaseFormat::F32] {
        let [kept, again] = [false, true].map(|recompute| run(case, &Workspace::new(OpsKind::Fast, format, recompute)));
        assert!(kept == again && kept[1].iter().any(|g| *g != 0.0));
    }
}

/// Both kinds of operations: logits of a head over the parameter `x`, their loss, and the gradient of every parameter.
fn check_head(
    parameters: &Parameters,
    x: ParameterId,
    head: ClassifierHead,
    targets: HeadTargets<'_>,
    format: BaseFormat,
    tolerance: f32,
) {
    let of = |kind| {
        let mut gradients = Gradients::new(parameters);
        let none = Adapters::none();
        let mut ops = Workspace::new(kind, format, false).ops(parameters, &none, Pass::Training).unwrap();
        let x = ops.leaf(x).unwrap();
        let found = ops.classify(&x, head, targets).unwrap();
        ops.backward(&mut gradients).unwrap();
        let mut all = vec![found.logits, vec![found.loss.unwrap() as f32]];
        all.extend(parameters.iter().map(|(id, _)| gradients.get(id).unwrap().to_vec()));
        all
    };
    assert_close(&of(OpsKind::Reference), &of(OpsKind::Fast), tolerance);
}

/// By hand: logits (0, ln 3), label 0 costs ln 4, label 1 costs ln(4/3); d/dbias is the sum of (softmax − one-hot)/2.
#[test]
fn cross_entropy_is_the_mean_in_nats() {
    let mut parameters = Parameters::default();
    let weight = parameters.add(Matrix::zeros(2, 1));
    let bias = parameters.add(Matrix::new(1, 2, vec![0.0, 3f32.ln()]).unwrap());
    let head = ClassifierHead::linear(weight, Some(bias));
    let none = Adapters::none();
    for kind in [OpsKind::Reference, OpsKind::Fast] {
        let mut gradients = Gradients::new(&parameters);
        let workspace = Workspace::new(kind, BaseFormat::F32, false);
        let mut ops = workspace.ops(&parameters, &none, Pass::Training).unwrap();
        let x = ops.constant(2, 1, bytemuck::cast_slice(&[1f32, 1.0])).unwrap();
        let loss = ops.classify(&x, head, HeadTargets::Classes(&[0, 1])).unwrap().loss.unwrap();
        assert!((loss - (4f64.ln() + (4.0f64 / 3.0).ln()) / 2.0).abs() < 1e-6);
        ops.backward(&mut gradients).unwrap();
        for (found, expected) in gradients.get(bias).unwrap().iter().zip([-0.25, 0.25]) {
            assert!((found - expected).abs() < 1e-6);
        }
    }
}

/// What does not fit is an error that says so, whatever the operation.
#[test]
fn misfits_are_errors() {
    let layer = leak(linear("a", BaseFormat::F32, 3, 2, false, 1));
    let (mut parameters, ids) = inputs(&[(2, 4)]);
    let head = ClassifierHead::linear(parameters.add(matrix(2, 4, 1)), Some(parameters.add(matrix(1, 2, 1))));
    let none = Adapters::none();
    for kind in [OpsKind::Reference, OpsKind::Fast] {
        let workspace = Workspace::new(kind, BaseFormat::F32, false);
        let mut ops = workspace.ops(&parameters, &none, Pass::Training).unwrap();
        let x = ops.leaf(ids[0]).unwrap();
        let message = |result: Result<Value, Error>| result.unwrap_err().to_string();
        assert!(message(layer.forward(&mut *ops, &x)).contains("a takes inputs of width 3, not 4"));
        assert!(message(ops.norm(&x, None, norm(3))).contains("norm of width 3"));
        let odd = ops.constant(1, 4, &[0; 16]).unwrap();
        assert!(message(ops.add(&x, &odd)).contains("a sum of"));
        assert!(message(ops.gate(&x, &odd, Activation::Silu)).contains("a gated unit of"));
        let table = Arc::new(RotaryTable::new(4, 3, 1e4));
        assert!(message(ops.rotary(&x, &table, &[0, 3].into())).contains("at 2 of 3 positions"));
        assert!(message(ops.rotary(&x, &table, &[0].into())).contains("rotary"));
        assert!(ops.split(&x, &[3]).unwrap_err().to_string().contains("columns [3]"));
        let words = FrozenMatrix::f32(3, 4, &[0.0; 12]);
        assert!(ops.token_loss(&x, &words, &[0, 3]).unwrap_err().to_string().contains("target 3 of a vocabulary of 3"));
        assert!(ops.token_loss(&x, &words, &[0]).unwrap_err().to_string().contains("1 targets for 2 tokens"));
        assert!(ops.logits(&x, &FrozenMatrix::f32(1, 3, &[0.0; 3])).is_err());
        let (full, mut cache) =
            (AttentionShape { mask: Mask::Causal, ..AttentionShape::full(1, 4) }, KvCache::new(1, 1));
        let constant = ops.constant(2, 4, &[0; 32]).unwrap();
        let two = offsets(&[2]);
        assert!(message(ops.cached_attention([&odd, &x, &x], &two, (&mut cache, 0), full)).contains("cached"));
        let of = [&constant, &constant, &constant];
        assert!(
            message(ops.cached_attention(of, &two, (&mut cache, 1), full)).contains("layer 1 of a cache of 1 layers")
        );
        assert!(message(ops.cached_attention(of, &two, (&mut KvCache::new(2, 1), 0), full)).contains("2 sequences"));
        assert!(message(ops.select(&x, &vec![2].into())).contains("row 2"));
        let shape = AttentionShape::full(3, 1);
        assert!(message(ops.attention([&x, &x, &x], &offsets(&[2]), &offsets(&[2]), shape)).contains("attention"));
        assert!(
            ops.classify(&x, head, HeadTargets::Classes(&[0, 2]))
                .unwrap_err()
                .to_string()
                .contains("label 2 of 2 classes")
        );
        let beyond = HeadTargets::Spans { offsets: &offsets(&[2]), places: &[[0, 2]] };
        assert!(ops.classify(&x, head, beyond).unwrap_err().to_string().contains("at row 2 of 2"));
        let many = HeadTargets::Spans { offsets: &offsets(&[2]), places: &[[0, 0], [0, 0]] };
        assert!(ops.classify(&x, head, many).unwrap_err().to_string().contains("2 spans of 1 sequences"));
        assert!(ops.classify(&x, head, HeadTargets::Classes(&[0])).unwrap_err().to_string().contains("1 labels for 2"));
    }
}
