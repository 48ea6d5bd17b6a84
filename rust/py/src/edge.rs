//! The Marchenko-Pastur law and the edge.

#![expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]

use mpcore_core::linalg::dense::Real;
use mpcore_core::linalg::survey::Kurtosis;
use mpcore_core::mp::edge::{self, Model, Question};
use mpcore_core::mp::lanczos::{self, Outcome, Sketch};
use mpcore_core::mp::law::Law;
use mpcore_core::mp::report::{Report, Spike};
use mpcore_core::mp::{spike, tracy_widom, whiten};
use mpcore_core::threads::{Threads, with_threads};
use numpy::{IntoPyArray, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{interrupted, to_python};
use crate::spectra::{Matrix, Vector, Work};

/// Elementwise over three arrays of one length.
#[pyfunction]
fn mp_law<'py>(
    py: Python<'py>,
    what: &str,
    x: PyReadonlyArray1<'py, f64>,
    gamma: PyReadonlyArray1<'py, f64>,
    sigma_sq: PyReadonlyArray1<'py, f64>,
) -> PyResult<Vector<'py>> {
    let function: fn(&Law, f64) -> f64 = match what {
        "pdf" => Law::pdf,
        "cdf" => Law::cdf,
        "ppf" => Law::ppf,
        "sample" => spike::sample_singular,
        "strength" => spike::strength_singular,
        other => {
            return Err(PyValueError::new_err(format!(
                "mp_law: no function {other:?}"
            )));
        }
    };
    let found: Result<Vec<f64>, _> = x
        .as_slice()?
        .iter()
        .zip(gamma.as_slice()?.iter().zip(sigma_sq.as_slice()?))
        .map(|(x, (gamma, sigma_sq))| Law::new(*gamma, *sigma_sq).map(|law| function(&law, *x)))
        .collect();
    Ok(found.map_err(|e| to_python(&e))?.into_pyarray(py))
}

#[pyfunction]
fn tracy_widom_law<'py>(
    py: Python<'py>,
    what: &str,
    x: PyReadonlyArray1<'py, f64>,
) -> PyResult<Vector<'py>> {
    let function = match what {
        "cdf" => tracy_widom::cdf,
        "sf" => tracy_widom::sf,
        "ppf" => tracy_widom::ppf,
        other => {
            return Err(PyValueError::new_err(format!(
                "tracy_widom_law: no function {other:?}"
            )));
        }
    };
    let found: Vec<f64> = x.as_slice()?.iter().map(|x| function(*x)).collect();
    Ok(found.into_pyarray(py))
}

#[pyfunction]
fn profile_edge(
    rows: PyReadonlyArray1<'_, f64>,
    columns: PyReadonlyArray1<'_, f64>,
) -> PyResult<f64> {
    Ok(whiten::profile_edge(rows.as_slice()?, columns.as_slice()?))
}

/// Everything about the edge that follows from the singular values alone.
#[pyfunction]
#[pyo3(signature = (values, n, *, model, alpha, bema, profile, k_max, n_boot, seed, kurtosis, eps, threads))]
#[expect(
    clippy::too_many_arguments,
    reason = "keyword arguments of one Python call"
)]
fn find_edge<'py>(
    py: Python<'py>,
    values: PyReadonlyArray1<'py, f64>,
    n: usize,
    model: &str,
    alpha: f64,
    bema: Option<(f64, f64)>,
    profile: Option<f64>,
    k_max: Option<usize>,
    n_boot: usize,
    seed: u64,
    kurtosis: (f64, f64),
    eps: f64,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyDict>> {
    let model = match (model, bema, profile) {
        (_, Some((trim, level)), _) => Model::Bema { trim, level },
        (_, _, Some(edge)) => Model::Profile(edge),
        ("auto", ..) => Model::Auto,
        ("mp", ..) => Model::Mp,
        ("free", ..) => Model::Free,
        (other, ..) => {
            return Err(PyValueError::new_err(format!(
                "find_edge: no model {other:?}"
            )));
        }
    };
    let question = Question {
        alpha,
        model,
        most: k_max,
        draws: n_boot,
        seed,
        kurtosis: Kurtosis {
            all: kurtosis.0,
            noise: kurtosis.1,
        },
        eps,
    };
    let values = values.as_slice()?;
    let found = py
        .detach(|| with_threads(threads, || edge::find(values, n, &question)))
        .map_err(|e| to_python(&e))?;
    let result = wrap(py, found)?;
    let edge: f64 = result.as_any().get_item("edge")?.extract()?;
    let below = values.iter().filter(|v| **v <= edge).count();
    result.set_item("bulk_fraction", below as f64 / values.len() as f64)?;
    result.set_item("largest", values[0])?;
    Ok(result)
}

struct Sketching(lanczos::Question, Threads);
impl Work for Sketching {
    type Output = (Outcome, usize);
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output> {
        let outcome = lanczos::find(w, shape, &self.0, &self.1, &interrupted)?;
        Ok((outcome, shape.0.min(shape.1)))
    }
}

/// A dictionary like that of `find_edge` without what needs all values, and an empty reason; or None and the reason.
#[pyfunction]
#[pyo3(signature = (w, *, alpha, k_max, seed, kurtosis, threads=None))]
fn lanczos_edge<'py>(
    py: Python<'py>,
    w: Matrix<'py>,
    alpha: f64,
    k_max: Option<usize>,
    seed: u64,
    kurtosis: (f64, f64),
    threads: Option<usize>,
) -> PyResult<(Option<Bound<'py, PyDict>>, String)> {
    let question = lanczos::Question {
        alpha,
        most: k_max,
        seed,
        kurtosis: Kurtosis {
            all: kurtosis.0,
            noise: kurtosis.1,
        },
    };
    let threads = Threads::new(threads).map_err(|error| to_python(&error))?;
    // The loop stays on this thread, where signals arrive.
    match w.run(py, None, Sketching(question, threads))? {
        (Err(reason), _) => Ok((None, reason)),
        (Ok(found), p) => Ok((Some(wrap_sketch(py, &found, p)?), String::new())),
    }
}

fn wrap(py: Python<'_>, found: Report) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
    result.set_item("sigma", found.sigma)?;
    result.set_item("sigma_sq", found.sigma_sq)?;
    result.set_item("sigma_sq_se", found.sigma_sq_se)?;
    result.set_item("sigma_sq_ci", found.sigma_sq_ci)?;
    result.set_item("sigma_plus_deflated", found.deflated)?;
    result.set_item("sigma_tw", found.tracy_widom)?;
    result.set_item("sigma_free", found.free)?;
    result.set_item("sigma_free_ci", found.free_ci)?;
    result.set_item("edge", found.edge)?;
    result.set_item("edge_ci", found.edge_ci)?;
    result.set_item("n_spikes", found.n_spikes)?;
    result.set_item("n_spikes_ci", found.n_spikes_ci)?;
    result.set_item("n_below", found.n_below)?;
    result.set_item("model_used", found.model)?;
    result.set_item("spikes", spikes(&found.spikes))?;
    let gof = found.gof;
    result.set_item(
        "gof",
        (gof.ks, gof.p_value, gof.anderson_darling, gof.accepted),
    )?;
    let ranks = found.ranks;
    result.set_item(
        "ranks",
        (
            ranks.stable,
            ranks.effective,
            ranks.numerical,
            ranks.gavish_donoho,
        ),
    )?;
    result.set_item("warnings", found.warnings)?;
    Ok(result)
}

fn wrap_sketch<'py>(py: Python<'py>, found: &Sketch, p: usize) -> PyResult<Bound<'py, PyDict>> {
    let result = PyDict::new(py);
    let none = py.None();
    result.set_item("sigma", found.sigma_sq.sqrt())?;
    result.set_item("sigma_sq", found.sigma_sq)?;
    result.set_item("sigma_sq_se", found.sigma_sq_se)?;
    result.set_item("sigma_sq_ci", found.sigma_sq_ci)?;
    result.set_item("sigma_plus_deflated", found.edge)?;
    result.set_item("sigma_tw", found.tracy_widom)?;
    result.set_item("edge", found.edge)?;
    result.set_item("edge_ci", found.edge_ci)?;
    result.set_item("n_spikes", found.spikes.len())?;
    result.set_item("n_spikes_ci", found.n_spikes_ci)?;
    result.set_item("model_used", "mp")?;
    result.set_item("spikes", spikes(&found.spikes))?;
    result.set_item("gof", (&none, found.p_value, &none, true))?;
    result.set_item("ranks", (found.stable_rank, &none, &none, &none))?;
    result.set_item("warnings", Vec::<String>::new())?;
    result.set_item("largest", found.largest)?;
    result.set_item("bulk_fraction", 1.0 - found.spikes.len() as f64 / p as f64)?;
    for name in [
        "sigma_free",
        "sigma_free_ci",
        "n_below",
        "n_spikes_whitened",
    ] {
        result.set_item(name, &none)?;
    }
    Ok(result)
}

fn spikes(found: &[Spike]) -> Vec<(f64, f64, f64, f64, f64)> {
    found
        .iter()
        .map(|s| (s.value, s.strength, s.p_value, s.short, s.long))
        .collect()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(mp_law, module)?)?;
    module.add_function(wrap_pyfunction!(tracy_widom_law, module)?)?;
    module.add_function(wrap_pyfunction!(profile_edge, module)?)?;
    module.add_function(wrap_pyfunction!(find_edge, module)?)?;
    module.add_function(wrap_pyfunction!(lanczos_edge, module)?)
}
