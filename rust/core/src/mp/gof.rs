//! Goodness of fit of the Marchenko-Pastur law, spikes allowed for.

use crate::mp::law::Law;
use crate::mp::spike::Noise;

/// How well the bulk follows the law.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoodnessOfFit {
    /// Largest distance between the distribution of the bulk and the law.
    pub ks: f64,
    /// Probability of a larger distance under the law with fitted variance.
    pub p_value: f64,
    /// Anderson-Darling statistic; levels within 1/(20 P) of 0 and 1 are clipped.
    pub anderson_darling: f64,
    /// `p_value` >= [`LEVEL`].
    pub accepted: bool,
}

/// Fits with a smaller p-value are rejected.
pub const LEVEL: f64 = 0.01;

/// Test the `bulk` (squared singular values, ascending) against `noise` = what is left of the matrix without its
/// spikes, whose squared strengths are given.
///
/// Eigenvalues of noise are rigid: the largest distance between empirical and expected *counts* grows like log P only.
#[must_use]
pub fn test(bulk: &[f64], noise: &Noise, strengths: &[f64]) -> GoodnessOfFit {
    let size = bulk.len() as f64;
    let law = Law::of(bulk.len(), noise.n as usize);
    let shift = ShiftTable::new(noise, strengths);
    let expected: Vec<f64> = bulk
        .iter()
        .map(|v| size * law.cdf(v / (noise.sigma_sq * noise.n)) + shift.at(*v))
        .collect();
    let distance = count_distance(&expected);
    let p_value = null_survival(distance, bulk.len());
    GoodnessOfFit {
        ks: distance / size,
        p_value,
        anderson_darling: anderson_darling(&expected),
        accepted: p_value >= LEVEL,
    }
}

/// Largest distance between the empirical count and the expected count at each value, from both sides.
pub(crate) fn count_distance(expected: &[f64]) -> f64 {
    expected
        .iter()
        .enumerate()
        .map(|(i, e)| (e - i as f64).max(i as f64 + 1.0 - e))
        .fold(0.0, f64::max)
}

fn anderson_darling(expected: &[f64]) -> f64 {
    let size = expected.len() as f64;
    let margin = 0.05 / size;
    let level = |i: usize| (expected[i] / size).clamp(margin, 1.0 - margin);
    let sum: f64 = (0..expected.len())
        .map(|i| (2 * i + 1) as f64 * (level(i).ln() + (1.0 - level(expected.len() - 1 - i)).ln()))
        .sum();
    -size - sum / size
}

/// Probability that noise of `size` values exceeds the count `distance`, its variance fitted by the mean.
///
/// Simulated in the Dumitriu-Edelman model (`examples/ks_null.rs`: 400 to 6000 spectra each for P = 8 to 1024, gamma =
/// 1, 1/4, 1/20): the mean is 1.25 + 0.394 log(P/8), the standard deviation 0.24 + 0.02 log(P/8), both within 2 %
/// whatever gamma, and the skewness 0.65 +- 0.1: a Gamma law of shape 9, whose tail is a finite sum.
pub(crate) fn null_survival(distance: f64, size: usize) -> f64 {
    const SHAPE: f64 = 9.0;
    let log = (size as f64 / 8.0).ln();
    let (mean, deviation) = (1.25 + 0.394 * log, (0.24 + 0.02 * log).max(0.1));
    let x = (SHAPE + SHAPE.sqrt() * (distance - mean) / deviation).max(0.0);
    let (mut term, mut sum) = (1.0, 1.0);
    for j in 1..9 {
        term *= x / f64::from(j);
        sum += term;
    }
    ((-x).exp() * sum).min(1.0)
}

/// The shift of [`Noise::shift`] on a grid in the angle, so that many spikes cost no more than few.
struct ShiftTable {
    centre: f64,
    radius: f64,
    cells: Vec<f64>,
}

impl ShiftTable {
    const CELLS: usize = 512;

    fn new(noise: &Noise, strengths: &[f64]) -> Self {
        let centre = noise.sigma_sq * (noise.p + noise.n);
        let radius = 2.0 * noise.critical();
        let cells = if strengths.is_empty() {
            Vec::new()
        } else {
            (0..=Self::CELLS)
                .map(|i| std::f64::consts::PI * i as f64 / Self::CELLS as f64)
                .map(|angle| noise.shift(centre + radius * angle.cos(), strengths))
                .collect()
        };
        Self {
            centre,
            radius,
            cells,
        }
    }

    fn at(&self, square: f64) -> f64 {
        if self.cells.is_empty() {
            return 0.0;
        }
        let angle = ((square - self.centre) / self.radius)
            .clamp(-1.0, 1.0)
            .acos();
        let place = angle / std::f64::consts::PI * Self::CELLS as f64;
        let cell = (place as usize).min(Self::CELLS - 1);
        let part = place - cell as f64;
        self.cells[cell] * (1.0 - part) + self.cells[cell + 1] * part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mp::bootstrap::null_squares;

    #[test]
    fn noise_is_rejected_as_often_as_the_level_says() {
        let (p, n) = (60, 150);
        let p_values: Vec<f64> = (0..600)
            .map(|draw| {
                let bulk = null_squares(p, n, 11, draw);
                let noise = Noise {
                    sigma_sq: bulk.iter().sum::<f64>() / (p * n) as f64,
                    p: p as f64,
                    n: n as f64,
                };
                test(&bulk, &noise, &[]).p_value
            })
            .collect();
        for level in [0.05, 0.5] {
            let share = p_values.iter().filter(|p| **p < level).count() as f64 / 600.0;
            // Four standard errors of a share of 600.
            assert!(
                (share - level).abs() < 4.0 * (level * (1.0 - level) / 600.0).sqrt(),
                "{level}: {share}"
            );
        }
    }

    #[test]
    fn two_variances_are_rejected() {
        let (p, n) = (200, 400);
        let mut bulk = null_squares(p / 2, n, 1, 0);
        bulk.extend(null_squares(p / 2, n, 1, 1).iter().map(|v| 2.0 * v));
        bulk.sort_by(f64::total_cmp);
        let noise = Noise {
            sigma_sq: bulk.iter().sum::<f64>() / (p * n) as f64,
            p: p as f64,
            n: n as f64,
        };
        let fit = test(&bulk, &noise, &[]);
        assert!(!fit.accepted && fit.p_value < 1e-6);
    }

    #[test]
    fn quantiles_themselves_fit_perfectly() {
        let bulk = Law::of(100, 100).quantiles(100);
        let noise = Noise {
            sigma_sq: 0.01,
            p: 100.0,
            n: 100.0,
        };
        let fit = test(&bulk, &noise, &[]);
        assert!((fit.ks - 0.005).abs() < 1e-9 && fit.p_value > 0.99);
    }
}
