//! The Marchenko-Pastur law of the eigenvalues of W W' / n: W is (p x n), its entries have variance `sigma_sq`.

use std::f64::consts::{PI, TAU};

use crate::{Error, Result};

/// The law for aspect ratio `gamma` = p/n in (0, 1] and entry variance `sigma_sq` > 0.
///
/// # References
/// V. A. Marchenko, L. A. Pastur, "Distribution of eigenvalues for some sets of random matrices", 1967.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Law {
    gamma: f64,
    sigma_sq: f64,
}

impl Law {
    /// # Errors
    /// [`Error::Value`] if `gamma` is not in (0, 1] or `sigma_sq` not positive and finite.
    ///
    /// # Example
    /// ```
    /// let law = mpcore_core::mp::law::Law::new(0.25, 4.0).unwrap();
    /// assert_eq!((law.lower(), law.upper()), (1.0, 9.0));
    /// assert!((law.cdf(law.ppf(0.3)) - 0.3).abs() < 1e-14);
    /// ```
    pub fn new(gamma: f64, sigma_sq: f64) -> Result<Self> {
        if !(gamma > 0.0 && gamma <= 1.0) {
            return Err(Error::Value {
                name: "gamma",
                got: gamma,
                wanted: "in (0, 1]",
            });
        }
        if !(sigma_sq > 0.0 && sigma_sq.is_finite()) {
            return Err(Error::Value {
                name: "sigma_sq",
                got: sigma_sq,
                wanted: "positive and finite",
            });
        }
        Ok(Self { gamma, sigma_sq })
    }

    /// The law of the eigenvalues of a (p x n) matrix of unit variance, p <= n, both at least 1.
    pub(crate) fn of(p: usize, n: usize) -> Self {
        Self {
            gamma: p as f64 / n as f64,
            sigma_sq: 1.0,
        }
    }

    /// Aspect ratio p/n.
    #[must_use]
    pub fn gamma(&self) -> f64 {
        self.gamma
    }

    /// Variance of an entry.
    #[must_use]
    pub fn sigma_sq(&self) -> f64 {
        self.sigma_sq
    }

    /// Lower edge `sigma_sq` (1 - sqrt(gamma))^2.
    #[must_use]
    pub fn lower(&self) -> f64 {
        self.sigma_sq * self.unit_lower()
    }

    /// Upper edge `sigma_sq` (1 + sqrt(gamma))^2.
    #[must_use]
    pub fn upper(&self) -> f64 {
        self.sigma_sq * (1.0 + self.gamma.sqrt()).powi(2)
    }

    /// Density; 0 at the edges and outside, except infinity at 0 for gamma = 1, where the density diverges.
    #[must_use]
    pub fn pdf(&self, x: f64) -> f64 {
        let (low, high) = (self.lower(), self.upper());
        if x.is_nan() {
            f64::NAN
        } else if x == 0.0 && low == 0.0 {
            f64::INFINITY
        } else if x <= low || x >= high {
            0.0
        } else {
            (high - x).sqrt() * (x - low).sqrt() / (TAU * self.gamma * self.sigma_sq) / x
        }
    }

    /// Distribution function in closed form; exactly 0 and 1 at the edges and beyond.
    #[must_use]
    pub fn cdf(&self, x: f64) -> f64 {
        if x.is_nan() {
            f64::NAN
        } else if x <= self.lower() {
            0.0
        } else if x >= self.upper() {
            1.0
        } else {
            self.cdf_at_angle(self.angle_of(x / self.sigma_sq))
        }
    }

    /// Lower edge for unit variance; near gamma = 1 the plain difference would have few digits.
    fn unit_lower(&self) -> f64 {
        ((1.0 - self.gamma) / (1.0 + self.gamma.sqrt())).powi(2)
    }

    /// Integral of the density up to the angle t: with g = sqrt(gamma),
    /// pi F = t + sin(t) / g - (1 - gamma) / gamma * arg(1 - g exp(-i t)).
    fn cdf_at_angle(&self, angle: f64) -> f64 {
        let (gamma, root) = (self.gamma, self.gamma.sqrt());
        let (sine, cosine) = angle.sin_cos();
        let argument = (root * sine).atan2(1.0 - root * cosine);
        let sum = angle + sine / root - (1.0 - gamma) / gamma * argument;
        (sum / PI).clamp(0.0, 1.0)
    }

    /// Quantile of level `q`; the edges for 0 and 1, NaN outside [0, 1].
    #[must_use]
    pub fn ppf(&self, q: f64) -> f64 {
        if !(0.0..=1.0).contains(&q) {
            return f64::NAN;
        }
        if q <= 0.0 {
            return self.lower();
        }
        if q >= 1.0 {
            return self.upper();
        }
        self.sigma_sq * self.unit_quantile(q, 0.0, PI)
    }

    /// The `count` quantiles of levels (i + 1/2) / count, ascending.
    #[must_use]
    pub fn quantiles(&self, count: usize) -> Vec<f64> {
        const CELLS: usize = 256;
        let angle = |i: usize| PI * i as f64 / CELLS as f64;
        let table: Vec<f64> = (0..=CELLS).map(|i| self.cdf_at_angle(angle(i))).collect();
        let mut cell = 0;
        (0..count)
            .map(|i| {
                let q = (i as f64 + 0.5) / count as f64;
                while cell + 1 < CELLS && table[cell + 1] < q {
                    cell += 1;
                }
                self.sigma_sq * self.unit_quantile(q, angle(cell), angle(cell + 1))
            })
            .collect()
    }

    /// x = 1 + gamma - 2 sqrt(gamma) cos(angle): the square-root edges become smooth in the angle.
    fn at_angle(&self, angle: f64) -> f64 {
        // (1 - sqrt(gamma))^2 + 4 sqrt(gamma) sin^2(angle/2), which loses no digits near the lower edge.
        self.unit_lower() + 4.0 * self.gamma.sqrt() * (0.5 * angle).sin().powi(2)
    }

    /// The angle of x for unit variance; the ends of [0, pi] beyond the edges.
    fn angle_of(&self, x: f64) -> f64 {
        let above = ((x - self.unit_lower()) / (4.0 * self.gamma.sqrt())).clamp(0.0, 1.0);
        2.0 * above.sqrt().atan2((1.0 - above).sqrt())
    }

    /// Newton in the angle between `low` and `high`, kept inside by bisection.
    fn unit_quantile(&self, q: f64, mut low: f64, mut high: f64) -> f64 {
        let mut angle = 0.5 * (low + high);
        for _ in 0..60 {
            let excess = self.cdf_at_angle(angle) - q;
            if excess > 0.0 {
                high = angle;
            } else {
                low = angle;
            }
            let slope = self.slope(angle);
            let newton = angle - excess / slope;
            let next = if newton > low && newton < high {
                newton
            } else {
                0.5 * (low + high)
            };
            let step = (next - angle).abs();
            angle = next;
            if step < 1e-13 {
                break;
            }
        }
        self.at_angle(angle)
    }

    /// Derivative of [`Self::cdf_at_angle`].
    fn slope(&self, angle: f64) -> f64 {
        2.0 * angle.sin().powi(2) / (PI * self.at_angle(angle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Simpson's rule in the angle.
    fn integral(law: &Law, to: f64) -> f64 {
        let n = 4000;
        let end = to;
        let at = |k: usize| {
            let angle = end * k as f64 / n as f64;
            let x = law.sigma_sq * law.at_angle(angle);
            let density = if x == 0.0 { 0.0 } else { law.pdf(x) };
            density * law.sigma_sq * 2.0 * law.gamma.sqrt() * angle.sin()
        };
        let weight = |k: usize| match k {
            0 => 1.0,
            k if k == n => 1.0,
            k if k % 2 == 1 => 4.0,
            _ => 2.0,
        };
        (0..=n).map(|k| weight(k) * at(k)).sum::<f64>() * end / n as f64 / 3.0
    }

    #[test]
    fn quantiles_of_a_run_equal_single_quantiles() {
        for gamma in [1e-4, 0.1, 0.9, 1.0] {
            let law = Law::new(gamma, 2.0).unwrap();
            for (i, x) in law.quantiles(137).into_iter().enumerate() {
                let q = (i as f64 + 0.5) / 137.0;
                assert!(
                    (law.cdf(x) - q).abs() < 1e-12 / gamma.min(0.1),
                    "{gamma} {q}"
                );
                assert!((x / law.ppf(q) - 1.0).abs() < 1e-10, "{gamma} {q}");
            }
        }
    }

    #[test]
    fn small_gamma_and_gamma_near_one_keep_their_digits() {
        // At gamma -> 0 the law is a semicircle in the angle: pi F = t - sin(t) cos(t) + O(sqrt(gamma)).
        for gamma in [1e-6, 1e-9, 1e-12] {
            let law = Law::new(gamma, 1.0).unwrap();
            for angle in [0.3, 1.0, 2.0, 3.0f64] {
                let limit = (angle - angle.sin() * angle.cos()) / PI;
                let first = gamma.sqrt() * (angle.sin() - (3.0 * angle).sin() / 3.0) / PI;
                let rounding = 4.0 * f64::EPSILON / gamma.sqrt();
                let found = law.cdf(law.at_angle(angle));
                assert!(
                    (found - limit - first).abs() < gamma + rounding,
                    "{gamma} {angle}"
                );
            }
        }
        let law = Law::new(1.0 - 1e-10, 1.0).unwrap();
        assert!((law.lower() / 2.5e-21 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn arguments_out_of_range_are_refused() {
        for (gamma, sigma_sq) in [
            (0.0, 1.0),
            (1.1, 1.0),
            (f64::NAN, 1.0),
            (0.5, 0.0),
            (0.5, f64::INFINITY),
        ] {
            assert!(matches!(
                Law::new(gamma, sigma_sq),
                Err(Error::Value { .. })
            ));
        }
    }

    #[test]
    fn the_square_law_is_an_arc_in_the_angle() {
        let law = Law::new(1.0, 1.0).unwrap();
        for k in 0..=10 {
            let angle = PI * f64::from(k) / 10.0;
            let exact = (angle + angle.sin()) / PI;
            assert!((law.cdf(law.at_angle(angle)) - exact).abs() < 1e-15);
        }
    }

    proptest! {
        #[test]
        fn the_closed_form_is_the_integral_of_the_density(gamma in 0.01..0.97f64, sigma_sq in 0.1..10.0f64, angle in 0.05..3.1f64) {
            let law = Law::new(gamma, sigma_sq).unwrap();
            let closed = law.cdf(sigma_sq * law.at_angle(angle));
            // Below gamma = 1 the integrand is smooth; at 1 it is bounded with a kink at the origin.
            prop_assert!((closed - integral(&law, angle)).abs() < 1e-7);
        }
    }
}
