//! What a fit says, and the degenerate case in which there is no noise.

use crate::linalg::values::scale;
use crate::mp::fit::{Spectrum, TracyWidom};
use crate::mp::gof::GoodnessOfFit;
use crate::mp::ranks::{self, Ranks};
use crate::mp::spike::Noise;
use crate::mp::tracy_widom;

/// One value above the edge; singular-value units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    /// The singular value.
    pub value: f64,
    /// Singular value of the signal behind it.
    pub strength: f64,
    /// Probability that noise alone reaches `value`.
    pub p_value: f64,
    /// Expected cosine between true and sample vector, short side.
    pub short: f64,
    /// The same, long side.
    pub long: f64,
}

/// Edges and spikes of one matrix; edges in singular-value units.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Standard deviation of an entry of the noise.
    pub sigma: f64,
    /// Its square, which keeps fewer digits where it is below 1e-300.
    pub sigma_sq: f64,
    /// Its standard error.
    pub sigma_sq_se: f64,
    /// Its 95 % interval.
    pub sigma_sq_ci: (f64, f64),
    /// Edge of the sample bulk without the spikes.
    pub deflated: f64,
    /// Tracy-Widom threshold.
    pub tracy_widom: f64,
    /// Non-parametric edge and its 95 % interval.
    pub free: f64,
    /// 95 % interval of `free`.
    pub free_ci: (f64, f64),
    /// The edge to act on.
    pub edge: f64,
    /// Its 95 % interval.
    pub edge_ci: (f64, f64),
    /// Which edge that is: "mp", "free", "whitened" or "bema".
    pub model: &'static str,
    /// Values above the threshold that belongs to `edge`.
    pub n_spikes: usize,
    /// The same with the edge at the ends of its interval.
    pub n_spikes_ci: (usize, usize),
    /// Values below the lower edge.
    pub n_below: usize,
    /// The spikes, largest first.
    pub spikes: Vec<Spike>,
    /// Fit of the Marchenko-Pastur law.
    pub gof: GoodnessOfFit,
    /// Ranks.
    pub ranks: Ranks,
    /// What the reader should know, in words.
    pub warnings: Vec<String>,
}

impl Spike {
    /// A squared singular value above `noise`, the noise left beside `spikes` spikes; the noise in the spikes' own
    /// K x K corner is taken off the strength.
    pub(crate) fn in_noise(square: f64, noise: &Noise, spikes: usize) -> Self {
        let with_corner = noise.strength(square).unwrap_or(noise.critical());
        let corner = spikes.saturating_sub(1) as f64 * noise.sigma_sq;
        let (short, long) = noise.overlaps(with_corner);
        let unit = TracyWidom::new(noise.p as usize, noise.n as usize);
        Self {
            value: square.sqrt(),
            strength: (with_corner - corner).max(0.0).sqrt(),
            p_value: tracy_widom::sf((square / noise.sigma_sq - unit.centre) / unit.scale),
            short,
            long,
        }
    }

    pub(crate) fn unscale(&mut self, power: i32) {
        self.value = scale(self.value, power);
        self.strength = scale(self.strength, power);
    }
}

impl Report {
    /// The report of 2^`power` times the matrix.
    pub(crate) fn unscale(mut self, power: i32) -> Self {
        let one = |v: &mut f64| *v = scale(*v, power);
        let two = |v: &mut f64| *v = scale(scale(*v, power), power);
        for value in [
            &mut self.sigma_sq,
            &mut self.sigma_sq_se,
            &mut self.sigma_sq_ci.0,
            &mut self.sigma_sq_ci.1,
        ] {
            two(value);
        }
        for value in [
            &mut self.sigma,
            &mut self.deflated,
            &mut self.tracy_widom,
            &mut self.free,
            &mut self.free_ci.0,
            &mut self.free_ci.1,
            &mut self.edge,
            &mut self.edge_ci.0,
            &mut self.edge_ci.1,
        ] {
            one(value);
        }
        for spike in &mut self.spikes {
            spike.unscale(power);
        }
        self
    }
}

/// More than half of the values are rounding errors: whatever stands above them is signal.
pub(crate) fn without_noise(spectrum: &Spectrum, floor: f64, eps: f64) -> Report {
    let count = spectrum.above(floor * floor);
    let spikes = spectrum.top(count).iter().rev().map(|square| Spike {
        value: square.sqrt(),
        strength: square.sqrt(),
        p_value: 0.0,
        short: 1.0,
        long: 1.0,
    });
    Report {
        sigma: 0.0,
        sigma_sq: 0.0,
        sigma_sq_se: 0.0,
        sigma_sq_ci: (0.0, 0.0),
        deflated: 0.0,
        tracy_widom: 0.0,
        free: 0.0,
        free_ci: (0.0, 0.0),
        edge: 0.0,
        edge_ci: (0.0, 0.0),
        model: "free",
        n_spikes: count,
        n_spikes_ci: (count, count),
        n_below: 0,
        spikes: spikes.collect(),
        gof: GoodnessOfFit {
            ks: 1.0,
            p_value: 0.0,
            anderson_darling: f64::INFINITY,
            accepted: false,
        },
        ranks: ranks::ranks(spectrum, eps),
        warnings: vec![format!(
            "no noise bulk: only {count} of {} singular values are above rounding",
            spectrum.p()
        )],
    }
}
