//! The only file that names faer. Every call is sequential (`Par::Seq`), so that bits do not depend on threads;
//! parallelism is over tiles, rows or layers, outside.
//!
//! Matrices are row-major slices: `a[i * columns + j]`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::{Accum, MatMut, MatRef, Par};
use num_traits::Float;

use crate::{Error, Result};

/// The two element types of the dense routines.
pub trait Real: faer::traits::RealField + Float + Default + Send + Sync + 'static {}
impl Real for f32 {}
impl Real for f64 {}

/// C = A B + beta C, row-major: `a` is (m x k), `b` is (k x n), `c` is (m x n); beta is 0 or 1.
pub fn matmul<T: Real>(
    c: &mut [T],
    a: &[T],
    b: &[T],
    (m, k, n): (usize, usize, usize),
    accumulate: bool,
) {
    let mode = if accumulate {
        Accum::Add
    } else {
        Accum::Replace
    };
    let c = MatMut::from_row_major_slice_mut(c, m, n);
    let (a, b) = (
        MatRef::from_row_major_slice(a, m, k),
        MatRef::from_row_major_slice(b, k, n),
    );
    faer::linalg::matmul::matmul(c, mode, a, b, num_traits::one::<T>(), Par::Seq);
}

/// Eigenvalues (ascending) and eigenvectors (columns of the returned row-major matrix) of a symmetric (n x n) matrix.
///
/// # Errors
/// [`Error::Convergence`] if the iteration of faer fails.
pub fn eigh<T: Real>(a: &[T], n: usize) -> Result<(Vec<T>, Vec<T>)> {
    let mut values = vec![T::default(); n];
    let mut vectors = vec![T::default(); n * n];
    let mut memory = MemBuffer::new(evd::self_adjoint_evd_scratch::<T>(
        n,
        ComputeEigenvectors::Yes,
        Par::Seq,
        faer::prelude::default(),
    ));
    evd::self_adjoint_evd(
        MatRef::from_row_major_slice(a, n, n),
        faer::ColMut::from_slice_mut(&mut values).as_diagonal_mut(),
        Some(MatMut::from_row_major_slice_mut(&mut vectors, n, n)),
        Par::Seq,
        MemStack::new(&mut memory),
        faer::prelude::default(),
    )
    .map_err(|error| Error::Convergence {
        routine: "eigh",
        detail: format!("{error:?} at n = {n}"),
    })?;
    Ok((values, vectors))
}
