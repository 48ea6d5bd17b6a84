//! N:M weights in the order in which the kernels read them.
//!
//! Columns are cut into blocks whose inputs, for one panel of tokens, fit the L1 cache. Block by block and row by row
//! there is a value and a byte offset for each kept weight: the offset of the column's line in the panel. A row's list is
//! filled up to a multiple of four with zeros that point at a line of zeros behind the block.

use std::sync::OnceLock;

use super::blocking::{Blocking, few};
use super::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Register, Simd, is_narrow};
use crate::Result;
use crate::nm::Pattern;
use crate::nm::pack::check_places;
use crate::nm::pack::check_size;
use crate::vector::Level;

/// Entries that are read at once.
pub(super) const QUAD: usize = 4;

/// Weights of a layer, (rows x columns), ready to be multiplied with.
#[derive(Debug)]
pub struct Weights {
    pub(super) level: Level,
    rows: usize,
    columns: usize,
    pattern: Pattern,
    /// By block, row and entry.
    values: Vec<f32>,
    /// As `values`, and one quad more that is read ahead.
    offsets: Vec<u16>,
    /// Whether all are values of bfloat16.
    pub(super) bfloat16: bool,
    lanes: OnceLock<Option<Lanes>>,
}

/// The entries of one block of columns.
pub(super) struct Block<'a> {
    pub(super) columns: std::ops::Range<usize>,
    /// Entries of a row, a multiple of four.
    pub(super) entries: usize,
    /// (rows x entries).
    pub(super) values: &'a [f32],
    /// (rows x entries), and what follows.
    pub(super) offsets: &'a [u16],
}

impl Weights {
    /// Reorder N values of every group of M columns and their places in the group, both (rows x columns N / M).
    ///
    /// # Errors
    /// [`crate::Error::NotAMultiple`] if M does not divide the columns; [`crate::Error::Shape`] if sizes do not fit;
    /// [`crate::Error::Value`] for a place outside its group; [`crate::Error::Setting`] for instructions this CPU lacks.
    pub fn new(
        values: &[f32],
        places: &[u8],
        (rows, columns): (usize, usize),
        pattern: Pattern,
        level: Level,
    ) -> Result<Self> {
        level.check()?;
        let per_row = pattern.groups(columns, "W")? * pattern.keep();
        check_size("values", values.len(), rows * per_row)?;
        check_places(places, values.len(), pattern)?;
        let mut weights = Self {
            level,
            rows,
            columns,
            pattern,
            values: Vec::new(),
            offsets: Vec::new(),
            bfloat16: values.iter().all(|&value| is_narrow(value)),
            lanes: OnceLock::new(),
        };
        let (line, keep) = (weights.line_bytes(), pattern.keep());
        for block in 0..weights.block_count() {
            let range = weights.block_columns(block);
            let (width, first) = (range.len(), range.start / pattern.group() * keep);
            let kept = width / pattern.group() * keep;
            for row in 0..rows {
                let from = row * per_row + first;
                let (values, places) = (&values[from..from + kept], &places[from..from + kept]);
                for (position, (&value, &place)) in values.iter().zip(places).enumerate() {
                    let column = position / keep * pattern.group() + usize::from(place);
                    weights.values.push(value);
                    weights.offsets.push((column * line) as u16);
                }
                for _ in kept..kept.next_multiple_of(QUAD) {
                    weights.values.push(0.0);
                    weights.offsets.push((width * line) as u16);
                }
            }
        }
        weights.offsets.extend([0; QUAD]);
        Ok(weights)
    }

    /// Rows R and columns C.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// N:M.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The weights for few tokens, made when they are first asked for; None for groups they have no form for.
    pub(super) fn lanes(&self) -> Option<&Lanes> {
        self.lanes.get_or_init(|| Lanes::new(self)).as_ref()
    }

    /// Values of f32 from one line of a panel to the next, for the widest panel.
    pub(super) fn line(&self) -> usize {
        match self.level {
            Level::Portable => Portable::WIDEST * Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::WIDEST * Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::WIDEST * Avx512::LANES,
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => unreachable!("Weights::new refuses them here"),
        }
    }

    /// The number of tokens from which on they lie along the lanes.
    pub(super) fn few(&self) -> usize {
        few(self.level, self.pattern.group(), self.bfloat16)
    }

    /// How products with these weights are cut up.
    pub(super) fn blocking(&self) -> Blocking {
        Blocking::of(self.level)
    }

    fn line_bytes(&self) -> usize {
        self.line() * size_of::<f32>()
    }

    /// Columns of every block but the last.
    pub(super) fn block_width(&self) -> usize {
        self.blocking().columns / self.pattern.group() * self.pattern.group()
    }

    fn block_count(&self) -> usize {
        self.columns.div_ceil(self.block_width())
    }

    fn block_columns(&self, block: usize) -> std::ops::Range<usize> {
        let first = block * self.block_width();
        first..self.columns.min(first + self.block_width())
    }

    fn entries(&self, columns: usize) -> usize {
        (columns / self.pattern.group() * self.pattern.keep()).next_multiple_of(QUAD)
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        let full = self.entries(self.block_width()) * self.rows;
        (0..self.block_count()).map(move |block| {
            let columns = self.block_columns(block);
            let entries = self.entries(columns.len());
            let size = entries * self.rows;
            Block {
                columns,
                entries,
                values: &self.values[block * full..][..size],
                offsets: &self.offsets[block * full..],
            }
        })
    }

    /// Column and value of every kept weight of a row, in order.
    pub(super) fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> {
        let line = self.line_bytes();
        self.blocks().flat_map(move |block| {
            let kept = block.columns.len() / self.pattern.group() * self.pattern.keep();
            (row * block.entries..row * block.entries + kept).map(move |at| {
                let column = usize::from(block.offsets[at]) / line;
                (block.columns.start + column, block.values[at])
            })
        })
    }
}
