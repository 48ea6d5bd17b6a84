//! A symmetric matrix to a band, by products of blocks: the first stage of its eigenvalues.
//!
//! The order of all sums is fixed, so bits do not depend on threads.

use crate::linalg::change::Change;
use crate::linalg::chase::Band;
use crate::linalg::dense::Real;
use crate::linalg::side::{self, Job, SIDE};
use crate::linalg::symmetric::{Symmetric, start};
use crate::vector::aligned::Aligned;
use crate::vector::register::Lanes;
use crate::vector::{FusedKernel, multiply_add, widest_fused};

/// Orthogonally similar band.
///
/// Panel by panel: the rows beside a diagonal block are made triangular by reflectors Q = I - V U V', and the rest S becomes
/// Q' S Q = S - V X' - X V', X = S V U - V (U' V' S V U) / 2 (C. Bischof, B. Lang, X. Sun, "A framework for symmetric band
/// reduction", 2000). The change by one panel and the product with the next are one pass over S.
pub(crate) fn reduce<T: Real + Lanes>(mut s: Symmetric<T>) -> Band<T> {
    let mut band = Band::new(s.n());
    let mut change: Option<Change<T>> = None;
    for first in (0..s.n()).step_by(SIDE) {
        let rest = first + SIDE;
        if let Some(change) = &change {
            s.change(first..rest, change);
        }
        let mut panel = Panel::new(&s, first);
        let scales = panel.factor();
        for row in first..rest.min(s.n()) {
            band.set(row, &s.row(row)[..rest - row], panel.triangle(row - first));
        }
        if rest < s.n() {
            let from = start(rest);
            let v = panel.into_vectors(rest - from);
            let u = kernel(&v, &scales);
            let y = times(&v, &u);
            let mut x = s.change_and_multiply(rest, change.as_ref(), &y);
            let half = -T::one() / (T::one() + T::one());
            let mut inner = inner(&y, &x);
            inner.iter_mut().for_each(|v| *v *= half);
            side::run(
                &v,
                SIDE,
                Job::Dots {
                    x: &inner,
                    products: &mut x,
                },
            );
            change = Some(Change::new(from, v, x));
        }
    }
    band
}

/// A (length x 16) times B (16 x 16).
fn times<T: Real + Lanes>(a: &[T], b: &[T]) -> Aligned<T> {
    let mut products = Aligned::zeros(a.len());
    let products_in = &mut products;
    side::run(
        a,
        SIDE,
        Job::Dots {
            x: b,
            products: products_in,
        },
    );
    products
}

/// A' B for (length x 16) matrices.
fn inner<T: Real + Lanes>(a: &[T], b: &[T]) -> Aligned<T> {
    let mut sums = Aligned::zeros(SIDE * SIDE);
    side::run(
        a,
        SIDE,
        Job::Spread {
            x: b,
            sums: &mut sums,
        },
    );
    sums
}

/// The upper triangular (16 x 16) matrix U of Q = I - V U V'.
fn kernel<T: Real + Lanes>(vectors: &[T], scales: &[T]) -> Aligned<T> {
    let products = inner(vectors, vectors);
    let mut u = Aligned::zeros(SIDE * SIDE);
    for (column, scale) in scales.iter().enumerate() {
        for row in 0..column {
            let sum = (row..column)
                .map(|i| u[row * SIDE + i] * products[i * SIDE + column])
                .fold(T::zero(), |sum, value| sum + value);
            u[row * SIDE + column] = -*scale * sum;
        }
        u[column * SIDE + column] = *scale;
    }
    u
}

/// The 16 rows beside a diagonal block, row-major, and the reflectors that make them triangular.
struct Panel<T> {
    rows: Vec<T>,
    length: usize,
}

impl<T: Real> Panel<T> {
    fn new(s: &Symmetric<T>, first: usize) -> Self
    where
        T: Lanes,
    {
        let length = s.padded() - first - SIDE;
        let mut rows = Vec::with_capacity(SIDE * length);
        for row in first..first + SIDE {
            rows.extend_from_slice(&s.row(row)[first + SIDE - row..]);
        }
        Self { rows, length }
    }

    /// The reflectors' scales; their vectors take the place of what they remove.
    fn factor(&mut self) -> Vec<T> {
        if self.length == 0 {
            return Vec::new();
        }
        widest_fused(Factor {
            rows: &mut self.rows,
            length: self.length,
        })
    }

    /// The triangular part of a row.
    fn triangle(&self, row: usize) -> &[T] {
        let size = (row + 1).min(self.length);
        &self.rows[row * self.length..][..size]
    }

    /// The reflectors' vectors in 16 columns: `above` rows of zeros, then in each zeros, a one, and what was stored.
    fn into_vectors(mut self, above: usize) -> Aligned<T> {
        for (index, row) in self.rows.chunks_exact_mut(self.length).enumerate() {
            row[..index].fill(T::default());
            row[index] = T::one();
        }
        let mut vectors = Aligned::zeros((above + self.length) * SIDE);
        let side = vectors[above * SIDE..].chunks_exact_mut(SIDE);
        for (column, values) in side.enumerate() {
            for (lane, value) in values.iter_mut().enumerate() {
                *value = self.rows[lane * self.length + column];
            }
        }
        vectors
    }
}

/// Householder reflectors I - scale v v', v[index] = 1, of row after row.
struct Factor<'a, T> {
    rows: &'a mut [T],
    length: usize,
}

impl<T: Real> FusedKernel for Factor<'_, T> {
    type Output = Vec<T>;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Vec<T> {
        let count = (self.rows.len() / self.length).min(self.length);
        let mut scales = Vec::with_capacity(count);
        for index in 0..count {
            let (done, rest) = self.rows.split_at_mut((index + 1) * self.length);
            let vector = &mut done[index * self.length + index..];
            let scale = reflector::<T, FUSED>(vector);
            let kept = std::mem::replace(&mut vector[0], T::one());
            for row in rest.chunks_exact_mut(self.length) {
                let row = &mut row[index..];
                let part = -scale * dot::<T, FUSED>(vector, row);
                for (value, v) in row.iter_mut().zip(&*vector) {
                    *value = multiply_add::<T, FUSED>(part, *v, *value);
                }
            }
            vector[0] = kept;
            scales.push(scale);
        }
        scales
    }
}

/// Replace x by (beta, v[1..]) with (I - scale v v') x = (beta, 0), v[0] = 1; returns the scale.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn reflector<T: Real, const FUSED: bool>(x: &mut [T]) -> T {
    let (first, tail) = x.split_first_mut().expect("a reflector has a first entry");
    let turn = Turn::new(*first, dot::<T, FUSED>(tail, tail));
    *first = turn.onto;
    for value in tail {
        *value *= turn.factor;
    }
    turn.scale
}

/// The reflector I - scale v v' that takes a vector (first, tail) onto (onto, 0): v = (1, factor tail).
pub(crate) struct Turn<T> {
    pub(crate) onto: T,
    pub(crate) factor: T,
    pub(crate) scale: T,
}

impl<T: Real> Turn<T> {
    /// From the first entry and the sum of the squares of the others. What is too small to be squared counts as zero:
    /// the matrix is scaled, so that it is below any rounding.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    pub(crate) fn new(first: T, squares: T) -> Self {
        if squares == T::zero() {
            return Self {
                onto: first,
                factor: T::zero(),
                scale: T::zero(),
            };
        }
        let norm = (first * first + squares).sqrt();
        let onto = if first > T::zero() { -norm } else { norm };
        Self {
            onto,
            factor: T::one() / (first - onto),
            scale: (onto - first) / onto,
        }
    }
}

const LANES: usize = 32;

#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
fn dot<T: Real, const FUSED: bool>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::zero(); LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a.remainder().iter().zip(b.remainder());
    let tail = tail.fold(T::zero(), |sum, (x, y)| sum + *x * *y);
    for (x, y) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] = multiply_add::<T, FUSED>(x[lane], y[lane], sums[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + tail
}
