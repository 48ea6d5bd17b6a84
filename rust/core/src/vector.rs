//! One kernel, compiled for every vector width: safe Rust over fixed-size arrays, which LLVM turns into vector code.
//!
//! A baseline build for `x86_64` only has 4 lanes of f32; the same source under AVX-512 is 3 to 4 times as fast. The bits
//! of a result do not depend on the width, because every kernel fixes the order of its sums and nothing is contracted
//! into fused operations.

use std::sync::OnceLock;

/// A computation whose loops are worth compiling again for wider vectors.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Do it. Implementations are `#[inline(always)]`, so that the body takes on the caller's instruction set.
    fn run(self) -> Self::Output;
}

/// The instruction sets that kernels are compiled for, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the architecture has.
    Portable,
    /// 256 bits.
    Avx2,
    /// 512 bits: AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// `portable`, `avx2` or `avx512`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU has it.
    #[must_use]
    pub fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// The environment variable that chooses a narrower level than the CPU has.
pub const VARIABLE: &str = "MPCORE_KERNELS";

/// The level in use: the widest of this CPU, or the one that [`VARIABLE`] names. It is chosen once.
///
/// # Panics
/// If the variable names no level of this CPU; see [`check`].
#[must_use]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| chosen().unwrap_or_else(|message| panic!("{message}")))
}

/// Whether [`VARIABLE`] can be obeyed.
///
/// # Errors
/// A message that names its value and the levels of this CPU.
pub fn check() -> Result<(), String> {
    chosen().map(|_| ())
}

fn chosen() -> Result<Level, String> {
    let mut here = Level::ALL.into_iter().filter(|level| level.is_here());
    match std::env::var_os(VARIABLE) {
        None => Ok(here.next_back().unwrap_or(Level::Portable)),
        Some(name) => here.find(|level| name == level.name()).ok_or_else(|| {
            let names = Level::ALL.into_iter().filter(|level| level.is_here());
            let names: Vec<_> = names.map(Level::name).collect();
            format!(
                "{VARIABLE}: \"{}\" is not one of {names:?}, the kernels of this CPU",
                name.display()
            )
        }),
    }
}

/// Run `kernel` in the version of the level in use.
pub(crate) fn widest<K: Kernel>(kernel: K) -> K::Output {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            #[expect(unsafe_code, reason = "calling a function compiled for AVX-512")]
            // SAFETY: `level` names only what the CPU has.
            unsafe {
                x86::avx512(kernel)
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
            // SAFETY: `level` names only what the CPU has.
            unsafe {
                x86::avx2(kernel)
            }
        }
        _ => kernel.run(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_in_use_is_one_of_this_cpu() {
        assert!(level().is_here() && Level::Portable.is_here());
        assert!(Level::Avx512 > Level::Avx2 && Level::Avx2 > Level::Portable);
    }
}
