//! Exchanges inside groups, each of which lowers the error.

use crate::nm::Pattern;

/// An exchange must lower the error by this share of what the kept weight holds: no rounding noise is followed.
const LEAST_GAIN: f32 = 1e-5;

/// Go once through the groups of every row and exchange a kept weight for a pruned one where that lowers the error.
///
/// With x the weights, v the goal and r = (v - x) A, whose diagonal is one, taking weight i out and putting t in at j
/// changes (v - x) A (v - x)' by x\[i\]^2 + 2 x\[i\] r\[i\] - t^2 at the best t = r\[j\] + x\[i\] A\[i, j\]. The best
/// pair of a group is taken if this is negative, and r follows, so that the error never grows. Between uncorrelated inputs nothing is
/// left to gain afterwards: the largest of every group are kept.
///
/// All matrices are row-major with `columns` columns; `a` is (columns x columns), x is zero off the support.
pub(super) fn swap(
    x: &mut [f32],
    r: &mut [f32],
    kept: &mut [bool],
    a: &[f32],
    columns: usize,
    pattern: Pattern,
) {
    let rows = x
        .chunks_exact_mut(columns)
        .zip(r.chunks_exact_mut(columns))
        .zip(kept.chunks_exact_mut(columns));
    for ((x, r), kept) in rows {
        for first in (0..columns).step_by(pattern.group()) {
            let group = first..first + pattern.group();
            let Some((out, into)) = best_exchange(x, r, kept, a, group) else {
                continue;
            };
            let (old, new) = (x[out], r[into] + x[out] * a[out * columns + into]);
            let (from, to) = (&a[out * columns..], &a[into * columns..]);
            for (r, (from, to)) in r.iter_mut().zip(from.iter().zip(to)) {
                *r += old * from - new * to;
            }
            (x[out], x[into]) = (0.0, new);
            (kept[out], kept[into]) = (false, true);
        }
    }
}

/// The pair (kept, pruned) of a group whose exchange lowers the error most, if any does.
fn best_exchange(
    x: &[f32],
    r: &[f32],
    kept: &[bool],
    a: &[f32],
    group: std::ops::Range<usize>,
) -> Option<(usize, usize)> {
    let (mut best, mut pair) = (0.0, None);
    for i in group.clone().filter(|&i| kept[i]) {
        let cost = x[i] * (x[i] + 2.0 * r[i]);
        for j in group.clone().filter(|&j| !kept[j]) {
            let gain = (r[j] + x[i] * a[i * x.len() + j]).powi(2);
            let change = cost - gain;
            if change < best && -change > LEAST_GAIN * (cost.abs() + gain) {
                (best, pair) = (change, Some((i, j)));
            }
        }
    }
    pair
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(x: &[f32], v: &[f32], a: &[f32]) -> f64 {
        let n = x.len();
        let d: Vec<f64> = v.iter().zip(x).map(|(v, x)| f64::from(v - x)).collect();
        let along = |i: usize| -> f64 { (0..n).map(|j| f64::from(a[i * n + j]) * d[j]).sum() };
        (0..n).map(|i| d[i] * along(i)).sum()
    }

    fn residual(x: &[f32], v: &[f32], a: &[f32]) -> Vec<f32> {
        let n = x.len();
        let along = |j: usize| (0..n).map(|i| (v[i] - x[i]) * a[i * n + j]).sum();
        (0..n).map(along).collect()
    }

    proptest! {
        #[test]
        fn no_exchange_raises_the_error_and_the_residual_stays_true(
            v in prop::collection::vec(-1.0f32..1.0, 12),
            mixing in prop::collection::vec(-0.3f32..0.3, 36),
        ) {
            // Unit vectors with some overlap: A has a unit diagonal and is positive semidefinite.
            let n = 12;
            let mut rows: Vec<Vec<f32>> = (0..n)
                .map(|i| (0..n).map(|k| f32::from(u8::from(i == k)) + mixing[(i * 5 + k * 3) % 36]).collect())
                .collect();
            for row in &mut rows {
                let norm = row.iter().map(|e| e * e).sum::<f32>().sqrt();
                for e in row {
                    *e /= norm;
                }
            }
            let dot = |i: usize, j: usize| rows[i].iter().zip(&rows[j]).map(|(p, q)| p * q).sum::<f32>();
            let a: Vec<f32> = (0..n * n).map(|at| dot(at / n, at % n)).collect();
            let mut kept: Vec<bool> = (0..n).map(|j| j % 4 < 2).collect();
            let mut x: Vec<f32> = v.iter().zip(&kept).map(|(&v, &k)| if k { v } else { 0.0 }).collect();
            let mut r = residual(&x, &v, &a);
            let before = error(&x, &v, &a);
            swap(&mut x, &mut r, &mut kept, &a, n, Pattern::new(2, 4).unwrap());
            prop_assert!(error(&x, &v, &a) <= before * (1.0 + 1e-5) + 1e-6);
            for group in kept.chunks(4) {
                prop_assert_eq!(group.iter().filter(|&&k| k).count(), 2);
            }
            for (found, expected) in r.iter().zip(residual(&x, &v, &a)) {
                prop_assert!((found - expected).abs() < 1e-4);
            }
        }
    }
}
