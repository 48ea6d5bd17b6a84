//! Kernels that multiply a row-major matrix W with 16 vectors that lie side by side, as (length x 16).
//!
//! Every entry is read once into all lanes of a register and multiplied with 16 vectors, so nothing is packed first.

#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use crate::linalg::dense::Real;
use crate::vector::register::{Lanes, Register};
use crate::vector::{Kernel, Level, level, widest};

/// Vectors that go side by side.
pub(crate) const SIDE: usize = 16;
/// Most registers that so many values take.
const MOST: usize = 4;
/// Columns whose addresses are reckoned together.
const UNROLLED: usize = 4;
/// Columns of some rows that are converted together: 16 KiB of float64 for eight rows.
const CONVERTED: usize = 256;

/// To the precision of the products.
pub(crate) fn cast<P: Real, T: num_traits::ToPrimitive>(value: T) -> P {
    <P as num_traits::NumCast>::from(value).unwrap_or_else(P::nan)
}

/// What to do with some rows of W.
pub(crate) enum Job<'a, P> {
    /// products (rows x 16) += W x
    Dots { x: &'a [P], products: &'a mut [P] },
    /// sums (width x 16) += W' x over the first `width` columns
    Spread { x: &'a [P], sums: &'a mut [P] },
    /// sums += W' (W x)
    Both { x: &'a [P], sums: &'a mut [P] },
}

/// Do the job, so many rows at a time that their sums stay in registers.
pub(crate) fn run<T: Real, P: Lanes + Real>(w: &[T], columns: usize, job: Job<'_, P>) {
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
                    dots_of::<T, R, M>(w, columns, x, products);
                }
                let rest = groups.into_remainder();
                let done = w.len() / columns / M * M * columns;
                for (product, w) in rest.chunks_exact_mut(SIDE).zip(w[done..].chunks(columns)) {
                    dots_of::<T, R, 1>(w, columns, x, product);
                }
            }
            Job::Spread { x, sums } => {
                // The rows begin `columns` apart; the last may be cut short.
                let groups = x.chunks_exact(M * SIDE);
                let rest = groups.remainder().chunks_exact(SIDE);
                let done = groups.len() * M;
                for (i, x) in groups.enumerate() {
                    spread_of::<T, R, M>(&w[i * M * columns..], columns, x, sums);
                }
                for (i, x) in rest.enumerate() {
                    spread_of::<T, R, 1>(&w[(done + i) * columns..], columns, x, sums);
                }
            }
            Job::Both { x, sums } => {
                let rows = w.chunks_exact(M * columns);
                let rest = rows.remainder();
                for w in rows {
                    let mut products = [[R::Item::default(); SIDE]; M];
                    let products = products.as_flattened_mut();
                    dots_of::<T, R, M>(w, columns, x, products);
                    spread_of::<T, R, M>(w, columns, products, sums);
                }
                for w in rest.chunks_exact(columns) {
                    let mut product = [R::Item::default(); SIDE];
                    dots_of::<T, R, 1>(w, columns, x, &mut product);
                    spread_of::<T, R, 1>(w, columns, &product, sums);
                }
            }
        }
    }
}

/// [`dots`] for rows of another precision, which are converted piece by piece: entry by entry that costs more than the
/// product.
#[inline(always)]
fn dots_of<T, R, const M: usize>(w: &[T], stride: usize, x: &[R::Item], products: &mut [R::Item])
where
    T: Real,
    R: Register,
    R::Item: Real,
{
    if size_of::<T>() == size_of::<R::Item>() {
        return dots::<T, R, M>(w, stride, x, products);
    }
    let mut lines = [[R::Item::default(); CONVERTED]; M];
    for (part, x) in x.chunks(CONVERTED * SIDE).enumerate() {
        convert(&mut lines, x.len() / SIDE, &w[part * CONVERTED..], stride);
        dots::<R::Item, R, M>(lines.as_flattened(), CONVERTED, x, products);
    }
}

/// [`spread`] for rows of another precision.
#[inline(always)]
fn spread_of<T, R, const M: usize>(w: &[T], stride: usize, x: &[R::Item], sums: &mut [R::Item])
where
    T: Real,
    R: Register,
    R::Item: Real,
{
    if size_of::<T>() == size_of::<R::Item>() {
        return spread::<T, R, M>(w, stride, x, sums);
    }
    let mut lines = [[R::Item::default(); CONVERTED]; M];
    for (part, sums) in sums.chunks_mut(CONVERTED * SIDE).enumerate() {
        convert(
            &mut lines,
            sums.len() / SIDE,
            &w[part * CONVERTED..],
            stride,
        );
        spread::<R::Item, R, M>(lines.as_flattened(), CONVERTED, x, sums);
    }
}

/// The first `width` entries of rows that are `stride` apart.
#[inline(always)]
fn convert<T: Real, P: Real>(lines: &mut [[P; CONVERTED]], width: usize, w: &[T], stride: usize) {
    for (line, row) in lines.iter_mut().zip(w.chunks(stride)) {
        for (to, from) in line[..width].iter_mut().zip(&row[..width]) {
            *to = cast(*from);
        }
    }
}

/// products (M x 16) += `M` rows of W, `stride` apart, times x (width x 16).
#[inline(always)]
pub(crate) fn dots<T, R, const M: usize>(
    w: &[T],
    stride: usize,
    x: &[R::Item],
    products: &mut [R::Item],
) where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let (count, width) = (SIDE / R::LANES, x.len() / SIDE);
    assert!(w.len() >= (M - 1) * stride + width && products.len() >= M * SIDE);
    #[expect(unsafe_code, reason = "sums stay in registers; asserted bounds")]
    // SAFETY: the level in use names the instruction set of R. Entry (i, column) is read for i < M and column < width,
    // values column * 16 .. column * 16 + 16 of x, and i * 16 .. i * 16 + 16 of the products are read and written.
    unsafe {
        let mut inner = [[R::splat(R::Item::default()); MOST]; M];
        for (i, inner) in inner.iter_mut().enumerate() {
            for (v, inner) in inner[..count].iter_mut().enumerate() {
                *inner = R::load(products.as_ptr().add(i * SIDE + v * R::LANES));
            }
        }
        let unrolled = width / UNROLLED * UNROLLED;
        for start in (0..unrolled).step_by(UNROLLED) {
            for column in start..start + UNROLLED {
                let from = x.as_ptr().add(column * SIDE);
                add_column::<T, R, M>(&mut inner, w.as_ptr().add(column), stride, from);
            }
        }
        for column in unrolled..width {
            let from = x.as_ptr().add(column * SIDE);
            add_column::<T, R, M>(&mut inner, w.as_ptr().add(column), stride, from);
        }
        for (i, inner) in inner.iter().enumerate() {
            for (v, inner) in inner[..count].iter().enumerate() {
                inner.store(products.as_mut_ptr().add(i * SIDE + v * R::LANES));
            }
        }
    }
}

/// Add `M` entries of W, `stride` apart, times 16 values.
///
/// # Safety
/// As for registers; the entries and the values must be there.
#[expect(unsafe_code, reason = "called by `dots` within its bounds")]
#[inline(always)]
unsafe fn add_column<T, R, const M: usize>(
    inner: &mut [[R; MOST]; M],
    w: *const T,
    stride: usize,
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
            let entry = R::splat(cast(*w.add(i * stride)));
            for v in 0..count {
                inner[v] = inner[v].plus_product(entry, values[v]);
            }
        }
    }
}

/// sums (width x 16) += the first `width` columns of `M` rows of W, `stride` apart, transposed, times x (M x 16).
#[inline(always)]
pub(crate) fn spread<T, R, const M: usize>(
    w: &[T],
    stride: usize,
    x: &[R::Item],
    sums: &mut [R::Item],
) where
    T: Real,
    R: Register,
    R::Item: Real,
{
    let (count, width) = (SIDE / R::LANES, sums.len() / SIDE);
    assert!(w.len() >= (M - 1) * stride + width && x.len() >= M * SIDE);
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
                add_rows::<T, R, M>(&values, w.add(column), stride, sums.add(column * SIDE));
            }
        }
        for column in unrolled..width {
            add_rows::<T, R, M>(&values, w.add(column), stride, sums.add(column * SIDE));
        }
    }
}

/// Add `M` entries of W, `stride` apart, each times its 16 values, to 16 sums.
///
/// # Safety
/// As for registers; the entries and the sums must be there.
#[expect(unsafe_code, reason = "called by `spread` within its bounds")]
#[inline(always)]
unsafe fn add_rows<T, R, const M: usize>(
    values: &[[R; MOST]; M],
    w: *const T,
    stride: usize,
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
            let entry = R::splat(cast(*w.add(i * stride)));
            for v in 0..count {
                inner[v] = inner[v].plus_product(entry, values[v]);
            }
        }
        for (v, inner) in inner[..count].iter().enumerate() {
            inner.store(onto.add(v * R::LANES));
        }
    }
}
