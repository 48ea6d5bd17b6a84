//! The k largest singular triplets of a dense matrix, with the residuals they really have.

use crate::linalg::dense::{self, Real};
use crate::linalg::krylov::{Operator, Space};
use crate::linalg::orthogonal::orthonormalise;
use crate::linalg::values::scale;
use crate::random::Random;
use crate::threads::Threads;
use crate::{Error, Result};

/// Leading singular triplets of a (rows x columns) matrix.
#[derive(Debug, Clone)]
pub struct Triplets {
    /// Left vectors, one per row (k x rows).
    pub left: Vec<f64>,
    /// Values, descending.
    pub values: Vec<f64>,
    /// Right vectors, one per row (k x columns).
    pub right: Vec<f64>,
    /// max(||W v - s u||, ||W' u - s v||) / s1 of each, measured.
    pub residuals: Vec<f64>,
    /// Products of W or W' with one vector.
    pub products: usize,
}

/// What [`top`] is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Number of triplets.
    pub k: usize,
    /// Residual, relative to the largest value, at which the iteration stops.
    pub tolerance: f64,
    /// The randomised range finder with two power iterations instead of the iteration.
    pub fast: bool,
    /// Seed of the start block.
    pub seed: u64,
}

/// Vectors multiplied at a time.
const BLOCK: usize = 16;
/// Smallest tolerance that products in float32 are tried for: their rounding leaves residuals of 1 to 3e-7.
pub const SINGLE: f64 = 1e-6;
/// The iteration gives up after so many blocks, or so many checks in a row that did not lower the residual by a tenth.
const MOST: usize = 4000;
const PATIENCE: usize = 20;

/// The `k` largest singular triplets of the row-major (rows x columns) matrix `w`.
///
/// Block Lanczos on the Gram operator of the shorter side (never formed), full reorthogonalisation, thick restarts;
/// at the end a Rayleigh-Ritz step on the matrix itself. Float32 matrices are multiplied in float32 where that can reach
/// the tolerance (from [`SINGLE`] on; if it did not, everything is done again in float64), and the Rayleigh-Ritz step and
/// the residuals always come from float64 products. For k > short/4 or short <= 128 a full decomposition is
/// cheaper and is what happens. `stop` is asked once per block, on the calling thread; the work is done on `threads`.
///
/// # Errors
/// [`Error::Value`] for k outside 1..=min(rows, columns); [`Error::NotFinite`]; [`Error::Convergence`] if the residuals
/// do not reach `tolerance` (not in fast mode, which takes what it gets); [`Error::Interrupted`].
///
/// # References
/// T. Chen, E. N. Epperly, R. A. Meyer, C. Musco, A. Rao, "Does block size matter in randomized block Krylov low-rank
/// approximation?", 2025; K. Wu, H. Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems", 2000;
/// N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", 2011 (fast).
pub fn top<T: Real>(
    w: &[T],
    shape: (usize, usize),
    request: &Request,
    threads: &Threads,
    stop: &dyn Fn() -> bool,
) -> Result<Triplets> {
    let operator = threads.run(|| Operator::new(w, shape))?;
    let short = operator.short();
    if request.k == 0 || request.k > short {
        return Err(Error::Value {
            name: "k",
            got: request.k as f64,
            wanted: "between 1 and the shorter side of W",
        });
    }
    if 4 * request.k > short || short <= 128 {
        return threads.run(|| full(&operator.exact(), request.k));
    }
    let exact = operator.exact();
    if request.fast {
        return threads.run(|| {
            let (block, products) = range(&operator, request);
            finish(&exact, &block, request.k, products)
        });
    }
    let single = T::epsilon().to_f64() > Some(1e-10);
    if single && request.tolerance >= SINGLE {
        match attempt(&operator, &exact, request, threads, stop) {
            Err(Error::Convergence { .. }) => {}
            other => return other,
        }
    }
    attempt(&exact, &exact, request, threads, stop)
}

fn attempt<T: Real>(
    operator: &Operator<'_, T>,
    exact: &Operator<'_, T>,
    request: &Request,
    threads: &Threads,
    stop: &dyn Fn() -> bool,
) -> Result<Triplets> {
    let (block, products) = iterate(operator, request, threads, stop)?;
    let found = threads.run(|| finish(exact, &block, request.k, products))?;
    let worst = found.residuals.iter().copied().fold(0.0, f64::max);
    if worst > request.tolerance {
        return Err(gave_up(worst, request, found.products));
    }
    Ok(found)
}

fn gave_up(worst: f64, request: &Request, products: usize) -> Error {
    Error::Convergence {
        routine: "svd",
        detail: format!(
            "largest residual {worst:.1e} of s1 after {products} products, wanted {:.1e}",
            request.tolerance
        ),
    }
}

/// Ritz vectors on the short side, one per row, once their residuals are small.
fn iterate<T: Real>(
    operator: &Operator<'_, T>,
    request: &Request,
    threads: &Threads,
    stop: &dyn Fn() -> bool,
) -> Result<(Vec<f64>, usize)> {
    let mut search = threads.run(|| Search::new(operator, request));
    for _ in 0..MOST {
        if stop() {
            return Err(Error::Interrupted);
        }
        if let Some(vectors) = threads.run(|| search.advance(request))? {
            return Ok((vectors, search.space.products));
        }
        if search.idle == PATIENCE {
            break;
        }
    }
    Err(gave_up(search.best, request, search.space.products))
}

/// A Krylov space that grows block by block and shrinks at its ceiling.
struct Search<'a, T: Real> {
    space: Space<'a, T>,
    block: usize,
    ceiling: usize,
    /// Dimension at which the residuals are looked at next.
    check: usize,
    /// The least residual, and checks in a row that did not lower it by a tenth.
    best: f64,
    idle: usize,
}

impl<'a, T: Real> Search<'a, T> {
    fn new(operator: &'a Operator<'a, T>, request: &Request) -> Self {
        let k = request.k;
        let block = BLOCK.min(operator.short() / 8).max(1);
        Self {
            space: Space::new(operator, block, request.seed),
            block,
            ceiling: (3 * k).max(k + 12 * block).min(operator.short() - block),
            check: (k + block).max(3 * block),
            best: f64::INFINITY,
            idle: 0,
        }
    }

    /// One block more; the Ritz vectors if their residuals are small.
    fn advance(&mut self, request: &Request) -> Result<Option<Vec<f64>>> {
        let (k, block, space) = (request.k, self.block, &mut self.space);
        space.expand();
        let full = space.dimension() + block > self.ceiling;
        if !full && space.dimension() < self.check {
            return Ok(None);
        }
        self.check = space.dimension() + (space.dimension() / 5).max(block);
        let ritz = space.ritz()?;
        let largest = ritz.values[0].max(f64::MIN_POSITIVE);
        let worst = (0..k)
            .map(|i| ritz.residuals[i] / (ritz.values[i].max(largest * 1e-16) * largest).sqrt())
            .fold(0.0, f64::max);
        // Half the tolerance leaves room for rounding in the last step.
        if worst <= 0.5 * request.tolerance {
            return Ok(Some(space.vectors(&ritz, k)));
        }
        self.idle = if worst > 0.9 * self.best {
            self.idle + 1
        } else {
            0
        };
        self.best = self.best.min(worst);
        if full {
            let ceiling = self.ceiling;
            let kept = (k + (ceiling - k) / 3).min(ceiling - 2 * block).max(k);
            space.restart(&ritz, kept);
            self.check = kept + 4 * block;
        }
        Ok(None)
    }
}

/// Randomised range finder: k + 10 vectors, two power iterations.
fn range<T: Real>(operator: &Operator<'_, T>, request: &Request) -> (Vec<f64>, usize) {
    let length = operator.short();
    let count = (request.k + 10).min(length);
    let mut random = Random::new(request.seed, 0);
    let mut block: Vec<f64> = (0..count * length).map(|_| random.normal()).collect();
    for _ in 0..3 {
        orthonormalise(&mut block, length, &[], &mut random);
        block = operator.to_short(&operator.to_long(&block));
    }
    orthonormalise(&mut block, length, &[], &mut random);
    (block, 6 * count)
}

/// Rayleigh-Ritz on the matrix: X A = P diag(s) Q' for orthonormal X; triplets are (P' X, s, Q).
fn finish<T: Real>(
    operator: &Operator<'_, T>,
    x: &[f64],
    k: usize,
    products: usize,
) -> Result<Triplets> {
    let (short, long) = (operator.short(), operator.long());
    let count = x.len() / short;
    let image = operator.to_long(x);
    let small = dense::thin_svd(&image, (count, long))?;
    let turned: Vec<f64> = (0..k * count)
        .map(|i| small.left[(i % count) * count + i / count])
        .collect();
    let rotated = |block: &[f64], length: usize| {
        let mut rotated = vec![0.0; k * length];
        dense::matmul(&mut rotated, &turned, block, (k, count, length), false);
        rotated
    };
    let on_short = rotated(x, short);
    let mut on_long = vec![0.0; k * long];
    for (index, value) in on_long.iter_mut().enumerate() {
        *value = small.right[(index % long) * count + index / long];
    }
    let values = small.values[..k].to_vec();
    // P' X A is P' times the image.
    let beside_long = distances(&rotated(&image, long), &values, &on_long);
    let beside_short = distances(&operator.to_short(&on_long), &values, &on_short);
    let largest = values[0].max(f64::MIN_POSITIVE);
    let both = beside_long.iter().zip(beside_short);
    let residuals = both.map(|(a, b)| a.max(b) / largest).collect();
    let (left, right) = if operator.is_wide() {
        (on_short, on_long)
    } else {
        (on_long, on_short)
    };
    Ok(Triplets {
        left,
        values: values.iter().map(|s| scale(*s, operator.power)).collect(),
        right,
        residuals,
        products: products + count + k,
    })
}

/// ||a - s b|| for the rows of two blocks.
fn distances(images: &[f64], values: &[f64], vectors: &[f64]) -> Vec<f64> {
    let length = images.len() / values.len();
    let pairs = images
        .chunks_exact(length)
        .zip(vectors.chunks_exact(length));
    pairs
        .zip(values)
        .map(|((image, vector), s)| {
            let squares = image.iter().zip(vector).map(|(a, b)| (a - s * b).powi(2));
            squares.sum::<f64>().sqrt()
        })
        .collect()
}

/// Every triplet at once, cut to `k`.
fn full<T: Real>(operator: &Operator<'_, T>, k: usize) -> Result<Triplets> {
    let identity: Vec<f64> = (0..operator.short() * operator.short())
        .map(|i| f64::from(u8::from(i % (operator.short() + 1) == 0)))
        .collect();
    let short = operator.short();
    finish(operator, &identity, k, short)
}

#[cfg(test)]
mod tests;
