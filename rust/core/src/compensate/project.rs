//! Projection on an N:M pattern: the largest entries of every group of consecutive columns.

use crate::{Error, Result};

/// N:M, checked: of every `group` consecutive columns at most `keep` are not zero.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    pub(super) keep: usize,
    pub(super) group: usize,
}

impl Groups {
    /// Check the pattern against the number of columns of `weight`.
    pub(super) fn new(keep: usize, group: usize, columns: usize) -> Result<Self> {
        if keep == 0 || keep >= group || group > 32 {
            return Err(Error::Pattern { keep, group });
        }
        if columns % group != 0 {
            return Err(Error::NotAMultiple {
                name: "weight",
                columns,
                group,
            });
        }
        Ok(Self { keep, group })
    }

    /// Check that a row-major mask keeps at most N of every M.
    pub(super) fn check(self, mask: &[bool], columns: usize) -> Result<()> {
        let per_row = columns / self.group;
        for (index, kept) in mask.chunks_exact(self.group).enumerate() {
            let got = kept.iter().filter(|&&k| k).count();
            if got > self.keep {
                return Err(Error::BreaksPattern {
                    name: "mask",
                    row: index / per_row,
                    index: index % per_row,
                    got,
                    keep: self.keep,
                    group: self.group,
                });
            }
        }
        Ok(())
    }

    /// Mark the N largest |values| of every group; ties go to the lower column.
    pub(super) fn project(self, values: &[f32], kept: &mut [bool]) {
        let mut magnitudes = [0.0; 32];
        let magnitudes = &mut magnitudes[..self.group];
        for (group, kept) in values
            .chunks_exact(self.group)
            .zip(kept.chunks_exact_mut(self.group))
        {
            for (magnitude, value) in magnitudes.iter_mut().zip(group) {
                *magnitude = value.abs();
            }
            keep_largest(magnitudes, self.keep, kept);
        }
    }
}

/// Mark the `keep` largest magnitudes of one group; ties go to the lower index.
pub(super) fn keep_largest(magnitudes: &[f32], keep: usize, kept: &mut [bool]) {
    for (index, (&own, kept)) in magnitudes.iter().zip(kept).enumerate() {
        let before = magnitudes[..index].iter().filter(|&&other| other >= own);
        let after = magnitudes[index + 1..].iter().filter(|&&other| other > own);
        *kept = before.count() + after.count() < keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        let mut kept = [false; 4];
        keep_largest(&[1.0, 2.0, 1.0, 1.0], 2, &mut kept);
        assert_eq!(kept, [true, true, false, false]);
        keep_largest(&[0.0; 4], 3, &mut kept);
        assert_eq!(kept, [true, true, true, false]);
    }

    #[test]
    fn the_sign_does_not_count() {
        let groups = Groups::new(1, 2, 4).unwrap();
        let mut kept = [false; 4];
        groups.project(&[-3.0, 2.0, 0.5, -0.25], &mut kept);
        assert_eq!(kept, [true, false, true, false]);
    }

    #[test]
    fn a_full_group_is_named() {
        let groups = Groups::new(1, 2, 4).unwrap();
        let error = groups.check(&[true, false, false, true, true, true, false, false], 4);
        assert_eq!(
            error.unwrap_err().to_string(),
            "mask: row 1, group 0 keeps 2 of 2, pattern 1:2 allows 1"
        );
    }

    #[test]
    fn patterns_that_are_none_are_refused() {
        assert!(Groups::new(0, 4, 8).is_err());
        assert!(Groups::new(4, 4, 8).is_err());
        assert!(Groups::new(2, 33, 66).is_err());
        assert!(Groups::new(2, 4, 10).is_err());
    }
}
