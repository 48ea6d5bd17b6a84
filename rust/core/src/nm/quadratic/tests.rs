use super::*;
use proptest::prelude::*;

fn cost(removed: u64, weights: &[f64], gram: &[f64]) -> f64 {
    let m = weights.len();
    (0..m)
        .flat_map(|i| (0..m).map(move |j| (i, j)))
        .filter(|(i, j)| removed >> i & removed >> j & 1 == 1)
        .map(|(i, j)| weights[i] * weights[j] * gram[i * m + j])
        .sum()
}

/// Least cost over all patterns, by counting through all bit sets.
fn slow(weights: &[f64], gram: &[f64], pattern: Pattern, target: Option<(&[bool], f64)>) -> f64 {
    let (m, k) = (pattern.group(), (pattern.group() - pattern.keep()) as u32);
    let sets: Vec<u64> = (0..1u64 << m).filter(|set| set.count_ones() == k).collect();
    let mean = sets
        .iter()
        .map(|&set| cost(set, weights, gram))
        .sum::<f64>()
        / sets.len() as f64;
    sets.iter()
        .map(|&set| cost(set, weights, gram) + distance(set, target) * mean)
        .fold(f64::INFINITY, f64::min)
}

/// Weighted Hamming distance of the kept set to the target.
fn distance(removed: u64, target: Option<(&[bool], f64)>) -> f64 {
    target.map_or(0.0, |(mask, weight)| {
        let differ = |(i, &kept): (usize, &bool)| kept == (removed >> i & 1 == 1);
        weight * mask.iter().enumerate().filter(|&v| differ(v)).count() as f64
    })
}

proptest! {
    #[test]
    fn no_pattern_costs_less(
        (keep, extra, rows, groups) in (1usize..5, 1usize..5, 1usize..12, 1usize..4),
        values in prop::collection::vec(-1.0f64..1.0, 700),
        bits in prop::collection::vec(any::<bool>(), 300),
        weight in prop::option::of(0.0f64..2.0),
    ) {
        let pattern = Pattern::new(keep, keep + extra).unwrap();
        let (m, columns) = (pattern.group(), pattern.group() * groups);
        let weights: Vec<f64> = (0..rows * columns).map(|i| values[i % 300]).collect();
        let gram: Vec<f64> = (0..groups * m * m).map(|i| values[300 + i]).collect();
        let goal: Vec<bool> = (0..rows * columns).map(|i| bits[i % 300]).collect();
        let target = weight.map(|weight| Target { mask: &goal, weight });
        let mask = quadratic_mask(&weights, columns, &gram, pattern, target, &|| false).unwrap();
        for row in 0..rows {
            for index in 0..groups {
                let part = row * columns + index * m..row * columns + (index + 1) * m;
                let removed = (0..m).map(|i| u64::from(!mask[part.start + i]) << i).sum::<u64>();
                prop_assert_eq!(removed.count_ones() as usize, extra);
                let (w, c) = (&weights[part.clone()], &gram[index * m * m..][..m * m]);
                let goal = weight.map(|weight| (&goal[part.clone()], weight));
                let best = slow(w, c, pattern, goal);
                let mean = slow_mean(w, c, pattern);
                let found = cost(removed, w, c) + distance(removed, goal) * mean;
                prop_assert!((found - best).abs() < 1e-9, "{found} against {best}");
            }
        }
    }
}

fn slow_mean(weights: &[f64], gram: &[f64], pattern: Pattern) -> f64 {
    let (m, k) = (pattern.group(), (pattern.group() - pattern.keep()) as u32);
    let sets: Vec<u64> = (0..1u64 << m).filter(|set| set.count_ones() == k).collect();
    sets.iter()
        .map(|&set| cost(set, weights, gram))
        .sum::<f64>()
        / sets.len() as f64
}

#[test]
fn equal_costs_keep_the_lower_indices() {
    let pattern = Pattern::new(3, 8).unwrap();
    let mask = quadratic_mask(&[0.0f32; 8], 8, &[1.0; 64], pattern, None, &|| false);
    let wanted = [true, true, true, false, false, false, false, false];
    assert_eq!(mask.unwrap(), wanted);
}

#[test]
fn the_ends_of_float64_change_no_mask() {
    let pattern = Pattern::new(2, 4).unwrap();
    let weights = [3.0, -1.0, 2.0, 0.5, 1.0, 1.0, -4.0, 2.0];
    let gram: Vec<f64> = (0..32).map(|i| f64::from(i * 7 % 11) - 3.0).collect();
    let mask = |of_weights: f64, of_gram: f64| {
        let weights = weights.map(|w| w * of_weights);
        let gram: Vec<f64> = gram.iter().map(|g| g * of_gram).collect();
        quadratic_mask(&weights, 8, &gram, pattern, None, &|| false).unwrap()
    };
    for (of_weights, of_gram) in [(600, 600), (1000, 0), (0, 1020), (-600, -500)] {
        let scale = |power: i32| PowerOfTwo::new(power).times(1.0);
        assert_eq!(mask(scale(of_weights), scale(of_gram)), mask(1.0, 1.0));
    }
}

#[test]
fn a_pattern_with_too_many_masks_is_refused() {
    let pattern = Pattern::new(16, 32).unwrap();
    let found = quadratic_mask(&[0.0f32; 32], 32, &[0.0; 1024], pattern, None, &|| false);
    assert!(
        found
            .unwrap_err()
            .to_string()
            .starts_with("pattern: 601080390 is not")
    );
}

#[test]
fn a_caller_who_says_stop_is_heard() {
    let pattern = Pattern::new(1, 2).unwrap();
    let found = quadratic_mask(&[1.0f32; 2], 2, &[1.0; 4], pattern, None, &|| true);
    assert_eq!(found, Err(Error::Interrupted));
}
