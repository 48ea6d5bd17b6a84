//! Ranks of a spectrum.

use crate::mp::fit::{Spectrum, median};
use crate::mp::law::Law;

/// Four answers to "how many dimensions".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranks {
    /// Squared Frobenius norm over the largest squared value.
    pub stable: f64,
    /// exp of the entropy of the singular values taken as shares of their sum (Roy and Vetterli, 2007).
    pub effective: f64,
    /// Values above max(p, n) eps times the largest.
    pub numerical: usize,
    /// Values above the optimal hard threshold for unknown noise (Gavish and Donoho, 2014).
    pub gavish_donoho: usize,
}

/// Ranks of a spectrum whose matrix was stored with rounding unit `eps`.
#[must_use]
pub fn ranks(spectrum: &Spectrum, eps: f64) -> Ranks {
    let largest = spectrum.squares.last().copied().unwrap_or(0.0);
    let total: f64 = spectrum.squares.iter().sum();
    let values: Vec<f64> = spectrum.squares.iter().map(|v| v.sqrt()).collect();
    let sum: f64 = values.iter().sum();
    let entropy: f64 = values
        .iter()
        .map(|v| v / sum)
        .filter(|share| *share > 0.0)
        .map(|share| -share * share.ln())
        .sum();
    Ranks {
        stable: total / largest,
        effective: entropy.exp(),
        numerical: spectrum.above(largest * (spectrum.n as f64 * eps).powi(2)),
        gavish_donoho: gavish_donoho(spectrum, &values),
    }
}

/// Threshold omega(gamma) times the median value: omega = best threshold for known noise over the law's median.
fn gavish_donoho(spectrum: &Spectrum, values: &[f64]) -> usize {
    let law = Law::of(spectrum.p(), spectrum.n);
    let gamma = spectrum.p() as f64 / spectrum.n as f64;
    let known = 2.0 * (gamma + 1.0)
        + 8.0 * gamma / (gamma + 1.0 + (gamma * gamma + 14.0 * gamma + 1.0).sqrt());
    let threshold = (known / law.ppf(0.5)).sqrt() * median(values);
    spectrum.above(threshold * threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_full_rank_everywhere() {
        let spectrum = Spectrum {
            squares: vec![4.0; 6],
            n: 9,
        };
        let found = ranks(&spectrum, f64::EPSILON);
        assert!((found.stable - 6.0).abs() < 1e-12 && (found.effective - 6.0).abs() < 1e-12);
        assert_eq!((found.numerical, found.gavish_donoho), (6, 0));
    }

    #[test]
    fn the_published_square_threshold_is_met() {
        // Gavish and Donoho: 2.858 times the median for a square matrix.
        let mut squares: Vec<f64> = vec![1.0; 9];
        squares.push(2.85f64.powi(2));
        let below = ranks(
            &Spectrum {
                squares: squares.clone(),
                n: 10,
            },
            1e-16,
        )
        .gavish_donoho;
        squares[9] = 2.87f64.powi(2);
        let above = ranks(&Spectrum { squares, n: 10 }, 1e-16).gavish_donoho;
        assert_eq!((below, above), (0, 1));
    }
}
