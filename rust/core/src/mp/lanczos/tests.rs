use super::*;
use crate::mp::edge;

const NORMAL: Kurtosis = Kurtosis {
    all: 0.0,
    noise: 0.0,
};
const QUESTION: Question = Question {
    alpha: 0.01,
    most: None,
    seed: 1,
    kurtosis: NORMAL,
};

fn matrix(p: usize, n: usize, spikes: usize, profile: bool) -> Vec<f32> {
    let mut random = Random::new(5, 2);
    let edge = (p as f64).sqrt() + (n as f64).sqrt();
    let directions: Vec<(Vec<f64>, Vec<f64>)> = (0..spikes)
        .map(|_| {
            let mut unit = |size: usize| -> Vec<f64> {
                (0..size)
                    .map(|_| random.normal() / (size as f64).sqrt())
                    .collect()
            };
            (unit(p), unit(n))
        })
        .collect();
    let mut w = Vec::with_capacity(p * n);
    for i in 0..p {
        let factor = if profile {
            0.5 + i as f64 / p as f64
        } else {
            1.0
        };
        for j in 0..n {
            let signal: f64 = directions
                .iter()
                .enumerate()
                .map(|(k, (u, v))| (2.0 + k as f64) * edge * u[i] * v[j])
                .sum();
            w.push((random.normal() * factor + signal) as f32);
        }
    }
    w
}

#[test]
fn spikes_and_edge_agree_with_the_exact_route() {
    let (p, n) = (400, 900);
    let w = matrix(p, n, 5, false);
    let sketch = find(&w, (p, n), &QUESTION, &Threads::ALL, &|| false)
        .unwrap()
        .unwrap();
    let values =
        crate::linalg::values::singular_values(&w, (p, n), crate::linalg::values::Precision::Full)
            .unwrap();
    let exact = edge::find(
        &values,
        n,
        &edge::Question {
            alpha: 0.01,
            model: edge::Model::Mp,
            most: None,
            draws: 0,
            seed: 0,
            kurtosis: NORMAL,
            eps: 1e-7,
        },
    )
    .unwrap();
    assert_eq!(sketch.spikes.len(), exact.n_spikes);
    assert!((sketch.edge / exact.edge - 1.0).abs() < 1e-4);
}

#[test]
fn a_variance_profile_is_refused() {
    let w = matrix(400, 900, 0, true);
    let reason = find(&w, (400, 900), &QUESTION, &Threads::ALL, &|| false)
        .unwrap()
        .unwrap_err();
    assert!(
        reason.contains("second moment") || reason.contains("spikes"),
        "{reason}"
    );
}

#[test]
fn bits_do_not_depend_on_threads() {
    let w = matrix(330, 400, 2, false);
    let run = |threads| {
        let threads = Threads::new(Some(threads)).unwrap();
        find(&w, (330, 400), &QUESTION, &threads, &|| false).unwrap()
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn two_sided_levels_are_the_familiar_ones() {
    assert!((two_sided(1.959_964) - 0.05).abs() < 1e-6 && (two_sided(0.0) - 1.0).abs() < 1e-6);
}

#[test]
fn critical_values_of_student_become_those_of_the_normal_law() {
    for (t, degrees) in [(2.947, 15.0), (2.656, 63.0)] {
        assert!((as_normal(t, degrees) - 2.576).abs() < 0.03);
        assert!((as_normal(-t, degrees) + 2.576).abs() < 0.03);
    }
}
