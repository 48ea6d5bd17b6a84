//! One kernel, compiled for every vector width: safe Rust over fixed-size arrays, which LLVM turns into vector code.
//!
//! A baseline build for `x86_64` only has 4 lanes of f32; the same source under AVX-512 is 3 to 4 times as fast. The bits
//! of a result do not depend on the width, because every kernel fixes the order of its sums and nothing is contracted
//! into fused operations.

/// A computation whose loops are worth compiling again for wider vectors.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Do it. Implementations are `#[inline(always)]`, so that the body takes on the caller's instruction set.
    fn run(self) -> Self::Output;
}

/// Run `kernel` in the widest version this CPU has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn widest<K: Kernel>(kernel: K) -> K::Output {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        #[expect(unsafe_code, reason = "calling a function compiled for AVX-512")]
        // SAFETY: the four features were detected on the line above.
        unsafe {
            x86::avx512(kernel)
        }
    } else if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
        // SAFETY: the feature was detected on the line above.
        unsafe {
            x86::avx2(kernel)
        }
    } else {
        kernel.run()
    }
}

/// Run `kernel`; other architectures have one version.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn widest<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }
}
