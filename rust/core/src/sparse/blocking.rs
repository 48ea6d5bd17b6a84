//! The sizes that suit the caches of each instruction set's CPUs, all in one place.

use crate::vector::Level;

/// Panels for each thread below which tasks are made even.
const FEW: usize = 4;

/// How a product with panels is cut up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocking {
    /// Rows of a tile at most; their sums stay in the L2 cache.
    pub(super) rows: usize,
    /// Tasks for each thread where panels alone do not go round; each packs its inputs anew.
    pub(super) tasks: usize,
}

impl Blocking {
    pub(super) const fn of(level: Level) -> Self {
        match level {
            // The sums of 512 rows are 96 KB of an L2 cache of 512.
            Level::Portable | Level::Avx2 => Self {
                rows: 512,
                tasks: 3,
            },
            // The sums of 768 rows are 624 KB of an L2 cache of 1 MB or 2. One task for each thread was
            // faster than two by 8 % at 768 x 768 and by 11 % at 384 x 1536, both with 197 tokens and 2 threads.
            Level::Avx512 => Self {
                rows: 768,
                tasks: 1,
            },
        }
    }

    /// Tiles of rows for each panel of tokens, so that no thread waits long for the last one.
    pub(super) fn tiles(self, panels: usize, threads: usize) -> usize {
        let mut tiles = 1;
        if !panels.is_multiple_of(threads) {
            tiles = (self.tasks * threads).div_ceil(panels);
            // Among few tasks one too many costs a whole task.
            while panels < FEW * threads && !(panels * tiles).is_multiple_of(threads) {
                tiles += 1;
            }
        }
        tiles
    }
}

/// The number of tokens from which on a panel of them beats the selection in registers, for groups of `group`. With AVX-512
/// that is where the selection would read the weights twice, measured at 3072 x 768 and 384 x 1536 with 2:4 and 1:4.
pub(super) const fn few(level: Level, group: usize) -> usize {
    match level {
        // From more than 8 columns the selection takes two steps.
        Level::Portable | Level::Avx2 => {
            if group > 8 {
                3
            } else {
                8
            }
        }
        Level::Avx512 => 13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tasks_are_shared_out_evenly() {
        for level in Level::ALL {
            let blocking = Blocking::of(level);
            for threads in 1..9 {
                for panels in 1..FEW * threads {
                    assert_eq!(panels * blocking.tiles(panels, threads) % threads, 0);
                }
                assert_eq!(blocking.tiles(8 * threads, threads), 1);
            }
        }
    }
}
