//! What an order keeps and what no order can exceed, in f64 from the scores as given.

use rayon::prelude::*;

use crate::nm::{Pattern, pattern::MAX_GROUP, select::Score};

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
    let keep = columns / pattern.group() * pattern.keep();
    by_rows(score, columns, |row, scratch| {
        scratch.clear();
        scratch.extend(row.iter().map(|&v| Into::<f64>::into(v)));
        let (top, last, _) = scratch.select_nth_unstable_by(keep - 1, |a, b| b.total_cmp(a));
        top.iter().sum::<f64>() + *last
    })
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
