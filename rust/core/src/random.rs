//! Random numbers: `ChaCha8` by seed and stream, so that draw `i` of a simulation does not depend on who computes it.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A seeded source of uniform, normal and chi-square numbers.
#[derive(Debug, Clone)]
pub struct Random {
    generator: ChaCha8Rng,
    spare: Option<f64>,
}

impl Random {
    /// Stream `stream` of the generator with seed `seed`; streams do not overlap.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self {
            generator,
            spare: None,
        }
    }

    /// Uniform on the open interval (0, 1), a multiple of 2^-53 plus 2^-54.
    pub fn uniform(&mut self) -> f64 {
        ((self.generator.next_u64() >> 11) as f64 + 0.5) * 2f64.powi(-53)
    }

    /// Standard normal (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = u * u + v * v;
            if square < 1.0 && square > 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.spare = Some(v * factor);
                return u * factor;
            }
        }
    }

    /// Chi-square with `degrees` >= 1 degrees of freedom.
    pub fn chi_square(&mut self, degrees: usize) -> f64 {
        match degrees {
            1 => self.normal().powi(2),
            _ => 2.0 * self.gamma(degrees as f64 / 2.0),
        }
    }

    /// Gamma with shape >= 1 and scale 1 (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000).
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let values: Vec<f64> = (0..40_000).map(|_| draw()).collect();
        let mean = values.iter().sum::<f64>() / 40_000.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 40_000.0;
        (mean, variance)
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut random = Random::new(1, 0);
        let (mean, variance) = moments(|| random.normal());
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03);
    }

    #[test]
    fn chi_square_numbers_have_mean_k_and_variance_2k() {
        for degrees in [1, 2, 3, 50] {
            let mut random = Random::new(2, degrees as u64);
            let (mean, variance) = moments(|| random.chi_square(degrees));
            let k = degrees as f64;
            assert!((mean / k - 1.0).abs() < 0.03, "{degrees}: {mean}");
            assert!(
                (variance / (2.0 * k) - 1.0).abs() < 0.06,
                "{degrees}: {variance}"
            );
        }
    }

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let draw = |stream| Random::new(7, stream).uniform();
        assert!(draw(0).to_bits() == draw(0).to_bits() && draw(0).to_bits() != draw(1).to_bits());
    }
}
