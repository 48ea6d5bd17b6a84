//! The edge from a few products with the matrix, for matrices whose whole spectrum is too dear.

use crate::linalg::dense::Real;
use crate::linalg::krylov::{Operator, Ritz, Space};
use crate::linalg::survey::Kurtosis;
use crate::linalg::values::scale;
use crate::mp::edge::{Z, check_level};
use crate::mp::fit::TracyWidom;
use crate::mp::gof::LEVEL;
use crate::mp::report::Spike;
use crate::mp::spike::Noise;
use crate::mp::tracy_widom;
use crate::random::Random;
use crate::threads::Threads;
use crate::{Error, Result};

/// What [`find`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Question {
    /// Tracy-Widom level in [1e-15, 1/2].
    pub alpha: f64,
    /// Most spikes to look for; `None`: a twentieth of the values.
    pub most: Option<usize>,
    /// Seed of the start block and of the probes.
    pub seed: u64,
    /// Excess kurtosis of the entries (0: normal).
    pub kurtosis: Kurtosis,
}

/// What few products can tell; edges in singular-value units.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    /// Variance of an entry of the noise.
    pub sigma_sq: f64,
    /// Its standard error.
    pub sigma_sq_se: f64,
    /// Its 95 % interval.
    pub sigma_sq_ci: (f64, f64),
    /// Edge of the sample bulk without the spikes.
    pub edge: f64,
    /// Its 95 % interval.
    pub edge_ci: (f64, f64),
    /// Tracy-Widom threshold.
    pub tracy_widom: f64,
    /// The spikes, largest first.
    pub spikes: Vec<Spike>,
    /// Number of spikes with the edge at the ends of its interval.
    pub n_spikes_ci: (usize, usize),
    /// Probability of a second moment further from the law's.
    pub p_value: f64,
    /// Squared Frobenius norm over the largest squared value.
    pub stable_rank: f64,
    /// Largest singular value.
    pub largest: f64,
}

/// A sketch, or in words why there is none.
pub type Outcome = std::result::Result<Sketch, String>;

const BLOCK: usize = 16;
/// Probes of the second moment where the p-value of the first sixteen is below [`DOUBT`].
const SECOND_LOOK: usize = 64;
/// High enough that a profile which sixteen probes see half of the time is looked at again nearly always.
const DOUBT: f64 = 0.1;
/// Passes over the matrix: checked from the sixth, given up at the fortieth.
const FIRST: usize = 6;
const LAST: usize = 40;

/// Sketch the edge of the row-major (rows x columns) matrix `w`.
///
/// A block Krylov space of 16 vectors grows until every Ritz value above the Tracy-Widom threshold has converged and
/// their number has not changed over two passes. The variance follows from the exact squared norm minus the spikes, as
/// from the bulk's energy. It assumes one variance everywhere, so the second moment of the rest, measured with 16
/// probes, has to agree with the law: otherwise there is no answer but a reason.
///
/// The work is done on `threads`; `stop` is asked before every pass, on the calling thread.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::Value`] for `alpha` out of range, [`Error::Interrupted`].
pub fn find<T: Real>(
    w: &[T],
    shape: (usize, usize),
    question: &Question,
    threads: &Threads,
    stop: &dyn Fn() -> bool,
) -> Result<Outcome> {
    check_level(question.alpha)?;
    let operator = threads.run(|| Operator::new(w, shape))?;
    let p = operator.short();
    if p < 20 * BLOCK {
        return Ok(Err(format!("{p} values are too few for it")));
    }
    let most = question.most.unwrap_or(p / 20).min(p / 4);
    let quantile = tracy_widom::ppf(1.0 - question.alpha);
    let energy = threads.run(|| operator.squared_norm());
    let mut space = threads.run(|| Space::new(&operator, BLOCK, question.seed));
    let mut before = None;
    for pass in 1..=LAST {
        if stop() {
            return Err(Error::Interrupted);
        }
        if space.dimension() + BLOCK > p / 2 {
            break;
        }
        threads.run(|| space.expand());
        if pass < FIRST || pass % 2 == 1 {
            continue;
        }
        let ritz = threads.run(|| space.ritz())?;
        let Some(noise) = fit(&operator, &ritz, energy, quantile, most) else {
            return Ok(Err(format!("more than {most} spikes")));
        };
        let spikes = p - noise.p as usize;
        let settled = before == Some(spikes) && converged(&ritz, &noise, spikes);
        before = Some(spikes);
        if settled && space.dimension() >= 2 * spikes + 2 * BLOCK {
            return Ok(threads.run(|| judge(&operator, &space, &ritz, &noise, question, energy)));
        }
    }
    Ok(Err(format!(
        "spikes had not converged after {} products",
        space.products
    )))
}

/// Noise that is consistent with its own number of spikes; `None` if there are more than `most`.
fn fit<T: Real>(
    operator: &Operator<'_, T>,
    ritz: &Ritz,
    energy: f64,
    quantile: f64,
    most: usize,
) -> Option<Noise> {
    let (p, n) = (operator.short(), operator.long());
    let mut spikes = 0;
    loop {
        let noise = Noise {
            sigma_sq: 1.0,
            p: (p - spikes) as f64,
            n: (n - spikes) as f64,
        };
        let rest = (energy - ritz.values[..spikes].iter().sum::<f64>()) / (noise.p * noise.n);
        let noise = with_variance(noise, rest, &ritz.values[..spikes]);
        let unit = TracyWidom::new(p - spikes, n - spikes);
        let threshold = noise.sigma_sq * (unit.centre + quantile * unit.scale);
        let above = ritz.values.iter().take_while(|v| **v > threshold).count();
        if above <= spikes {
            return Some(noise);
        }
        // Only upwards: each round takes more energy off the noise, so this ends.
        spikes = above;
        if spikes > most || spikes == ritz.values.len() {
            return None;
        }
    }
}

/// Variance with mean = variance (1 - sum of variance / `theta_i`^2), `mean` being the bulk's energy per entry: spikes take
/// energy from the bulk one by one (Kritchman and Nadler). [`crate::mp::energy`] is more exact and needs the whole bulk.
fn with_variance(mut noise: Noise, mean: f64, tops: &[f64]) -> Noise {
    noise.sigma_sq = mean;
    for _ in 0..100 {
        let taken: f64 = tops
            .iter()
            .map(|v| noise.sigma_sq / noise.strength(*v).unwrap_or(noise.critical()))
            .sum();
        noise.sigma_sq = mean / (1.0 - taken).max(0.1);
    }
    noise
}

/// Every spike further from the edge than five times its residual, and a value below the threshold in sight.
fn converged(ritz: &Ritz, noise: &Noise, spikes: usize) -> bool {
    let upper = noise.upper();
    ritz.values.len() > spikes
        && ritz.values[..spikes]
            .iter()
            .zip(&ritz.residuals)
            .all(|(value, residual)| 5.0 * residual <= value - upper)
}

/// Test the second moment; write the sketch if it agrees.
fn judge<T: Real>(
    operator: &Operator<'_, T>,
    space: &Space<'_, T>,
    ritz: &Ritz,
    noise: &Noise,
    question: &Question,
    energy: f64,
) -> Outcome {
    let spikes = operator.short() - noise.p as usize;
    let top = space.vectors(ritz, spikes);
    let expected = expected_moment(noise, &ritz.values[..spikes]);
    let test = |probes: usize| {
        let (moment, error) = second_moment(operator, &top, probes, question.seed);
        // The law's own fluctuation is far below the probes'; 0.2 % allows for finite size.
        let t = (moment - expected) / error.hypot(0.002 * expected);
        (moment, two_sided(as_normal(t, probes as f64 - 1.0)))
    };
    let (mut moment, mut p_value) = test(BLOCK);
    if p_value < DOUBT {
        // Exact values, the answer to a refusal, may take a hundred times as long as a second look.
        (moment, p_value) = test(SECOND_LOOK);
    }
    if p_value < LEVEL {
        return Err(format!(
            "second moment {:+.1} % off the Marchenko-Pastur law's, p-value {p_value:.1e}",
            100.0 * (moment / expected - 1.0)
        ));
    }
    let se =
        noise.sigma_sq * ((2.0 + question.kurtosis.noise).max(0.2) / (noise.p * noise.n)).sqrt();
    let interval = ((noise.sigma_sq - Z * se).max(0.0), noise.sigma_sq + Z * se);
    let unit = TracyWidom::new(noise.p as usize, noise.n as usize);
    let quantile = tracy_widom::ppf(1.0 - question.alpha);
    let unit_threshold = unit.centre + quantile * unit.scale;
    let count = |sigma_sq: f64| {
        let above = |v: &&f64| **v > sigma_sq * unit_threshold;
        ritz.values.iter().take_while(above).count()
    };
    let edge = noise.upper().sqrt();
    let at = |sigma_sq: f64| scale(edge * (sigma_sq / noise.sigma_sq).sqrt(), operator.power);
    let twice = |v: f64| scale(scale(v, operator.power), operator.power);
    let mut found: Vec<Spike> = ritz.values[..spikes]
        .iter()
        .map(|square| Spike::in_noise(*square, noise, spikes))
        .collect();
    for spike in &mut found {
        spike.unscale(operator.power);
    }
    Ok(Sketch {
        sigma_sq: twice(noise.sigma_sq),
        sigma_sq_se: twice(se),
        sigma_sq_ci: (twice(interval.0), twice(interval.1)),
        edge: at(noise.sigma_sq),
        edge_ci: (at(interval.0), at(interval.1)),
        tracy_widom: scale((noise.sigma_sq * unit_threshold).sqrt(), operator.power),
        spikes: found,
        n_spikes_ci: (count(interval.1), count(interval.0)),
        p_value,
        stable_rank: energy / ritz.values[0],
        largest: scale(ritz.values[0].sqrt(), operator.power),
    })
}

/// Sum of the squared eigenvalues of A A' beside the vectors `top`, and its standard error, from random probes.
///
/// A probe counts by its direction: of the p beside `top`, p ||A A' q||^2 / ||q||^2 has the smaller variance.
fn second_moment<T: Real>(
    operator: &Operator<'_, T>,
    top: &[f64],
    count: usize,
    seed: u64,
) -> (f64, f64) {
    let length = operator.short();
    let mut random = Random::new(seed, count as u64);
    let mut probes: Vec<f64> = (0..count * length).map(|_| random.normal()).collect();
    for probe in probes.chunks_exact_mut(length) {
        for other in top.chunks_exact(length) {
            let part: f64 = probe.iter().zip(other).map(|(a, b)| a * b).sum();
            for (value, o) in probe.iter_mut().zip(other) {
                *value -= part * o;
            }
        }
    }
    let image = operator.to_short(&operator.to_long(&probes));
    let square = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>();
    let beside = (length - top.len() / length) as f64;
    let squares: Vec<f64> = image
        .chunks_exact(length)
        .zip(probes.chunks_exact(length))
        .map(|(image, probe)| beside * square(image) / square(probe))
        .collect();
    let count = count as f64;
    let mean = squares.iter().sum::<f64>() / count;
    let spread: f64 = squares.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (spread / (count - 1.0) / count).sqrt())
}

/// Sum of squared eigenvalues of the bulk: `sigma^4` PN (P + N + 1), less what each spike takes out
/// (the second moment of [`Noise::shift`]): c d r + d^2 r^2 / 4, c = `sigma_sq` (P + N), d = 2 critical, r = critical / theta^2.
fn expected_moment(noise: &Noise, tops: &[f64]) -> f64 {
    let centre = noise.sigma_sq * (noise.p + noise.n);
    let critical = noise.critical();
    let taken: f64 = tops
        .iter()
        .map(|v| critical / noise.strength(*v).unwrap_or(critical))
        .map(|r| 2.0 * centre * critical * r + (critical * r).powi(2))
        .sum();
    critical.powi(2) * (noise.p + noise.n + 1.0) - taken
}

/// The standard normal number as unlikely as Student's `t` (Abramowitz and Stegun, 26.7.8).
fn as_normal(t: f64, degrees: f64) -> f64 {
    t * (1.0 - 0.25 / degrees) / (1.0 + t * t / (2.0 * degrees)).sqrt()
}

/// 2 (1 - Phi(|z|)); error below 2e-7 (Abramowitz and Stegun, 7.1.26).
fn two_sided(z: f64) -> f64 {
    let x = z.abs() / 2f64.sqrt();
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    series.iter().fold(0.0, |sum, c| (sum + c) * t) * (-x * x).exp()
}

#[cfg(test)]
mod tests;
