//! N:M weights in the order in which the kernels read them.
//!
//! Columns are cut into blocks whose inputs, for one panel of tokens, fit the L1 cache, and the rows of a block are paired
//! ([`super::pairs`]). Block by block, band by band and pair by pair there are the values, and for each input that is
//! read the byte offset of its line in the panel.

use std::ops::Range;
use std::sync::OnceLock;

use super::blocking::{Blocking, few};
use super::lanes::Lanes;
use super::pairs::{BAND, MOST_COLUMNS, Pair, bits, pair_up};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Register, Simd, is_narrow};
use crate::Result;
use crate::nm::Pattern;
use crate::nm::pack::check_places;
use crate::nm::pack::check_size;
use crate::vector::Level;

/// Weights of a layer, (rows x columns), ready to be multiplied with.
#[derive(Debug)]
pub struct Weights {
    pub(super) level: Level,
    rows: usize,
    columns: usize,
    pattern: Pattern,
    pairs: Vec<Pair>,
    values: Vec<f32>,
    offsets: Vec<u16>,
    /// Where the bands begin, block by block, and the end.
    bands: Vec<Start>,
    /// Whether all are values of bfloat16.
    pub(super) bfloat16: bool,
    lanes: OnceLock<Option<Lanes>>,
}

/// Lengths of the three lists of [`Weights`] in front of a band.
#[derive(Debug, Clone, Copy)]
struct Start {
    pairs: usize,
    values: usize,
    offsets: usize,
}

/// The entries of some rows of one block of columns.
pub(super) struct Entries<'a> {
    /// Band by band.
    pub(super) pairs: Vec<&'a [Pair]>,
    pub(super) values: &'a [f32],
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
            pairs: Vec::new(),
            values: Vec::new(),
            offsets: Vec::new(),
            bands: Vec::new(),
            bfloat16: values.iter().all(|&value| is_narrow(value)),
            lanes: OnceLock::new(),
        };
        let keep = pattern.keep();
        for columns in weights.blocks() {
            let first = columns.start / pattern.group() * keep;
            let kept = columns.len() / pattern.group() * keep;
            for start in (0..rows).step_by(BAND) {
                let mut band = Vec::with_capacity(BAND);
                for row in start..rows.min(start + BAND) {
                    let from = row * per_row + first;
                    let mut line = Line::default();
                    for entry in 0..kept {
                        let place = usize::from(places[from + entry]);
                        line.put(entry / keep * pattern.group() + place, values[from + entry]);
                    }
                    band.push(line);
                }
                weights.push_band(&band);
            }
        }
        weights.bands.push(weights.end());
        Ok(weights)
    }

    fn end(&self) -> Start {
        Start {
            pairs: self.pairs.len(),
            values: self.values.len(),
            offsets: self.offsets.len(),
        }
    }

    /// Append the rows of a band of one block, pair by pair.
    fn push_band(&mut self, band: &[Line]) {
        self.bands.push(self.end());
        let columns: Vec<u64> = band.iter().map(|line| line.columns).collect();
        let bytes = self.line_bytes();
        for pair in pair_up(&columns) {
            let [upper, lower] = pair.rows.map(|row| &band[usize::from(row)]);
            // A row alone is its own partner, with weights of zero.
            let weight = |column: usize| {
                if pair.is_alone() {
                    0.0
                } else {
                    lower.values[column]
                }
            };
            let mut both = bits(upper.columns & lower.columns);
            let mut own =
                bits(upper.columns & !lower.columns).zip(bits(lower.columns & !upper.columns));
            for shared in pair.steps() {
                if shared {
                    let column = both.next().expect("a step for each");
                    self.values.extend([upper.values[column], weight(column)]);
                    self.offsets.push((column * bytes) as u16);
                } else {
                    let (above, below) = own.next().expect("a step for each");
                    self.values
                        .extend([upper.values[above], lower.values[below]]);
                    self.offsets
                        .extend([above, below].map(|column| (column * bytes) as u16));
                }
            }
            self.pairs.push(pair);
        }
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
        few(self.level, self.pattern.group())
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
        MOST_COLUMNS / self.pattern.group() * self.pattern.group()
    }

    /// The columns of each block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (width, columns) = (self.block_width(), self.columns);
        (0..columns)
            .step_by(width)
            .map(move |first| first..columns.min(first + width))
    }

    /// The entries of `rows`, which begin and end with a band or with the last row, in a block.
    pub(super) fn entries(&self, block: usize, rows: &Range<usize>) -> Entries<'_> {
        assert!(rows.start.is_multiple_of(BAND));
        assert!(rows.end.is_multiple_of(BAND) || rows.end == self.rows);
        let first = block * self.rows.div_ceil(BAND);
        let bands = &self.bands[first + rows.start / BAND..=first + rows.end.div_ceil(BAND)];
        let (start, end) = (bands[0], bands[bands.len() - 1]);
        Entries {
            pairs: bands
                .windows(2)
                .map(|ends| &self.pairs[ends[0].pairs..ends[1].pairs])
                .collect(),
            values: &self.values[start.values..end.values],
            offsets: &self.offsets[start.offsets..end.offsets],
        }
    }

    /// Column and value of every kept weight, row by row, in the order of the columns.
    pub(super) fn by_row(&self) -> Vec<Vec<(usize, f32)>> {
        let bytes = self.line_bytes();
        let mut rows = vec![Vec::new(); self.rows];
        for (block, columns) in self.blocks().enumerate() {
            let entries = self.entries(block, &(0..self.rows));
            let mut values = entries.values.chunks_exact(2);
            let mut offsets = entries.offsets.iter();
            let mut next = || {
                columns.start + usize::from(*offsets.next().expect("one for each input")) / bytes
            };
            for (band, pairs) in entries.pairs.iter().enumerate() {
                for pair in *pairs {
                    let [upper, lower] = pair.rows.map(|row| band * BAND + usize::from(row));
                    for shared in pair.steps() {
                        let (above, weights) = (next(), values.next().expect("two for each step"));
                        rows[upper].push((above, weights[0]));
                        let below = if shared { above } else { next() };
                        if !pair.is_alone() {
                            rows[lower].push((below, weights[1]));
                        }
                    }
                }
            }
        }
        for row in &mut rows {
            row.sort_by_key(|&(column, _)| column);
        }
        rows
    }
}

/// One row of a block.
struct Line {
    /// A bit for each column that is kept.
    columns: u64,
    values: [f32; MOST_COLUMNS],
}

impl Default for Line {
    fn default() -> Self {
        Self {
            columns: 0,
            values: [0.0; MOST_COLUMNS],
        }
    }
}

impl Line {
    fn put(&mut self, column: usize, value: f32) {
        self.columns |= 1 << column;
        self.values[column] = value;
    }
}
