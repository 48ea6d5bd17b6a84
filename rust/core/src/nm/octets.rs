//! Top-N masks of consecutive groups of 8, 16, 24 or 32 f32, eight groups at a time in vector registers.
//!
//! Blocks of 8 by 8 are transposed, so that a register holds one place of eight groups; a network finds the N-th largest of
//! each; and the scores are compared with it where they lie, so that no mask has to be transposed back.

use super::select::Rule;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Level, level};

/// The mask of consecutive groups into `mask`, and whether every score is finite; `None` if this CPU has no such version.
///
/// M must be a multiple of 8. The results are those of the general routine.
#[cfg(target_arch = "x86_64")]
pub(super) fn top_of_octets(score: &[f32], mask: &mut [bool], rule: &Rule) -> Option<bool> {
    if level() < Level::Avx2 {
        return None;
    }
    #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
    // SAFETY: `level` names only what the CPU has.
    Some(unsafe { x86::mask(score, mask, rule) })
}

/// Other architectures have none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn top_of_octets(_: &[f32], _: &mut [bool], _: &Rule) -> Option<bool> {
    None
}

/// Bits to booleans, the lowest bit first.
#[cfg(target_arch = "x86_64")]
fn spread(bits: u8, kept: &mut [bool; 8]) {
    // Byte k keeps bit k of its copy; adding 127 carries any bit into the highest, which is moved down.
    let own = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    let ones = (own + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101;
    for (kept, byte) in kept.iter_mut().zip(ones.to_le_bytes()) {
        *kept = byte == 1;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Rule, spread};
    use crate::nm::compare::settle;
    use crate::nm::pattern::MAX_GROUP;
    use std::arch::x86_64::{
        __m256, _CMP_GE_OQ, _mm256_and_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps,
        _mm256_loadu_ps, _mm256_max_epi32, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps,
        _mm256_permute2f128_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    const SIDE: usize = 8;

    #[target_feature(enable = "avx2")]
    pub(super) fn mask(score: &[f32], mask: &mut [bool], rule: &Rule) -> bool {
        let unit = SIDE * rule.0.group();
        let mut largest = _mm256_setzero_ps();
        let tiles = score.chunks_exact(unit);
        let tail = tiles.remainder();
        let mut masks = mask.chunks_exact_mut(unit);
        for (score, mask) in tiles.zip(&mut masks) {
            tile(score, mask, rule, &mut largest);
        }
        if !tail.is_empty() {
            let (mut entries, mut kept) = ([0.0; SIDE * MAX_GROUP], [false; SIDE * MAX_GROUP]);
            entries[..tail.len()].copy_from_slice(tail);
            tile(&entries[..unit], &mut kept[..unit], rule, &mut largest);
            masks.into_remainder().copy_from_slice(&kept[..tail.len()]);
        }
        // A NaN is larger than infinity as an integer, and so larger than every finite number.
        stored(largest)
            .iter()
            .all(|magnitude| magnitude.is_finite())
    }

    /// Eight groups. `largest` collects the magnitudes, compared as bits.
    #[target_feature(enable = "avx2")]
    fn tile(score: &[f32], mask: &mut [bool], rule: &Rule, largest: &mut __m256) {
        let (keep, group) = (rule.0.keep(), rule.0.group());
        let mut lines = [_mm256_setzero_ps(); MAX_GROUP];
        let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
        for (octet, lines) in lines[..group]
            .as_chunks_mut::<SIDE>()
            .0
            .iter_mut()
            .enumerate()
        {
            for (line, run) in lines.iter_mut().zip(score.chunks_exact(group)) {
                *line = load(&run.as_chunks::<SIDE>().0[octet]);
                let bits = _mm256_castps_si256(_mm256_and_ps(*line, magnitude));
                let most = _mm256_max_epi32(_mm256_castps_si256(*largest), bits);
                *largest = _mm256_castsi256_ps(most);
            }
            transpose(lines);
        }
        for &(upper, lower) in rule.1.exchanges() {
            let (a, b) = (lines[upper], lines[lower]);
            (lines[upper], lines[lower]) = (_mm256_max_ps(a, b), _mm256_min_ps(a, b));
        }
        let runs = score.chunks_exact(group).zip(mask.chunks_exact_mut(group));
        for ((run, kept), last) in runs.zip(stored(lines[keep - 1])) {
            let mut count = 0;
            let octets = run.as_chunks::<SIDE>().0.iter();
            for (entries, kept) in octets.zip(kept.as_chunks_mut::<SIDE>().0) {
                let reach = _mm256_cmp_ps::<_CMP_GE_OQ>(load(entries), _mm256_set1_ps(last));
                let bits = _mm256_movemask_ps(reach) as u8;
                count += bits.count_ones() as usize;
                spread(bits, kept);
            }
            if count > keep {
                settle(run, last, kept, keep);
            }
        }
    }

    /// Rows to columns of an 8 x 8 block.
    #[target_feature(enable = "avx2")]
    fn transpose(block: &mut [__m256; SIDE]) {
        let mut pairs = *block;
        for k in [0, 2, 4, 6] {
            pairs[k] = _mm256_unpacklo_ps(block[k], block[k + 1]);
            pairs[k + 1] = _mm256_unpackhi_ps(block[k], block[k + 1]);
        }
        let mut fours = pairs;
        for k in [0, 4] {
            fours[k] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[k], pairs[k + 2]);
            fours[k + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[k], pairs[k + 2]);
            fours[k + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[k + 1], pairs[k + 3]);
            fours[k + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[k + 1], pairs[k + 3]);
        }
        for k in 0..4 {
            block[k] = _mm256_permute2f128_ps::<0x20>(fours[k], fours[k + 4]);
            block[k + 4] = _mm256_permute2f128_ps::<0x31>(fours[k], fours[k + 4]);
        }
    }

    #[target_feature(enable = "avx2")]
    fn load(entries: &[f32; SIDE]) -> __m256 {
        #[expect(unsafe_code, reason = "a load of 8 floats")]
        // SAFETY: the source is an array of 8 f32.
        unsafe {
            _mm256_loadu_ps(entries.as_ptr())
        }
    }

    #[target_feature(enable = "avx2")]
    fn stored(register: __m256) -> [f32; SIDE] {
        let mut entries = [0.0; SIDE];
        #[expect(unsafe_code, reason = "a store of 8 floats")]
        // SAFETY: the target is an array of 8 f32.
        unsafe {
            _mm256_storeu_ps(entries.as_mut_ptr(), register);
        }
        entries
    }
}
