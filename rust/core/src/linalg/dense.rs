//! The only file that names faer. Every call is sequential (`Par::Seq`), so that bits do not depend on threads;
//! parallelism is over tiles, rows or layers, outside.
//!
//! Matrices are row-major slices: `a[i * columns + j]`.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::svd::{self, ComputeSvdVectors};
use faer::linalg::triangular_inverse;
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

/// C -= A B for rectangles inside larger row-major matrices: each is given with its row stride.
///
/// `a` is (m x k), `b` is (k x n), `c` is (m x n).
pub fn subtract_product<T: Real>(
    (c, c_stride): (&mut [T], usize),
    (a, a_stride): (&[T], usize),
    (b, b_stride): (&[T], usize),
    (m, k, n): (usize, usize, usize),
) {
    // The transposed view, because faer 0.24.4's from_row_major_slice_with_stride_mut swaps the two strides.
    let c = MatMut::from_column_major_slice_with_stride_mut(c, n, m, c_stride).transpose_mut();
    faer::linalg::matmul::matmul(
        c,
        Accum::Add,
        MatRef::from_row_major_slice_with_stride(a, m, k, a_stride),
        MatRef::from_row_major_slice_with_stride(b, k, n, b_stride),
        -num_traits::one::<T>(),
        Par::Seq,
    );
}

/// Replace the lower triangle of a symmetric (n x n) matrix by its Cholesky factor L, A = L L'; the rest is zeroed.
///
/// # Errors
/// The index of the pivot at which A turned out not to be positive definite.
pub fn cholesky<T: Real>(a: &mut [T], n: usize) -> std::result::Result<(), usize> {
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<T>(
        n,
        Par::Seq,
        faer::prelude::default(),
    ));
    llt::factor::cholesky_in_place(
        MatMut::from_row_major_slice_mut(a, n, n),
        faer::prelude::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        faer::prelude::default(),
    )
    .map_err(|llt::factor::LltError::NonPositivePivot { index }| index)?;
    for (row, values) in a.chunks_exact_mut(n).enumerate() {
        values[row + 1..].fill(T::default());
    }
    Ok(())
}

/// Replace a symmetric positive definite (n x n) matrix by its inverse.
///
/// # Errors
/// As [`cholesky`]; `a` is then of no use.
pub fn invert_definite<T: Real>(a: &mut [T], n: usize) -> std::result::Result<(), usize> {
    cholesky(a, n)?;
    let factor = a.to_vec();
    let mut memory = MemBuffer::new(llt::inverse::inverse_scratch::<T>(n, Par::Seq));
    llt::inverse::inverse(
        MatMut::from_row_major_slice_mut(a, n, n),
        MatRef::from_row_major_slice(&factor, n, n),
        Par::Seq,
        MemStack::new(&mut memory),
    );
    for i in 0..n {
        for j in 0..i {
            a[j * n + i] = a[i * n + j];
        }
    }
    Ok(())
}

/// Inverse of a lower triangular (n x n) matrix; zeros above the diagonal.
#[must_use]
pub fn invert_lower<T: Real>(l: &[T], n: usize) -> Vec<T> {
    let mut inverse = vec![T::default(); n * n];
    triangular_inverse::invert_lower_triangular(
        MatMut::from_row_major_slice_mut(&mut inverse, n, n),
        MatRef::from_row_major_slice(l, n, n),
        Par::Seq,
    );
    inverse
}

/// Diagonal and superdiagonal of a bidiagonal matrix with the singular values of the column-major (m x n) `a`, m >= n.
///
/// `a` is overwritten.
#[must_use]
pub fn bidiagonalise(a: &mut [f64], (m, n): (usize, usize)) -> (Vec<f64>, Vec<f64>) {
    let mut left = faer::Mat::<f64>::zeros(1, n);
    let mut right = faer::Mat::<f64>::zeros(1, n.saturating_sub(1));
    let mut memory = MemBuffer::new(svd::bidiag::bidiag_in_place_scratch::<f64>(
        m,
        n,
        Par::Seq,
        faer::prelude::default(),
    ));
    let mut a = MatMut::from_column_major_slice_mut(a, m, n);
    svd::bidiag::bidiag_in_place(
        a.as_mut(),
        left.as_mut(),
        right.as_mut(),
        Par::Seq,
        MemStack::new(&mut memory),
        faer::prelude::default(),
    );
    let diagonal = (0..n).map(|i| a[(i, i)]).collect();
    let above = (1..n).map(|i| a[(i - 1, i)]).collect();
    (diagonal, above)
}

/// Thin singular value decomposition A = U diag(s) V' of a row-major (m x n) matrix; U is (m x r), V is (n x r), r = min(m, n).
#[derive(Debug, Clone)]
pub struct Svd {
    /// Left vectors, row-major (m x r).
    pub left: Vec<f64>,
    /// Singular values, descending.
    pub values: Vec<f64>,
    /// Right vectors, row-major (n x r).
    pub right: Vec<f64>,
}

/// Thin singular value decomposition of a row-major (m x n) matrix.
///
/// # Errors
/// [`Error::Convergence`] if the iteration of faer fails.
pub fn thin_svd(a: &[f64], (m, n): (usize, usize)) -> Result<Svd> {
    let rank = m.min(n);
    let (mut left, mut right) = (vec![0.0; m * rank], vec![0.0; n * rank]);
    let mut values = vec![0.0; rank];
    let mut memory = MemBuffer::new(svd::svd_scratch::<f64>(
        m,
        n,
        ComputeSvdVectors::Thin,
        ComputeSvdVectors::Thin,
        Par::Seq,
        faer::prelude::default(),
    ));
    svd::svd(
        MatRef::from_row_major_slice(a, m, n),
        faer::ColMut::from_slice_mut(&mut values).as_diagonal_mut(),
        Some(MatMut::from_row_major_slice_mut(&mut left, m, rank)),
        Some(MatMut::from_row_major_slice_mut(&mut right, n, rank)),
        Par::Seq,
        MemStack::new(&mut memory),
        faer::prelude::default(),
    )
    .map_err(|error| Error::Convergence {
        routine: "thin_svd",
        detail: format!("{error:?} at {m} x {n}"),
    })?;
    Ok(Svd {
        left,
        values,
        right,
    })
}

#[cfg(test)]
mod tests;
