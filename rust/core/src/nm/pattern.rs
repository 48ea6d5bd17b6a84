//! An N:M pattern, checked once, and the memory layout its groups are laid over.

use crate::{Error, Result};

/// The largest group the crate handles.
pub const MAX_GROUP: usize = 32;

/// N:M sparsity: `keep` of every `group` consecutive entries stay, `1 <= keep < group <= 32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    keep: usize,
    group: usize,
}

impl Pattern {
    /// Check and wrap N and M.
    ///
    /// # Errors
    /// [`Error::Pattern`] unless `1 <= keep < group <= 32`.
    ///
    /// # Examples
    /// ```
    /// use mpcore_core::nm::Pattern;
    /// assert_eq!(Pattern::new(2, 4)?.group(), 4);
    /// assert!(Pattern::new(4, 4).is_err());
    /// # Ok::<(), mpcore_core::Error>(())
    /// ```
    pub fn new(keep: usize, group: usize) -> Result<Self> {
        if 1 <= keep && keep < group && group <= MAX_GROUP {
            Ok(Self { keep, group })
        } else {
            Err(Error::Pattern { keep, group })
        }
    }

    /// N, the entries that stay.
    #[must_use]
    pub fn keep(self) -> usize {
        self.keep
    }

    /// M, the length of a group.
    #[must_use]
    pub fn group(self) -> usize {
        self.group
    }

    /// Number of groups in `columns` columns of the argument called `name`.
    ///
    /// # Errors
    /// [`Error::NotAMultiple`] unless M divides `columns`.
    pub fn groups(self, columns: usize, name: &'static str) -> Result<usize> {
        if columns.is_multiple_of(self.group) {
            Ok(columns / self.group)
        } else {
            Err(Error::NotAMultiple {
                name,
                columns,
                group: self.group,
            })
        }
    }
}

/// A C-contiguous (outer x length x inner) array whose groups run along `length`.
///
/// A matrix with groups along its rows has `inner = 1`; a convolution (O, C, kh, kw) grouped along C has `inner = kh kw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fibers {
    /// Product of the axes in front.
    pub outer: usize,
    /// The axis that is cut into groups.
    pub length: usize,
    /// Product of the axes behind.
    pub inner: usize,
}

impl Fibers {
    /// Number of entries.
    #[must_use]
    pub fn size(self) -> usize {
        self.outer * self.length * self.inner
    }

    /// Refuse a slice of another size and a length that the pattern does not divide.
    pub(crate) fn check(self, entries: usize, pattern: Pattern, name: &'static str) -> Result<()> {
        if entries != self.size() {
            return Err(Error::Shape {
                name,
                got: entries,
                wanted: format!("{} x {} x {}", self.outer, self.length, self.inner),
            });
        }
        pattern.groups(self.length, name).map(|_| ())
    }

    /// The entry at `position`, as (row, column): the fiber it lies in and its place along `length`.
    pub(crate) fn locate(self, position: usize) -> (usize, usize) {
        let slab = self.length * self.inner;
        let (outer, rest) = (position / slab, position % slab);
        (outer * self.inner + rest % self.inner, rest / self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_needs_one_to_m_minus_one_of_at_most_32() {
        for (keep, group) in [(0, 4), (4, 4), (5, 4), (1, 33), (1, 1)] {
            assert_eq!(
                Pattern::new(keep, group),
                Err(Error::Pattern { keep, group })
            );
        }
        assert!(Pattern::new(31, 32).is_ok());
    }

    #[test]
    fn columns_that_m_does_not_divide_are_named() {
        let error = Pattern::new(2, 4).unwrap().groups(770, "score");
        assert_eq!(
            error.unwrap_err().to_string(),
            "score: 770 columns is not a multiple of group = 4"
        );
    }

    #[test]
    fn locate_inverts_the_layout() {
        let fibers = Fibers {
            outer: 2,
            length: 6,
            inner: 5,
        };
        let position = (6 + 4) * 5 + 3;
        assert_eq!(fibers.locate(position), (5 + 3, 4));
    }
}
