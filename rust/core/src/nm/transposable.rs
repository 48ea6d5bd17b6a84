//! Masks that are N:M along rows and along columns.

use rayon::prelude::*;

use super::Pattern;
use super::pattern::MAX_GROUP;
use super::select::Score;
use crate::linalg::values::{PowerOfTwo, exponent};
use crate::{Error, Result};

/// Entries between two looks at `stop`: a fraction of a second.
const BATCH: usize = 1 << 18;

/// The best mask that keeps N entries in every row and every column of each M x M block.
///
/// `score` is (rows x columns), row-major, finite, any sign. Each block is a transportation problem (N units from every row,
/// N to every column, at most one from a row to a column), solved exactly by shortest augmenting paths.
///
/// # Errors
/// [`Error::NotAMultiple`] if M does not divide the columns; [`Error::Shape`] if it does not divide the rows;
/// [`Error::NotFinite`] at the first NaN or infinity; [`Error::Interrupted`] if `stop`, which is asked now and then, says so.
///
/// # Examples
/// ```
/// use mpcore_core::nm::{Pattern, transposable::transposable_mask};
/// let mask = transposable_mask(&[3.0, 2.0, 2.5, 0.0], 2, Pattern::new(1, 2)?, &|| false)?;
/// assert_eq!(mask, [false, true, true, false]);
/// # Ok::<(), mpcore_core::Error>(())
/// ```
///
/// # References
/// I. Hubara et al., *Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable Masks*,
/// `NeurIPS` 2021, who state the problem as a flow and solve it approximately.
pub fn transposable_mask<T: Score>(
    score: &[T],
    columns: usize,
    pattern: Pattern,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<bool>> {
    let group = pattern.group();
    pattern.groups(columns, "score")?;
    let rows = score.len().checked_div(columns).unwrap_or(0);
    if rows * columns != score.len() || !rows.is_multiple_of(group) {
        return Err(Error::Shape {
            name: "score",
            got: rows,
            wanted: format!("a number of rows that is a multiple of group = {group}"),
        });
    }
    if let Some(position) = score.iter().position(|v| !v.is_finite()) {
        return Err(Error::NotFinite {
            name: "score",
            row: position / columns,
            column: position % columns,
            value: score[position].into(),
        });
    }
    let mut mask = vec![false; score.len()];
    if columns == 0 {
        return Ok(mask);
    }
    let fill = |(score, mask): (&[T], &mut [bool])| {
        for first in (0..columns).step_by(group) {
            let mut flow = Flow::new(group, |i, j| score[i * columns + first + j].into());
            flow.fill(pattern.keep());
            for i in 0..group {
                for j in 0..group {
                    mask[i * columns + first + j] = flow.kept[i][j];
                }
            }
        }
    };
    let band = columns * group;
    let batch = band * (BATCH / band).max(1);
    for (score, mask) in score.chunks(batch).zip(mask.chunks_mut(batch)) {
        if stop() {
            return Err(Error::Interrupted);
        }
        let bands = score.par_chunks(band).zip(mask.par_chunks_mut(band));
        bands.for_each(fill);
    }
    Ok(mask)
}

/// One block: the flow so far and potentials under which no residual arc has a negative cost.
struct Flow {
    group: usize,
    /// Largest score less score, over a power of two: >= 0, and no sum overflows.
    cost: [[f64; MAX_GROUP]; MAX_GROUP],
    kept: [[bool; MAX_GROUP]; MAX_GROUP],
    row_potential: [f64; MAX_GROUP],
    column_potential: [f64; MAX_GROUP],
    /// Units a column has received.
    filled: [usize; MAX_GROUP],
}

/// Shortest distances from one row over the residual graph.
struct Tree {
    row: [f64; MAX_GROUP],
    column: [f64; MAX_GROUP],
    /// The row before a column, and the column before a row.
    row_before: [usize; MAX_GROUP],
    column_before: [usize; MAX_GROUP],
}

impl Flow {
    fn new(group: usize, score: impl Fn(usize, usize) -> f64) -> Self {
        let mut cost = [[0.0; MAX_GROUP]; MAX_GROUP];
        let (mut largest, mut size) = (f64::NEG_INFINITY, 0.0f64);
        for (i, line) in cost.iter_mut().enumerate().take(group) {
            for (j, cost) in line.iter_mut().enumerate().take(group) {
                *cost = score(i, j);
                largest = largest.max(*cost);
                size = size.max(cost.abs());
            }
        }
        let unit = PowerOfTwo::new(if size > 0.0 { -exponent(size) } else { 0 });
        for cost in cost.iter_mut().flatten() {
            *cost = unit.times(largest) - unit.times(*cost);
        }
        Self {
            group,
            cost,
            kept: [[false; MAX_GROUP]; MAX_GROUP],
            row_potential: [0.0; MAX_GROUP],
            column_potential: [0.0; MAX_GROUP],
            filled: [0; MAX_GROUP],
        }
    }

    /// Send `keep` units out of every row, each along a shortest path to a column with room.
    fn fill(&mut self, keep: usize) {
        for _ in 0..keep {
            for row in 0..self.group {
                let (tree, end) = self.shortest(row, keep);
                self.follow(&tree, row, end);
            }
        }
    }

    /// Reduced cost of keeping (i, j); zero or less, up to rounding, where it is kept already.
    fn reduced(&self, i: usize, j: usize) -> f64 {
        self.cost[i][j] + self.row_potential[i] - self.column_potential[j]
    }

    /// Dijkstra's algorithm from `source` to the nearest column with fewer than `keep` units, and the potentials after it.
    fn shortest(&mut self, source: usize, keep: usize) -> (Tree, usize) {
        let mut tree = Tree {
            row: [f64::INFINITY; MAX_GROUP],
            column: [f64::INFINITY; MAX_GROUP],
            row_before: [source; MAX_GROUP],
            column_before: [0; MAX_GROUP],
        };
        tree.row[source] = 0.0;
        let (mut row_done, mut column_done) = ([false; MAX_GROUP], [false; MAX_GROUP]);
        let (mut row, mut end) = (Some(source), 0);
        let mut length = f64::INFINITY;
        while length.is_infinite() {
            if let Some(i) = row {
                row_done[i] = true;
                self.leave_row(i, &mut tree);
            }
            let near = nearest(&tree.column[..self.group], &column_done);
            let next = nearest(&tree.row[..self.group], &row_done);
            row = next.filter(|&i| near.is_none_or(|j| tree.row[i] <= tree.column[j]));
            if let (None, Some(j)) = (row, near) {
                column_done[j] = true;
                if self.filled[j] < keep {
                    (end, length) = (j, tree.column[j]);
                } else {
                    self.leave_column(j, &mut tree);
                }
            }
        }
        for k in 0..self.group {
            self.row_potential[k] += tree.row[k].min(length);
            self.column_potential[k] += tree.column[k].min(length);
        }
        (tree, end)
    }

    /// Arcs to the columns that row `i` does not keep yet.
    fn leave_row(&self, i: usize, tree: &mut Tree) {
        for j in (0..self.group).filter(|&j| !self.kept[i][j]) {
            let distance = tree.row[i] + self.reduced(i, j).max(0.0);
            if distance < tree.column[j] {
                (tree.column[j], tree.row_before[j]) = (distance, i);
            }
        }
    }

    /// Arcs back to the rows that keep column `j`.
    fn leave_column(&self, j: usize, tree: &mut Tree) {
        for i in (0..self.group).filter(|&i| self.kept[i][j]) {
            let distance = tree.column[j] + (-self.reduced(i, j)).max(0.0);
            if distance < tree.row[i] {
                (tree.row[i], tree.column_before[i]) = (distance, j);
            }
        }
    }

    /// Send one unit from row `source` along the tree to column `end`.
    fn follow(&mut self, tree: &Tree, source: usize, end: usize) {
        self.filled[end] += 1;
        let mut column = end;
        loop {
            let row = tree.row_before[column];
            self.kept[row][column] = true;
            if row == source {
                return;
            }
            column = tree.column_before[row];
            self.kept[row][column] = false;
        }
    }
}

/// Index of the least distance that is not settled and not infinite; the first of equals.
fn nearest(distance: &[f64], done: &[bool; MAX_GROUP]) -> Option<usize> {
    let mut best = None;
    let mut least = f64::INFINITY;
    for (k, &distance) in distance.iter().enumerate() {
        if !done[k] && distance < least {
            (best, least) = (Some(k), distance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Best total of rows `row..` given how many units each column still needs, over all masks.
    fn slow(score: &[f64], group: usize, keep: usize, row: usize, need: &mut [usize]) -> f64 {
        if row == group {
            return if need.iter().all(|&n| n == 0) {
                0.0
            } else {
                f64::NEG_INFINITY
            };
        }
        let mut best = f64::NEG_INFINITY;
        for set in (0u32..1 << group).filter(|set| set.count_ones() as usize == keep) {
            let chosen: Vec<usize> = (0..group).filter(|j| set >> j & 1 == 1).collect();
            if chosen.iter().all(|&j| need[j] > 0) {
                for &j in &chosen {
                    need[j] -= 1;
                }
                let own: f64 = chosen.iter().map(|&j| score[row * group + j]).sum();
                best = best.max(own + slow(score, group, keep, row + 1, need));
                for &j in &chosen {
                    need[j] += 1;
                }
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_mask_with_these_sums_keeps_more(
            (group, extra) in (2usize..6, 0usize..4),
            values in prop::collection::vec(-9i8..9, 25),
        ) {
            let keep = 1 + extra % (group - 1);
            let score: Vec<f64> = (0..group * group).map(|i| f64::from(values[i])).collect();
            let pattern = Pattern::new(keep, group).unwrap();
            let mask = transposable_mask(&score, group, pattern, &|| false).unwrap();
            for k in 0..group {
                prop_assert_eq!((0..group).filter(|j| mask[k * group + j]).count(), keep);
                prop_assert_eq!((0..group).filter(|i| mask[i * group + k]).count(), keep);
            }
            let total: f64 = score.iter().zip(&mask).filter(|v| *v.1).map(|v| v.0).sum();
            prop_assert!((total - slow(&score, group, keep, 0, &mut vec![keep; group])).abs() < 1e-9);
        }
    }

    #[test]
    fn scores_at_the_ends_of_float64_are_told_apart() {
        for size in [f64::MAX, f64::MIN_POSITIVE * f64::EPSILON] {
            let score = [-size, size, size, -size];
            let pattern = Pattern::new(1, 2).unwrap();
            let mask = transposable_mask(&score, 2, pattern, &|| false);
            assert_eq!(mask.unwrap(), [false, true, true, false]);
        }
    }

    #[test]
    fn rows_that_m_does_not_divide_are_refused() {
        let found = transposable_mask(&[0.0f32; 24], 4, Pattern::new(2, 4).unwrap(), &|| false);
        assert_eq!(
            found.unwrap_err().to_string(),
            "score: 6 is not a number of rows that is a multiple of group = 4"
        );
    }
}
