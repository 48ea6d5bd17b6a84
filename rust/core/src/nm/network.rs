//! Exchange networks: order statistics of a few lines of numbers, without a branch.

use num_traits::Float;

/// Compare-exchange steps that put chosen order statistics of `lines` lines in their places.
pub(crate) struct Network {
    exchanges: Vec<(usize, usize)>,
}

impl Network {
    /// A network on `lines` lines (2 to 32) after which line k holds the k-th largest, counted from 0, for k in `wanted`.
    ///
    /// Merge exchange sorting for any length (D. E. Knuth, *The Art of Computer Programming* 3, 5.2.2, Algorithm M), less
    /// the steps that the wanted lines do not depend on.
    pub(crate) fn new(lines: usize, wanted: &[usize]) -> Self {
        let mut exchanges = merge_exchange(lines);
        let mut needed = vec![false; lines];
        for &line in wanted {
            needed[line] = true;
        }
        exchanges.reverse();
        exchanges.retain(|&(upper, lower)| {
            let used = needed[upper] || needed[lower];
            needed[upper] |= used;
            needed[lower] |= used;
            used
        });
        exchanges.reverse();
        Self { exchanges }
    }

    /// The steps: (line of the larger, line of the smaller).
    pub(crate) fn exchanges(&self) -> &[(usize, usize)] {
        &self.exchanges
    }

    /// Run the steps on `lines` lines of `width` entries each, column by column.
    #[expect(
        clippy::inline_always,
        reason = "takes on the caller's instruction set"
    )]
    #[inline(always)]
    pub(crate) fn apply<T: Float>(&self, lines: &mut [T], width: usize) {
        for &(upper, lower) in &self.exchanges {
            let (front, back) = lines.split_at_mut(lower * width);
            let upper = &mut front[upper * width..][..width];
            for (a, b) in upper.iter_mut().zip(&mut back[..width]) {
                (*a, *b) = if *a < *b { (*b, *a) } else { (*a, *b) };
            }
        }
    }
}

fn merge_exchange(lines: usize) -> Vec<(usize, usize)> {
    let mut exchanges = Vec::new();
    let top = lines.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            let upper = (0..lines - d).filter(|i| i & p == r);
            exchanges.extend(upper.map(|i| (i, i + d)));
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    exchanges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_statistic_of_every_zero_one_input_is_right() {
        for lines in 2..=12usize {
            for wanted in 0..lines {
                let network = Network::new(lines, &[wanted]);
                for bits in 0u32..1 << lines {
                    let mut input: Vec<f32> = (0..lines)
                        .map(|i| f32::from(u8::from(bits >> i & 1 == 1)))
                        .collect();
                    network.apply(&mut input, 1);
                    let ones = bits.count_ones() as usize;
                    assert_eq!(
                        input[wanted] > 0.5,
                        wanted < ones,
                        "{lines} lines, {bits:b}"
                    );
                }
            }
        }
    }

    #[test]
    fn thirty_two_lines_come_out_sorted() {
        let network = Network::new(32, &(0..32).collect::<Vec<_>>());
        let mut input: Vec<f64> = (0..32).map(|i| f64::from(i * 13 % 32)).collect();
        network.apply(&mut input, 1);
        assert!(input.is_sorted_by(|a, b| a >= b));
    }
}
