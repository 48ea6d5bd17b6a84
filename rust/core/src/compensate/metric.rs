//! The damped second moments of a layer's inputs, in coordinates in which their diagonal is one.

use crate::{Error, Result};

/// Damping never falls below this share of the mean diagonal, so that dead inputs and rank-deficient moments stay
/// solvable: it is the limit of vanishing damping to single precision.
const LEAST_DAMPING: f64 = 1e-7;

/// Entries (i, j) and (j, i) of the moments may differ by this share of the largest diagonal entry; sums taken in
/// single precision do.
const ASYMMETRY: f64 = 1e-4;

/// A = (H + lambda I) / (s s'), s = sqrt(diag H + lambda), lambda = damping * mean diag H.
///
/// With v = w s the squared output error tr (W' - W)(H + lambda I)(W' - W)' is tr (V' - V) A (V' - V)', and the
/// magnitude |v| of a weight is Wanda's score |w| sqrt(E x^2): here a projection by magnitude is an activation-aware one,
/// and conjugate gradients need no further preconditioner.
pub(super) struct Metric {
    pub(super) columns: usize,
    scale: Vec<f64>,
    pub(super) unit: Vec<f64>,
}

/// Weights in the coordinates of a [`Metric`], divided by their largest magnitude.
pub(super) struct UnitWeights {
    pub(super) values: Vec<f32>,
    peak: f64,
}

impl Metric {
    /// `gram` is H, (columns x columns), row-major.
    ///
    /// All zeros is allowed: then only the damping is left, and magnitudes decide.
    pub(super) fn new(gram: &[f64], columns: usize, damping: f64) -> Result<Self> {
        check_damping(damping)?;
        check_moments(gram, columns)?;
        let mean = (0..columns)
            .map(|j| gram[j * columns + j] / columns as f64)
            .sum::<f64>();
        let lambda = if mean > 0.0 {
            damping.max(LEAST_DAMPING) * mean
        } else {
            1.0
        };
        let scale: Vec<f64> = (0..columns)
            .map(|j| (gram[j * columns + j] + lambda).sqrt())
            .collect();
        let mut unit = vec![0.0; columns * columns];
        for i in 0..columns {
            unit[i * columns + i] = 1.0;
            for j in 0..i {
                let both = 0.5 * gram[i * columns + j] + 0.5 * gram[j * columns + i];
                let value = both / scale[i] / scale[j];
                unit[i * columns + j] = value;
                unit[j * columns + i] = value;
            }
        }
        Ok(Self {
            columns,
            scale,
            unit,
        })
    }

    /// A in single precision.
    pub(super) fn unit_f32(&self) -> Vec<f32> {
        self.unit.iter().map(|&value| value as f32).collect()
    }

    /// V = W s / peak.
    pub(super) fn enter(&self, weight: &[f32]) -> Result<UnitWeights> {
        check_finite("weight", weight, self.columns)?;
        let scaled = || {
            weight
                .chunks_exact(self.columns)
                .flat_map(|row| row.iter().zip(&self.scale).map(|(&w, s)| f64::from(w) * s))
        };
        let peak = scaled().fold(0.0, |peak: f64, v| peak.max(v.abs()));
        let peak = if peak > 0.0 { peak } else { 1.0 };
        let values = scaled().map(|v| (v / peak) as f32).collect();
        Ok(UnitWeights { values, peak })
    }

    /// W = V peak / s where kept, exactly +0.0 elsewhere; refused where that is beyond float32.
    pub(super) fn leave(&self, values: &[f32], kept: &[bool], peak: f64) -> Result<Vec<f32>> {
        let weight: Vec<f32> = values
            .iter()
            .zip(kept)
            .zip(self.scale.iter().cycle())
            .map(|((&v, &kept), s)| {
                if kept && v != 0.0 {
                    (f64::from(v) * peak / s) as f32
                } else {
                    0.0
                }
            })
            .collect();
        check_finite("compensated weight", &weight, self.columns)?;
        Ok(weight)
    }
}

impl UnitWeights {
    /// What [`Metric::leave`] multiplies with.
    pub(super) fn peak(&self) -> f64 {
        self.peak
    }
}

/// The moments are not positive definite even after damping; `detail` says what shows it.
pub(super) fn indefinite(detail: String) -> Error {
    Error::Indefinite {
        name: "gram",
        detail,
    }
}

fn check_damping(damping: f64) -> Result<()> {
    if (0.0..=1e6).contains(&damping) {
        return Ok(());
    }
    Err(Error::Value {
        name: "damping",
        got: damping,
        wanted: "between 0 and 1e6",
    })
}

pub(super) fn check_moments(gram: &[f64], columns: usize) -> Result<()> {
    if gram.len() != columns * columns {
        return Err(Error::Shape {
            name: "gram: number of entries",
            got: gram.len(),
            wanted: format!("{columns} x {columns}, one row and column per column of weight"),
        });
    }
    check_finite("gram", gram, columns)?;
    let peak = (0..columns)
        .map(|j| gram[j * columns + j])
        .fold(0.0, f64::max);
    for i in 0..columns {
        let diagonal = gram[i * columns + i];
        if diagonal < 0.0 {
            return Err(indefinite(format!(
                "diagonal entry {i} is {diagonal}, a mean square is not negative"
            )));
        }
        for j in 0..i {
            let (lower, upper) = (gram[i * columns + j], gram[j * columns + i]);
            if (lower - upper).abs() > ASYMMETRY * peak {
                return Err(Error::NotSymmetric {
                    name: "gram",
                    row: i,
                    column: j,
                    lower,
                    upper,
                });
            }
            if peak == 0.0 && lower != 0.0 {
                return Err(indefinite(format!(
                    "the diagonal is zero and entry ({i}, {j}) is {lower}"
                )));
            }
        }
    }
    Ok(())
}

/// Refuse NaN and infinities, naming the first.
pub(super) fn check_finite<T: Copy + Into<f64>>(
    name: &'static str,
    values: &[T],
    columns: usize,
) -> Result<()> {
    match values.iter().position(|&value| !value.into().is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite {
            name,
            row: at / columns,
            column: at % columns,
            value: values[at].into(),
        }),
    }
}
