//! Products of a row-major matrix W with a block of vectors, 16 at a time, straight from its rows: X W', X W, and X W' W in
//! one pass over W.
//!
//! Every entry is read once into all lanes of a register and multiplied with 16 vectors, so nothing is packed first.
//! Where no cache holds W, reading it is the price of a product.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use rayon::prelude::*;

use crate::linalg::dense::Real;
use crate::vector::register::{Lanes, Register};
use crate::vector::{Kernel, Level, level, widest};

/// Vectors that go side by side.
const SIDE: usize = 16;
/// Most registers that so many values take.
const MOST: usize = 4;
/// Columns whose addresses are reckoned together.
const UNROLLED: usize = 4;
/// Rows of a task. Sums over them are in the precision of the products, sums of tasks in float64.
const ROWS: usize = 256;
/// Columns of a task that sums over all rows.
const COLUMNS: usize = 256;

/// A row-major matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'a, T> {
    w: &'a [T],
    columns: usize,
}

impl<'a, T: Real> Pass<'a, T> {
    /// From its rows of `columns` entries.
    pub(crate) fn new(w: &'a [T], columns: usize) -> Self {
        Self { w, columns }
    }

    fn rows(&self) -> usize {
        self.w.len() / self.columns
    }

    /// X W' in `P`, X (b x columns).
    pub(crate) fn times_transposed<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.columns, self.rows(), |x: &[P]| {
            let mut products = vec![P::default(); self.rows() * SIDE];
            let parts = self.w.par_chunks(ROWS * self.columns);
            parts
                .zip(products.par_chunks_mut(ROWS * SIDE))
                .for_each(|(w, products)| {
                    run(w, self.columns, Job::Dots { x, products });
                });
            products.into_iter().map(wide).collect()
        })
    }

    /// X W in `P`, X (b x rows).
    pub(crate) fn times<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.rows(), self.columns, |x: &[P]| {
            let mut sums = vec![P::default(); self.columns * SIDE];
            sums.par_chunks_mut(COLUMNS * SIDE)
                .enumerate()
                .for_each(|(part, sums)| {
                    let w = &self.w[part * COLUMNS..];
                    run(w, self.columns, Job::Spread { x, sums });
                });
            sums.into_iter().map(wide).collect()
        })
    }

    /// X W' W in `P`, X (b x columns).
    pub(crate) fn times_both<P: Lanes + Real>(&self, x: &[f64]) -> Vec<f64> {
        by_side(x, self.columns, self.columns, |x: &[P]| {
            let parts: Vec<Vec<P>> = self
                .w
                .par_chunks(ROWS * self.columns)
                .map(|w| {
                    let mut sums = vec![P::default(); self.columns * SIDE];
                    let sums_in = &mut sums;
                    run(w, self.columns, Job::Both { x, sums: sums_in });
                    sums
                })
                .collect();
            let mut total = vec![0.0; self.columns * SIDE];
            for sums in parts {
                for (total, sum) in total.iter_mut().zip(sums) {
                    *total += wide(sum);
                }
            }
            total
        })
    }
}

fn wide<P: Real>(value: P) -> f64 {
    value.to_f64().unwrap_or(f64::NAN)
}

fn cast<P: Real, T: num_traits::ToPrimitive>(value: T) -> P {
    <P as num_traits::NumCast>::from(value).unwrap_or_else(P::nan)
}

/// A block (b x length), 16 vectors at a time as (length x 16) with zeros beyond the last, through `product` to a block
/// (b x onto).
fn by_side<P: Real>(
    x: &[f64],
    length: usize,
    onto: usize,
    product: impl Fn(&[P]) -> Vec<f64>,
) -> Vec<f64> {
    let mut result = Vec::with_capacity(x.len() / length * onto);
    for vectors in x.chunks(SIDE * length) {
        let mut side = vec![P::default(); length * SIDE];
        for (lane, vector) in vectors.chunks_exact(length).enumerate() {
            for (values, value) in side.chunks_exact_mut(SIDE).zip(vector) {
                values[lane] = cast(*value);
            }
        }
        let found = product(&side);
        for lane in 0..vectors.len() / length {
            result.extend(found.chunks_exact(SIDE).map(|values| values[lane]));
        }
    }
    result
}

/// What a task does with its rows of W.
enum Job<'a, P> {
    /// products (rows x 16) = W x
    Dots { x: &'a [P], products: &'a mut [P] },
    /// sums (width x 16) += W' x over the first `width` columns
    Spread { x: &'a [P], sums: &'a mut [P] },
    /// sums += W' (W x)
    Both { x: &'a [P], sums: &'a mut [P] },
}

/// So many rows at a time that their sums stay in registers.
fn run<T: Real, P: Lanes + Real>(w: &[T], columns: usize, job: Job<'_, P>) {
    let single = size_of::<P>() == size_of::<f32>();
    match (level(), single) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) => widest(Task::<T, P::Avx512, 8> { w, columns, job }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, true) => widest(Task::<T, P::Avx2, 4> { w, columns, job }),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, false) => widest(Task::<T, P::Avx2, 2> { w, columns, job }),
        _ => widest(Task::<T, P::Portable, 2> { w, columns, job }),
    }
}

/// Some rows of W and what to do with them, `M` at a time.
struct Task<'a, T, R: Register, const M: usize> {
    w: &'a [T],
    columns: usize,
    job: Job<'a, R::Item>,
}

impl<T, R, const M: usize> Kernel for Task<'_, T, R, M>
where
    T: Real,
    R: Register,
    R::Item: Real,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (w, columns) = (self.w, self.columns);
        match self.job {
            Job::Dots { x, products } => {
                let mut groups = products.chunks_exact_mut(M * SIDE);
                let mut rows = w.chunks(M * columns);
                for (products, w) in groups.by_ref().zip(rows.by_ref()) {
                    dots::<T, R, M>(w, columns, x, products);
                }
                let rest = groups.into_remainder();
                let done = w.len() / columns / M * M * columns;
                for (product, w) in rest.chunks_exact_mut(SIDE).zip(w[done..].chunks(columns)) {
                    dots::<T, R, 1>(w, columns, x, product);
                }
            }
            Job::Spread { x, sums } => {
                // The rows begin `columns` apart; the last may be cut short.
                let groups = x.chunks_exact(M * SIDE);
                let rest = groups.remainder().chunks_exact(SIDE);
                let done = groups.len() * M;
                for (i, x) in groups.enumerate() {
                    spread::<T, R, M>(&w[i * M * columns..], columns, x, sums);
                }
                for (i, x) in rest.enumerate() {
                    spread::<T, R, 1>(&w[(done + i) * columns..], columns, x, sums);
                }
            }
            Job::Both { x, sums } => {
                let mut products = [[R::Item::default(); SIDE]; M];
                let rows = w.chunks_exact(M * columns);
                let rest = rows.remainder();
                for w in rows {
                    let products = products.as_flattened_mut();
                    dots::<T, R, M>(w, columns, x, products);
                    spread::<T, R, M>(w, columns, products, sums);
                }
                for w in rest.chunks_exact(columns) {
                    dots::<T, R, 1>(w, columns, x, &mut products[0]);
                    spread::<T, R, 1>(w, columns, &products[0], sums);
                }
            }
        }
    }
}

/// products (M x 16) = `M` rows of W times x (columns x 16).
#[inline(always)]
fn dots<T, R, const M: usize>(w: &[T], columns: usize, x: &[R::Item], products: &mut [R::Item])
where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let count = SIDE / R::LANES;
    assert!(w.len() >= M * columns && x.len() >= columns * SIDE && products.len() >= M * SIDE);
    #[expect(unsafe_code, reason = "sums stay in registers; asserted bounds")]
    // SAFETY: the level in use names the instruction set of R. Entry (i, column) is read for i < M and column < columns,
    // values column * 16 .. column * 16 + 16 of x, and i * 16 .. i * 16 + 16 of the products are written.
    unsafe {
        let mut inner = [[R::splat(R::Item::default()); MOST]; M];
        let unrolled = columns / UNROLLED * UNROLLED;
        for start in (0..unrolled).step_by(UNROLLED) {
            for column in start..start + UNROLLED {
                let from = x.as_ptr().add(column * SIDE);
                add_column::<T, R, M>(&mut inner, w.as_ptr().add(column), columns, from);
            }
        }
        for column in unrolled..columns {
            let from = x.as_ptr().add(column * SIDE);
            add_column::<T, R, M>(&mut inner, w.as_ptr().add(column), columns, from);
        }
        for (i, inner) in inner.iter().enumerate() {
            for (v, inner) in inner[..count].iter().enumerate() {
                inner.store(products.as_mut_ptr().add(i * SIDE + v * R::LANES));
            }
        }
    }
}

/// Add `M` entries of W, `columns` apart, times 16 values.
///
/// # Safety
/// As for registers; the entries and the values must be there.
#[expect(unsafe_code, reason = "called by `dots` within its bounds")]
#[inline(always)]
unsafe fn add_column<T, R, const M: usize>(
    inner: &mut [[R; MOST]; M],
    w: *const T,
    columns: usize,
    from: *const R::Item,
) where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let count = SIDE / R::LANES;
    // SAFETY: the caller's.
    unsafe {
        let mut values = [R::load(from); MOST];
        for (v, value) in values[..count].iter_mut().enumerate() {
            *value = R::load(from.add(v * R::LANES));
        }
        for (i, inner) in inner.iter_mut().enumerate() {
            let entry = R::splat(cast(*w.add(i * columns)));
            for v in 0..count {
                inner[v] = inner[v].plus_product(entry, values[v]);
            }
        }
    }
}

/// sums (width x 16) += the first `width` columns of `M` rows of W, transposed, times x (M x 16).
#[inline(always)]
fn spread<T, R, const M: usize>(w: &[T], columns: usize, x: &[R::Item], sums: &mut [R::Item])
where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let (count, width) = (SIDE / R::LANES, sums.len() / SIDE);
    assert!(width <= columns && w.len() >= (M - 1) * columns + width && x.len() >= M * SIDE);
    #[expect(unsafe_code, reason = "sums stay in registers; asserted bounds")]
    // SAFETY: the level in use names the instruction set of R. Entry (i, column) is read for i < M and column < width,
    // values i * 16 .. i * 16 + 16 of x, and column * 16 .. column * 16 + 16 of the sums are read and written.
    unsafe {
        let mut values = [[R::load(x.as_ptr()); MOST]; M];
        for (i, values) in values.iter_mut().enumerate() {
            for (v, value) in values[..count].iter_mut().enumerate() {
                *value = R::load(x.as_ptr().add(i * SIDE + v * R::LANES));
            }
        }
        let (w, sums) = (w.as_ptr(), sums.as_mut_ptr());
        let unrolled = width / UNROLLED * UNROLLED;
        for start in (0..unrolled).step_by(UNROLLED) {
            for column in start..start + UNROLLED {
                add_rows::<T, R, M>(&values, w.add(column), columns, sums.add(column * SIDE));
            }
        }
        for column in unrolled..width {
            add_rows::<T, R, M>(&values, w.add(column), columns, sums.add(column * SIDE));
        }
    }
}

/// Add `M` entries of W, `columns` apart, each times its 16 values, to 16 sums.
///
/// # Safety
/// As for registers; the entries and the sums must be there.
#[expect(unsafe_code, reason = "called by `spread` within its bounds")]
#[inline(always)]
unsafe fn add_rows<T, R, const M: usize>(
    values: &[[R; MOST]; M],
    w: *const T,
    columns: usize,
    onto: *mut R::Item,
) where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let count = SIDE / R::LANES;
    // SAFETY: the caller's.
    unsafe {
        let mut inner = [R::load(onto); MOST];
        for (v, inner) in inner[..count].iter_mut().enumerate() {
            *inner = R::load(onto.add(v * R::LANES));
        }
        for (i, values) in values.iter().enumerate() {
            let entry = R::splat(cast(*w.add(i * columns)));
            for v in 0..count {
                inner[v] = inner[v].plus_product(entry, values[v]);
            }
        }
        for (v, inner) in inner[..count].iter().enumerate() {
            inner.store(onto.add(v * R::LANES));
        }
    }
}

#[cfg(test)]
mod tests;
