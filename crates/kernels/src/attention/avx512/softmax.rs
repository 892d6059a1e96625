//! The softmax and its gradient, from tiles of scores to the left sides of the next products.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _MM_FROUND_TO_NEG_INF, _MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_NAN, _mm512_add_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps_si512, _mm512_cvtne2ps_pbh, _mm512_div_ps, _mm512_fmadd_ps,
    _mm512_fmsub_ps, _mm512_getexp_ps, _mm512_getmant_ps, _mm512_mask_max_ps, _mm512_maskz_scalef_ps, _mm512_max_ps,
    _mm512_mul_ps, _mm512_reduce_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4,
    _mm512_sub_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::f32::consts::{LN_2, LOG2_E};
use std::mem::transmute;
use std::ops::Range;

use super::layout::pairs;
use super::tile::ROWS;
use super::{LANES, Line, WIDE, Wide, columns_below, load, store, store_lanes};
use crate::element::Element;

/// `2^x` to about 2 ulp; 0 and infinity beyond the range of f32.
///
/// `2^⌊x⌋` is exact; the rest is a polynomial, its maximal relative error on [0, 1] least (8.2e-8) with p(0) = 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn exp2(x: __m512, mask: __mmask16) -> __m512 {
    const FACTORS: [f32; 5] = [9.017_03e-3, 5.579_991_3e-2, 0.240_164_45, 0.693_151_3, 1.0];
    let rest = _mm512_reduce_ps::<_MM_FROUND_TO_NEG_INF>(x);
    let mut p = _mm512_set1_ps(1.867_13e-3);
    for factor in FACTORS {
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(factor));
    }
    _mm512_maskz_scalef_ps(mask, p, x)
}

/// Two vectors of values as lanes: one vector where values are rounded to bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 plain bits.
    unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// What the softmax of a tile's rows leaves besides its numerators.
pub(super) struct Denominators {
    /// 1 / Σ e^(score - largest).
    pub(super) inverses: Line<f32>,
    /// The logarithm of Σ e^score.
    pub(super) logs: Line<f32>,
}

/// From scores `[panels of 32 keys, ROWS, 32]`, not yet scaled, to the numerators of their softmax as rows
/// `[pieces, ROWS, 16]`. Of `visible` keys row `i` sees `seen(i)`; the
/// others get 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn numerators<E: Element>(
    scores: &[Wide<f32>],
    rows: usize,
    visible: usize,
    seen: impl Fn(usize) -> Range<usize>,
    scale: f32,
    to: &mut [Line<u32>],
) -> Denominators {
    // Row by row in one go each step would wait for the one before it.
    let mut held = [_mm512_set1_ps(f32::NEG_INFINITY); LANES];
    for (i, held) in held[..rows].iter_mut().enumerate() {
        let seen = seen(i);
        let mut largest = [*held; 2];
        for panel in seen.start / WIDE..seen.end.div_ceil(WIDE) {
            for ((largest, scores), mask) in largest.iter_mut().zip(&scores[panel * ROWS + i]).zip(masks(&seen, panel))
            {
                *largest = _mm512_mask_max_ps(*largest, mask, *largest, load(scores));
            }
        }
        *held = _mm512_max_ps(largest[0], largest[1]);
    }
    let largest = by_row(held, |a, b| _mm512_max_ps(a, b));
    let factor = _mm512_set1_ps(scale * LOG2_E);
    let mut shifts = [0.0; LANES];
    store(_mm512_mul_ps(largest, factor), &mut shifts);
    for (i, held) in held[..rows].iter_mut().enumerate() {
        let seen = seen(i);
        let shift = _mm512_set1_ps(shifts[i]);
        let mut totals = [_mm512_setzero_ps(); 2];
        for panel in 0..visible.div_ceil(WIDE) {
            let (scores, masks) = (&scores[panel * ROWS + i], masks(&seen, panel));
            let p: [__m512; 2] =
                std::array::from_fn(|half| exp2(_mm512_fmsub_ps(load(&scores[half]), factor, shift), masks[half]));
            totals = [_mm512_add_ps(totals[0], p[0]), _mm512_add_ps(totals[1], p[1])];
            put::<E>(p, panel, i, ROWS, to);
        }
        *held = _mm512_add_ps(totals[0], totals[1]);
    }
    let total = by_row(held, |a, b| _mm512_add_ps(a, b));
    let mut denominators = Denominators { inverses: [0.0; LANES], logs: [0.0; LANES] };
    store(_mm512_div_ps(_mm512_set1_ps(1.0), total), &mut denominators.inverses);
    store(_mm512_fmadd_ps(largest, _mm512_set1_ps(scale), ln(total)), &mut denominators.logs);
    denominators
}

/// Which columns of a panel are among `columns`.
#[inline]
fn masks(columns: &Range<usize>, panel: usize) -> [__mmask16; 2] {
    let below = |column: usize| columns_below(column.saturating_sub(panel * WIDE));
    let mask = below(columns.end) & !below(columns.start);
    [mask as __mmask16, (mask >> LANES) as __mmask16]
}

/// Reduces each of 16 vectors to one lane, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn by_row(mut rows: [__m512; LANES], combine: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // Halves of quarters, quarters, then quarters of vectors; each step leaves half as many vectors.
    for i in 0..8 {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        rows[i] = combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for i in 0..4 {
        let (a, b) = (_mm512_castps_pd(rows[2 * i]), _mm512_castps_pd(rows[2 * i + 1]));
        rows[i] = combine(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for count in [2, 1] {
        for i in 0..count {
            let (a, b) = (rows[2 * i], rows[2 * i + 1]);
            let (even, odd) =
                (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
            rows[i] = combine(even, odd);
        }
    }
    rows[0]
}

/// The natural logarithm of positive numbers, to about 2 ulp of the larger of it and 1.
///
/// `ln x = e·ln 2 + 2·artanh((m - 1) / (m + 1))` with `x = m·2^e` and m in [3/4, 3/2), by five terms of its series.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn ln(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let m = _mm512_getmant_ps::<_MM_MANT_NORM_P75_1P5, _MM_MANT_SIGN_NAN>(x);
    let e = _mm512_getexp_ps(_mm512_div_ps(x, m));
    let s = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one));
    let square = _mm512_mul_ps(s, s);
    let mut p = _mm512_set1_ps(2.0 / 9.0);
    for factor in [2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
        p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(factor));
    }
    _mm512_fmadd_ps(e, _mm512_set1_ps(LN_2), _mm512_mul_ps(p, s))
}

/// Puts a tile's row into rows of lanes `[pieces, stride, 16]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put<E: Element>(values: [__m512; 2], panel: usize, row: usize, stride: usize, to: &mut [Line<u32>]) {
    if E::IS_BF16 {
        store_lanes(rounded(values[0], values[1]), &mut to[panel * stride + row]);
    } else {
        store_lanes(_mm512_castps_si512(values[0]), &mut to[2 * panel * stride + row]);
        store_lanes(_mm512_castps_si512(values[1]), &mut to[(2 * panel + 1) * stride + row]);
    }
}

/// What the softmax's gradient needs of the 32 queries of a panel.
pub(super) struct Queries {
    /// The logarithms of their sums, base 2.
    pub(super) logs: Wide<f32>,
    /// `dout · out`, which equals `Σ p·dp`.
    pub(super) inner: Wide<f32>,
}

/// Where the probabilities `p` and the slopes `ds` of a tile go: as rows from `row` on, and the slopes stacked too.
pub(super) struct Slopes<'a> {
    pub(super) p: &'a mut [Line<u32>],
    pub(super) ds: &'a mut [Line<u32>],
    pub(super) stacked: &'a mut [Wide<u32>],
    /// Rows of a piece.
    pub(super) stride: usize,
    pub(super) panel: usize,
    /// Even.
    pub(super) row: usize,
}

/// From scores, not yet scaled, and `dp`, both `[rows of keys, 32 queries]`, to probabilities `e^(scale·score - log)` and
/// slopes `p·(dp - inner)`. Key `i` is seen by the queries whose bits `seen(i)` has; for the others both become 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) fn slopes<E: Element>(
    scores: &[Wide<f32>],
    dp: &[Wide<f32>],
    seen: impl Fn(usize) -> u32,
    queries: &Queries,
    scale: f32,
    to: &mut Slopes<'_>,
) {
    let factor = _mm512_set1_ps(scale * LOG2_E);
    let (logs, inner) = (&queries.logs, &queries.inner);
    let mut held = _mm512_setzero_si512();
    for (i, (scores, dp)) in scores.iter().zip(dp).enumerate() {
        let seen = seen(i);
        let masks = [seen as __mmask16, (seen >> LANES) as __mmask16];
        let (mut p, mut ds) = ([_mm512_setzero_ps(); 2], [_mm512_setzero_ps(); 2]);
        for half in 0..2 {
            p[half] = exp2(_mm512_fmsub_ps(load(&scores[half]), factor, load(&logs[half])), masks[half]);
            let centred = _mm512_sub_ps(load(&dp[half]), load(&inner[half]));
            ds[half] = _mm512_mul_ps(p[half], centred);
        }
        let row = to.row + i;
        put::<E>(p, to.panel, row, to.stride, to.p);
        put::<E>(ds, to.panel, row, to.stride, to.ds);
        if E::IS_BF16 {
            let ds = rounded(ds[0], ds[1]);
            if i % 2 == 1 {
                let [low, high] = pairs(held, ds);
                let to = &mut to.stacked[row / 2];
                store_lanes(low, &mut to[0]);
                store_lanes(high, &mut to[1]);
            }
            held = ds;
        } else {
            let to = &mut to.stacked[row];
            store_lanes(_mm512_castps_si512(ds[0]), &mut to[0]);
            store_lanes(_mm512_castps_si512(ds[1]), &mut to[1]);
        }
    }
    if E::IS_BF16 && scores.len() % 2 == 1 {
        let [low, high] = pairs(held, _mm512_setzero_si512());
        let to = &mut to.stacked[(to.row + scores.len()) / 2];
        store_lanes(low, &mut to[0]);
        store_lanes(high, &mut to[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Path;

    /// Runs a function on a vector; `None` where the processor cannot.
    fn on_lanes(function: impl Fn(__m512) -> __m512) -> Option<impl Fn([f32; LANES]) -> [f32; LANES]> {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        fn run(function: &impl Fn(__m512) -> __m512, x: &Line<f32>) -> Line<f32> {
            let mut y = [0.0; LANES];
            store(function(load(x)), &mut y);
            y
        }
        // SAFETY: the processor has the instructions.
        Path::Avx512Bf16.is_supported().then_some(move |x| unsafe { run(&function, &x) })
    }

    #[test]
    fn exp2_is_within_two_ulp_over_its_whole_range() {
        // SAFETY: only called where the processor has the instructions.
        let Some(of) = on_lanes(|x| unsafe { exp2(x, u16::MAX) }) else { return };
        for i in -126 * 1024..128 * 1024 {
            let x = std::array::from_fn(|j| (i * 16 + j as i32) as f32 / 16384.0);
            for (x, y) in x.into_iter().zip(of(x)) {
                let exact = f64::from(x).exp2();
                let error = (f64::from(y) - exact).abs() / exact;
                assert!(error < 2.5e-7, "2^{x} = {y}, not {exact}");
            }
        }
        let inputs = [f32::NEG_INFINITY, f32::MIN, -151.0, 0.0, -0.0, 3.0, 128.0, f32::MAX, f32::INFINITY];
        let expected = [0.0, 0.0, 0.0, 1.0, 1.0, 8.0, f32::INFINITY, f32::INFINITY, f32::INFINITY];
        let mut x = [f32::NAN; LANES];
        x[..inputs.len()].copy_from_slice(&inputs);
        let y = of(x);
        assert_eq!(y[..inputs.len()], expected);
        assert!(y[inputs.len()..].iter().all(|y| y.is_nan()));
    }
    #[test]
    fn ln_is_within_two_ulp_of_its_result_or_of_1() {
        // SAFETY: only called where the processor has the instructions.
        let Some(of) = on_lanes(|x| unsafe { ln(x) }) else { return };
        for i in 0..1 << 16 {
            // Every exponent, and mantissas all over.
            let x = std::array::from_fn(|j| f32::from_bits(0x80_0000 + (i * 16 + j as u32) * 2024));
            for (x, y) in x.into_iter().zip(of(x)) {
                let exact = f64::from(x).ln();
                let error = (f64::from(y) - exact).abs() / exact.abs().max(1.0);
                assert!(error < 2.5e-7, "ln {x} = {y}, not {exact}");
            }
        }
        assert_eq!(of([1.0; LANES]), [0.0; LANES]);
    }

    #[test]
    fn rows_are_reduced_in_order() {
        let Some(of) = on_lanes(|x| {
            // Row i holds x + i.
            // SAFETY: only called where the processor has the instructions.
            unsafe {
                let rows = std::array::from_fn(|i| _mm512_add_ps(x, _mm512_set1_ps(i as f32)));
                by_row(rows, |a, b| _mm512_add_ps(a, b))
            }
        }) else {
            return;
        };
        let x: [f32; LANES] = std::array::from_fn(|i| i as f32);
        assert_eq!(of(x), std::array::from_fn(|i| 120.0 + 16.0 * i as f32));
    }
}
