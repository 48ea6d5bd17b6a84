//! Eight lanes as an array.

#![expect(
    unsafe_code,
    reason = "registers move through pointers; each caller states its bounds"
)]
#![expect(
    clippy::inline_always,
    reason = "loops over arrays become vector code where they are inlined"
)]

use super::{MOST_LANES, Portable, Simd};
use crate::vector::Kernel;

impl Simd for Portable {
    /// 12 of the 16 registers of SSE2, 24 of the 32 of `AArch64`.
    const WIDEST: usize = if cfg!(target_arch = "aarch64") { 6 } else { 3 };
    type Places = [u8; 8];

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; MOST_LANES]) {
        for i in 0..8 {
            for j in 0..i {
                (block[i].0[j], block[j].0[i]) = (block[j].0[i], block[i].0[j]);
            }
        }
    }

    #[inline(always)]
    unsafe fn places(from: *const u8) -> [u8; 8] {
        // SAFETY: the caller's pointer is good for 8 bytes.
        unsafe { from.cast::<[u8; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn high_places(places: [u8; 8]) -> [u8; 8] {
        places.map(|place| place >> 4)
    }

    #[inline(always)]
    unsafe fn select<const WIDE: bool>(window: *const f32, places: [u8; 8]) -> Self {
        // SAFETY: the caller's pointer is good for 16 values.
        Self(places.map(|place| unsafe { *window.add(usize::from(place & 15)) }))
    }
}
