//! Which of the Marchenko-Pastur fits to believe.

use crate::mp::bootstrap;
use crate::mp::edge::{Model, Question};
use crate::mp::fit::{self, Fit, Spectrum};
use crate::mp::gof::{self, GoodnessOfFit};

/// From this share of the values on spikes act on one another, which the tested law leaves out, its variance not.
const CROWDED: f64 = 0.1;
/// What that makes of the distance between spectrum and law: 0.003 at 20 % spikes, 0.009 at 40 %, which thousands of rigid
/// eigenvalues reject, while the non-parametric edge is 5 and 10 % off there.
const CROWDED_KS: f64 = 0.01;

/// Whether the law of `fit` is to be acted on: accepted, or rejected for no more than what many spikes do to one another.
pub(crate) fn holds(spectrum: &Spectrum, fit: &Fit, gof: &GoodnessOfFit) -> bool {
    let crowded = fit.spikes as f64 >= CROWDED * spectrum.p() as f64;
    gof.accepted || (crowded && gof.ks <= CROWDED_KS)
}

/// The parametric fit that the goodness of fit likes best: energy first, the robust one if only that is accepted or both
/// are rejected and it is nearer.
pub(crate) fn parametric(
    spectrum: &Spectrum,
    question: &Question,
    quantile: f64,
    most: usize,
) -> (Fit, GoodnessOfFit) {
    let test = |fit: &Fit| {
        let noise = spectrum.noise(fit);
        let mut gof = gof::test(spectrum.bulk(fit.spikes), &noise, &spectrum.strengths(fit));
        if question.draws > 0 {
            let null = bootstrap::null(
                noise.p as usize,
                noise.n as usize,
                question.draws,
                question.seed,
            );
            let beyond = null.ks.len() - null.ks.partition_point(|v| *v < gof.ks);
            gof.p_value = (1 + beyond) as f64 / (1 + question.draws) as f64;
            gof.accepted = gof.p_value >= gof::LEVEL;
        }
        gof
    };
    if let Model::Bema { trim, level } = question.model {
        let (fit, _) = fit::bema(spectrum, trim, level);
        let within = Fit {
            spikes: fit.spikes.min(most),
            ..fit
        };
        return (within, test(&within));
    }
    let robust = fit::robust(spectrum, quantile, most);
    let energy = fit::energy(spectrum, &robust, quantile, most);
    let of_energy = test(&energy);
    if holds(spectrum, &energy, &of_energy) || energy == robust {
        return (energy, of_energy);
    }
    let of_robust = test(&robust);
    if of_robust.accepted || of_robust.ks < of_energy.ks {
        (robust, of_robust)
    } else {
        (energy, of_energy)
    }
}
