//! Singular values and the edge.

use mpcore_core::linalg::dense::Real;
use mpcore_core::linalg::survey::{Kurtosis, kurtosis, nonzero_lines};
use mpcore_core::linalg::values::{Precision, singular_values};
use mpcore_core::mp::edge::{self, Model, Question};
use mpcore_core::mp::lanczos::{self, Sketch};
use mpcore_core::mp::report::{Report, Spike};
use mpcore_core::mp::whiten::{self, Sides};
use mpcore_core::threads::with_threads;
use numpy::{
    Element, IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::to_python;

type Vector<'py> = Bound<'py, PyArray1<f64>>;
type Flags<'py> = Bound<'py, PyArray1<bool>>;

pub(crate) fn contiguous<'a, T: Element>(
    w: &'a PyReadonlyArray2<'_, T>,
) -> PyResult<(&'a [T], (usize, usize))> {
    let shape = (w.shape()[0], w.shape()[1]);
    let data = w
        .as_slice()
        .map_err(|_| PyValueError::new_err("W: wanted a C-contiguous array"))?;
    Ok((data, shape))
}

fn values<'py, T: Real + Element>(
    py: Python<'py>,
    w: &PyReadonlyArray2<'py, T>,
    bulk: bool,
    threads: Option<usize>,
) -> PyResult<Vector<'py>> {
    let (data, shape) = contiguous(w)?;
    let precision = if bulk {
        Precision::Bulk
    } else {
        Precision::Full
    };
    let found = py.detach(|| with_threads(threads, || singular_values(data, shape, precision)));
    Ok(found.map_err(|e| to_python(&e))?.into_pyarray(py))
}

fn lines<'py, T: Real + Element>(
    py: Python<'py>,
    w: &PyReadonlyArray2<'py, T>,
    threads: Option<usize>,
) -> PyResult<(Flags<'py>, Flags<'py>)> {
    let (data, (_, columns)) = contiguous(w)?;
    let (rows, columns) = py
        .detach(|| with_threads(threads, || nonzero_lines(data, columns)))
        .map_err(|e| to_python(&e))?;
    Ok((rows.into_pyarray(py), columns.into_pyarray(py)))
}

fn tails<T: Real + Element>(
    py: Python<'_>,
    w: &PyReadonlyArray2<'_, T>,
    deviation: Option<f64>,
    threads: Option<usize>,
) -> PyResult<(f64, f64)> {
    let (data, (_, columns)) = contiguous(w)?;
    let found = py
        .detach(|| with_threads(threads, || kurtosis(data, columns, deviation)))
        .map_err(|e| to_python(&e))?;
    Ok((found.all, found.noise))
}

fn scales<'py, T: Real + Element>(
    py: Python<'py>,
    w: &PyReadonlyArray2<'py, T>,
    sides: &str,
    threads: Option<usize>,
) -> PyResult<(Vector<'py>, Vector<'py>)> {
    let sides = match sides {
        "rows" => Sides::Rows,
        "cols" => Sides::Columns,
        "both" => Sides::Both,
        other => {
            return Err(PyValueError::new_err(format!(
                "whiten {other:?}: wanted 'rows', 'cols' or 'both'"
            )));
        }
    };
    let (data, shape) = contiguous(w)?;
    let found = py
        .detach(|| with_threads(threads, || whiten::sinkhorn(data, shape, sides)))
        .map_err(|e| to_python(&e))?;
    Ok((found.rows.into_pyarray(py), found.columns.into_pyarray(py)))
}

macro_rules! by_type {
    ($values:ident, $lines:ident, $kurtosis:ident, $sinkhorn:ident, $lanczos:ident, $float:ty) => {
        #[pyfunction]
        #[pyo3(signature = (w, bulk, threads=None))]
        fn $values<'py>(
            py: Python<'py>,
            w: PyReadonlyArray2<'py, $float>,
            bulk: bool,
            threads: Option<usize>,
        ) -> PyResult<Vector<'py>> {
            values(py, &w, bulk, threads)
        }

        #[pyfunction]
        #[pyo3(signature = (w, threads=None))]
        fn $lines<'py>(
            py: Python<'py>,
            w: PyReadonlyArray2<'py, $float>,
            threads: Option<usize>,
        ) -> PyResult<(Flags<'py>, Flags<'py>)> {
            lines(py, &w, threads)
        }

        #[pyfunction]
        #[pyo3(signature = (w, deviation, threads=None))]
        fn $kurtosis(
            py: Python<'_>,
            w: PyReadonlyArray2<'_, $float>,
            deviation: Option<f64>,
            threads: Option<usize>,
        ) -> PyResult<(f64, f64)> {
            tails(py, &w, deviation, threads)
        }

        #[pyfunction]
        #[pyo3(signature = (w, sides, threads=None))]
        fn $sinkhorn<'py>(
            py: Python<'py>,
            w: PyReadonlyArray2<'py, $float>,
            sides: &str,
            threads: Option<usize>,
        ) -> PyResult<(Vector<'py>, Vector<'py>)> {
            scales(py, &w, sides, threads)
        }

        #[pyfunction]
        #[pyo3(signature = (w, *, alpha, k_max, seed, kurtosis, threads=None))]
        fn $lanczos<'py>(
            py: Python<'py>,
            w: PyReadonlyArray2<'py, $float>,
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
            sketch(py, &w, &question, threads)
        }
    };
}
by_type!(
    singular_values_f32,
    nonzero_lines_f32,
    kurtosis_f32,
    sinkhorn_f32,
    lanczos_edge_f32,
    f32
);
by_type!(
    singular_values_f64,
    nonzero_lines_f64,
    kurtosis_f64,
    sinkhorn_f64,
    lanczos_edge_f64,
    f64
);

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

pub(crate) fn interrupted() -> bool {
    Python::attach(|py| py.check_signals().is_err())
}

/// A dictionary like that of `find_edge` without what needs all values, and an empty reason; or None and the reason.
fn sketch<'py, T: Real + Element>(
    py: Python<'py>,
    w: &PyReadonlyArray2<'py, T>,
    question: &lanczos::Question,
    threads: Option<usize>,
) -> PyResult<(Option<Bound<'py, PyDict>>, String)> {
    let (data, shape) = contiguous(w)?;
    let outcome = py
        .detach(|| {
            with_threads(threads, || {
                lanczos::find(data, shape, question, &interrupted)
            })
        })
        .map_err(|e| to_python(&e))?;
    match outcome {
        Err(reason) => Ok((None, reason)),
        Ok(found) => Ok((Some(wrap_sketch(py, &found, shape)?), String::new())),
    }
}

fn wrap_sketch<'py>(
    py: Python<'py>,
    found: &Sketch,
    shape: (usize, usize),
) -> PyResult<Bound<'py, PyDict>> {
    let result = PyDict::new(py);
    let none = py.None();
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
    let p = shape.0.min(shape.1) as f64;
    result.set_item("bulk_fraction", 1.0 - found.spikes.len() as f64 / p)?;
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

fn wrap(py: Python<'_>, found: Report) -> PyResult<Bound<'_, PyDict>> {
    let result = PyDict::new(py);
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

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(singular_values_f32, module)?)?;
    module.add_function(wrap_pyfunction!(singular_values_f64, module)?)?;
    module.add_function(wrap_pyfunction!(nonzero_lines_f32, module)?)?;
    module.add_function(wrap_pyfunction!(kurtosis_f32, module)?)?;
    module.add_function(wrap_pyfunction!(nonzero_lines_f64, module)?)?;
    module.add_function(wrap_pyfunction!(kurtosis_f64, module)?)?;
    module.add_function(wrap_pyfunction!(sinkhorn_f32, module)?)?;
    module.add_function(wrap_pyfunction!(sinkhorn_f64, module)?)?;
    module.add_function(wrap_pyfunction!(lanczos_edge_f32, module)?)?;
    module.add_function(wrap_pyfunction!(lanczos_edge_f64, module)?)?;
    module.add_function(wrap_pyfunction!(profile_edge, module)?)?;
    module.add_function(wrap_pyfunction!(find_edge, module)?)
}
