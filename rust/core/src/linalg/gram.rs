//! The Gram matrix of the shorter side, tile by tile.

use rayon::prelude::*;

use crate::linalg::band::{STRIP, Symmetric};
use crate::linalg::dense::{self, Real};
use crate::linalg::values::Scaled;

/// Rows and columns of the Gram matrix that one task computes; a multiple of [`STRIP`].
const TILE: usize = 128;
/// Columns that are multiplied before the sums move on: 512 rounding errors of float32 at most pile up.
const DEPTH: usize = 512;

impl<T: Real> Scaled<'_, T> {
    /// Products in `P`, sums over blocks of columns in float64, the matrix in `S`.
    pub(super) fn gram<P: Real, S: Real>(&self) -> Symmetric<S> {
        const { assert!(TILE.is_multiple_of(STRIP)) };
        let bands = self.short().div_ceil(TILE);
        let mut tiles: Vec<Tile> = (0..bands)
            .flat_map(|i| (i..bands).map(move |j| (i, j)))
            .map(|(i, j)| Tile {
                i,
                j,
                sums: vec![0.0; self.height(i) * self.height(j)],
            })
            .collect();
        for start in (0..self.long()).step_by(DEPTH) {
            let depth = DEPTH.min(self.long() - start);
            let panels: Vec<Vec<P>> = (0..bands)
                .into_par_iter()
                .map(|band| self.panel(band, start, depth))
                .collect();
            tiles.par_iter_mut().for_each(|tile| {
                let (m, n) = (self.height(tile.i), self.height(tile.j));
                let (left, right) = (&panels[tile.i], &panels[tile.j]);
                let mut product = vec![P::default(); m * n];
                dense::add_product_transposed(&mut product, left, right, (m, depth, n));
                for (total, value) in tile.sums.iter_mut().zip(product) {
                    *total += value.to_f64().unwrap_or(f64::NAN);
                }
            });
        }
        let strips = (0..self.short().div_ceil(STRIP))
            .into_par_iter()
            .map(|strip| self.strip(strip * STRIP, &tiles))
            .collect();
        Symmetric::new(self.short(), strips)
    }

    /// Rows from `first` on, at most [`STRIP`] of them, from column `first` to the last.
    fn strip<S: Real>(&self, first: usize, tiles: &[Tile]) -> Vec<S> {
        let (bands, band) = (self.short().div_ceil(TILE), first / TILE);
        // Tiles (i, j) with j >= i, row after row.
        let begin: usize = (0..band).map(|i| bands - i).sum();
        let rows = first..self.short().min(first + STRIP);
        let mut strip = Vec::with_capacity(rows.len() * (self.short() - first));
        for row in rows {
            for tile in &tiles[begin..begin + bands - band] {
                let width = self.height(tile.j);
                let line = &tile.sums[(row - band * TILE) * width..][..width];
                let skip = first.saturating_sub(tile.j * TILE);
                strip.extend(
                    line[skip..]
                        .iter()
                        .map(|v| S::from(*v).unwrap_or_else(S::nan)),
                );
            }
        }
        strip
    }

    fn height(&self, band: usize) -> usize {
        TILE.min(self.short() - band * TILE)
    }

    /// Rows of one band, columns `start .. start + depth`, row-major.
    fn panel<P: Real>(&self, band: usize, start: usize, depth: usize) -> Vec<P> {
        let height = self.height(band);
        let mut panel = vec![P::default(); height * depth];
        let cast = |v: f64| P::from(v).unwrap_or_else(P::nan);
        if self.rows <= self.columns {
            for (row, out) in panel.chunks_exact_mut(depth).enumerate() {
                let line = &self.w[(band * TILE + row) * self.columns + start..][..depth];
                for (value, w) in out.iter_mut().zip(line) {
                    *value = cast(self.scaled(*w));
                }
            }
        } else {
            for k in 0..depth {
                let line = &self.w[(start + k) * self.columns + band * TILE..][..height];
                for (row, w) in line.iter().enumerate() {
                    panel[row * depth + k] = cast(self.scaled(*w));
                }
            }
        }
        panel
    }
}

/// Rows of band `i` and columns of band `j` >= `i`.
struct Tile {
    i: usize,
    j: usize,
    sums: Vec<f64>,
}
