//! N:M weights without their zeros.

use super::Pattern;
use super::check::check_pattern;
use crate::{Error, Result};

/// N values of every group and their places in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entries {
    /// (rows x columns N / M), row-major: N per group, in the order of their places.
    pub values: Vec<f32>,
    /// The place of each value in its group, below M.
    pub places: Vec<u8>,
}

/// Keep the entries of `weight` that are not zero, or those under `mask`.
///
/// `weight` is (rows x columns), row-major. A group with fewer than N entries is filled up with zeros at its lowest free
/// places, so that every group has exactly N.
///
/// # Errors
/// [`Error::BreaksPattern`] at the first group with more than N entries; [`Error::NotAMultiple`] if M does not divide the
/// columns; [`Error::Shape`] if sizes do not fit.
///
/// # Examples
/// ```
/// use mpcore_core::nm::{Pattern, pack::pack};
/// let packed = pack(&[0.0, 5.0, 0.0, 7.0], 4, Pattern::new(2, 4)?, None)?;
/// assert_eq!((packed.values, packed.places), (vec![5.0, 7.0], vec![1, 3]));
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn pack(
    weight: &[f32],
    columns: usize,
    pattern: Pattern,
    mask: Option<&[bool]>,
) -> Result<Entries> {
    let rows = weight.len().checked_div(columns).unwrap_or(0);
    let fits = |name, size| check_size(name, size, rows * columns);
    fits("W", weight.len())?;
    fits("mask", mask.map_or(weight.len(), <[bool]>::len))?;
    let kept = |position: usize| mask.map_or(weight[position] != 0.0, |mask| mask[position]);
    let name = if mask.is_some() { "mask" } else { "W" };
    check_pattern(rows, columns, pattern, name, |row, column| {
        kept(row * columns + column)
    })?;
    let size = rows * columns / pattern.group() * pattern.keep();
    let mut packed = Entries {
        values: Vec::with_capacity(size),
        places: Vec::with_capacity(size),
    };
    for first in (0..weight.len()).step_by(pattern.group()) {
        let places = 0..pattern.group();
        let mut spare = pattern.keep() - places.clone().filter(|&k| kept(first + k)).count();
        for place in places {
            let stays = kept(first + place);
            if stays || spare > 0 {
                spare -= usize::from(!stays);
                let value = if stays { weight[first + place] } else { 0.0 };
                packed.values.push(value);
                packed.places.push(place as u8);
            }
        }
    }
    Ok(packed)
}

/// The (rows x columns) matrix again; entries that were not kept are +0.0.
///
/// # Errors
/// [`Error::Shape`] if sizes do not fit; [`Error::Value`] for a place outside its group.
pub fn unpack(values: &[f32], places: &[u8], columns: usize, pattern: Pattern) -> Result<Vec<f32>> {
    let per_row = pattern.groups(columns, "packed")? * pattern.keep();
    let rows = values.len().checked_div(per_row).unwrap_or(0);
    check_size("values", values.len(), rows * per_row)?;
    check_places(places, values.len(), pattern)?;
    let mut weight = vec![0.0; rows * columns];
    let groups = values
        .chunks_exact(pattern.keep())
        .zip(places.chunks_exact(pattern.keep()));
    for (group, (values, places)) in weight.chunks_exact_mut(pattern.group()).zip(groups) {
        for (&value, &place) in values.iter().zip(places) {
            group[usize::from(place)] = value;
        }
    }
    Ok(weight)
}

/// Refuse places that are too many, too few, outside their group, or not in ascending order there.
pub(crate) fn check_places(places: &[u8], values: usize, pattern: Pattern) -> Result<()> {
    check_size("places", places.len(), values)?;
    let refused = |place: u8, wanted| {
        Err(Error::Value {
            name: "places",
            got: f64::from(place),
            wanted,
        })
    };
    for group in places.chunks(pattern.keep()) {
        if let Some(&place) = group.iter().find(|&&p| usize::from(p) >= pattern.group()) {
            return refused(place, "below the group size M");
        }
        if let Some(pair) = group.windows(2).find(|pair| pair[0] >= pair[1]) {
            return refused(pair[1], "above the place before it in its group");
        }
    }
    Ok(())
}

pub(crate) fn check_size(name: &'static str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::Shape {
        name,
        got,
        wanted: format!("{wanted} entries"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacking_gives_the_weights_back(
            (keep, extra, rows, groups) in (1usize..9, 1usize..9, 0usize..5, 1usize..6),
            values in prop::collection::vec(-3i8..3, 600),
        ) {
            let pattern = Pattern::new(keep, keep + extra).unwrap();
            let columns = groups * pattern.group();
            let mut weight: Vec<f32> = (0..rows * columns).map(|i| f32::from(values[i % 600])).collect();
            for group in weight.chunks_exact_mut(pattern.group()) {
                let mut left = keep;
                for value in group {
                    *value = if left > 0 { *value } else { 0.0 };
                    left -= usize::from(*value != 0.0);
                }
            }
            let packed = pack(&weight, columns, pattern, None).unwrap();
            prop_assert_eq!(packed.values.len(), rows * groups * keep);
            prop_assert_eq!(unpack(&packed.values, &packed.places, columns, pattern).unwrap(), weight);
        }
    }

    #[test]
    fn weights_that_break_the_pattern_are_named_by_row_and_group() {
        let mut weight = [0.0; 16];
        weight[12..15].fill(1.0);
        let found = pack(&weight, 8, Pattern::new(2, 4).unwrap(), None);
        assert_eq!(
            found.unwrap_err().to_string(),
            "W: row 1, group 1 keeps 3 of 4, pattern 2:4 allows 2"
        );
    }

    #[test]
    fn a_mask_decides_what_is_packed() {
        let pattern = Pattern::new(1, 2).unwrap();
        let packed = pack(&[3.0, 4.0], 2, pattern, Some(&[false, true])).unwrap();
        assert_eq!((packed.values, packed.places), (vec![4.0], vec![1]));
    }

    #[test]
    fn a_place_outside_its_group_is_refused() {
        let pattern = Pattern::new(2, 4).unwrap();
        for places in [[2, 2], [3, 1]] {
            let error = unpack(&[1.0, 2.0], &places, 4, pattern)
                .unwrap_err()
                .to_string();
            assert!(
                error.ends_with("is not above the place before it in its group"),
                "{error}"
            );
        }
        let found = unpack(&[1.0, 2.0], &[0, 4], 4, pattern);
        assert!(
            found
                .unwrap_err()
                .to_string()
                .starts_with("places: 4 is not below")
        );
    }
}
