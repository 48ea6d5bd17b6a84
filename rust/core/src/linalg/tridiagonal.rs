//! Eigenvalues of symmetric tridiagonal and singular values of bidiagonal matrices.

use rayon::prelude::*;

/// Eigenvalues, ascending, of the symmetric tridiagonal matrix with this diagonal and off-diagonal.
///
/// Root-free QL (Pal, Walker and Kahan, as LAPACK's `dsterf`); absolute error a few eps times the largest. If the
/// iteration exceeds its budget, bisection finishes: it cannot fail.
///
/// # Example
/// ```
/// let values = mpcore_core::linalg::tridiagonal::eigenvalues(&[2.0, 2.0], &[1.0]);
/// assert!((values[0] - 1.0).abs() < 1e-15 && (values[1] - 3.0).abs() < 1e-15);
/// ```
#[must_use]
pub fn eigenvalues(diagonal: &[f64], beside: &[f64]) -> Vec<f64> {
    root_free_ql(diagonal, beside).unwrap_or_else(|| {
        let squares: Vec<f64> = beside.iter().map(|e| e * e).collect();
        bisect_all(diagonal, &squares, 0..diagonal.len())
    })
}

/// Singular values, descending, of the upper bidiagonal matrix with this diagonal and superdiagonal.
///
/// Bisection on the Golub-Kahan matrix (zero diagonal, d and e interleaved beside it), whose eigenvalues are plus and
/// minus the singular values: absolute error a few eps times the largest, no square is taken.
#[must_use]
pub fn singular_values(diagonal: &[f64], above: &[f64]) -> Vec<f64> {
    let n = diagonal.len();
    let mut squares = Vec::with_capacity(2 * n);
    for i in 0..n {
        squares.push(diagonal[i] * diagonal[i]);
        if i + 1 < n {
            squares.push(above[i] * above[i]);
        }
    }
    let mut values = bisect_all(&vec![0.0; 2 * n], &squares, n..2 * n);
    values.reverse();
    values.iter().map(|v| v.max(0.0)).collect()
}

/// Lanes of the bisection: so many counts run side by side in vector registers.
const LANES: usize = 8;

/// The eigenvalues with ranks `wanted` (ascending order) by bisection.
fn bisect_all(diagonal: &[f64], squares: &[f64], wanted: std::ops::Range<usize>) -> Vec<f64> {
    let radius = bound(diagonal, squares);
    let ranks: Vec<usize> = wanted.collect();
    ranks
        .par_chunks(LANES)
        .flat_map_iter(|ranks| {
            let mut rank = [*ranks.last().unwrap_or(&0); LANES];
            rank[..ranks.len()].copy_from_slice(ranks);
            let found = bisect(diagonal, squares, rank, radius);
            found.into_iter().take(ranks.len())
        })
        .collect()
}

/// Largest absolute row sum: no eigenvalue lies outside it.
fn bound(diagonal: &[f64], squares: &[f64]) -> f64 {
    let beside = |i: usize| squares.get(i).map_or(0.0, |s| s.sqrt());
    (0..diagonal.len())
        .map(|i| diagonal[i].abs() + beside(i) + if i > 0 { beside(i - 1) } else { 0.0 })
        .fold(0.0, f64::max)
}

fn bisect(diagonal: &[f64], squares: &[f64], rank: [usize; LANES], radius: f64) -> [f64; LANES] {
    let (mut low, mut high) = ([-radius; LANES], [radius; LANES]);
    // 2 radius 2^-60 is below the rounding of any entry.
    for _ in 0..60 {
        let middle: [f64; LANES] = std::array::from_fn(|lane| 0.5 * (low[lane] + high[lane]));
        let below = count_below(diagonal, squares, &middle, radius);
        for lane in 0..LANES {
            if below[lane] > rank[lane] {
                high[lane] = middle[lane];
            } else {
                low[lane] = middle[lane];
            }
        }
    }
    std::array::from_fn(|lane| 0.5 * (low[lane] + high[lane]))
}

/// Sturm counts: how many eigenvalues lie below each of `shifts`.
fn count_below(
    diagonal: &[f64],
    squares: &[f64],
    shifts: &[f64; LANES],
    radius: f64,
) -> [usize; LANES] {
    let tiny = f64::MIN_POSITIVE.max(radius * radius * 1e-290);
    let mut pivot = [1.0; LANES];
    let mut negative = [0u64; LANES];
    for (i, d) in diagonal.iter().enumerate() {
        let square = if i > 0 { squares[i - 1] } else { 0.0 };
        for lane in 0..LANES {
            let next = d - shifts[lane] - square / pivot[lane];
            pivot[lane] = if next.abs() < tiny { -tiny } else { next };
            negative[lane] += u64::from(pivot[lane] < 0.0);
        }
    }
    negative.map(|count| count as usize)
}

/// `None` if the budget of sweeps is used up.
fn root_free_ql(diagonal: &[f64], beside: &[f64]) -> Option<Vec<f64>> {
    let mut d = diagonal.to_vec();
    let mut e: Vec<f64> = beside.iter().map(|v| v * v).collect();
    e.push(0.0);
    let mut budget = 60 * d.len();
    let mut first = 0;
    while first < d.len() {
        let end = block_end(&d, &e, first, d.len());
        // QL converges from the top: start at the smaller end.
        if d[end - 1].abs() < d[first].abs() {
            d[first..end].reverse();
            e[first..end - 1].reverse();
        }
        let mut row = first;
        while row < end {
            let last = block_end(&d, &e, row, end) - 1;
            if last + 1 < end {
                e[last] = 0.0;
            }
            if last == row {
                row += 1;
            } else {
                budget = budget.checked_sub(1)?;
                sweep(&mut d, &mut e, row, last);
            }
        }
        first = end;
    }
    d.sort_by(f64::total_cmp);
    Some(d)
}

/// One past the last row of the unreduced block that starts at `row`.
fn block_end(d: &[f64], e: &[f64], row: usize, end: usize) -> usize {
    const EPS_SQ: f64 = f64::EPSILON * f64::EPSILON / 4.0;
    let mut last = row;
    while last + 1 < end && e[last] > EPS_SQ * (d[last] * d[last + 1]).abs() {
        last += 1;
    }
    last + 1
}

/// One implicit QL sweep over rows `row..=last`; `e` holds squares.
fn sweep(d: &mut [f64], e: &mut [f64], row: usize, last: usize) {
    let root = e[row].sqrt();
    let half = (d[row + 1] - d[row]) / (2.0 * root);
    let shift = d[row] - root / (half + half.hypot(1.0).copysign(half));
    let (mut c, mut s) = (1.0, 0.0);
    let mut gamma = d[last] - shift;
    let mut p = gamma * gamma;
    for i in (row..last).rev() {
        let square = e[i];
        let r = p + square;
        if i + 1 != last {
            e[i + 1] = s * r;
        }
        let old_c = c;
        c = p / r;
        s = square / r;
        let old_gamma = gamma;
        gamma = c * (d[i] - shift) - s * old_gamma;
        d[i + 1] = old_gamma + (d[i] - gamma);
        p = if c == 0.0 {
            old_c * square
        } else {
            gamma * gamma / c
        };
    }
    e[row] = s * p;
    d[row] = shift + gamma;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn the_second_difference_matrix_has_its_textbook_eigenvalues() {
        let n = 200;
        let values = eigenvalues(&vec![2.0; n], &vec![-1.0; n - 1]);
        let exact: Vec<f64> = (1..=n)
            .map(|k| {
                4.0 * (std::f64::consts::PI * k as f64 / (2.0 * (n + 1) as f64))
                    .sin()
                    .powi(2)
            })
            .collect();
        assert!(largest_difference(&values, &exact) < 1e-14);
    }

    #[test]
    fn a_zero_matrix_and_a_single_entry_are_their_own_answer() {
        assert_eq!(eigenvalues(&[0.0; 5], &[0.0; 4]), vec![0.0; 5]);
        assert_eq!(eigenvalues(&[-3.0], &[]), vec![-3.0]);
        assert!(eigenvalues(&[], &[]).is_empty());
    }

    proptest! {
        #[test]
        fn bisection_agrees_with_ql(pairs in prop::collection::vec((-3.0..3.0f64, prop_oneof![Just(0.0), -1e-8..1e-8f64, -2.0..2.0f64]), 1..40)) {
            let (d, e): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let e = &e[1..];
            let squares: Vec<f64> = e.iter().map(|v| v * v).collect();
            let slow = bisect_all(&d, &squares, 0..d.len());
            prop_assert!(largest_difference(&eigenvalues(&d, e), &slow) < 1e-13);
        }

        #[test]
        fn singular_values_square_to_the_eigenvalues_of_the_product(d in prop::collection::vec(-2.0..2.0f64, 1..20), e in prop::collection::vec(-2.0..2.0f64, 20)) {
            let n = d.len();
            let diagonal: Vec<f64> = (0..n).map(|i| d[i] * d[i] + if i > 0 { e[i - 1] * e[i - 1] } else { 0.0 }).collect();
            let beside: Vec<f64> = (1..n).map(|i| d[i - 1] * e[i - 1]).collect();
            let mut squares: Vec<f64> = singular_values(&d, &e[..n - 1]).iter().map(|v| v * v).collect();
            squares.reverse();
            prop_assert!(largest_difference(&squares, &eigenvalues(&diagonal, &beside)) < 1e-13);
        }
    }
}
