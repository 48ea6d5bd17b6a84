//! One kernel, compiled for every vector width: safe Rust over fixed-size arrays, which LLVM turns into vector code.
//!
//! A baseline build for `x86_64` only has 4 lanes of f32; the same source under AVX-512 is 3 to 4 times as fast. The bits
//! of a result do not depend on the width, because every kernel fixes the order of its sums and nothing is contracted
//! into fused operations.

use std::sync::OnceLock;

use crate::{Error, Result};

pub(crate) mod aligned;
pub(crate) mod register;

/// A computation whose loops are worth compiling again for wider vectors.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Do it. Implementations are `#[inline(always)]`, so that the body takes on the caller's instruction set.
    fn run(self) -> Self::Output;
}

/// A kernel that gains from products fused with sums; its bits may depend on the level, never on threads.
pub(crate) trait FusedKernel {
    /// What it returns.
    type Output;
    /// Do it; `FUSED` says that [`multiply_add`] is one instruction here. Implementations are `#[inline(always)]`.
    fn run<const FUSED: bool>(self) -> Self::Output;
}

/// a b + c, rounded once if `FUSED`.
#[expect(
    clippy::inline_always,
    reason = "takes on the caller's instruction set"
)]
#[inline(always)]
pub(crate) fn multiply_add<T: num_traits::Float, const FUSED: bool>(a: T, b: T, c: T) -> T {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Run `kernel` in the version of the level in use.
pub(crate) fn widest_fused<K: FusedKernel>(kernel: K) -> K::Output {
    match level() {
        Level::Portable => kernel.run::<false>(),
        _ => widest(Fused(kernel)),
    }
}

struct Fused<K>(K);

impl<K: FusedKernel> Kernel for Fused<K> {
    type Output = K::Output;

    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    fn run(self) -> K::Output {
        self.0.run::<true>()
    }
}

/// The instruction sets that kernels are compiled for, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the architecture has.
    Portable,
    /// 256 bits: AVX2 and FMA.
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
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those of this CPU, from narrow to wide.
    #[must_use]
    pub fn here() -> impl DoubleEndedIterator<Item = Self> + Clone {
        Self::ALL.into_iter().filter(|level| level.is_here())
    }

    /// The widest of this CPU.
    #[must_use]
    pub fn widest() -> Self {
        Self::here().next_back().unwrap_or(Self::Portable)
    }

    /// The one that [`VARIABLE`] names, or else the widest.
    ///
    /// # Errors
    /// [`Error::Setting`] for a word that names no level of this CPU.
    pub fn from_environment() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::widest()),
            Some(word) => Self::from_name(&word.to_string_lossy()),
        }
    }

    /// Refuse a level that this CPU lacks.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub(crate) fn check(self) -> Result<()> {
        Self::from_name(self.name()).map(|_| ())
    }

    fn from_name(word: &str) -> Result<Self> {
        Self::here()
            .find(|level| level.name() == word)
            .ok_or_else(|| Error::Setting {
                name: VARIABLE,
                got: word.to_owned(),
                wanted: format!(
                    "one of {} (what this CPU has)",
                    Self::here().map(Self::name).collect::<Vec<_>>().join(", ")
                ),
            })
    }
}

/// The environment variable that chooses a narrower level than the CPU has: `portable`, `avx2` or `avx512`.
pub const VARIABLE: &str = "MPCORE_KERNELS";

/// The level in use: the widest of this CPU, or the one that [`VARIABLE`] names. It is chosen once.
///
/// # Panics
/// If the variable names no level of this CPU; the Python package refuses it when it is imported.
#[must_use]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| Level::from_environment().unwrap_or_else(|error| panic!("{error}")))
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

    #[target_feature(enable = "avx2,fma")]
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

    #[test]
    fn a_level_is_chosen_by_its_name() {
        assert_eq!(Level::from_name("portable"), Ok(Level::Portable));
        let refused = Level::from_name("sse9").unwrap_err().to_string();
        assert!(
            refused.starts_with("MPCORE_KERNELS: \"sse9\" is not one of portable"),
            "{refused}"
        );
    }

    #[test]
    fn what_this_cpu_lacks_is_refused() {
        for level in Level::ALL {
            assert_eq!(level.check().is_ok(), level.is_here());
        }
    }
}
