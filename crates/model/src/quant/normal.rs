//! The normal distribution.

/// The value below which a standard normal variable lies with probability `p` in (0, 1), to about 1e-15.
///
/// A rational approximation good to 1e-9 (P. J. Acklam, 2003), then one step of Halley's method on the distribution
/// function.
pub(super) fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] =
        [-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    const TAIL: f64 = 0.02425;

    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let lower_tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / (polynomial(&D, q) * q + 1.0)
    };
    let x = if p < TAIL {
        lower_tail(p)
    } else if p > 1.0 - TAIL {
        -lower_tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        polynomial(&A, r) * q / (polynomial(&B, r) * r + 1.0)
    };
    let error = 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2) - p;
    let step = error * (2.0 * std::f64::consts::PI).sqrt() * (x * x / 2.0).exp();
    x - step / (1.0 + x * step / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `from mpmath import *; mp.dps = 30; [sqrt(2) * erfinv(2 * mpf(p) - 1) for p in (0.001, 0.02, 0.3, 0.5, 0.9677083)]`
    #[test]
    fn quantiles_agree_with_mpmath() {
        for (p, expected) in [
            (0.001, -3.0902323061678135),
            (0.02, -2.053748910631823),
            (0.3, -0.524_400_512_708_040_8),
            (0.5, 0.0),
            (0.9677083, 1.8481309597573734),
        ] {
            assert!((normal_quantile(p) - expected).abs() < 1e-14, "{p}: {} not {expected}", normal_quantile(p));
        }
    }
}
