//! Block Krylov spaces of A A', A being a dense matrix turned so that its shorter side comes first.
//!
//! Vectors are rows: a block is (b x length), row-major. All tiles are fixed, so bits do not depend on threads.

use std::borrow::Cow;

use crate::Result;
use crate::linalg::dense::{self, Real};
use crate::linalg::orthogonal::orthonormalise;
use crate::linalg::pass::Pass;
use crate::linalg::values::{self, PowerOfTwo, exponent, largest_magnitude, scale};
use crate::random::Random;
use crate::vector::aligned::Aligned;

/// A as an operator; products in float32 if its entries are and they need not be exact, else in float64; blocks in float64.
pub(crate) struct Operator<'a, T: Real> {
    w: Cow<'a, [T]>,
    rows: usize,
    columns: usize,
    exact: bool,
    /// The stored matrix is 2^-power times the caller's.
    pub(crate) power: i32,
}

impl<'a, T: Real> Operator<'a, T> {
    /// # Errors
    /// [`crate::Error::NotFinite`] at the first NaN or infinity.
    pub(crate) fn new(w: &'a [T], (rows, columns): (usize, usize)) -> Result<Self> {
        let largest = largest_magnitude(w, columns)?;
        let power = if largest > 0.0 { exponent(largest) } else { 0 };
        // Within 2^-40 to 2^40 squares and their sums stay far from the ends of float32; copying would be a waste.
        let (w, power) = if power.abs() <= 40 {
            (Cow::Borrowed(w), 0)
        } else {
            let copy = w.iter().map(|v| cast(scale(wide(*v), -power))).collect();
            (Cow::Owned(copy), power)
        };
        Ok(Self {
            w,
            rows,
            columns,
            exact: false,
            power,
        })
    }

    /// The same matrix, multiplied in float64.
    pub(crate) fn exact(&self) -> Operator<'_, T> {
        Operator {
            w: Cow::Borrowed(&self.w),
            exact: true,
            ..*self
        }
    }

    pub(crate) fn short(&self) -> usize {
        self.rows.min(self.columns)
    }

    pub(crate) fn long(&self) -> usize {
        self.rows.max(self.columns)
    }

    /// Whether rows of the caller's matrix are the short side.
    pub(crate) fn is_wide(&self) -> bool {
        self.rows < self.columns
    }

    /// Squared Frobenius norm.
    pub(crate) fn squared_norm(&self) -> f64 {
        values::moments(&self.w, PowerOfTwo::new(0), f64::INFINITY).second
    }

    /// X A for a block X of vectors on the short side.
    pub(crate) fn to_long(&self, x: &[f64]) -> Vec<f64> {
        self.product(x, self.is_wide())
    }

    /// Y A' for a block Y of vectors on the long side.
    pub(crate) fn to_short(&self, y: &[f64]) -> Vec<f64> {
        self.product(y, !self.is_wide())
    }

    /// X A A' for a block X of vectors on the short side.
    fn there_and_back(&self, x: &[f64], work: &mut Work) -> Vec<f64> {
        if self.is_wide() {
            return self.to_short(&self.to_long(x));
        }
        let pass = Pass::new(&self.w, self.columns);
        if self.single() {
            pass.times_both(x, &mut work.single)
        } else {
            pass.times_both(x, &mut work.double)
        }
    }

    /// Whether products are in float32.
    fn single(&self) -> bool {
        !self.exact && size_of::<T>() == size_of::<f32>()
    }

    /// X W for a block on the side of the rows, X W' for one on the side of the columns.
    fn product(&self, x: &[f64], on_rows: bool) -> Vec<f64> {
        let pass = Pass::new(&self.w, self.columns);
        match (on_rows, self.single()) {
            (true, true) => pass.times::<f32>(x),
            (true, false) => pass.times::<f64>(x),
            (false, true) => pass.times_transposed::<f32>(x),
            (false, false) => pass.times_transposed::<f64>(x),
        }
    }
}

/// What products leave for the next ones, in either precision.
#[derive(Default)]
struct Work {
    single: Vec<Aligned<f32>>,
    double: Vec<Aligned<f64>>,
}

fn wide<T: Real>(value: T) -> f64 {
    value.to_f64().unwrap_or(f64::NAN)
}

fn cast<T: Real>(value: f64) -> T {
    <T as num_traits::NumCast>::from(value).unwrap_or_else(T::nan)
}

/// An orthonormal basis Q (d x short), T = Q A A' Q', and the block that would come next.
pub(crate) struct Space<'a, T: Real> {
    operator: &'a Operator<'a, T>,
    random: Random,
    basis: Vec<f64>,
    /// d x d, symmetric.
    projected: Vec<f64>,
    next: Vec<f64>,
    /// A A' applied to the last block leaves `coupling`' `next` outside the space; (b x b) upper triangular.
    coupling: Vec<f64>,
    last: usize,
    work: Work,
    /// Products of the matrix with one vector so far.
    pub(crate) products: usize,
}

/// Eigenpairs of the projected matrix.
pub(crate) struct Ritz {
    /// Eigenvalues of A A', descending.
    pub(crate) values: Vec<f64>,
    /// Norm of A A' x - value x for each.
    pub(crate) residuals: Vec<f64>,
    /// Coordinates in the basis, one Ritz vector per row.
    coordinates: Vec<f64>,
}

impl<'a, T: Real> Space<'a, T> {
    /// Start from a random block of `block` vectors.
    pub(crate) fn new(operator: &'a Operator<'a, T>, block: usize, seed: u64) -> Self {
        let mut random = Random::new(seed, 0);
        let length = operator.short();
        let mut next: Vec<f64> = (0..block * length).map(|_| random.normal()).collect();
        orthonormalise(&mut next, length, &[], &mut random);
        Self {
            operator,
            random,
            basis: Vec::new(),
            projected: Vec::new(),
            next,
            coupling: Vec::new(),
            last: 0,
            work: Work::default(),
            products: 0,
        }
    }

    /// Dimension of the basis.
    pub(crate) fn dimension(&self) -> usize {
        self.basis.len() / self.operator.short()
    }

    /// Take the next block into the basis and multiply.
    pub(crate) fn expand(&mut self) {
        let length = self.operator.short();
        let block = self.next.len() / length;
        let old = self.dimension();
        self.basis.extend_from_slice(&self.next);
        let mut image = self.operator.there_and_back(&self.next, &mut self.work);
        self.products += 2 * block;
        let first = self.project_out(&mut image);
        self.project_out(&mut image);
        self.grow(old, block, &first);
        self.coupling = orthonormalise(&mut image, length, &self.basis, &mut self.random);
        self.next = image;
        self.last = block;
    }

    /// Remove the basis from the block; returns the coordinates (block x d).
    fn project_out(&self, image: &mut [f64]) -> Vec<f64> {
        let basis = Pass::new(&self.basis, self.operator.short());
        let coordinates = basis.times_transposed::<f64>(image);
        let inside = basis.times::<f64>(&coordinates);
        for (value, part) in image.iter_mut().zip(inside) {
            *value -= part;
        }
        coordinates
    }

    /// Append the new block's rows and columns to the projected matrix; `coordinates` is (block x (old + block)).
    fn grow(&mut self, old: usize, block: usize, coordinates: &[f64]) {
        let size = old + block;
        let mut grown = vec![0.0; size * size];
        for row in 0..old {
            grown[row * size..row * size + old]
                .copy_from_slice(&self.projected[row * old..(row + 1) * old]);
        }
        for b in 0..block {
            for column in 0..size {
                let value = coordinates[b * size + column];
                // Inside the new diagonal block both halves are computed: their mean is symmetric.
                let value = if column >= old {
                    0.5 * (value + coordinates[(column - old) * size + old + b])
                } else {
                    value
                };
                grown[(old + b) * size + column] = value;
                grown[column * size + old + b] = value;
            }
        }
        self.projected = grown;
    }

    /// # Errors
    /// [`crate::Error::Convergence`] from the small eigenproblem.
    pub(crate) fn ritz(&self) -> Result<Ritz> {
        let size = self.dimension();
        let (values, vectors) = dense::eigh(&self.projected, size)?;
        let block = self.last;
        let mut ritz = Ritz {
            values: values.iter().rev().copied().collect(),
            residuals: Vec::with_capacity(size),
            coordinates: vec![0.0; size * size],
        };
        for (index, column) in (0..size).rev().enumerate() {
            for row in 0..size {
                ritz.coordinates[index * size + row] = vectors[row * size + column];
            }
            let end = &ritz.coordinates[(index + 1) * size - block..(index + 1) * size];
            let outside: f64 = (0..block)
                .map(|i| {
                    let part: f64 = (0..block)
                        .map(|b| self.coupling[i * block + b] * end[b])
                        .sum();
                    part * part
                })
                .sum();
            ritz.residuals.push(outside.sqrt());
        }
        Ok(ritz)
    }

    /// The first `count` Ritz vectors, one per row.
    pub(crate) fn vectors(&self, ritz: &Ritz, count: usize) -> Vec<f64> {
        let coordinates = &ritz.coordinates[..count * self.dimension()];
        Pass::new(&self.basis, self.operator.short()).times::<f64>(coordinates)
    }

    /// Thick restart: keep the first `count` Ritz vectors as the basis; the next block stays.
    pub(crate) fn restart(&mut self, ritz: &Ritz, count: usize) {
        self.basis = self.vectors(ritz, count);
        self.projected = vec![0.0; count * count];
        for i in 0..count {
            self.projected[i * count + i] = ritz.values[i];
        }
    }
}
