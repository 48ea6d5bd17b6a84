//! The Tracy-Widom law F1 of the largest eigenvalue of real noise.
//!
//! Tables: Chebyshev coefficients of log F1 on [-12, 0] and of log(1 - F1) on [0, 16], from the determinant
//! F1(s) = det(I - B), B(x, y) = Ai(x + y + s) on the half line (Ferrari and Spohn, "A determinantal formula for the
//! GOE Tracy-Widom distribution", 2005), by Gauss-Legendre quadrature (Bornemann, "On the numerical evaluation of
//! Fredholm determinants", 2010) with 64 to 84 nodes in 50-digit arithmetic. Series error below 1e-12 in the
//! logarithm; `tests/python/test_mp_law.py` repeats the quadrature in double precision.

/// Where the table of log F1 begins and that of log(1 - F1) ends.
const LEFT: f64 = -12.0;
const RIGHT: f64 = 16.0;

/// P(TW1 <= s).
#[must_use]
pub fn cdf(s: f64) -> f64 {
    log_cdf(s).exp()
}

/// P(TW1 > s), with full relative accuracy in the tail.
#[must_use]
pub fn sf(s: f64) -> f64 {
    log_sf(s).exp()
}

/// The s with P(TW1 <= s) = q; infinite at 0 and 1, NaN outside [0, 1].
///
/// # Example
/// ```
/// assert!((mpcore_core::mp::tracy_widom::ppf(0.95) - 0.9793).abs() < 5e-5);
/// ```
#[must_use]
pub fn ppf(q: f64) -> f64 {
    if !(0.0..=1.0).contains(&q) {
        return f64::NAN;
    }
    if q <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if q >= 1.0 {
        return f64::INFINITY;
    }
    let below = |s: f64| {
        if q < 0.5 {
            log_cdf(s) < q.ln()
        } else {
            log_sf(s) > (1.0 - q).ln()
        }
    };
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

fn log_cdf(s: f64) -> f64 {
    if s < LEFT {
        // Left tail: constant matched to the table, below 1e-35 anyway.
        let tail =
            |s: f64| -(-s).powi(3) / 24.0 - (-s).powf(1.5) / (3.0 * 2f64.sqrt()) - (-s).ln() / 16.0;
        log_cdf(LEFT) + tail(s) - tail(LEFT)
    } else if s <= 0.0 {
        chebyshev(&LOG_CDF, 2.0 * (s - LEFT) / -LEFT - 1.0)
    } else {
        (-sf(s)).ln_1p()
    }
}

fn log_sf(s: f64) -> f64 {
    if s <= 0.0 {
        (-log_cdf(s).exp_m1()).ln()
    } else if s <= RIGHT {
        chebyshev(&LOG_SF, 2.0 * s / RIGHT - 1.0)
    } else {
        // Half the integral of the Airy kernel's tail: exp(-2/3 s^1.5) / (4 sqrt(pi) s^0.75) (1 - 41/48 s^-1.5 + ...).
        let power = s.powf(1.5);
        let series = (-41.0 / 48.0 + 9241.0 / (4608.0 * power)) / power;
        -2.0 / 3.0 * power - 0.75 * s.ln() - (4.0 * std::f64::consts::PI.sqrt()).ln()
            + series.ln_1p()
    }
}

/// Clenshaw's sum of the series at x in [-1, 1].
fn chebyshev(series: &[f64], x: f64) -> f64 {
    let (mut next, mut after) = (0.0, 0.0);
    for c in series[1..].iter().rev() {
        (next, after) = (c + 2.0 * x * next - after, next);
    }
    series[0] + x * next - after
}

/// log F1 on [-12, 0].
#[expect(clippy::unreadable_literal, reason = "generated coefficients")]
const LOG_CDF: [f64; 31] = [
    -26.989743564751798,
    38.82670920449757,
    -14.183621380450507,
    2.1839903337868116,
    -0.01475232720250972,
    -0.004396653250947224,
    -0.0014813849411119406,
    -0.0005132810254657727,
    -0.00016931292126045607,
    -4.8421888324412526e-05,
    -9.65490212081477e-06,
    3.050736985699132e-07,
    1.5264929800196114e-06,
    9.037556267799118e-07,
    3.319707310822651e-07,
    6.77420942452045e-08,
    -8.81712693967529e-09,
    -1.5318060775371122e-08,
    -7.64945973230624e-09,
    -2.159065459750309e-09,
    -1.1371916741609312e-10,
    2.4853932245605394e-10,
    1.552841411012196e-10,
    5.0948045782206465e-11,
    6.346922987177095e-12,
    -3.6063596553503886e-12,
    -2.800248921630555e-12,
    -1.0512479775570683e-12,
    -1.3358203432289884e-13,
    5.577760475716787e-14,
    2.0570212200254902e-13,
];

/// log(1 - F1) on [0, 16].
#[expect(clippy::unreadable_literal, reason = "generated coefficients")]
const LOG_SF: [f64; 30] = [
    -21.4070048495102,
    -22.697510893300404,
    -2.804650948319971,
    0.22247500364684336,
    -0.03736349216460121,
    0.0076441092088533336,
    -0.0015455188339645654,
    0.00021675185875751348,
    3.703264651259142e-05,
    -5.40569533272306e-05,
    3.257543776182814e-05,
    -1.4861655150200104e-05,
    5.4536288659590155e-06,
    -1.5178247584457516e-06,
    2.2354642922328694e-07,
    6.364965137173328e-08,
    -6.598152323400441e-08,
    2.9140815271944123e-08,
    -7.624790310245545e-09,
    4.222470928461064e-10,
    7.014110070535651e-10,
    -3.773960477460037e-10,
    7.845415428420211e-11,
    2.0659651767118704e-11,
    -2.49047116263057e-11,
    1.0969880559486001e-11,
    -2.3541946170269058e-12,
    -3.361422251657587e-13,
    5.180522677505905e-13,
    -2.375377672336754e-13,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_quantiles_are_met() {
        let table = [
            (0.05, -3.1804),
            (0.1, -2.7824),
            (0.5, -1.2686),
            (0.9, 0.4501),
            (0.95, 0.9793),
            (0.99, 2.0234),
            (0.995, 2.4224),
        ];
        for (q, s) in table {
            assert!((ppf(q) - s).abs() < 1e-4, "{q}: {}", ppf(q));
        }
    }

    #[test]
    fn the_pieces_join() {
        for join in [LEFT, 0.0, RIGHT] {
            let (left, right) = (join - 1e-9, join + 1e-9);
            assert!((log_cdf(left) - log_cdf(right)).abs() < 1e-7);
            assert!((log_sf(left) - log_sf(right)).abs() < 2e-4);
        }
    }

    #[test]
    fn quantiles_invert_the_distribution() {
        for q in [1e-30, 1e-3, 0.3, 0.5, 0.7, 0.999] {
            assert!((cdf(ppf(q)) / q - 1.0).abs() < 1e-10, "{q}");
        }
        assert!((sf(ppf(1.0 - 1e-10)) / 1e-10 - 1.0).abs() < 1e-5);
        assert!(ppf(1.0).is_infinite() && ppf(0.0).is_infinite() && ppf(1.5).is_nan());
    }

    #[test]
    fn the_distribution_rises() {
        let values: Vec<f64> = (0..600).map(|i| cdf(-20.0 + 0.05 * f64::from(i))).collect();
        assert!(values.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
