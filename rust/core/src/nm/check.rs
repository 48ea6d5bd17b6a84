//! Does a matrix keep to its pattern?

use super::Pattern;
use crate::{Error, Result};

/// Refuse a matrix with more than N kept entries in a group; `kept(row, column)` tells which entries stay.
///
/// The matrix is (rows x columns) with groups along its rows; `name` is how errors call it.
///
/// # Errors
/// [`Error::NotAMultiple`] if M does not divide the columns; [`Error::BreaksPattern`] at the first bad group.
///
/// # Examples
/// ```
/// use mpcore_core::nm::{Pattern, check::check_pattern};
/// let mask = [true, true, true, false];
/// let found = check_pattern(1, 4, Pattern::new(2, 4)?, "mask", |_, column| mask[column]);
/// assert_eq!(
///     found.unwrap_err().to_string(),
///     "mask: row 0, group 0 keeps 3 of 4, pattern 2:4 allows 2"
/// );
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn check_pattern(
    rows: usize,
    columns: usize,
    pattern: Pattern,
    name: &'static str,
    kept: impl Fn(usize, usize) -> bool,
) -> Result<()> {
    let (keep, group) = (pattern.keep(), pattern.group());
    let groups = pattern.groups(columns, name)?;
    for row in 0..rows {
        for index in 0..groups {
            let got = (index * group..(index + 1) * group)
                .filter(|&column| kept(row, column))
                .count();
            if got > keep {
                return Err(Error::BreaksPattern {
                    name,
                    row,
                    index,
                    got,
                    keep,
                    group,
                });
            }
        }
    }
    Ok(())
}
