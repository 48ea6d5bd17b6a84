//! One vector register of float32 or float64, for every instruction set.

#![expect(
    unsafe_code,
    reason = "registers move through pointers; each caller states its bounds"
)]
#![expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]

/// Most values of a register.
pub(crate) const MOST_LANES: usize = 16;

/// `LANES` values of a floating-point type.
///
/// # Safety
/// All methods may run only on a CPU that has the instruction set, and are fast only inside functions compiled for it.
/// Pointers must be good for `LANES` values; they need no alignment.
pub(crate) trait Register: Copy + 'static {
    /// The type of a value.
    type Item: Copy;
    /// Values of a register.
    const LANES: usize;

    /// The same value in every lane.
    unsafe fn splat(value: Self::Item) -> Self;
    /// `LANES` values from memory.
    unsafe fn load(from: *const Self::Item) -> Self;
    /// `LANES` values to memory.
    unsafe fn store(self, to: *mut Self::Item);
    /// self + a b, rounded once where the CPU has fused products.
    unsafe fn plus_product(self, a: Self, b: Self) -> Self;
}

/// A type of values with a register in every instruction set.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// 512 bits.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Register<Item = Self>;
    /// 256 bits.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Register<Item = Self>;
    /// Eight values as an array.
    type Portable: Register<Item = Self>;
}

impl Lanes for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = x86::Avx512;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = x86::Avx2;
    type Portable = Portable<f32>;
}

impl Lanes for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = x86::Avx512Double;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = x86::Avx2Double;
    type Portable = Portable<f64>;
}

/// `AArch64` has fused products in its baseline; elsewhere they would be calls of the C library.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Eight lanes as an array, which the compiler lays over the registers of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T>(pub(crate) [T; 8]);

// SAFETY of the bodies below: the caller's pointers are good for 8 values.
impl<T: num_traits::Float + 'static> Register for Portable<T> {
    type Item = T;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        Self(unsafe { from.cast::<[T; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        unsafe { to.cast::<[T; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn plus_product(self, a: Self, b: Self) -> Self {
        let mut sums = self.0;
        for (sum, (a, b)) in sums.iter_mut().zip(a.0.into_iter().zip(b.0)) {
            *sum = if FUSED {
                a.mul_add(b, *sum)
            } else {
                *sum + a * b
            };
        }
        Self(sums)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    //! AVX2 with FMA, and AVX-512F.

    use std::arch::x86_64::{
        __m256, __m256d, __m512, __m512d, _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_loadu_pd,
        _mm256_loadu_ps, _mm256_set1_pd, _mm256_set1_ps, _mm256_storeu_pd, _mm256_storeu_ps,
        _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_loadu_pd, _mm512_loadu_ps, _mm512_set1_pd,
        _mm512_set1_ps, _mm512_storeu_pd, _mm512_storeu_ps,
    };

    use super::Register;

    macro_rules! register {
        ($name:ident, $item:ty, $bits:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $fused:ident) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name(pub(crate) $bits);

            // SAFETY of the bodies: the caller has the CPU for it, and its pointers are good for LANES values.
            impl Register for $name {
                type Item = $item;
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn splat(value: $item) -> Self {
                    Self(unsafe { $splat(value) })
                }

                #[inline(always)]
                unsafe fn load(from: *const $item) -> Self {
                    Self(unsafe { $load(from) })
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut $item) {
                    unsafe { $store(to, self.0) }
                }

                #[inline(always)]
                unsafe fn plus_product(self, a: Self, b: Self) -> Self {
                    Self(unsafe { $fused(a.0, b.0, self.0) })
                }
            }
        };
    }

    register!(
        Avx2,
        f32,
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps
    );
    register!(
        Avx2Double,
        f64,
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd
    );
    register!(
        Avx512,
        f32,
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps
    );
    register!(
        Avx512Double,
        f64,
        __m512d,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd
    );
}
