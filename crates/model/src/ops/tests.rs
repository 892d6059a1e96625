//! Conformance: every fast operation against the reference composed of candle operations, forward and backward.

use super::{AttentionShape, LoraFactors, NormWeights, Ops, cross_entropy};
use crate::quant;
use candle_core::{DType, Device, Result, Tensor, Var};
use fedpipe_core::{BaseFormat, LowRank, Matrix, Seed};
use proptest::prelude::*;
use std::sync::Arc;

/// Deterministic values of about unit size.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut normal = crate::adapter::Normal::new(Seed(seed));
    (0..count).map(|_| normal.next() as f32).collect()
}

fn variable(rows: usize, cols: usize, seed: u64) -> Var {
    Var::from_vec(values(rows * cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

/// The output of `op` and the gradients of `inputs` for a fixed upstream gradient.
fn run(inputs: &[Var], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    let upstream = Tensor::from_vec(values(y.elem_count(), 99), y.shape(), &Device::Cpu).unwrap();
    let gradients = (&y * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let mut all = vec![y.flatten_all().unwrap().to_vec1().unwrap()];
    for input in inputs {
        all.push(gradients.get(input).unwrap().flatten_all().unwrap().to_vec1().unwrap());
    }
    all
}

/// Largest difference relative to the largest value, over the output and every gradient.
fn compare(inputs: &[Var], tolerance: f32, op: impl Fn(Ops, &[Tensor]) -> Result<Tensor>) {
    let reference = run(inputs, |t| op(Ops::Reference, t));
    let fast = run(inputs, |t| op(Ops::Fast, t));
    for (part, (reference, fast)) in reference.iter().zip(&fast).enumerate() {
        let size = reference.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        let worst = reference.iter().zip(fast).map(|(r, f)| (r - f).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance * size, "part {part} (0 is the output): {worst} off at values up to {size}");
    }
}

/// bf16 rounds x and W to 8 bits: relative error 2⁻⁸ each, averaging out over a row.
fn tolerance(format: BaseFormat) -> f32 {
    if format == BaseFormat::F32 { 2e-5 } else { 2e-2 }
}

fn format() -> impl Strategy<Value = BaseFormat> {
    proptest::sample::select(BaseFormat::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_agrees(tokens in 1usize..40, inputs in 1usize..70, outputs in 1usize..70, format in format(), bias: bool) {
        let weight = Arc::new(quant::frozen(format, outputs, inputs, &values(outputs * inputs, 1)).unwrap());
        let bias: Option<Arc<[f32]>> = bias.then(|| values(outputs, 2).into());
        compare(&[variable(tokens, inputs, 3)], tolerance(format), |ops, t| ops.linear(&t[0], &weight, bias.as_ref()));
    }

    #[test]
    fn lora_linear_agrees(
        tokens in 1usize..40, inputs in 1usize..70, outputs in 1usize..70, rank in 1usize..9,
        fixed in 0usize..5, format in format(),
    ) {
        let weight = Arc::new(quant::frozen(format, outputs, inputs, &values(outputs * inputs, 1)).unwrap());
        let fixed = (fixed > 0).then(|| {
            let a = Matrix::new(fixed, inputs, values(fixed * inputs, 4)).unwrap();
            let b = Matrix::new(outputs, fixed, values(outputs * fixed, 5)).unwrap();
            Arc::new(LowRank::new(a, b).unwrap())
        });
        let inputs = [variable(tokens, inputs, 3), variable(rank, inputs, 6), variable(outputs, rank, 7)];
        compare(&inputs, tolerance(format), |ops, t| {
            let lora = LoraFactors { a: t[1].clone(), b: t[2].clone(), fixed: fixed.clone(), scaling: 1.5 };
            ops.lora_linear(&t[0], &weight, None, &lora)
        });
    }

    #[test]
    fn add_layer_norm_agrees(tokens in 1usize..30, hidden in 2usize..80) {
        let weights = NormWeights { scale: values(hidden, 1).into(), shift: values(hidden, 2).into(), epsilon: 1e-5 };
        let inputs = [variable(tokens, hidden, 3), variable(tokens, hidden, 4)];
        compare(&inputs, 1e-4, |ops, t| ops.add_layer_norm(&t[0], &t[1], &weights));
    }

    #[test]
    fn gelu_agrees(tokens in 1usize..30, hidden in 1usize..80) {
        compare(&[variable(tokens, hidden, 3)], 1e-5, |ops, t| ops.gelu(&t[0]));
    }

    #[test]
    fn attention_agrees(lengths in prop::collection::vec(1usize..50, 1..6), heads in 1usize..4, head_dim in 1usize..20) {
        let offsets: Arc<[usize]> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |sum, l| { *sum += l; Some(*sum) }))
            .collect::<Vec<_>>().into();
        let tokens = lengths.iter().sum();
        let shape = AttentionShape { heads, head_dim };
        let inputs = [1, 2, 3].map(|seed| variable(tokens, heads * head_dim, seed));
        compare(&inputs, 1e-4, |ops, t| ops.attention(&t[0], &t[1], &t[2], &offsets, shape));
    }
}

/// By hand: logits (0, ln 3), label 0 costs ln 4, label 1 costs ln(4/3); d/dlogits is (softmax − one-hot)/2.
#[test]
fn cross_entropy_is_the_mean_in_nats() {
    let logits = Var::from_vec(vec![0f32, 3f32.ln(), 0.0, 3f32.ln()], (2, 2), &Device::Cpu).unwrap();
    let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
    let loss = cross_entropy(&logits, &labels).unwrap();
    let expected = (4f32.ln() + (4f32 / 3.0).ln()) / 2.0;
    assert!((loss.to_scalar::<f32>().unwrap() - expected).abs() < 1e-6);
    let gradient: Vec<f32> = loss.backward().unwrap().get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (found, expected) in gradient.iter().zip([-0.375, 0.375, 0.125, -0.125]) {
        assert!((found - expected).abs() < 1e-6);
    }
}

/// Nothing is recorded for backward over inputs that lead to no variable.
#[test]
fn constants_are_not_recorded() {
    let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    let weight = Arc::new(quant::frozen(BaseFormat::F32, 3, 3, &values(9, 1)).unwrap());
    assert!(!Ops::Fast.linear(&x, &weight, None).unwrap().track_op());
    assert!(!Ops::Fast.gelu(&x).unwrap().track_op());
}
