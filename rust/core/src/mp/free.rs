//! Upper edge of a bulk of unknown shape, from its square-root end alone.

use std::f64::consts::PI;

use crate::mp::fit::Spectrum;

/// A non-parametric edge, in squared singular values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreeEdge {
    /// The edge L.
    pub edge: f64,
    /// Width of a Tracy-Widom unit at this edge.
    pub unit: f64,
    /// 95 % interval of `edge`.
    pub interval: (f64, f64),
    /// Number of values above `edge` + quantile times `unit`.
    pub spikes: usize,
    /// Whether a number of spikes was found that agrees with itself on a good fit.
    pub settled: bool,
}

/// Share of the bulk that enters the fit, and the fewest values.
const WINDOW: f64 = 0.12;
const FEWEST: usize = 12;
/// Widest gap between neighbours of a bulk, in Tracy-Widom units, from rank [`FEWEST`] / 2 to a quarter of the values: the
/// mean gap is 1.9 units over the cube root of the rank. Where a wider one follows, the values above it are spikes.
const GAP: f64 = 5.0;
/// Largest a / L: square noise has 1.8, layers of trained transformers up to 5.2, a power law of spikes 6 and more.
const STEEPEST: f64 = 5.5;

/// Find the edge with the smallest number of spikes up to `most` that the fit confirms.
///
/// For K spikes: the next 12 % of the values are `lambda_i` = L - a x - b x^2, x = ((i - 3/4) / (p - K))^(2/3), as any
/// density that ends like a square root demands (3/4 from the counting function of real noise); weights sqrt(i). The
/// local Tracy-Widom unit is a (p - K)^(-2/3) (2 / (3 pi))^(2/3). K is confirmed if K values exceed L + `quantile` units,
/// the residual is what noise shows, the density does not end more steeply than a <= 5.5 L, no gap follows that a bulk does
/// not have, and L is no lower than the edge of noise of one variance with the energy of the bulk.
#[must_use]
pub fn search(spectrum: &Spectrum, quantile: f64, most: usize) -> FreeEdge {
    let most = most.min(spectrum.p().saturating_sub(2));
    let mut best: Option<(f64, FreeEdge)> = None;
    let mut wanted_more = false;
    for spikes in 0..=most {
        let fit = at(spectrum, quantile, spikes);
        // One spike fewer asked for more, this many for fewer: a value at the very threshold.
        let crossed = wanted_more && fit.edge.spikes < spikes;
        wanted_more = fit.good && fit.edge.spikes > spikes;
        if fit.good && (fit.edge.spikes == spikes || crossed) {
            return FreeEdge {
                settled: true,
                ..fit.edge
            };
        }
        let badness = fit.residual + fit.edge.spikes.abs_diff(spikes) as f64;
        if best.is_none_or(|(least, _)| badness < least) {
            best = Some((badness, fit.edge));
        }
    }
    best.map_or_else(|| at(spectrum, quantile, 0).edge, |(_, edge)| edge)
}

/// The edge under exactly `spikes` spikes, counted elsewhere.
#[must_use]
pub fn given(spectrum: &Spectrum, quantile: f64, spikes: usize) -> FreeEdge {
    let fit = at(
        spectrum,
        quantile,
        spikes.min(spectrum.p().saturating_sub(2)),
    );
    FreeEdge {
        settled: fit.good,
        ..fit.edge
    }
}

/// Edge of noise of one variance with the energy of this bulk: the least that any noise of this energy can have.
fn least_edge(spectrum: &Spectrum, spikes: usize) -> f64 {
    let bulk = spectrum.bulk(spikes);
    let (p, n) = (bulk.len() as f64, (spectrum.n - spikes) as f64);
    let mean = bulk.iter().sum::<f64>() / (p * n);
    mean * (p.sqrt() + n.sqrt()).powi(2)
}

struct Candidate {
    edge: FreeEdge,
    /// Root mean square residual in Tracy-Widom units.
    residual: f64,
    good: bool,
}

fn at(spectrum: &Spectrum, quantile: f64, spikes: usize) -> Candidate {
    let bulk = spectrum.bulk(spikes);
    let size = bulk.len();
    let count = ((WINDOW * size as f64) as usize).max(FEWEST).min(size);
    let points: Vec<Point> = (1..=count)
        .map(|i| Point {
            x: ((i as f64 - 0.75) / size as f64).powf(2.0 / 3.0),
            y: bulk[size - i],
            weight: (i as f64).sqrt(),
        })
        .collect();
    let [edge, slope, bend] = quadratic(&points);
    let weights: f64 = points.iter().map(|p| p.weight).sum();
    let squares: f64 = points
        .iter()
        .map(|p| p.weight * (p.y - edge - slope * p.x - bend * p.x * p.x).powi(2))
        .sum();
    let unit = -slope * (size as f64).powf(-2.0 / 3.0) * (2.0 / (3.0 * PI)).powf(2.0 / 3.0);
    let residual = if unit > 0.0 {
        (squares / weights).sqrt() / unit
    } else {
        f64::INFINITY
    };
    let found = if unit > 0.0 {
        spectrum.above(edge + quantile * unit)
    } else {
        spikes
    };
    let (below, above) = interval(count);
    let width = unit.max(0.0);
    Candidate {
        edge: FreeEdge {
            edge,
            unit: width,
            interval: (edge - below * width, edge + above * width),
            spikes: found,
            settled: false,
        },
        residual,
        // On the noise of [`interval`] 99 % of the residuals lie below 0.88, 0.44, 0.29 units for 12, 61, 245 points.
        good: residual < 0.2 + 2.5 / (count as f64).sqrt()
            && -slope <= STEEPEST * edge
            && !has_gap(bulk, GAP * unit)
            && edge >= 0.97 * least_edge(spectrum, spikes),
    }
}

/// Whether two neighbours near the end of the bulk lie further apart than `widest`.
fn has_gap(bulk: &[f64], widest: f64) -> bool {
    let end = bulk.len().saturating_sub(FEWEST / 2);
    let near = &bulk[(3 * bulk.len() / 4).min(end)..end];
    near.windows(2).any(|pair| pair[1] - pair[0] > widest)
}

/// How far, in Tracy-Widom units, the true edge lies below and above one found from `count` points at most, each with 97.5 %.
///
/// Simulated on noise (P = 32 to 1024, gamma = 1 and 1/4; 150 to 3000 spectra each): 1.8 and 5.3 units for 12 points, 1.5
/// and 2.1 for 61, 1.1 and 1.4 for 122; the fitted unit varies too, and a small one comes with a low edge.
fn interval(count: usize) -> (f64, f64) {
    let root = (count as f64).sqrt();
    (1.2 + 2.0 / root, (18.0 / root - 0.1).max(0.5))
}

struct Point {
    x: f64,
    y: f64,
    weight: f64,
}

/// Weighted least squares of y on 1, x, x^2 (fewer terms for fewer than 4 points), by Gram-Schmidt on the powers.
fn quadratic(points: &[Point]) -> [f64; 3] {
    let terms = if points.len() >= 4 {
        3
    } else {
        points.len().min(2)
    };
    let inner = |a: &[f64], b: &[f64]| -> f64 {
        points
            .iter()
            .zip(a.iter().zip(b))
            .map(|(p, (u, v))| p.weight * u * v)
            .sum()
    };
    let target: Vec<f64> = points.iter().map(|p| p.y).collect();
    let mut basis: Vec<(Vec<f64>, [f64; 3])> = Vec::new();
    let mut answer = [0.0; 3];
    for (term, power) in (0..terms).zip(0..) {
        let mut column: Vec<f64> = points.iter().map(|p| p.x.powi(power)).collect();
        let mut powers = [0.0; 3];
        powers[term] = 1.0;
        for (other, expansion) in &basis {
            let part = inner(&column, other) / inner(other, other);
            for (value, o) in column.iter_mut().zip(other) {
                *value -= part * o;
            }
            for (value, o) in powers.iter_mut().zip(expansion) {
                *value -= part * o;
            }
        }
        let part = inner(&target, &column) / inner(&column, &column).max(f64::MIN_POSITIVE);
        for (value, power) in answer.iter_mut().zip(powers) {
            *value += part * power;
        }
        basis.push((column, powers));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mp::bootstrap::null_squares;

    #[test]
    fn the_interval_holds_the_edge_of_noise_as_often_as_it_says() {
        for (p, n) in [(40, 120), (400, 900)] {
            let truth = ((p as f64).sqrt() + (n as f64).sqrt()).powi(2);
            let mut held = 0;
            for draw in 0..200 {
                let squares = null_squares(p, n, 8, draw);
                let (low, high) = given(&Spectrum { squares, n }, 2.0234, 0).interval;
                held += usize::from((low..=high).contains(&truth));
            }
            // Four standard errors of a share of 200 at 95 %.
            assert!((178..=200).contains(&held), "{held} of 200 at {p} x {n}");
        }
    }

    #[test]
    fn noise_settles_without_spikes() {
        let (p, n) = (400, 900);
        for draw in 0..40 {
            let squares = null_squares(p, n, 8, draw);
            let found = search(&Spectrum { squares, n }, 2.0234, 40);
            assert!(found.settled && found.spikes <= 1);
        }
    }

    #[test]
    fn a_parabola_is_recovered() {
        let points: Vec<Point> = (0..9)
            .map(|i| f64::from(i) / 8.0)
            .map(|x| Point {
                x,
                y: 5.0 - 2.0 * x + 0.5 * x * x,
                weight: 1.0 + x,
            })
            .collect();
        let found = quadratic(&points);
        for (value, exact) in found.iter().zip([5.0, -2.0, 0.5]) {
            assert!((value - exact).abs() < 1e-12);
        }
    }

    #[test]
    fn spikes_above_a_bulk_of_two_variances_are_counted() {
        let mut squares = null_squares(200, 2000, 1, 0);
        squares.extend(null_squares(200, 2000, 1, 1).iter().map(|v| 1.5 * v));
        squares.extend([9000.0, 12000.0, 30000.0]);
        squares.sort_by(f64::total_cmp);
        let found = search(&Spectrum { squares, n: 2000 }, 2.0234, 80);
        assert_eq!(found.spikes, 3);
    }
}
