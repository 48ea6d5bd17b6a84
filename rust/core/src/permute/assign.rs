//! Linear assignment: the exact optimum, with integer costs.

use crate::vector::{Kernel, widest};

/// Costs stay below this over the number of rows, so that no sum of duals overflows.
const RANGE: f32 = (1u32 << 29) as f32;

/// The one-to-one assignment of rows to columns with the largest total gain.
///
/// `gain` is (n x n), row-major and finite. It is rounded to integers, 2^29 / n steps over its range; for these the result
/// is optimal. Returns the column of each row.
///
/// # References
/// R. Jonker, A. Volgenant, *A shortest augmenting path algorithm for dense and sparse linear assignment problems*,
/// Computing 38 (1987).
///
/// # Examples
/// ```
/// use mpcore_core::permute::assign::best_assignment;
/// assert_eq!(best_assignment(&[1.0, 3.0, 2.0, 3.5], 2), [1, 0]);
/// ```
#[must_use]
pub fn best_assignment(gain: &[f32], n: usize) -> Vec<usize> {
    if n < 2 {
        return vec![0; n];
    }
    let (low, high) = gain
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| {
            (low.min(v), high.max(v))
        });
    let scale = if high > low {
        RANGE / n as f32 / (high - low)
    } else {
        0.0
    };
    let cost: Vec<i32> = gain.iter().map(|&v| ((high - v) * scale) as i32).collect();
    widest(Solver::new(&cost, n))
}

const NONE: usize = usize::MAX;

/// Least total cost. `v` are the duals of the columns, `row_of` and `column_of` the matching so far.
struct Solver<'a> {
    cost: &'a [i32],
    n: usize,
    v: Vec<i32>,
    row_of: Vec<usize>,
    column_of: Vec<usize>,
}

impl Kernel for Solver<'_> {
    type Output = Vec<usize>;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(mut self) -> Vec<usize> {
        let free = self.reduce_columns();
        let free = self.reduce_rows(free);
        let mut paths = Paths::new(self.n);
        for row in free {
            self.augment(row, &mut paths);
        }
        self.column_of
    }
}

/// Scratch of the shortest-path search.
struct Paths {
    /// Shortest distance so far; `i32::MIN` once scanned, so that nothing is shorter.
    distance: Vec<i32>,
    /// The same; `i32::MAX` once scanned, so that it is never the least.
    open: Vec<i32>,
    parent: Vec<usize>,
    /// Columns already scanned, with their final distances.
    scanned: Vec<(usize, i32)>,
}

impl Paths {
    fn new(n: usize) -> Self {
        Self {
            distance: vec![0; n],
            open: vec![0; n],
            parent: vec![0; n],
            scanned: Vec::with_capacity(n),
        }
    }
}

impl<'a> Solver<'a> {
    fn new(cost: &'a [i32], n: usize) -> Self {
        Self {
            cost,
            n,
            v: vec![i32::MAX; n],
            row_of: vec![NONE; n],
            column_of: vec![NONE; n],
        }
    }

    fn row(&self, row: usize) -> &'a [i32] {
        &self.cost[row * self.n..][..self.n]
    }

    /// Column reduction and reduction transfer; returns the rows left free.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn reduce_columns(&mut self) -> Vec<usize> {
        let mut least = vec![0u32; self.n];
        for row in 0..self.n {
            let line = self.row(row);
            for ((v, least), &cost) in self.v.iter_mut().zip(&mut least).zip(line) {
                let better = cost < *v;
                *least = if better { row as u32 } else { *least };
                *v = if better { cost } else { *v };
            }
        }
        let mut claims = vec![0u32; self.n];
        for (column, &row) in least.iter().enumerate() {
            let row = row as usize;
            claims[row] += 1;
            if self.column_of[row] == NONE {
                (self.column_of[row], self.row_of[column]) = (column, row);
            }
        }
        for row in (0..self.n).filter(|&row| claims[row] == 1) {
            let column = self.column_of[row];
            let (_, second) = self.two_least(row, column);
            self.v[column] -= second;
        }
        (0..self.n)
            .filter(|&row| self.column_of[row] == NONE)
            .collect()
    }

    /// Reduced cost of `row` at `column`, and the least one at any other column.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn two_least(&self, row: usize, column: usize) -> (i32, i32) {
        let line = self.row(row);
        let least = |range: std::ops::Range<usize>| {
            line[range.clone()]
                .iter()
                .zip(&self.v[range])
                .fold(i32::MAX, |least, (&cost, &v)| least.min(cost - v))
        };
        let others = least(0..column).min(least(column + 1..self.n));
        (line[column] - self.v[column], others)
    }

    /// Augmenting row reduction, at most 4 n steps; returns the rows still free.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn reduce_rows(&mut self, mut free: Vec<usize>) -> Vec<usize> {
        let mut left = Vec::new();
        let mut steps = 4 * self.n;
        for _ in 0..2 {
            free.reverse();
            while let Some(row) = free.pop() {
                if steps == 0 {
                    left.push(row);
                    continue;
                }
                steps -= 1;
                let line = self.row(row);
                let least = line
                    .iter()
                    .zip(&self.v)
                    .fold(i32::MAX, |least, (&cost, &v)| least.min(cost - v));
                let at = |skip: usize, value: i32| {
                    (0..self.n).find(|&j| j != skip && line[j] - self.v[j] == value)
                };
                let mut column = at(NONE, least).unwrap_or(0);
                let (_, second) = self.two_least(row, column);
                if least == second && self.row_of[column] != NONE {
                    column = at(column, second).unwrap_or(column);
                }
                self.v[column] -= second - least;
                let evicted = std::mem::replace(&mut self.row_of[column], row);
                self.column_of[row] = column;
                if evicted != NONE {
                    self.column_of[evicted] = NONE;
                    if least < second {
                        free.push(evicted);
                    } else {
                        left.push(evicted);
                    }
                }
            }
            std::mem::swap(&mut free, &mut left);
        }
        free
    }

    /// Match `row` along the shortest augmenting path and update the duals of the columns scanned on the way.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn augment(&mut self, row: usize, paths: &mut Paths) {
        let line = self.row(row);
        for (distance, (&cost, &v)) in paths.distance.iter_mut().zip(line.iter().zip(&self.v)) {
            *distance = cost - v;
        }
        paths.open.copy_from_slice(&paths.distance);
        paths.parent.fill(row);
        paths.scanned.clear();
        let (end, shortest) = loop {
            let least = paths.open.iter().fold(i32::MAX, |least, &v| least.min(v));
            let column = paths.open.iter().position(|&v| v == least).unwrap_or(0);
            let owner = self.row_of[column];
            if owner == NONE {
                break (column, least);
            }
            paths.scanned.push((column, least));
            (paths.open[column], paths.distance[column]) = (i32::MAX, i32::MIN);
            let line = self.row(owner);
            let shift = least - (line[column] - self.v[column]);
            let reduced = line.iter().zip(&self.v);
            let state = paths.open.iter_mut().zip(&mut paths.distance);
            for (((open, distance), parent), (&cost, &v)) in
                state.zip(&mut paths.parent).zip(reduced)
            {
                let through = shift + (cost - v);
                let better = through < *distance;
                *open = if better { through } else { *open };
                *distance = if better { through } else { *distance };
                *parent = if better { owner } else { *parent };
            }
        };
        for &(column, distance) in &paths.scanned {
            self.v[column] += distance - shortest;
        }
        let mut column = end;
        loop {
            let owner = paths.parent[column];
            self.row_of[column] = owner;
            std::mem::swap(&mut self.column_of[owner], &mut column);
            if owner == row {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Best total over all permutations, by recursion.
    fn slow(gain: &[f32], n: usize, row: usize, used: u32) -> f64 {
        (0..n)
            .filter(|j| used & (1 << j) == 0)
            .map(|j| f64::from(gain[row * n + j]) + slow(gain, n, row + 1, used | 1 << j))
            .fold(if row == n { 0.0 } else { f64::NEG_INFINITY }, f64::max)
    }

    proptest! {
        #[test]
        fn the_assignment_is_the_best_of_all_permutations(
            n in 1usize..8,
            values in prop::collection::vec(0u8..40, 64),
        ) {
            let gain: Vec<f32> = (0..n * n).map(|i| f32::from(values[i])).collect();
            let found = best_assignment(&gain, n);
            let mut seen = found.clone();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
            let total: f64 = (0..n).map(|i| f64::from(gain[i * n + found[i]])).sum();
            prop_assert!((total - slow(&gain, n, 0, 0)).abs() < 1e-3);
        }
    }

    #[test]
    fn a_large_assignment_satisfies_complementary_slackness() {
        let n = 150;
        let mut state = 1u64;
        let cost: Vec<i32> = (0..n * n)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 44) as i32
            })
            .collect();
        let mut solver = Solver::new(&cost, n);
        let free = solver.reduce_columns();
        let free = solver.reduce_rows(free);
        let mut paths = Paths::new(n);
        for row in free {
            solver.augment(row, &mut paths);
        }
        for row in 0..n {
            let reduced = |j: usize| cost[row * n + j] - solver.v[j];
            let own = reduced(solver.column_of[row]);
            assert!((0..n).all(|j| own <= reduced(j)), "row {row}");
        }
    }
}
