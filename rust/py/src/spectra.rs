//! Singular values, leading triplets, and what else is read off a matrix.

#![expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]

use mpcore_core::linalg::dense::Real;
use mpcore_core::linalg::rsvd::{self, Request};
use mpcore_core::linalg::survey;
use mpcore_core::linalg::values::{self, Precision};
use mpcore_core::mp::whiten::{self, Sides};
use mpcore_core::threads::{Threads, with_threads};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::{interrupted, to_python};

pub(crate) type Vector<'py> = Bound<'py, PyArray1<f64>>;
type Flags<'py> = Bound<'py, PyArray1<bool>>;

/// A matrix in either precision; C-contiguous.
#[derive(FromPyObject)]
pub(crate) enum Matrix<'py> {
    #[pyo3(transparent)]
    Single(PyReadonlyArray2<'py, f32>),
    #[pyo3(transparent)]
    Double(PyReadonlyArray2<'py, f64>),
}

/// Work on a matrix of either precision, without the GIL, on a pool of so many threads.
pub(crate) trait Work: Send {
    type Output: Send;
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output>;
}

impl Matrix<'_> {
    fn shape(&self) -> (usize, usize) {
        let shape = match self {
            Matrix::Single(w) => w.shape(),
            Matrix::Double(w) => w.shape(),
        };
        (shape[0], shape[1])
    }

    pub(crate) fn run<W: Work>(
        &self,
        py: Python<'_>,
        threads: Option<usize>,
        work: W,
    ) -> PyResult<W::Output> {
        match self {
            Matrix::Single(w) => on(py, w, threads, work),
            Matrix::Double(w) => on(py, w, threads, work),
        }
    }
}

fn on<T: Real + Element, W: Work>(
    py: Python<'_>,
    w: &PyReadonlyArray2<'_, T>,
    threads: Option<usize>,
    work: W,
) -> PyResult<W::Output> {
    let (data, shape) = contiguous(w)?;
    py.detach(|| with_threads(threads, || work.run(data, shape)))
        .map_err(|error| to_python(&error))
}

fn contiguous<'a, T: Element>(
    w: &'a PyReadonlyArray2<'_, T>,
) -> PyResult<(&'a [T], (usize, usize))> {
    let shape = (w.shape()[0], w.shape()[1]);
    let data = w
        .as_slice()
        .map_err(|_| PyValueError::new_err("W: wanted a C-contiguous array"))?;
    Ok((data, shape))
}

struct Values(Precision);
impl Work for Values {
    type Output = Vec<f64>;
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Vec<f64>> {
        values::singular_values(w, shape, self.0)
    }
}

#[pyfunction]
#[pyo3(signature = (w, bulk, threads=None))]
fn singular_values<'py>(
    py: Python<'py>,
    w: Matrix<'py>,
    bulk: bool,
    threads: Option<usize>,
) -> PyResult<Vector<'py>> {
    let precision = if bulk {
        Precision::Bulk
    } else {
        Precision::Full
    };
    Ok(w.run(py, threads, Values(precision))?.into_pyarray(py))
}

struct Lines;
impl Work for Lines {
    type Output = (Vec<bool>, Vec<bool>);
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output> {
        survey::nonzero_lines(w, shape.1)
    }
}

#[pyfunction]
#[pyo3(signature = (w, threads=None))]
fn nonzero_lines<'py>(
    py: Python<'py>,
    w: Matrix<'py>,
    threads: Option<usize>,
) -> PyResult<(Flags<'py>, Flags<'py>)> {
    let (rows, columns) = w.run(py, threads, Lines)?;
    Ok((rows.into_pyarray(py), columns.into_pyarray(py)))
}

struct Tails(Option<f64>);
impl Work for Tails {
    type Output = survey::Kurtosis;
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output> {
        survey::kurtosis(w, shape.1, self.0)
    }
}

#[pyfunction]
#[pyo3(signature = (w, deviation, threads=None))]
fn kurtosis(
    py: Python<'_>,
    w: Matrix<'_>,
    deviation: Option<f64>,
    threads: Option<usize>,
) -> PyResult<(f64, f64)> {
    let found = w.run(py, threads, Tails(deviation))?;
    Ok((found.all, found.noise))
}

struct Whiten(Sides);
impl Work for Whiten {
    type Output = whiten::Scales;
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output> {
        whiten::sinkhorn(w, shape, self.0)
    }
}

#[pyfunction]
#[pyo3(signature = (w, sides, threads=None))]
fn sinkhorn<'py>(
    py: Python<'py>,
    w: Matrix<'py>,
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
    let found = w.run(py, threads, Whiten(sides))?;
    Ok((found.rows.into_pyarray(py), found.columns.into_pyarray(py)))
}

/// (left (k x rows) transposed, values, right (k x columns) transposed, residuals, products)
type Triplets<'py> = (
    Bound<'py, PyArray2<f64>>,
    Vector<'py>,
    Bound<'py, PyArray2<f64>>,
    Vector<'py>,
    usize,
);

struct Leading(Request, Threads);
impl Work for Leading {
    type Output = rsvd::Triplets;
    fn run<T: Real>(self, w: &[T], shape: (usize, usize)) -> mpcore_core::Result<Self::Output> {
        rsvd::top(w, shape, &self.0, &self.1, &interrupted)
    }
}

#[pyfunction]
#[pyo3(signature = (w, k, tol, fast, seed, threads=None))]
fn top_svd<'py>(
    py: Python<'py>,
    w: Matrix<'py>,
    k: usize,
    tol: f64,
    fast: bool,
    seed: u64,
    threads: Option<usize>,
) -> PyResult<Triplets<'py>> {
    let request = Request {
        k,
        tolerance: tol,
        fast,
        seed,
    };
    let shape = w.shape();
    let threads = Threads::new(threads).map_err(|error| to_python(&error))?;
    // The loop stays on this thread, where signals arrive.
    let found = w.run(py, None, Leading(request, threads))?;
    let left = found.left.into_pyarray(py).reshape([k, shape.0])?;
    let right = found.right.into_pyarray(py).reshape([k, shape.1])?;
    let (values, residuals) = (
        found.values.into_pyarray(py),
        found.residuals.into_pyarray(py),
    );
    Ok((left, values, right, residuals, found.products))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(singular_values, module)?)?;
    module.add_function(wrap_pyfunction!(nonzero_lines, module)?)?;
    module.add_function(wrap_pyfunction!(kurtosis, module)?)?;
    module.add_function(wrap_pyfunction!(sinkhorn, module)?)?;
    module.add_function(wrap_pyfunction!(top_svd, module)?)
}
