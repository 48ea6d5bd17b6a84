//! The inner loop of the gain kernel: sums of max(x, y) for 4 by 4 pairs of lines.
//!
//! Written with intrinsics, because LLVM keeps the 16 sums of the portable loop on the stack, or gives up vectors at all:
//! at 768 rows 14 G elements/s against 45 on an AVX-512 core of 2.6 GHz. All versions add in the same order.

#[cfg(target_arch = "x86_64")]
use crate::vector::Level;
use crate::vector::level;

/// Rows in one vector step.
pub(crate) const LANES: usize = 16;

/// Lines on either side of a tile.
pub(crate) const TILE: usize = 4;

/// Entries of one line for `LANES` consecutive rows.
pub(crate) type Lanes = [f32; LANES];

/// `sums[i][j]` = sum over rows of `max(x_i, y_j)`, lane by lane; all lines are equally long.
type Sums = fn(&[&[Lanes]; TILE], &[&[Lanes]; TILE]) -> [[Lanes; TILE]; TILE];

/// The version for this CPU.
pub(crate) fn sums_of_max() -> Sums {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => |x, y| {
            #[expect(unsafe_code, reason = "calling a function compiled for AVX-512")]
            // SAFETY: this closure is only handed out where the CPU has it.
            unsafe {
                x86::avx512(x, y)
            }
        },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => |x, y| {
            #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
            // SAFETY: this closure is only handed out where the CPU has it.
            unsafe {
                x86::avx2(x, y)
            }
        },
        _ => portable,
    }
}

fn portable(x: &[&[Lanes]; TILE], y: &[&[Lanes]; TILE]) -> [[Lanes; TILE]; TILE] {
    let mut sums = [[[0.0; LANES]; TILE]; TILE];
    for (x, sums) in x.iter().zip(&mut sums) {
        for (y, sums) in y.iter().zip(sums) {
            for (a, b) in x.iter().zip(*y) {
                for lane in 0..LANES {
                    sums[lane] += if a[lane] > b[lane] { a[lane] } else { b[lane] };
                }
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes, TILE};
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_setzero_ps,
        _mm256_storeu_ps, _mm512_add_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    /// 16 sums in 16 of the 32 registers.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(x: &[&[Lanes]; TILE], y: &[&[Lanes]; TILE]) -> [[Lanes; TILE]; TILE] {
        let mut sums = [[_mm512_setzero_ps(); TILE]; TILE];
        let x = x[0].iter().zip(x[1]).zip(x[2].iter().zip(x[3]));
        let y = y[0].iter().zip(y[1]).zip(y[2].iter().zip(y[3]));
        for (((a, b), (c, d)), ((e, f), (g, h))) in x.zip(y) {
            let x = [load(a), load(b), load(c), load(d)];
            let y = [load(e), load(f), load(g), load(h)];
            for i in 0..TILE {
                for j in 0..TILE {
                    sums[i][j] = _mm512_add_ps(sums[i][j], _mm512_max_ps(x[i], y[j]));
                }
            }
        }
        let mut out = [[[0.0; LANES]; TILE]; TILE];
        for i in 0..TILE {
            for j in 0..TILE {
                #[expect(unsafe_code, reason = "a store of 16 floats")]
                // SAFETY: the target is an array of 16 f32.
                unsafe {
                    _mm512_storeu_ps(out[i][j].as_mut_ptr(), sums[i][j]);
                }
            }
        }
        out
    }

    #[target_feature(enable = "avx512f")]
    fn load(lanes: &Lanes) -> __m512 {
        #[expect(unsafe_code, reason = "a load of 16 floats")]
        // SAFETY: the source is an array of 16 f32.
        unsafe {
            _mm512_loadu_ps(lanes.as_ptr())
        }
    }

    /// Four tiles of 4 by 2 half vectors, so that 8 sums, 4 operands and a maximum fit the 16 registers.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(x: &[&[Lanes]; TILE], y: &[&[Lanes]; TILE]) -> [[Lanes; TILE]; TILE] {
        let mut out = [[[0.0; LANES]; TILE]; TILE];
        for j in [0, 2] {
            let quarters = [
                avx2_quarter::<0>(x, [y[j], y[j + 1]]),
                avx2_quarter::<1>(x, [y[j], y[j + 1]]),
            ];
            for (half, quarter) in quarters.iter().enumerate() {
                for (line, sums) in out.iter_mut().zip(quarter) {
                    for (lanes, &sum) in line[j..j + 2].iter_mut().zip(sums) {
                        let target = &mut lanes.as_chunks_mut::<8>().0[half];
                        #[expect(unsafe_code, reason = "a store of 8 floats")]
                        // SAFETY: the target is an array of 8 f32.
                        unsafe {
                            _mm256_storeu_ps(target.as_mut_ptr(), sum);
                        }
                    }
                }
            }
        }
        out
    }

    #[target_feature(enable = "avx2")]
    fn avx2_quarter<const HALF: usize>(
        x: &[&[Lanes]; TILE],
        y: [&[Lanes]; 2],
    ) -> [[__m256; 2]; TILE] {
        let mut sums = [[_mm256_setzero_ps(); 2]; TILE];
        let x = x[0].iter().zip(x[1]).zip(x[2].iter().zip(x[3]));
        for (((a, b), (c, d)), (e, f)) in x.zip(y[0].iter().zip(y[1])) {
            let x = [
                half::<HALF>(a),
                half::<HALF>(b),
                half::<HALF>(c),
                half::<HALF>(d),
            ];
            let y = [half::<HALF>(e), half::<HALF>(f)];
            for i in 0..TILE {
                for j in 0..2 {
                    sums[i][j] = _mm256_add_ps(sums[i][j], _mm256_max_ps(x[i], y[j]));
                }
            }
        }
        sums
    }

    #[target_feature(enable = "avx2")]
    fn half<const HALF: usize>(lanes: &Lanes) -> __m256 {
        #[expect(unsafe_code, reason = "a load of 8 floats")]
        // SAFETY: the source is an array of 8 f32.
        unsafe {
            _mm256_loadu_ps(lanes.as_chunks::<8>().0[HALF].as_ptr())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(seed: u32) -> Vec<Vec<Lanes>> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32
        };
        (0..TILE)
            .map(|_| (0..9).map(|_| std::array::from_fn(|_| next())).collect())
            .collect()
    }

    #[test]
    fn every_version_gives_the_bits_of_the_portable_one() {
        let (x, y) = (lines(1), lines(2));
        let x: [&[Lanes]; TILE] = std::array::from_fn(|i| &x[i][..]);
        let y: [&[Lanes]; TILE] = std::array::from_fn(|i| &y[i][..]);
        let wanted = portable(&x, &y);
        assert_eq!(sums_of_max()(&x, &y), wanted);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "calling a function compiled for AVX2")]
            // SAFETY: the feature was detected on the line above.
            let found = unsafe { x86::avx2(&x, &y) };
            assert_eq!(found, wanted);
        }
    }
}
