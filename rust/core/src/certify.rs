//! Margins and changes of logits, the measured quantities of a certificate.
//!
//! Logits are (samples x classes), row-major. Differences are taken in f64. Rounding is monotone and doubling is exact,
//! so a computed margin above twice a computed change proves that the true margin is above twice the true change.

use crate::{Error, Result};

/// The label a model gives to one sample, and how far ahead it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Margin {
    /// Class with the largest logit; ties go to the lower class.
    pub label: usize,
    /// Largest logit minus the largest of the others, >= 0; 0 in a tie.
    pub margin: f64,
}

/// The label and margin of every sample.
///
/// # Errors
/// [`Error::Shape`] unless the logits are whole rows of at least two classes.
///
/// # Examples
/// ```
/// use mpcore_core::certify::{Margin, margins};
/// assert_eq!(margins(&[0.5, 2.0, 1.0], 3)?, [Margin { label: 1, margin: 1.0 }]);
/// # Ok::<(), mpcore_core::Error>(())
/// ```
pub fn margins(logits: &[f64], classes: usize) -> Result<Vec<Margin>> {
    check_classes(logits, classes)?;
    Ok(logits
        .chunks_exact(classes)
        .map(|row| {
            let label = top(row);
            Margin {
                label,
                margin: lead(row, label),
            }
        })
        .collect())
}

/// Logit of the given label minus the largest of the others, for every sample; negative where the model errs.
///
/// # Errors
/// [`Error::Shape`] unless the logits are whole rows of at least two classes, with one label below `classes` each.
pub fn label_margins(logits: &[f64], classes: usize, labels: &[usize]) -> Result<Vec<f64>> {
    check_classes(logits, classes)?;
    let samples = logits.len() / classes;
    if labels.len() != samples {
        return Err(Error::Shape {
            name: "labels",
            got: labels.len(),
            wanted: format!("{samples} entries, one per sample"),
        });
    }
    if let Some(&label) = labels.iter().find(|&&label| label >= classes) {
        return Err(Error::Shape {
            name: "labels: label",
            got: label,
            wanted: format!("below {classes}, the number of classes"),
        });
    }
    let rows = logits.chunks_exact(classes).zip(labels);
    Ok(rows.map(|(row, &label)| lead(row, label)).collect())
}

/// The largest |change| of any logit, for every sample.
///
/// # Errors
/// [`Error::Shape`] unless both are whole rows of at least two classes, of the same size.
pub fn largest_changes(before: &[f64], after: &[f64], classes: usize) -> Result<Vec<f64>> {
    check_classes(before, classes)?;
    if after.len() != before.len() {
        return Err(Error::Shape {
            name: "pruned logits",
            got: after.len(),
            wanted: format!("{} entries, as many as the dense ones", before.len()),
        });
    }
    let rows = before
        .chunks_exact(classes)
        .zip(after.chunks_exact(classes));
    Ok(rows
        .map(|(before, after)| {
            let changes = before.iter().zip(after).map(|(b, a)| (a - b).abs());
            changes.fold(0.0, f64::max)
        })
        .collect())
}

fn top(row: &[f64]) -> usize {
    let best = (0..row.len()).reduce(|best, j| if row[j] > row[best] { j } else { best });
    best.unwrap_or(0)
}

fn lead(row: &[f64], label: usize) -> f64 {
    let others = row[..label].iter().chain(&row[label + 1..]);
    row[label] - others.copied().fold(f64::NEG_INFINITY, f64::max)
}

fn check_classes(logits: &[f64], classes: usize) -> Result<()> {
    if classes < 2 {
        return Err(Error::Shape {
            name: "classes",
            got: classes,
            wanted: "at least 2: a margin needs a runner-up".to_owned(),
        });
    }
    if logits.is_empty() || !logits.len().is_multiple_of(classes) {
        return Err(Error::Shape {
            name: "logits: number of entries",
            got: logits.len(),
            wanted: format!("a positive multiple of classes = {classes}"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tie_has_no_margin_and_goes_to_the_lower_class() {
        let tie = Margin {
            label: 0,
            margin: 0.0,
        };
        assert_eq!(margins(&[3.0, 3.0, 1.0], 3), Ok(vec![tie]));
    }

    #[test]
    fn the_margin_of_a_wrong_label_is_negative() {
        assert_eq!(label_margins(&[1.0, 4.0], 2, &[0]), Ok(vec![-3.0]));
    }

    #[test]
    fn bad_shapes_and_labels_are_named() {
        let message = |error: Error| error.to_string();
        assert_eq!(
            label_margins(&[1.0, 4.0], 2, &[2]).map_err(message),
            Err("labels: label: 2 is not below 2, the number of classes".to_owned())
        );
        assert!(margins(&[1.0], 1).is_err());
        assert!(margins(&[1.0, 2.0, 3.0], 2).is_err());
        assert!(label_margins(&[1.0, 4.0], 2, &[]).is_err());
        assert!(largest_changes(&[1.0, 4.0], &[1.0], 2).is_err());
    }

    proptest! {
        #[test]
        fn a_margin_above_twice_the_change_keeps_the_label(
            pairs in proptest::collection::vec((-3.0f64..3.0, -1.0f64..1.0), 5),
        ) {
            let before: Vec<f64> = pairs.iter().map(|p| p.0).collect();
            let after: Vec<f64> = pairs.iter().map(|p| p.0 + p.1).collect();
            let eta = largest_changes(&before, &after, 5).unwrap()[0];
            let (was, is) = (margins(&before, 5).unwrap()[0], margins(&after, 5).unwrap()[0]);
            prop_assert!(was.margin <= 2.0 * eta || was.label == is.label);
        }
    }
}
