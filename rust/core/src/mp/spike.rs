//! Signal over noise in rectangular matrices: where a singular value of strength theta shows up, and back.
//!
//! W = S + X, X (p x n) noise of variance `sigma_sq`, p <= n; squares of singular values throughout.

use std::f64::consts::PI;

use crate::mp::law::Law;

/// Noise of one variance in a (p x n) matrix.
///
/// # References
/// F. Benaych-Georges, R. R. Nadakuditi, "The singular values and vectors of low rank perturbations of large
/// rectangular random matrices", 2012.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// Variance of an entry.
    pub sigma_sq: f64,
    /// Shorter side.
    pub p: f64,
    /// Longer side.
    pub n: f64,
}

impl Noise {
    /// The noise of `law` in units where n = 1.
    fn under(law: &Law) -> Self {
        Self {
            sigma_sq: law.sigma_sq(),
            p: law.gamma(),
            n: 1.0,
        }
    }

    /// Upper edge `sigma_sq` (sqrt(n) + sqrt(p))^2.
    #[must_use]
    pub fn upper(&self) -> f64 {
        self.sigma_sq * (self.n.sqrt() + self.p.sqrt()).powi(2)
    }

    /// Smallest squared strength that leaves the bulk, `sigma_sq` sqrt(pn).
    #[must_use]
    pub fn critical(&self) -> f64 {
        self.sigma_sq * (self.p * self.n).sqrt()
    }

    /// Squared singular value at which squared strength `theta_sq` shows up; the edge below [`Noise::critical`].
    #[must_use]
    pub fn sample(&self, theta_sq: f64) -> f64 {
        if theta_sq <= self.critical() {
            return self.upper();
        }
        (theta_sq + self.sigma_sq * self.n) * (theta_sq + self.sigma_sq * self.p) / theta_sq
    }

    /// Squared strength behind the squared singular value `square`; `None` inside the bulk.
    #[must_use]
    pub fn strength(&self, square: f64) -> Option<f64> {
        let y = square - self.sigma_sq * (self.n + self.p);
        let discriminant = y * y - 4.0 * self.critical().powi(2);
        (y > 0.0 && discriminant >= 0.0).then(|| 0.5 * (y + discriminant.sqrt()))
    }

    /// Cosines between true and sample vectors on the short and the long side; 0 below [`Noise::critical`].
    #[must_use]
    pub fn overlaps(&self, theta_sq: f64) -> (f64, f64) {
        let t = theta_sq / (self.sigma_sq * self.n);
        let c = self.p / self.n;
        if t <= c.sqrt() {
            return (0.0, 0.0);
        }
        let short = 1.0 - c * (1.0 + t) / (t * (t + c));
        let long = 1.0 - (c + t) / (t * (t + 1.0));
        (short.max(0.0).sqrt(), long.max(0.0).sqrt())
    }

    /// Expected number of bulk values below `square` that spikes of these squared strengths add (they push down).
    ///
    /// Krein's spectral shift: D = 1/t with t = sqrt(pn) `sigma_sq` exp(i phi) inside the bulk, where
    /// cos phi = (square/`sigma_sq` - p - n) / (2 sqrt(pn)); a spike adds arg(1 - (t/`theta_sq`)) / pi. `self` is the
    /// noise left after the spikes are gone, (p - K) x (n - K).
    #[must_use]
    pub fn shift(&self, square: f64, strengths: &[f64]) -> f64 {
        let root = (self.p * self.n).sqrt();
        let cosine = ((square / self.sigma_sq - self.p - self.n) / (2.0 * root)).clamp(-1.0, 1.0);
        let sine = (1.0 - cosine * cosine).sqrt();
        let critical = self.critical();
        strengths
            .iter()
            .map(|theta_sq| (critical / theta_sq).min(1.0))
            .map(|r| (r * sine).atan2(1.0 - r * cosine) / PI)
            .sum()
    }
}

/// What a squared singular value outside any bulk says about the signal behind it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Signal {
    /// Squared strength.
    pub theta_sq: f64,
    /// Cosine between true and sample vector, short side.
    pub short: f64,
    /// The same, long side.
    pub long: f64,
}

/// Signal behind `square`, for noise known only by its squared singular values `bulk`: p of them, of what is left of the
/// matrix without its spikes, (p x n); an empty bulk hides nothing.
///
/// The D-transform is summed over the values (`OptShrink`): `theta_sq` = 1/D(z), z^2 = `square`.
///
/// # References
/// R. R. Nadakuditi, "`OptShrink`: an algorithm for improved low-rank signal matrix denoising", IEEE Trans. Inf. Theory, 2014.
#[must_use]
pub fn from_bulk(square: f64, bulk: &[f64], n: f64) -> Signal {
    if bulk.is_empty() {
        return Signal {
            theta_sq: square,
            short: 1.0,
            long: 1.0,
        };
    }
    let (z, p) = (square.sqrt(), bulk.len() as f64);
    let (mut first, mut second) = (0.0, 0.0);
    for value in bulk {
        let inverse = 1.0 / (square - value).max(f64::EPSILON * square);
        first += inverse;
        second += inverse * inverse;
    }
    let (first, second) = (first / p, second / p);
    let c = p / n;
    let short = z * first;
    let long = c * short + (1.0 - c) / z;
    let short_slope = first - 2.0 * square * second;
    let long_slope = c * short_slope - (1.0 - c) / square;
    let theta_sq = 1.0 / (short * long);
    let slope = short_slope * long + short * long_slope;
    let cosine = |value: f64| (-2.0 * value / (theta_sq * slope)).clamp(0.0, 1.0).sqrt();
    Signal {
        theta_sq,
        short: cosine(short),
        long: cosine(long),
    }
}

/// Singular value (of W / sqrt(n)) at which strength `theta` shows up under `law`; the edge where it does not leave the bulk.
#[must_use]
pub fn sample_singular(law: &Law, theta: f64) -> f64 {
    Noise::under(law).sample(theta * theta).sqrt()
}

/// Strength behind the singular value `sample` (of W / sqrt(n)) under `law`; NaN inside the bulk, where none can be told.
#[must_use]
pub fn strength_singular(law: &Law, sample: f64) -> f64 {
    Noise::under(law)
        .strength(sample * sample)
        .map_or(f64::NAN, f64::sqrt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bulk_of_quantiles_gives_the_closed_forms() {
        let (p, n) = (400.0, 900.0);
        let noise = Noise {
            sigma_sq: 2.0,
            p,
            n,
        };
        let bulk: Vec<f64> = Law::of(400, 900)
            .quantiles(400)
            .iter()
            .map(|x| x * n * 2.0)
            .collect();
        let theta_sq = 3.0 * noise.critical();
        let signal = from_bulk(noise.sample(theta_sq), &bulk, n);
        let (short, long) = noise.overlaps(theta_sq);
        assert!((signal.theta_sq / theta_sq - 1.0).abs() < 1e-4);
        assert!((signal.short - short).abs() < 1e-3 && (signal.long - long).abs() < 1e-3);
    }

    #[test]
    fn infinite_spikes_shift_nothing_and_critical_ones_half_a_value() {
        let noise = Noise {
            sigma_sq: 1.0,
            p: 50.0,
            n: 80.0,
        };
        assert!(noise.shift(100.0, &[1e12]).abs() < 1e-9);
        let near_top = noise.upper() * (1.0 - 1e-12);
        assert!((noise.shift(near_top, &[noise.critical()]) - 0.5).abs() < 1e-3);
    }

    proptest! {
        #[test]
        fn strength_undoes_sample(sigma_sq in 0.01..10.0f64, p in 2.0..100.0f64, more in 0.0..200.0f64, factor in 1.01..50.0f64) {
            let noise = Noise { sigma_sq, p, n: p + more };
            let theta_sq = factor * noise.critical();
            let back = noise.strength(noise.sample(theta_sq)).unwrap();
            prop_assert!((back / theta_sq - 1.0).abs() < 1e-6);
        }
    }
}
