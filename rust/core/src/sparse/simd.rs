//! What the sparse kernels ask of a vector register of float32 beside its arithmetic.

#![expect(
    unsafe_code,
    reason = "registers move through pointers; each caller states its bounds"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

use crate::vector::Kernel;

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(super) use crate::vector::register::x86::{Avx2, Avx512};
pub(super) use crate::vector::register::{MOST_LANES, Register};

pub(super) type Portable = crate::vector::register::Portable<f32>;

/// A register of float32.
///
/// # Safety
/// All methods may run only on a CPU that has the instruction set, and are fast only inside [`Simd::enter`].
/// Pointers must be good for `LANES` values; they need no alignment.
pub(super) trait Simd: Register<Item = f32> {
    /// Registers of the widest panel: twice as many stay in the register file beside two weights and an input.
    const WIDEST: usize;
    /// `LANES` numbers below 16.
    type Places: Copy;

    /// Run `kernel` compiled for this instruction set.
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output;
    /// Swap lanes and registers of the square block in the first `LANES` registers.
    unsafe fn transpose(block: &mut [Self; MOST_LANES]);
    /// The low halves of `LANES` bytes.
    unsafe fn places(from: *const u8) -> Self::Places;
    /// The high halves of the bytes that `places` came from.
    unsafe fn high_places(places: Self::Places) -> Self::Places;
    /// `window[places]` lane by lane; `window` is good for 16 values, and for places below `LANES` with `WIDE = false`.
    unsafe fn select<const WIDE: bool>(window: *const f32, places: Self::Places) -> Self;

    /// `LANES` values of bfloat16 from memory.
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> Self {
        let mut wide = [0.0; MOST_LANES];
        for (lane, wide) in wide.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's pointer is good for LANES values.
            *wide = widened(unsafe { *from.add(lane) });
        }
        // SAFETY: 16 values are at least LANES.
        unsafe { Self::load(wide.as_ptr()) }
    }

    /// Every value rounded to bfloat16, to nearest and ties to even.
    #[inline(always)]
    unsafe fn rounded(self) -> Self {
        let mut values = [0.0; MOST_LANES];
        // SAFETY: 16 values are at least LANES.
        unsafe { self.store(values.as_mut_ptr()) };
        for value in &mut values[..Self::LANES] {
            *value = f32::from_bits(bfloat16_bits(*value));
        }
        // SAFETY: as above.
        unsafe { Self::load(values.as_ptr()) }
    }
}

/// `value` as bfloat16, to nearest and ties to even; a NaN stays one.
#[inline(always)]
pub(super) fn narrowed(value: f32) -> u16 {
    (bfloat16_bits(value) >> 16) as u16
}

/// Whether `value` is one of bfloat16, to the bit.
pub(super) fn is_narrow(value: f32) -> bool {
    value.to_bits().trailing_zeros() >= 16
}

/// bfloat16 as float32.
#[inline(always)]
pub(super) fn widened(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline(always)]
fn bfloat16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    (if bits & 0x7fff_ffff > 0x7f80_0000 {
        quiet
    } else {
        nearest
    }) & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bfloat16_is_that_of_the_half_crate() {
        let mut bits = 0_u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            assert_eq!(
                narrowed(value),
                half::bf16::from_f32(value).to_bits(),
                "{value}"
            );
        }
        for value in [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::NAN,
        ] {
            assert_eq!(
                narrowed(value),
                half::bf16::from_f32(value).to_bits(),
                "{value}"
            );
        }
    }
}
