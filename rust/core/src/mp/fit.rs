//! Noise variance and number of spikes under the Marchenko-Pastur law.

use crate::mp::energy::Energy;
use crate::mp::law::Law;
use crate::mp::spike::Noise;
use crate::mp::tracy_widom;

/// Squared singular values of a (p x n) matrix, ascending, p <= n.
#[derive(Debug, Clone)]
pub struct Spectrum {
    /// The squares; `p` of them.
    pub squares: Vec<f64>,
    /// Longer side.
    pub n: usize,
}

/// A fit: variance of the noise and how many of the largest values stand out of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Variance of an entry.
    pub sigma_sq: f64,
    /// Number of values above the threshold.
    pub spikes: usize,
}

impl Spectrum {
    /// Shorter side.
    #[must_use]
    pub fn p(&self) -> usize {
        self.squares.len()
    }

    /// The values below the `spikes` largest.
    #[must_use]
    pub fn bulk(&self, spikes: usize) -> &[f64] {
        &self.squares[..self.p() - spikes]
    }

    /// The `spikes` largest, ascending.
    #[must_use]
    pub fn top(&self, spikes: usize) -> &[f64] {
        &self.squares[self.p() - spikes..]
    }

    /// How many values exceed `threshold`.
    #[must_use]
    pub fn above(&self, threshold: f64) -> usize {
        self.p() - self.squares.partition_point(|v| *v <= threshold)
    }

    /// What is left of the matrix without the spikes of `fit`: noise of (p - K) x (n - K).
    #[must_use]
    pub fn noise(&self, fit: &Fit) -> Noise {
        Noise {
            sigma_sq: fit.sigma_sq,
            p: (self.p() - fit.spikes) as f64,
            n: (self.n - fit.spikes) as f64,
        }
    }

    /// Squared strengths of the spikes of `fit`; those inside the bulk count as just critical.
    #[must_use]
    pub fn strengths(&self, fit: &Fit) -> Vec<f64> {
        let noise = self.noise(fit);
        self.top(fit.spikes)
            .iter()
            .map(|v| noise.strength(*v).unwrap_or(noise.critical()))
            .collect()
    }

    /// Tracy-Widom threshold of the largest value of `fit`'s noise.
    #[must_use]
    pub fn threshold(&self, fit: &Fit, quantile: f64) -> f64 {
        let unit = TracyWidom::new(self.p() - fit.spikes, self.n - fit.spikes);
        fit.sigma_sq * (unit.centre + quantile * unit.scale)
    }
}

/// Centre and scale of the largest squared singular value of unit noise.
///
/// # References
/// I. M. Johnstone, "On the distribution of the largest eigenvalue in principal components analysis", 2001, with the
/// halves of Z. Ma, "Accuracy of the Tracy-Widom limits for the extreme eigenvalues in white Wishart matrices", 2012.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TracyWidom {
    /// (sqrt(n - 1/2) + sqrt(p - 1/2))^2.
    pub centre: f64,
    /// (sqrt(n - 1/2) + sqrt(p - 1/2)) (1/sqrt(n - 1/2) + 1/sqrt(p - 1/2))^(1/3).
    pub scale: f64,
}

impl TracyWidom {
    /// Both sides at least 1.
    #[must_use]
    pub fn new(p: usize, n: usize) -> Self {
        let (a, b) = ((n as f64 - 0.5).sqrt(), (p as f64 - 0.5).sqrt());
        Self {
            centre: (a + b).powi(2),
            scale: (a + b) * (1.0 / a + 1.0 / b).cbrt(),
        }
    }

    /// Square below which the *smallest* value of unit noise lies with probability `alpha`; 0 where the lower edge is
    /// too close to zero to have a Tracy-Widom law (n < p + 4).
    #[must_use]
    pub fn lowest(p: usize, n: usize, alpha: f64) -> f64 {
        if n < p + 4 {
            return 0.0;
        }
        let (a, b) = ((n as f64 - 0.5).sqrt(), (p as f64 - 0.5).sqrt());
        // Ma's logarithmic form, which stays accurate for small p.
        let scale = (1.0 / b - 1.0 / a).cbrt() / (a - b);
        let centre = 2.0 * (a - b).ln() + scale.powi(3) / 8.0;
        (centre - scale * tracy_widom::ppf(1.0 - alpha)).exp()
    }
}

/// Robust iterated fit: start from the median; count spikes by Tracy-Widom at the deflated sizes; take the variance as
/// the Huber mean of value over quantile in the 10-90 % window of the rest; repeat until the count repeats.
///
/// The quantiles are those of the law for (p - K) x (n - K), moved by what the spikes push down.
#[must_use]
pub fn robust(spectrum: &Spectrum, quantile: f64, most: usize) -> Fit {
    let (p, n) = (spectrum.p(), spectrum.n);
    let middle = Law::of(p, n).ppf(0.5) * n as f64;
    let mut fit = Fit {
        sigma_sq: median(&spectrum.squares) / middle,
        spikes: 0,
    };
    let mut seen = Vec::new();
    for _ in 0..50 {
        let spikes = spectrum.above(spectrum.threshold(&fit, quantile)).min(most);
        if seen.contains(&spikes) {
            break;
        }
        seen.push(spikes);
        fit.spikes = spikes;
        fit.sigma_sq = window_variance(spectrum, &fit);
    }
    fit
}

/// Huber mean of value over expected value in the window.
fn window_variance(spectrum: &Spectrum, fit: &Fit) -> f64 {
    let bulk = spectrum.bulk(fit.spikes);
    let size = bulk.len();
    let noise = spectrum.noise(fit);
    let strengths = spectrum.strengths(fit);
    let law = Law::of(size, spectrum.n - fit.spikes);
    let quantiles = law.quantiles(size);
    let trim = size / 10;
    let ratios: Vec<f64> = (trim..size - trim)
        .map(|i| {
            let mut expected = quantiles[i];
            if !strengths.is_empty() {
                let shift = noise.shift(expected * noise.n * noise.sigma_sq, &strengths);
                expected -= shift / (size as f64 * law.pdf(expected)).max(f64::MIN_POSITIVE);
            }
            bulk[i] / (expected * noise.n)
        })
        .collect();
    huber_mean(ratios)
}

/// Location by Huber's weights with the cut at 1.345 median absolute deviations (scaled to the normal law).
fn huber_mean(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let mut centre = median(&values);
    let mut deviations: Vec<f64> = values.iter().map(|v| (v - centre).abs()).collect();
    deviations.sort_by(f64::total_cmp);
    let cut = 1.345 * 1.4826 * median(&deviations);
    for _ in 0..10 {
        let (mut weights, mut sum) = (0.0, 0.0);
        for value in &values {
            let distance = (value - centre).abs();
            let weight = if distance <= cut { 1.0 } else { cut / distance };
            weights += weight;
            sum += weight * value;
        }
        if weights > 0.0 {
            centre = sum / weights;
        }
    }
    centre
}

/// Median of ascending values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        values[half]
    } else {
        0.5 * (values[half - 1] + values[half])
    }
}

/// Variance from the energy of the bulk ([`Energy`]), the spikes being counted again until the count repeats.
///
/// Kritchman and Nadler correct the variance in the same way for a few spikes.
///
/// # References
/// S. Kritchman, B. Nadler, "Determining the number of components in a factor model from limited noisy data", 2008.
#[must_use]
pub fn energy(spectrum: &Spectrum, start: &Fit, quantile: f64, most: usize) -> Fit {
    let mut energy = Energy::new(spectrum);
    let mut fit = *start;
    let mut seen = vec![fit.spikes];
    for _ in 0..50 {
        fit.sigma_sq = energy.variance(fit.spikes);
        let spikes = spectrum.above(spectrum.threshold(&fit, quantile)).min(most);
        if seen.contains(&spikes) {
            break;
        }
        seen.push(spikes);
        fit.spikes = spikes;
    }
    while let Some(fewer) = without_last(&mut energy, &fit, quantile) {
        fit = fewer;
    }
    fit
}

/// The fit with one spike fewer, if the smallest spike does not stand out of it: counting a value as a spike lowers the
/// variance, so that one that was counted by chance would confirm itself.
fn without_last(energy: &mut Energy, fit: &Fit, quantile: f64) -> Option<Fit> {
    let spikes = fit.spikes.checked_sub(1)?;
    let fewer = Fit {
        sigma_sq: energy.variance(spikes),
        spikes,
    };
    let spectrum = energy.spectrum();
    (spectrum.top(fit.spikes)[0] <= spectrum.threshold(&fewer, quantile)).then_some(fewer)
}

/// BEMA for noise of one variance: least squares through the origin of the values on the quantiles of ranks
/// trim p <= k <= (1 - trim) p; threshold `sigma_sq` (centre + t n^(-2/3) gamma^(-1/6) (1 + sqrt(gamma))^(4/3)) with the
/// Tracy-Widom quantile t of level 1 - level. Returns the fit and the threshold (squared singular value).
///
/// # References
/// Z. T. Ke, Y. Ma, X. Lin, "Estimation of the number of spiked eigenvalues in a covariance matrix by bulk eigenvalue
/// matching analysis", 2023.
#[must_use]
pub fn bema(spectrum: &Spectrum, trim: f64, level: f64) -> (Fit, f64) {
    let (p, n) = (spectrum.p(), spectrum.n as f64);
    let law = Law::of(p, spectrum.n);
    let size = p as f64;
    let (first, last) = ((trim * size).ceil().max(1.0), ((1.0 - trim) * size).floor());
    let (mut product, mut square) = (0.0, 0.0);
    // k-th largest value against the upper quantile k/p.
    for k in (first as usize)..=(last.max(first) as usize).min(p) {
        let quantile = law.ppf(1.0 - k as f64 / size);
        product += quantile * spectrum.squares[p - k] / n;
        square += quantile * quantile;
    }
    let sigma_sq = if square > 0.0 { product / square } else { 0.0 };
    let gamma = size / n;
    let width = n.powf(-2.0 / 3.0) * gamma.powf(-1.0 / 6.0) * (1.0 + gamma.sqrt()).powf(4.0 / 3.0);
    let unit = law.upper() + tracy_widom::ppf(1.0 - level) * width;
    let threshold = sigma_sq * unit * n;
    let spikes = spectrum.above(threshold);
    (Fit { sigma_sq, spikes }, threshold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mp::bootstrap::null_squares;

    fn noise_with_spikes(p: usize, n: usize, strengths: &[f64], draw: u64) -> Spectrum {
        let noise = Noise {
            sigma_sq: 1.0,
            p: p as f64,
            n: n as f64,
        };
        let mut squares = null_squares(p - strengths.len(), n - strengths.len(), 17, draw);
        squares.extend(strengths.iter().map(|t| noise.sample(t * noise.critical())));
        squares.sort_by(f64::total_cmp);
        Spectrum { squares, n }
    }

    #[test]
    fn quantiles_of_the_law_give_their_variance_back() {
        let squares: Vec<f64> = Law::of(200, 500)
            .quantiles(200)
            .iter()
            .map(|x| 3.0 * 500.0 * x)
            .collect();
        let spectrum = Spectrum { squares, n: 500 };
        let fit = robust(&spectrum, 2.0, 100);
        assert!((fit.sigma_sq / 3.0 - 1.0).abs() < 1e-10 && fit.spikes == 0);
        let (fit, _) = bema(&spectrum, 0.2, 0.1);
        assert!((fit.sigma_sq / 3.0 - 1.0).abs() < 0.02 && fit.spikes == 0);
    }

    #[test]
    fn planted_spikes_are_counted_by_both_fits() {
        for draw in 0..5 {
            let spectrum = noise_with_spikes(100, 300, &[6.0, 9.0, 20.0, 400.0], draw);
            let first = robust(&spectrum, 2.0234, 60);
            let second = energy(&spectrum, &first, 2.0234, 60);
            assert_eq!((first.spikes, second.spikes), (4, 4));
            assert!((second.sigma_sq - 1.0).abs() < 0.04, "{}", second.sigma_sq);
        }
    }

    #[test]
    fn the_smallest_value_of_noise_falls_below_its_threshold_as_rarely_as_asked() {
        let (p, n) = (40, 90);
        let threshold = TracyWidom::lowest(p, n, 0.05);
        let below = (0..1000)
            .filter(|draw| null_squares(p, n, 2, *draw)[0] < threshold)
            .count();
        // Four standard errors of a share of 1000 at 5 %.
        assert!((below as f64 / 1000.0 - 0.05).abs() < 0.028, "{below}");
    }

    #[test]
    fn the_largest_value_of_noise_exceeds_its_threshold_as_rarely_as_asked() {
        let unit = TracyWidom::new(40, 90);
        let threshold = unit.centre + unit.scale * tracy_widom::ppf(0.95);
        let above = (0..1000)
            .filter(|draw| null_squares(40, 90, 6, *draw)[39] > threshold)
            .count();
        assert!((above as f64 / 1000.0 - 0.05).abs() < 0.028, "{above}");
    }
}
