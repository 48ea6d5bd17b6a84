//! The sizes that suit the caches of each instruction set's CPUs, all in one place.

use crate::vector::Level;

/// Panels for each thread below which tasks are made even.
const FEW: usize = 4;

/// How a product with panels is cut up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocking {
    /// Columns of a block at most; their lines and one of zeros stay in the L1 cache.
    pub(super) columns: usize,
    /// Rows of a tile at most; their sums stay in the L2 cache.
    pub(super) rows: usize,
    /// Tasks for each thread where panels alone do not go round; each packs its inputs anew.
    pub(super) tasks: usize,
}

impl Blocking {
    pub(super) const fn of(level: Level) -> Self {
        match level {
            // 65 lines of 416 bytes are 27 KB of an L1 cache of 32; the sums of 512 rows are 208 KB of an L2 cache of 512.
            Level::Portable | Level::Avx2 => Self {
                columns: 64,
                rows: 512,
                tasks: 3,
            },
            // 49 lines of 832 bytes are 41 KB of 48; the sums of 768 rows are 624 KB of 1 MB or 2. One task for each thread was
            // faster than two by 8 % at 768 x 768 and by 11 % at 384 x 1536, both with 197 tokens and 2 threads.
            Level::Avx512 => Self {
                columns: 48,
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

/// The number of tokens from which on a panel of them beats the selection in registers, for groups of `group` and weights
/// that are values of bfloat16 or not. With AVX-512, where the panel's register is half empty with 8 tokens, measured at 3072 x
/// 768 and 384 x 1536 with 2:4, 1:4 and 8:16.
pub(super) const fn few(level: Level, group: usize, bfloat16: bool) -> usize {
    match level {
        // From more than 8 columns the selection takes two steps.
        Level::Portable | Level::Avx2 => {
            if group > 8 {
                3
            } else {
                8
            }
        }
        Level::Avx512 => {
            if bfloat16 {
                25
            } else {
                13
            }
        }
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
