//! From singular values to the edge between noise and signal.

use crate::linalg::survey::Kurtosis;
use crate::linalg::values::{exponent, scale};
use crate::mp::bootstrap;
use crate::mp::energy::Energy;
use crate::mp::fit::{self, Fit, Spectrum, TracyWidom};
use crate::mp::free::{self, FreeEdge};
use crate::mp::gof::{self, GoodnessOfFit};
use crate::mp::parametric::{holds, parametric};
use crate::mp::ranks;
use crate::mp::report::{Report, Spike, without_noise};
use crate::mp::spike;
use crate::mp::tracy_widom;
use crate::{Error, Result};

/// Which edge to act on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Model {
    /// Marchenko-Pastur if the goodness of fit accepts it, else the non-parametric edge.
    Auto,
    /// Marchenko-Pastur whatever the fit.
    Mp,
    /// The non-parametric edge.
    Free,
    /// An edge computed from a variance profile (singular value).
    Profile(f64),
    /// BEMA's threshold with this trim and level (see [`fit::bema`]).
    Bema {
        /// Share of the values left out at either end.
        trim: f64,
        /// Level of the Tracy-Widom term.
        level: f64,
    },
}

/// What [`find`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Question {
    /// Tracy-Widom level in [1e-15, 1/2].
    pub alpha: f64,
    /// Which edge to act on.
    pub model: Model,
    /// Most spikes to look for; `None`: 60 % of the values.
    pub most: Option<usize>,
    /// Simulated spectra for p-value and intervals; 0 uses formulas, otherwise at least 100.
    pub draws: usize,
    /// Seed of the simulation.
    pub seed: u64,
    /// Excess kurtosis of the entries (0: normal): the noise's widens or narrows the interval of the variance.
    pub kurtosis: Kurtosis,
    /// Rounding unit of the stored matrix.
    pub eps: f64,
}

/// # Errors
/// [`Error::Value`] for a level of spikes that has no quantile.
pub(crate) fn check_level(alpha: f64) -> Result<()> {
    if (1e-15..=0.5).contains(&alpha) {
        return Ok(());
    }
    Err(Error::Value {
        name: "alpha",
        got: alpha,
        wanted: "in [1e-15, 1/2]",
    })
}

/// A rejected law's count of spikes stays where the free edge confirms it but for one, at p-values above this.
///
/// Noise is rejected by chance at times; but a row of many spikes ends like a bulk, so that the smallest count the free
/// edge confirms may be none of them (5 of 2400 simulated matrices with 20 or 40 % spikes lost all of them so). Below it
/// the count is worth nothing: noise whose rows differ in variance passes for a narrower law and a row of spikes.
const DOUBT: f64 = 1e-4;

/// Normal quantile of a 95 % interval.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// Find the edge in the singular values (descending) of a (p x n) matrix, p = number of values <= n.
///
/// # Errors
/// [`Error::Shape`] for fewer than two values or n < p; [`Error::Value`] for values that are negative, not finite, not
/// descending or all zero, and for options out of range.
pub fn find(values: &[f64], n: usize, question: &Question) -> Result<Report> {
    check(values, n, question)?;
    let power = exponent(values[0]);
    let squares: Vec<f64> = values
        .iter()
        .rev()
        .map(|v| scale(*v, -power).powi(2))
        .collect();
    let spectrum = Spectrum { squares, n };
    let question = Question {
        model: match question.model {
            Model::Profile(edge) => Model::Profile(scale(edge, -power)),
            other => other,
        },
        ..*question
    };
    let floor = rounding(&spectrum, question.eps);
    if spectrum.squares[(spectrum.p() - 1) / 2] > floor * floor {
        let report = Search::new(&spectrum, &question).report();
        if report.edge > floor {
            return Ok(report.unscale(power));
        }
    }
    Ok(without_noise(&spectrum, floor, question.eps).unscale(power))
}

/// Singular values up to this may be rounding errors: four times the edge of noise as large as the rounding of each entry
/// of a matrix of this energy, and what the singular values themselves are off by.
fn rounding(spectrum: &Spectrum, eps: f64) -> f64 {
    let (p, n) = (spectrum.p() as f64, spectrum.n as f64);
    let energy: f64 = spectrum.squares.iter().sum();
    let entries = 4.0 * eps * (energy / (p * n)).sqrt() * (p.sqrt() + n.sqrt());
    // Values of float32 matrices come from float64 squares, those of float64 ones from no squares where that matters.
    let values = (0.5 * eps).clamp(64.0 * f64::EPSILON, 6e-8);
    entries.max(values * spectrum.squares[spectrum.p() - 1].sqrt())
}

fn check(values: &[f64], n: usize, question: &Question) -> Result<()> {
    let value = |name, got, wanted| Err(Error::Value { name, got, wanted });
    if values.len() < 2 || n < values.len() {
        return Err(Error::Shape {
            name: "values",
            got: values.len(),
            wanted: format!("between 2 and the longer side, {n}"),
        });
    }
    let before = std::iter::once(&f64::MAX).chain(values);
    if let Some((bad, _)) = values
        .iter()
        .zip(before)
        .find(|(v, before)| !(0.0..=**before).contains(*v))
    {
        return value(
            "values",
            *bad,
            "one of a descending run of finite singular values",
        );
    }
    if values[0] == 0.0 {
        return value(
            "values",
            0.0,
            "the spectrum of a matrix with an entry other than zero",
        );
    }
    check_level(question.alpha)?;
    if (1..100).contains(&question.draws) {
        return value("n_boot", question.draws as f64, "0 or at least 100");
    }
    match question.model {
        Model::Bema { trim, .. } if !(0.0..0.5).contains(&trim) => {
            value("trim", trim, "in [0, 1/2)")
        }
        Model::Bema { level, .. } if !(level > 0.0 && level < 1.0) => {
            value("level", level, "in (0, 1)")
        }
        _ => Ok(()),
    }
}

/// The state of one search; squares throughout.
struct Search<'a> {
    spectrum: &'a Spectrum,
    question: &'a Question,
    quantile: f64,
    most: usize,
    fit: Fit,
    gof: GoodnessOfFit,
    free: FreeEdge,
    /// The parametric fit took all the spikes it was allowed.
    limited: bool,
}

/// An edge, its interval, and threshold over edge.
struct Chosen {
    name: &'static str,
    edge: f64,
    interval: (f64, f64),
    over: f64,
}

impl<'a> Search<'a> {
    fn new(spectrum: &'a Spectrum, question: &'a Question) -> Self {
        let quantile = tracy_widom::ppf(1.0 - question.alpha);
        let ceiling = (3 * spectrum.p() / 5).min(spectrum.p() - 2);
        let most = question.most.unwrap_or(ceiling).min(ceiling);
        let (fit, gof) = parametric(spectrum, question, quantile, most);
        let same = free::given(spectrum, quantile, fit.spikes);
        // By the formula: simulated p-values end at one over the number of draws.
        let bulk = spectrum.p() - fit.spikes;
        let doubtful = gof::null_survival(gof.ks * bulk as f64, bulk) < DOUBT;
        let confirmed = !doubtful && same.spikes.abs_diff(fit.spikes) <= 1;
        let free = if confirmed || holds(spectrum, &fit, &gof) {
            same
        } else {
            free::search(spectrum, quantile, most.min(fit.spikes.max(10) * 2))
        };
        Self {
            limited: most > 0 && fit.spikes == most,
            spectrum,
            question,
            quantile,
            most,
            fit,
            gof,
            free,
        }
    }

    fn report(mut self) -> Report {
        let use_free = match self.question.model {
            Model::Auto => !holds(self.spectrum, &self.fit, &self.gof),
            Model::Free => true,
            _ => false,
        };
        if use_free {
            let spikes = self.free.spikes.min(self.most);
            self.fit.spikes = spikes;
            self.fit.sigma_sq = Energy::new(self.spectrum).variance(spikes);
        }
        let (se, interval) = self.variance_interval();
        let chosen = self.choose(use_free, interval);
        let threshold = chosen.edge * chosen.over;
        let allowed = self.question.most.unwrap_or(usize::MAX);
        let above = |threshold: f64| self.spectrum.above(threshold).min(allowed);
        let count = |edge: f64| above(edge * chosen.over);
        let noise = self.spectrum.noise(&self.fit);
        let unit = TracyWidom::lowest(noise.p as usize, noise.n as usize, self.question.alpha);
        let lowest = self.fit.sigma_sq * unit;
        let root = |square: f64| square.max(0.0).sqrt();
        Report {
            sigma: self.fit.sigma_sq.sqrt(),
            sigma_sq: self.fit.sigma_sq,
            sigma_sq_se: se,
            sigma_sq_ci: interval,
            deflated: noise.upper().sqrt(),
            tracy_widom: match self.question.model {
                Model::Bema { .. } => threshold.sqrt(),
                _ => self.spectrum.threshold(&self.fit, self.quantile).sqrt(),
            },
            free: root(self.free.edge),
            free_ci: (root(self.free.interval.0), root(self.free.interval.1)),
            edge: root(chosen.edge),
            edge_ci: (root(chosen.interval.0), root(chosen.interval.1)),
            model: chosen.name,
            n_spikes: above(threshold),
            n_spikes_ci: (count(chosen.interval.1), count(chosen.interval.0.max(0.0))),
            n_below: self.spectrum.squares.partition_point(|v| *v < lowest),
            spikes: self.spikes(above(threshold), use_free),
            gof: self.gof,
            ranks: ranks::ranks(self.spectrum, self.question.eps),
            warnings: self.warnings(use_free),
        }
    }

    /// Standard error and 95 % interval of the variance.
    fn variance_interval(&self) -> (f64, (f64, f64)) {
        let noise = self.spectrum.noise(&self.fit);
        let sigma_sq = self.fit.sigma_sq;
        if self.question.draws > 0 {
            let null = bootstrap::null(
                noise.p as usize,
                noise.n as usize,
                self.question.draws,
                self.question.seed,
            );
            let mean = null.sigma_sq.iter().sum::<f64>() / self.question.draws as f64;
            let spread = null
                .sigma_sq
                .iter()
                .map(|v| (v - mean).powi(2))
                .sum::<f64>();
            let at =
                |q: f64| null.sigma_sq[(q * (self.question.draws - 1) as f64).round() as usize];
            let se = (spread / (self.question.draws - 1) as f64).sqrt() * sigma_sq;
            return (se, (sigma_sq / at(0.975), sigma_sq / at(0.025)));
        }
        // Variance of a mean of squares of independent entries; at least a tenth of the normal one.
        let relative = ((2.0 + self.question.kurtosis.noise).max(0.2) / (noise.p * noise.n)).sqrt();
        let slope = Energy::new(self.spectrum).slope(&self.fit);
        let se = sigma_sq * relative / slope.max(0.1);
        (se, ((sigma_sq - Z * se).max(0.0), sigma_sq + Z * se))
    }

    fn choose(&self, use_free: bool, (low, high): (f64, f64)) -> Chosen {
        if use_free {
            let edge = self.free.edge;
            return Chosen {
                name: "free",
                edge,
                interval: self.free.interval,
                over: (edge + self.quantile * self.free.unit) / edge,
            };
        }
        let noise = self.spectrum.noise(&self.fit);
        let (name, edge, over) = match self.question.model {
            Model::Bema { trim, level } => {
                let (_, threshold) = fit::bema(self.spectrum, trim, level);
                ("bema", threshold, 1.0)
            }
            other => {
                let over = self.spectrum.threshold(&self.fit, self.quantile) / noise.upper();
                match other {
                    Model::Profile(edge) => ("whitened", edge * edge, over),
                    _ => ("mp", noise.upper(), over),
                }
            }
        };
        let sigma_sq = self.fit.sigma_sq;
        Chosen {
            name,
            edge,
            interval: (edge * low / sigma_sq, edge * high / sigma_sq),
            over,
        }
    }

    fn spikes(&self, count: usize, use_free: bool) -> Vec<Spike> {
        let found = self.spectrum.top(count).iter().rev();
        if !use_free {
            let noise = self.spectrum.noise(&self.fit);
            return found
                .map(|square| Spike::in_noise(*square, &noise, self.fit.spikes))
                .collect();
        }
        let longer = (self.spectrum.n - count) as f64;
        let unit = self.free.unit.max(f64::MIN_POSITIVE);
        found
            .map(|&square| {
                let signal = spike::from_bulk(square, self.spectrum.bulk(count), longer);
                Spike {
                    value: square.sqrt(),
                    strength: signal.theta_sq.sqrt(),
                    p_value: tracy_widom::sf((square - self.free.edge) / unit),
                    short: signal.short,
                    long: signal.long,
                }
            })
            .collect()
    }

    fn warnings(&self, use_free: bool) -> Vec<String> {
        let mut words = Vec::new();
        let p = self.spectrum.p();
        if !self.gof.accepted {
            words.push(format!(
                "Marchenko-Pastur rejected (ks = {:.4}, p-value {:.1e}): the noise is not of one variance, or the bulk holds signal",
                self.gof.ks, self.gof.p_value
            ));
        }
        if use_free && !self.free.settled {
            words.push(
                "the non-parametric edge did not settle: no number of spikes agrees with itself"
                    .into(),
            );
        }
        if p < 64 {
            words.push(format!(
                "only {p} singular values: edges and p-values are rough below 64"
            ));
        }
        if self.question.kurtosis.all > 5.0 {
            words.push(format!(
                "heavy-tailed entries (excess kurtosis {:.1}): single entries can look like spikes",
                self.question.kurtosis.all
            ));
        }
        if self.limited {
            words.push(format!(
                "{} spikes, the most that were allowed: there may be more",
                self.most
            ));
        }
        words
    }
}

#[cfg(test)]
mod tests;
