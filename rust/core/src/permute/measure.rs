//! What an order keeps and what no order can exceed, in f64 from the scores as given.

use rayon::prelude::*;

use crate::nm::{Pattern, pattern::MAX_GROUP, select::Score};
use crate::{Error, Result};

/// Rows of one task; partial sums are added in the order of the tasks, whatever thread ran them.
const ROWS: usize = 32;

/// Sum over rows and groups of the N largest entries of score[:, order].
pub(crate) fn kept<T: Score>(score: &[T], columns: usize, order: &[u32], pattern: Pattern) -> f64 {
    let (keep, group) = (pattern.keep(), pattern.group());
    by_rows(score, columns, |row, _| {
        let mut total = 0.0;
        let mut entries = [0.0f64; MAX_GROUP];
        for members in order.chunks_exact(group) {
            let entries = &mut entries[..group];
            for (entry, &member) in entries.iter_mut().zip(members) {
                *entry = row[member as usize].into();
            }
            entries.sort_unstable_by(|a, b| b.total_cmp(a));
            total += entries[..keep].iter().sum::<f64>();
        }
        total
    })
}

/// Sum over rows of the C N / M largest entries: an N:M mask keeps as many, but cannot choose freely.
pub(crate) fn row_bound<T: Score>(score: &[T], columns: usize, pattern: Pattern) -> f64 {
    by_rows(score, columns, |row, scratch| {
        let (above, last) = largest(row, pattern, scratch);
        above.iter().sum::<f64>() + last
    })
}

/// The C N / M-th largest entry of each row.
pub(crate) fn thresholds<T: Score>(score: &[T], columns: usize, pattern: Pattern) -> Vec<f64> {
    let rows = score.chunks_exact(columns);
    rows.map(|row| largest(row, pattern, &mut Vec::new()).1)
        .collect()
}

/// The entries above the C N / M-th largest one, in any order, and that one.
fn largest<'a, T: Score>(
    row: &[T],
    pattern: Pattern,
    scratch: &'a mut Vec<f64>,
) -> (&'a [f64], f64) {
    let keep = row.len() / pattern.group() * pattern.keep();
    scratch.clear();
    scratch.extend(row.iter().map(|&v| Into::<f64>::into(v)));
    let (above, last, _) = scratch.select_nth_unstable_by(keep - 1, |a, b| b.total_cmp(a));
    (above, *last)
}

fn by_rows<T: Score>(
    score: &[T],
    columns: usize,
    value: impl Fn(&[T], &mut Vec<f64>) -> f64 + Sync,
) -> f64 {
    let parts: Vec<f64> = score
        .par_chunks(columns * ROWS)
        .map(|rows| {
            let mut scratch = Vec::new();
            rows.chunks_exact(columns)
                .map(|row| value(row, &mut scratch))
                .sum()
        })
        .collect();
    parts.iter().sum()
}

/// The power of two that brings the largest score to (1/2, 1], so that f64 scores of any size survive in f32; that of
/// subnormal scores would be infinite, and 2^1000 is enough.
pub(crate) fn scale<T: Score>(score: &[T]) -> Result<f64> {
    let mut largest = 0.0f64;
    for &value in score {
        let value: f64 = value.into();
        if !(0.0..f64::INFINITY).contains(&value) {
            return Err(Error::Value {
                name: "score",
                got: value,
                wanted: "finite and >= 0",
            });
        }
        largest = largest.max(value);
    }
    Ok(if largest > 0.0 {
        (-largest.log2().ceil()).min(1000.0).exp2()
    } else {
        1.0
    })
}
