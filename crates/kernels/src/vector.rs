//! Plain-loop building blocks that the compiler vectorises inside a multiversioned function.

use crate::dense::Write;
use crate::element::Element;

/// Partial sums of a reduction: enough for a vector of any path, always the same, so that a sum's order is fixed.
const LANES: usize = 16;

/// Elements that one job of an element-wise loop takes; fixed, and few enough to stay in the second-level cache.
pub(crate) const CHUNK: usize = 1 << 13;
/// Jobs that a thread takes at least (`with_min_len`): fewer than twice as many run on the caller's thread, which is
/// cheaper than handing them over.
pub(crate) const LEAST_JOBS: usize = 2;

/// `a · b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to about 1 ulp for any x whose result is a normal number; 0 below that, infinity above.
///
/// Branch-free: 2^n · e^r with |r| ≤ ln 2 / 2 and a polynomial of degree 6 (Cephes' `expf`).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    // Beyond these limits the result is 0 or infinity anyway; the selects below make it exact.
    let inner = x.clamp(-87.3, 88.72);
    let shifted = multiply_add::<FMA>(inner, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FMA>(n, -LN2_LOW, multiply_add::<FMA>(n, -LN2_HIGH, inner));
    let mut p = 1.987_569_1e-4;
    p = multiply_add::<FMA>(p, r, 1.398_199_9e-3);
    p = multiply_add::<FMA>(p, r, 8.333_452e-3);
    p = multiply_add::<FMA>(p, r, 4.166_579_6e-2);
    p = multiply_add::<FMA>(p, r, 0.166_666_65);
    p = multiply_add::<FMA>(p, r, 0.5);
    let p = multiply_add::<FMA>(p * r, r, r + 1.0);
    // 2^n in two factors: n may be 128, which alone is infinite.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let y = p * power_of_two(half) * power_of_two(n - half);
    if x < -87.3 {
        0.0
    } else if x > 88.72 {
        f32::INFINITY
    } else {
        y
    }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// Rows of `width` elements that one job takes.
pub(crate) fn rows_a_job(width: usize) -> usize {
    CHUNK.div_ceil(width)
}

/// Overwrites `to` with the values, or adds them to it.
#[inline(always)]
pub(crate) fn store<E: Element>(write: Write, values: impl Iterator<Item = f32>, to: &mut [E]) {
    match write {
        Write::Overwrite => {
            for (to, value) in to.iter_mut().zip(values) {
                *to = E::from_f32(value);
            }
        }
        Write::Accumulate => {
            for (to, value) in to.iter_mut().zip(values) {
                *to = E::from_f32(to.to_f32() + value);
            }
        }
    }
}

/// Σ term(x), in `LANES` partial sums.
#[inline(always)]
pub(crate) fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += term(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(chunks.remainder()) {
        *sum += term(x);
    }
    fold(sums, |a, b| a + b)
}

/// Σ x·y, in `LANES` partial sums.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(x: &[impl Element], y: &[impl Element]) -> f32 {
    let mut sums = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum = multiply_add::<FMA>(x.to_f32(), y.to_f32(), *sum);
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(x_rest).zip(y_rest) {
        *sum = multiply_add::<FMA>(x.to_f32(), y.to_f32(), *sum);
    }
    fold(sums, |a, b| a + b)
}

/// The largest element, -∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (largest, &x) in largest.iter_mut().zip(chunk) {
            *largest = larger(x, *largest);
        }
    }
    for (largest, &x) in largest.iter_mut().zip(chunks.remainder()) {
        *largest = larger(x, *largest);
    }
    fold(largest, larger)
}

/// Combines the lanes pairwise, by halves. Never inlined: the compiler would lay out the loops before it by the pairs, and
/// they would no longer be vectors.
#[inline(never)]
fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_over_its_whole_range() {
        for i in -87_000..=88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            for y in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2.5e-7, "exp({x}) = {y}, not {exact}");
            }
        }
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<true>(-1e4), 0.0);
        assert_eq!(exp::<true>(1e4), f32::INFINITY);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_take_every_element() {
        for len in 0..70 {
            let x: Vec<f32> = (0..len).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            assert_eq!(sum(&x, |x| x), x.iter().sum::<f32>());
            assert_eq!(dot::<false>(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
