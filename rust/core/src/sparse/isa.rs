//! Which instructions the kernels use.

use crate::{Error, Result};

/// Name of the environment variable that forces one instruction set: `portable`, `avx2` or `avx512`.
pub const VARIABLE: &str = "MPCORE_SIMD";

/// An instruction set the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust over arrays, for the baseline of the target (SSE2 or NEON).
    Portable,
    /// 8 lanes: AVX2 and FMA.
    Avx2,
    /// 16 lanes: AVX-512F.
    Avx512,
}

impl Isa {
    /// All of them, the widest last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The word that stands for it in [`VARIABLE`].
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
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Portable => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// The widest this CPU has.
    #[must_use]
    pub fn widest() -> Self {
        let mut all = Self::ALL.into_iter().rev();
        all.find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// The one that [`VARIABLE`] names, or else the widest.
    ///
    /// # Errors
    /// [`Error::Setting`] for another word or an instruction set that this CPU lacks.
    pub fn from_environment() -> Result<Self> {
        match std::env::var(VARIABLE) {
            Err(_) => Ok(Self::widest()),
            Ok(word) => Self::from_name(&word),
        }
    }

    fn from_name(word: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|isa| isa.name() == word && isa.is_available())
            .ok_or_else(|| {
                let here: Vec<_> = Self::ALL
                    .into_iter()
                    .filter(|isa| isa.is_available())
                    .collect();
                let names: Vec<_> = here.into_iter().map(Self::name).collect();
                Error::Setting {
                    name: VARIABLE,
                    got: word.to_owned(),
                    wanted: format!("one of {} (what this CPU has)", names.join(", ")),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_set_is_chosen_by_its_name() {
        assert_eq!(Isa::from_name("portable"), Ok(Isa::Portable));
        let refused = Isa::from_name("sse9").unwrap_err().to_string();
        assert!(
            refused.starts_with("MPCORE_SIMD: \"sse9\" is not one of portable"),
            "{refused}"
        );
    }

    #[test]
    fn the_widest_is_there() {
        assert!(Isa::widest().is_available());
    }
}
