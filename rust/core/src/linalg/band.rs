//! A symmetric matrix to a band, by products of blocks: the first stage of its eigenvalues.
//!
//! Tiles are fixed and each is computed by one task, so bits do not depend on threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::linalg::chase::Band;
use crate::linalg::dense::{self, Real, Rectangle};
use crate::vector::{FusedKernel, multiply_add, widest_fused};

/// Rows of the strips that the half matrix is kept in; a multiple of every band width.
pub(crate) const STRIP: usize = 64;

/// The upper half of a symmetric (n x n) matrix: strip i holds rows i `STRIP` and on, from the diagonal tile (both its
/// halves) to the last column, row-major.
pub(crate) struct Symmetric<T> {
    n: usize,
    strips: Vec<Vec<T>>,
}

impl<T: Real> Symmetric<T> {
    /// From its strips.
    pub(crate) fn new(n: usize, strips: Vec<Vec<T>>) -> Self {
        debug_assert!(strips.len() == n.div_ceil(STRIP));
        Self { n, strips }
    }

    /// Rows of a strip.
    fn rows(&self, strip: usize) -> Range<usize> {
        strip * STRIP..self.n.min((strip + 1) * STRIP)
    }

    /// Where the entry (row, column) of a strip lies, and the distance of its rows.
    fn place(&self, strip: usize, row: usize, column: usize) -> (usize, usize) {
        let first = strip * STRIP;
        let stride = self.n - first;
        ((row - first) * stride + column - first, stride)
    }

    /// A rectangle of the stored half.
    fn part(&self, strip: usize, rows: Range<usize>, columns: Range<usize>) -> Rectangle<'_, T> {
        let (start, stride) = self.place(strip, rows.start, columns.start);
        let size = (rows.len(), columns.len());
        Rectangle::new(&self.strips[strip][start..], stride, size)
    }

    fn row(&self, row: usize) -> &[T] {
        let (start, stride) = self.place(row / STRIP, row, row);
        &self.strips[row / STRIP][start..][..stride - row % STRIP]
    }

    /// Orthogonally similar band of half width `B`.
    ///
    /// Panel by panel: the columns beside a diagonal block of `B` are made triangular by reflectors Q = I - V U V', and
    /// the rest S becomes Q' S Q = S - V X' - X V', X = S V U - V (U' V' S V U) / 2 (C. Bischof, B. Lang, X. Sun, "A
    /// framework for symmetric band reduction", 2000).
    pub(crate) fn into_band<const B: usize>(mut self) -> Band<T, B> {
        const { assert!(STRIP.is_multiple_of(B)) };
        let mut band = Band::new(self.n);
        let mut first = 0;
        while first < self.n {
            let rest = (first + B).min(self.n);
            let mut panel = Panel::new(&self, first..rest);
            panel.factor();
            for row in first..rest {
                let inside = &self.row(row)[..rest - row];
                band.set(row, inside, &panel.triangle(row - first));
            }
            if panel.reflectors() > 0 {
                self.reflect(rest, &panel);
            }
            first = rest;
        }
        band
    }

    /// Q' S Q for the square S from row `first` on.
    fn reflect(&mut self, first: usize, panel: &Panel<T>) {
        fn whole<T: Real>(data: &[T], length: usize) -> Rectangle<'_, T> {
            Rectangle::new(data, length, (data.len() / length, length))
        }
        let (k, length) = (panel.reflectors(), panel.length);
        let v = panel.vectors();
        let u = panel.kernel(&v);
        let mut y = vec![T::default(); k * length];
        let turned = Rectangle::new(&u, k, (k, k)).turned();
        dense::multiply((&mut y, length), T::one(), turned, whole(&v, length), true);
        let mut x = self.times(first, &y, k);
        let mut inner = vec![T::default(); k * k];
        dense::multiply(
            (&mut inner, k),
            T::one(),
            whole(&y, length),
            whole(&x, length).turned(),
            true,
        );
        let half = -T::one() / (T::one() + T::one());
        let inner = Rectangle::new(&inner, k, (k, k)).turned();
        dense::multiply((&mut x, length), half, inner, whole(&v, length), false);
        self.update(
            first,
            &[v.as_slice(), &x].concat(),
            &[x.as_slice(), &v].concat(),
        );
    }

    /// Y S for the square S from row `first` on; `y` is (k x length).
    fn times(&self, first: usize, y: &[T], k: usize) -> Vec<T> {
        let (n, length) = (self.n, self.n - first);
        let columns = |range: Range<usize>| {
            Rectangle::new(&y[range.start - first..], length, (k, range.len()))
        };
        let strips = first / STRIP..self.strips.len();
        let tiles: Vec<(usize, Vec<T>)> = strips
            .clone()
            .into_par_iter()
            .with_max_len(1)
            .map(|strip| {
                let own = self.rows(strip).start.max(first)..self.rows(strip).end;
                let width = own.len();
                let mut tile = vec![T::default(); k * width];
                let mut add = |a, b| dense::multiply((&mut tile, width), T::one(), a, b, false);
                for above in strips.start..=strip {
                    let rows = self.rows(above).start.max(first)..self.rows(above).end;
                    add(columns(rows.clone()), self.part(above, rows, own.clone()));
                }
                if own.end < n {
                    let right = own.end..n;
                    add(
                        columns(right.clone()),
                        self.part(strip, own.clone(), right).turned(),
                    );
                }
                (own.start - first, tile)
            })
            .collect();
        let mut product = vec![T::default(); k * length];
        for (start, tile) in tiles {
            let width = tile.len() / k;
            for (row, values) in tile.chunks_exact(width).enumerate() {
                product[row * length + start..][..width].copy_from_slice(values);
            }
        }
        product
    }

    /// S -= L' R for the square S from row `first` on; `left` and `right` are (2k x length).
    fn update(&mut self, first: usize, left: &[T], right: &[T]) {
        let (n, length) = (self.n, self.n - first);
        let k = left.len() / length;
        let strips = first / STRIP;
        let places: Vec<_> = (strips..self.strips.len())
            .map(|strip| {
                let own = self.rows(strip).start.max(first)..self.rows(strip).end;
                (self.place(strip, own.start, own.start), own)
            })
            .collect();
        self.strips[strips..]
            .par_iter_mut()
            .zip(places)
            .with_max_len(1)
            .for_each(|(strip, ((start, stride), own))| {
                let from = own.start - first;
                let left = Rectangle::new(&left[from..], length, (k, own.len())).turned();
                let right = Rectangle::new(&right[from..], length, (k, n - own.start));
                dense::multiply((&mut strip[start..], stride), -T::one(), left, right, false);
            });
    }
}

/// The rows beside a diagonal block, (block x length) row-major, and the reflectors that make them triangular.
struct Panel<T> {
    rows: Vec<T>,
    length: usize,
    scales: Vec<T>,
}

impl<T: Real> Panel<T> {
    fn new(a: &Symmetric<T>, block: Range<usize>) -> Self {
        let length = a.n - block.end;
        let mut rows = Vec::with_capacity(block.len() * length);
        for row in block.clone() {
            rows.extend_from_slice(&a.row(row)[block.end - row..]);
        }
        Self {
            rows,
            length,
            scales: Vec::new(),
        }
    }

    fn reflectors(&self) -> usize {
        self.scales.len()
    }

    fn factor(&mut self) {
        if self.length > 0 {
            self.scales = widest_fused(Factor {
                rows: &mut self.rows,
                length: self.length,
            });
        }
    }

    /// The triangular part of a row.
    fn triangle(&self, row: usize) -> Vec<T> {
        let size = (row + 1).min(self.length);
        self.rows[row * self.length..][..size].to_vec()
    }

    /// The reflectors' vectors, (k x length): zeros, a one, and what was stored.
    fn vectors(&self) -> Vec<T> {
        let mut vectors = self.rows[..self.reflectors() * self.length].to_vec();
        for (index, vector) in vectors.chunks_exact_mut(self.length).enumerate() {
            vector[..index].fill(T::default());
            vector[index] = T::one();
        }
        vectors
    }

    /// The upper triangular (k x k) matrix U of Q = I - V U V'.
    fn kernel(&self, vectors: &[T]) -> Vec<T> {
        let k = self.reflectors();
        let v = Rectangle::new(vectors, self.length, (k, self.length));
        let mut products = vec![T::default(); k * k];
        dense::multiply((&mut products, k), T::one(), v, v.turned(), true);
        let mut u = vec![T::default(); k * k];
        for (column, scale) in self.scales.iter().enumerate() {
            for row in 0..column {
                let sum = (row..column)
                    .map(|i| u[row * k + i] * products[i * k + column])
                    .fold(T::zero(), |sum, value| sum + value);
                u[row * k + column] = -*scale * sum;
            }
            u[column * k + column] = *scale;
        }
        u
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
