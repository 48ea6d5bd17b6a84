//! Rows two by two, so that an input that both keep is read once.
//!
//! A fused product with an operand in memory is limited by the L1 cache, not by the arithmetic (on a Xeon with AVX-512
//! 0.73 of the peak). Two rows of 2:4 keep half of their columns both by chance, and two thirds when each is given the
//! partner that suits it best; three reads then serve four products and the arithmetic is the limit (0.9 of the peak).

/// Rows among which partners are chosen; tiles are made of whole bands.
pub(super) const BAND: usize = 32;

/// Columns of a block at most. 48 lines of 832 bytes are 39 KB of an L1 cache of 48.
pub(super) const MOST_COLUMNS: usize = 48;

/// Two rows of a band that are summed side by side, and the steps that their columns take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    /// Their places in the band, the same one twice for a row that is left over.
    pub(super) rows: [u8; 2],
    /// First, an input for both and one for each in turn, so many times: the products of one wait less for the cache.
    pub(super) mixed: u8,
    /// Then inputs for both.
    pub(super) shared: u8,
    /// Or then an input for each.
    pub(super) own: u8,
}

impl Pair {
    fn new(first: usize, second: usize, columns: &[u64]) -> Self {
        let both = (columns[first] & columns[second]).count_ones();
        let own = (columns[first] & !columns[second]).count_ones();
        let mixed = both.min(own);
        Self {
            rows: [first as u8, second as u8],
            mixed: mixed as u8,
            shared: (both - mixed) as u8,
            own: (own - mixed) as u8,
        }
    }

    /// Whether the partner is the row itself.
    pub(super) fn is_alone(self) -> bool {
        self.rows[0] == self.rows[1]
    }

    /// For each step whether its input is shared.
    pub(super) fn steps(self) -> impl Iterator<Item = bool> {
        let mixed = (0..2 * self.mixed).map(|step| step % 2 == 0);
        let shared = std::iter::repeat_n(true, self.shared.into());
        mixed
            .chain(shared)
            .chain(std::iter::repeat_n(false, self.own.into()))
    }
}

/// Partners for the rows of a band, those with the most columns in common first, so that neighbouring pairs take equally
/// many steps. All rows must keep equally many columns, the set bits: the kernels count on it.
pub(super) fn pair_up(columns: &[u64]) -> Vec<Pair> {
    let kept = |columns: &u64| columns.count_ones();
    assert!(columns.iter().all(|row| kept(row) == kept(&columns[0])));
    let mut choices: Vec<_> = (0..columns.len())
        .flat_map(|first| (first + 1..columns.len()).map(move |second| (first, second)))
        .collect();
    choices.sort_by_key(|&(first, second)| {
        std::cmp::Reverse((columns[first] & columns[second]).count_ones())
    });
    let mut free = vec![true; columns.len()];
    let mut pairs = Vec::with_capacity(columns.len().div_ceil(2));
    for (first, second) in choices {
        if free[first] && free[second] {
            (free[first], free[second]) = (false, false);
            pairs.push(Pair::new(first, second, columns));
        }
    }
    pairs.extend(
        free.iter()
            .position(|&free| free)
            .map(|row| Pair::new(row, row, columns)),
    );
    pairs
}

/// Places of the set bits, from the lowest.
pub(super) fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(place)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Masks of `rows` rows with `keep` of `columns` columns each.
    fn masks(rows: usize, (keep, columns): (usize, usize), seed: u32) -> Vec<u64> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        (0..rows)
            .map(|_| {
                let mut places: Vec<usize> = (0..columns).collect();
                places.sort_by_cached_key(|_| next());
                places[..keep].iter().map(|place| 1 << place).sum()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_row_of_a_band_has_one_partner_and_every_column_one_step(
            rows in 1..=BAND,
            (columns, share) in (1..=MOST_COLUMNS, 0.0..1.0),
            seed in any::<u32>(),
        ) {
            let keep = 1 + (share * (columns - 1) as f64) as usize;
            let masks = masks(rows, (keep, columns), seed);
            let pairs = pair_up(&masks);
            let mut seen: Vec<u8> = pairs.iter().flat_map(|pair| pair.rows).collect();
            prop_assert_eq!(pairs.iter().filter(|pair| pair.is_alone()).count(), rows % 2);
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen, (0..rows as u8).collect::<Vec<_>>());
            for pair in &pairs {
                let [first, second] = pair.rows.map(|row| masks[usize::from(row)]);
                prop_assert_eq!(pair.steps().count(), keep);
                let shared = pair.steps().filter(|&shared| shared).count();
                prop_assert_eq!(shared, (first & second).count_ones() as usize);
            }
        }
    }
}
