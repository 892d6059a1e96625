//! Singular values of the small core of a merge, by one-sided Jacobi rotations.
//!
//! Written here because nalgebra's SVD, up to 0.35 at least, returns wrong singular values for some inputs without
//! saying so (dimforge/nalgebra#1172; an all-ones 3×5 matrix is one), rank-deficient cores among them, and those are
//! the rule when silos agree. The method is Hestenes' (Golub & Van Loan, *Matrix Computations*, 4th ed., §8.6.3): small,
//! accurate for small singular values too, and the same on every run.

use nalgebra::DMatrix;

/// Sweeps over all pairs of columns; ten are plenty for a hundred columns.
const MAX_SWEEPS: usize = 60;

/// The singular value decomposition M = U·diag(s)·Vᵀ with k = min(rows, cols) columns in U and V and `s` falling.
/// Singular values below ε·‖M‖ are noise and their vectors are not made orthogonal to each other.
pub(super) struct Svd {
    /// `[rows, k]`.
    pub u: DMatrix<f64>,
    /// Length k, falling.
    pub s: Vec<f64>,
    /// `[cols, k]`.
    pub v: DMatrix<f64>,
}

/// Decomposes `m`, whose entries are finite.
pub(super) fn svd(m: &DMatrix<f64>) -> Svd {
    if m.nrows() < m.ncols() {
        let Svd { u, s, v } = svd(&m.transpose());
        return Svd { u: v, s, v: u };
    }
    let n = m.ncols();
    let (mut u, mut v) = (m.clone(), DMatrix::identity(n, n));
    let noise = (f64::EPSILON * m.norm()).powi(2);
    for _ in 0..MAX_SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                rotated |= orthogonalise(&mut u, &mut v, (p, q), noise);
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<f64> = u.column_iter().map(|c| c.norm()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let s: Vec<f64> = order.iter().map(|&i| norms[i]).collect();
    let scale = |norm: f64| if norm > 0.0 { 1.0 / norm } else { 0.0 };
    Svd {
        u: DMatrix::from_fn(u.nrows(), n, |i, j| u[(i, order[j])] * scale(s[j])),
        v: DMatrix::from_fn(n, n, |i, j| v[(i, order[j])]),
        s,
    }
}

/// Rotates columns `p` and `q` of `u` until they are orthogonal, and `v` along; says whether there was anything to do.
/// A column of squared norm up to `noise` is left alone: it would turn in rounding errors for ever.
fn orthogonalise(u: &mut DMatrix<f64>, v: &mut DMatrix<f64>, (p, q): (usize, usize), noise: f64) -> bool {
    let (alpha, beta) = (u.column(p).norm_squared(), u.column(q).norm_squared());
    let gamma = u.column(p).dot(&u.column(q));
    if alpha.min(beta) <= noise || gamma.abs() <= f64::EPSILON * (alpha * beta).sqrt() {
        return false;
    }
    let zeta = (beta - alpha) / (2.0 * gamma);
    let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let cosine = 1.0 / tangent.hypot(1.0);
    let sine = cosine * tangent;
    for matrix in [u, v] {
        for i in 0..matrix.nrows() {
            let (x, y) = (matrix[(i, p)], matrix[(i, q)]);
            matrix[(i, p)] = cosine * x - sine * y;
            matrix[(i, q)] = sine * x + cosine * y;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(m: &DMatrix<f64>) -> Vec<f64> {
        let Svd { u, s, v } = svd(m);
        let back = &u * DMatrix::from_diagonal(&s.clone().into()) * v.transpose();
        assert!((back - m).norm() <= 1e-13 * m.norm(), "{m}");
        let rank = s.iter().filter(|&&s_k| s_k > 1e-12 * s[0]).count();
        for vectors in [u.columns(0, rank), v.columns(0, rank)] {
            assert!((vectors.transpose() * vectors - DMatrix::identity(rank, rank)).norm() < 1e-12);
        }
        assert!(s.windows(2).all(|w| w[0] >= w[1]));
        s
    }

    /// From the reproducer in dimforge/nalgebra#1172: σ₁ of all ones is √(rows·cols), Σσ² is the squared norm.
    #[test]
    fn the_inputs_that_nalgebra_gets_wrong_come_out_right() {
        for (rows, cols) in [(3, 5), (6, 21), (21, 6), (30, 30)] {
            let s = check(&DMatrix::from_element(rows, cols, 1.0));
            assert!((s[0] - ((rows * cols) as f64).sqrt()).abs() < 1e-12);
            assert!(s[1] < 1e-12);
        }
        let s = check(&DMatrix::from_row_slice(3, 3, &[1., 2., 2., 2., -1., -1., 2., 1., -1.]));
        assert!((s.iter().map(|s| s * s).sum::<f64>() - 21.0).abs() < 1e-12);
    }

    /// numpy.linalg.svd([[3, 0], [4, 5]]): σ = [6.70820393, 2.23606798] = [3√5, √5].
    #[test]
    fn singular_values_of_a_known_matrix() {
        let s = check(&DMatrix::from_row_slice(2, 2, &[3., 0., 4., 5.]));
        assert!((s[0] - 45f64.sqrt()).abs() < 1e-14 && (s[1] - 5f64.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn nothing_in_nothing_out() {
        assert_eq!(check(&DMatrix::zeros(4, 3)), [0.0; 3]);
        assert!(svd(&DMatrix::zeros(4, 0)).s.is_empty());
    }
}
