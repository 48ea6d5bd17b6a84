//! Variance of the noise from the energy of the bulk, exact for any number of spikes.

use crate::mp::fit::{Fit, Spectrum};

/// Values nearer than this share of the largest do not repel each other: such a pair moves the variance by less than one
/// part in p n.
const NEAREST: f64 = 1e-12;

/// The energy equation of one spectrum; what the largest values contribute is kept for every number of spikes asked so far.
///
/// With L the p squared singular values, K spikes of squared strengths `theta_i`^2 and noise of variance v, the expected
/// energy is E sum L = v p n + sum `theta_i`^2. The transform of information-plus-noise matrices takes the spectrum of the
/// signal to that of the sum, so that the sum over the spikes is a contour integral around the K largest values, and as
/// its only poles are these,
///
/// sum `theta_i`^2 = sum over i <= K of `L_i` ((1 + v `S_i`)^2 - v^2 `Q_i`) - v (n - p + 1)(1 + v `S_i`),
///
/// `S_i` the sum of 1 / (`L_j` - `L_i`) over all j other than i, and `Q_i` that of the squares. Nothing is assumed of the
/// spikes' distances, so that a row of hundreds, which act on one another as on the bulk, is no exception. What remains
/// is a quadratic equation in v. One spike far out gives the familiar v (p - 1)(n - 1) = energy of the rest.
///
/// # References
/// X. Mestre, "Improved estimation of eigenvalues and eigenvectors of covariance matrices using their sample estimates",
/// 2008, for the contour; R. B. Dozier, J. W. Silverstein, "On the empirical distribution of eigenvalues of large
/// dimensional information-plus-noise-type matrices", 2007, for the transform.
#[derive(Debug)]
pub struct Energy<'a> {
    spectrum: &'a Spectrum,
    /// Entry k: sum of the k smallest values.
    below: Vec<f64>,
    /// Entry k: sums over the k largest values.
    sums: Vec<Sums>,
}

/// Sums of `L_i` `S_i`, `L_i` (`S_i`^2 - `Q_i`) and `S_i`.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    moved: f64,
    bent: f64,
    pull: f64,
}

impl<'a> Energy<'a> {
    /// No spike is looked at yet.
    #[must_use]
    pub fn new(spectrum: &'a Spectrum) -> Self {
        let mut below = vec![0.0];
        let mut sum = 0.0;
        below.extend(spectrum.squares.iter().map(|value| {
            sum += value;
            sum
        }));
        Self {
            spectrum,
            below,
            sums: vec![Sums::default()],
        }
    }

    /// What the equation is about.
    #[must_use]
    pub fn spectrum(&self) -> &'a Spectrum {
        self.spectrum
    }

    /// The variance beside the `spikes` largest values.
    ///
    /// Spikes take energy off the bulk, at most nine tenths: where values are called spikes that are none, the equation
    /// may have no such solution.
    pub fn variance(&mut self, spikes: usize) -> f64 {
        let (first, second, bulk) = self.coefficients(spikes);
        let root = (first * first + 4.0 * second * bulk).max(0.0).sqrt();
        let least = bulk / self.entries(spikes);
        let solution = 2.0 * bulk / (first + root);
        if solution > 0.0 {
            solution.clamp(least, 10.0 * least)
        } else {
            10.0 * least
        }
    }

    /// How the energy of the bulk grows with the variance, over (p - K)(n - K): 1 without spikes, less with many, and so much
    /// wider is the error of the variance than that of the bulk's mean square.
    pub fn slope(&mut self, fit: &Fit) -> f64 {
        let (first, second, _) = self.coefficients(fit.spikes);
        (first + 2.0 * second * fit.sigma_sq) / self.entries(fit.spikes)
    }

    fn entries(&self, spikes: usize) -> f64 {
        ((self.spectrum.p() - spikes) * (self.spectrum.n - spikes)) as f64
    }

    /// a, b and c of a v + b v^2 = c, the energy of the bulk.
    fn coefficients(&mut self, spikes: usize) -> (f64, f64, f64) {
        let Sums { moved, bent, pull } = self.sums(spikes);
        let (p, n) = (self.spectrum.p() as f64, self.spectrum.n as f64);
        let excess = n - p + 1.0;
        (
            n * p + 2.0 * moved - excess * spikes as f64,
            bent - excess * pull,
            self.below[self.spectrum.p() - spikes],
        )
    }

    fn sums(&mut self, spikes: usize) -> Sums {
        let squares = &self.spectrum.squares;
        let nearest = NEAREST * squares[squares.len() - 1];
        for k in self.sums.len()..=spikes {
            let value = squares[squares.len() - k];
            // S^2 - Q is twice the sum of products of different terms.
            let (mut pull, mut products) = (0.0, 0.0);
            for other in squares {
                let distance = other - value;
                if distance.abs() > nearest {
                    let term = 1.0 / distance;
                    products += term * pull;
                    pull += term;
                }
            }
            let before = self.sums[k - 1];
            self.sums.push(Sums {
                moved: before.moved + value * pull,
                bent: before.bent + 2.0 * value * products,
                pull: before.pull + pull,
            });
        }
        self.sums[spikes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::values::{Precision, singular_values};
    use crate::random::Random;

    /// Unit noise with spikes of strength 1.5 + 10 / sqrt(i), in critical ones, on the diagonal.
    fn spectrum(p: usize, n: usize, count: usize, seed: u64) -> Spectrum {
        let mut random = Random::new(seed, 0);
        let mut w: Vec<f64> = (0..p * n).map(|_| random.normal()).collect();
        let critical = ((p * n) as f64).powf(0.25);
        for i in 0..count {
            w[i * (n + 1)] += (1.5 + 10.0 / ((i + 1) as f64).sqrt()) * critical;
        }
        let values = singular_values(&w, (p, n), Precision::Full).unwrap();
        Spectrum {
            squares: values.iter().rev().map(|v| v * v).collect(),
            n,
        }
    }

    #[test]
    fn the_variance_is_right_when_two_in_five_values_are_spikes() {
        // Standard error of the mean of four: 0.3 % at the first shape. One spike at a time would be 1 % off there.
        for (p, n) in [(400, 400), (200, 700)] {
            let count = 2 * p / 5;
            let found: f64 = (0..4)
                .map(|seed| Energy::new(&spectrum(p, n, count, seed)).variance(count))
                .sum();
            assert!((found / 4.0 - 1.0).abs() < 0.007, "{}", found / 4.0);
        }
    }

    #[test]
    fn without_spikes_it_is_the_mean_square_and_a_far_one_takes_its_row_and_column() {
        let mut squares: Vec<f64> = (1..=50).map(f64::from).collect();
        let spectrum = Spectrum {
            squares: squares.clone(),
            n: 80,
        };
        let mean = squares.iter().sum::<f64>() / (50.0 * 80.0);
        assert!((Energy::new(&spectrum).variance(0) / mean - 1.0).abs() < 1e-14);
        squares.push(1e12);
        let spectrum = Spectrum { squares, n: 81 };
        let found = Energy::new(&spectrum).variance(1);
        assert!((found / mean - 1.0).abs() < 1e-9);
    }

    #[test]
    fn equal_and_nearly_equal_spikes_are_no_trouble() {
        let base = spectrum(60, 90, 12, 1);
        let of = |gap: f64| {
            let mut near = base.clone();
            let last = near.squares.len() - 1;
            near.squares[last - 1] = near.squares[last] * (1.0 - gap);
            Energy::new(&near).variance(12)
        };
        for gap in [0.0, 1e-15, 1e-11, 1e-8] {
            assert!((of(gap) / of(1e-5) - 1.0).abs() < 1e-3, "{gap}");
        }
    }
}
