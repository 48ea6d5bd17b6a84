//! AVX2 with FMA, and AVX-512F.

#![expect(
    unsafe_code,
    reason = "intrinsics of a CPU whose features the dispatcher has checked"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use std::arch::x86_64::{
    __m256i, __m512i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_blendv_ps, _mm256_castsi256_ps,
    _mm256_cvtepu8_epi32, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_permutevar8x32_ps,
    _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cvtepu8_epi32, _mm512_loadu_ps,
    _mm512_permutexvar_ps, _mm512_shuffle_f32x4, _mm512_srli_epi32, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{Avx2, Avx512, MOST_LANES, Simd};
use crate::vector::Kernel;

#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

// SAFETY of the bodies below: the caller has the CPU for it, and its pointers are good for LANES values.
impl Simd for Avx2 {
    const WIDEST: usize = 6;
    type Places = __m256i;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { avx2(kernel) }
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; MOST_LANES]) {
        let r = block;
        let mut t = [r[0]; 8];
        unsafe {
            for i in 0..4 {
                t[2 * i] = Self(_mm256_unpacklo_ps(r[2 * i].0, r[2 * i + 1].0));
                t[2 * i + 1] = Self(_mm256_unpackhi_ps(r[2 * i].0, r[2 * i + 1].0));
            }
            for b in [0, 4] {
                r[b] = Self(_mm256_shuffle_ps::<0x44>(t[b].0, t[b + 2].0));
                r[b + 1] = Self(_mm256_shuffle_ps::<0xee>(t[b].0, t[b + 2].0));
                r[b + 2] = Self(_mm256_shuffle_ps::<0x44>(t[b + 1].0, t[b + 3].0));
                r[b + 3] = Self(_mm256_shuffle_ps::<0xee>(t[b + 1].0, t[b + 3].0));
            }
            for i in 0..4 {
                t[i] = Self(_mm256_permute2f128_ps::<0x20>(r[i].0, r[i + 4].0));
                t[i + 4] = Self(_mm256_permute2f128_ps::<0x31>(r[i].0, r[i + 4].0));
            }
        }
        r[..8].copy_from_slice(&t);
    }

    #[inline(always)]
    unsafe fn places(from: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    #[inline(always)]
    unsafe fn high_places(places: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi32::<4>(places) }
    }

    #[inline(always)]
    unsafe fn select<const WIDE: bool>(window: *const f32, places: __m256i) -> Self {
        unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(window), places);
            if !WIDE {
                return Self(low);
            }
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(window.add(8)), places);
            let above = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
            Self(_mm256_blendv_ps(low, high, above))
        }
    }
}

// SAFETY of the bodies below: the caller has the CPU for it, and its pointers are good for LANES values.
impl Simd for Avx512 {
    const WIDEST: usize = 13;
    type Places = __m512i;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { avx512(kernel) }
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; MOST_LANES]) {
        let r = block;
        let mut t = *r;
        unsafe {
            for i in 0..8 {
                t[2 * i] = Self(_mm512_unpacklo_ps(r[2 * i].0, r[2 * i + 1].0));
                t[2 * i + 1] = Self(_mm512_unpackhi_ps(r[2 * i].0, r[2 * i + 1].0));
            }
            for i in 0..4 {
                let pairs = |k: usize| _mm512_castps_pd(t[4 * i + k].0);
                let single = |pairs| Self(_mm512_castpd_ps(pairs));
                r[4 * i] = single(_mm512_unpacklo_pd(pairs(0), pairs(2)));
                r[4 * i + 1] = single(_mm512_unpackhi_pd(pairs(0), pairs(2)));
                r[4 * i + 2] = single(_mm512_unpacklo_pd(pairs(1), pairs(3)));
                r[4 * i + 3] = single(_mm512_unpackhi_pd(pairs(1), pairs(3)));
            }
            for i in [0, 1, 2, 3, 8, 9, 10, 11] {
                t[i] = Self(_mm512_shuffle_f32x4::<0x88>(r[i].0, r[i + 4].0));
                t[i + 4] = Self(_mm512_shuffle_f32x4::<0xdd>(r[i].0, r[i + 4].0));
            }
            for i in 0..8 {
                r[i] = Self(_mm512_shuffle_f32x4::<0x88>(t[i].0, t[i + 8].0));
                r[i + 8] = Self(_mm512_shuffle_f32x4::<0xdd>(t[i].0, t[i + 8].0));
            }
        }
    }

    #[inline(always)]
    unsafe fn places(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn high_places(places: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<4>(places) }
    }

    /// A permutation of 16 lanes uses the lowest 4 bits, which is both cases.
    #[inline(always)]
    unsafe fn select<const WIDE: bool>(window: *const f32, places: __m512i) -> Self {
        Self(unsafe { _mm512_permutexvar_ps(places, _mm512_loadu_ps(window)) })
    }
}
