//! Top-N masks of consecutive groups of four f32, ranked inside vector registers.
//!
//! Four floats are one quarter or half of a register, so the rotations that bring every entry before every other one of its
//! group are single shuffles, and nothing is dealt into lines. Floats become integers of the same order, which makes
//! "equal with a lower index" the same as "greater" after adding 1.

#[cfg(target_arch = "x86_64")]
use crate::vector::{Level, level};

/// Entries of one step: four registers of eight, whose masks fill one register of bytes.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 32;

/// The mask of groups of four into `mask`, and whether every score is finite; `None` if this CPU has no such version.
///
/// The results are those of the general routine. Wider registers than those of AVX2 gain nothing: memory is the limit.
#[cfg(target_arch = "x86_64")]
pub(super) fn top_of_four(score: &[f32], mask: &mut [bool], keep: usize) -> Option<bool> {
    if level() < Level::Avx2 {
        return None;
    }
    #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
    // SAFETY: `level` names only what the CPU has.
    Some(unsafe { x86::mask(score, mask, keep) })
}

/// Other architectures have none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn top_of_four(_: &[f32], _: &mut [bool], _: usize) -> Option<bool> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::STEP;
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256,
        _mm256_cmpgt_epi32, _mm256_loadu_ps, _mm256_max_epi32, _mm256_packs_epi16,
        _mm256_packs_epi32, _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi32,
        _mm256_setr_epi32, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_epi32,
        _mm256_srai_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_sub_epi32,
        _mm256_xor_si256,
    };

    /// Rotations of four lanes: lane i takes lane i + 1, i + 2 or i + 3.
    const ONE: i32 = 0b00_11_10_01;
    const TWO: i32 = 0b01_00_11_10;
    const THREE: i32 = 0b10_01_00_11;

    const LARGEST_FINITE: i32 = 0x7f7f_ffff;

    #[target_feature(enable = "avx2")]
    pub(super) fn mask(score: &[f32], mask: &mut [bool], keep: usize) -> bool {
        let least = _mm256_set1_epi32(1 - i32::from(keep as u8));
        let mut largest = _mm256_setzero_si256();
        let (steps, tail) = score.as_chunks::<STEP>();
        let (masks, mask_tail) = mask.as_chunks_mut::<STEP>();
        for (score, mask) in steps.iter().zip(masks) {
            step(score, mask, least, &mut largest);
        }
        if !tail.is_empty() {
            let (mut entries, mut kept) = ([0.0; STEP], [false; STEP]);
            entries[..tail.len()].copy_from_slice(tail);
            step(&entries, &mut kept, least, &mut largest);
            mask_tail.copy_from_slice(&kept[..tail.len()]);
        }
        let mut lanes = [0i32; 8];
        #[expect(unsafe_code, reason = "a store of 8 integers")]
        // SAFETY: the target is an array of 8 i32.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), largest);
        }
        lanes.iter().all(|&bits| bits <= LARGEST_FINITE)
    }

    /// Eight groups. `largest` collects the magnitudes, as bits.
    #[target_feature(enable = "avx2")]
    fn step(score: &[f32; STEP], mask: &mut [bool; STEP], least: __m256i, largest: &mut __m256i) {
        let magnitude = _mm256_set1_epi32(i32::MAX);
        let mut kept = [_mm256_setzero_si256(); STEP / 8];
        for (kept, entries) in kept.iter_mut().zip(score.as_chunks::<8>().0) {
            #[expect(unsafe_code, reason = "a load of 8 floats")]
            // SAFETY: the source is an array of 8 f32.
            let entries = unsafe { _mm256_loadu_ps(entries.as_ptr()) };
            let bits = _mm256_and_si256(_mm256_castps_si256(entries), magnitude);
            *largest = _mm256_max_epi32(*largest, bits);
            *kept = two_groups(entries, least);
        }
        let low = _mm256_packs_epi32(kept[0], kept[1]);
        let high = _mm256_packs_epi32(kept[2], kept[3]);
        // Packing works on halves of registers and leaves the runs of four in the order 0 2 4 6 1 3 5 7.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
        let bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(1));
        #[expect(unsafe_code, reason = "a store of 32 booleans")]
        // SAFETY: the target is an array of 32 bool, and every byte is 0 or 1.
        unsafe {
            _mm256_storeu_si256(mask.as_mut_ptr().cast(), bytes);
        }
    }

    /// -1 where fewer than `keep` entries of the group come before this one, else 0; `least` is 1 - keep.
    #[target_feature(enable = "avx2")]
    fn two_groups(entries: __m256, least: __m256i) -> __m256i {
        // -0.0 + 0.0 is 0.0, and of negative numbers all bits but the sign are turned.
        let bits = _mm256_castps_si256(_mm256_add_ps(entries, _mm256_setzero_ps()));
        let turned = _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits));
        let key = _mm256_xor_si256(bits, turned);
        let one = _mm256_shuffle_epi32::<ONE>(key);
        let two = _mm256_shuffle_epi32::<TWO>(key);
        let lower_one = _mm256_setr_epi32(0, 0, 0, 1, 0, 0, 0, 1);
        let lower_two = _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1);
        let one = _mm256_cmpgt_epi32(_mm256_add_epi32(one, lower_one), key);
        let two = _mm256_cmpgt_epi32(_mm256_add_epi32(two, lower_two), key);
        // The neighbour on the other side comes first where this entry does not come before it: 1 + three of them.
        let three = _mm256_shuffle_epi32::<THREE>(one);
        let before = _mm256_add_epi32(_mm256_sub_epi32(one, three), two); // 1 - (how many come before)
        _mm256_cmpgt_epi32(before, least)
    }
}
