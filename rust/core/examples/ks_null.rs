//! Null law of the goodness-of-fit distance: `cargo run --release -p mpcore-core --example ks_null -- 2000`.
//!
//! Prints mean, standard deviation and skewness of P times the Kolmogorov-Smirnov distance of noise whose variance is
//! fitted by its mean; `mp/gof.rs` holds the formulas these figures gave.

use mpcore_core::mp::bootstrap;

fn main() {
    let draws = std::env::args()
        .nth(1)
        .and_then(|v| v.parse().ok())
        .unwrap_or(2000);
    println!("    P  gamma   mean     sd  skew");
    for size in [8, 16, 32, 64, 128, 256, 512, 1024] {
        for inverse in [1, 4, 20] {
            let null = bootstrap::null(size, inverse * size, draws, 5);
            let values: Vec<f64> = null.ks.iter().map(|v| v * size as f64).collect();
            let mean = moment(&values, |v| v);
            let variance = moment(&values, |v| (v - mean).powi(2));
            let skew = moment(&values, |v| (v - mean).powi(3)) / variance.powf(1.5);
            let gamma = 1.0 / f64::from(u32::try_from(inverse).unwrap_or(1));
            println!(
                "{size:5} {gamma:6.2} {mean:6.3} {:6.3} {skew:5.2}",
                variance.sqrt()
            );
        }
    }
}

fn moment(values: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    values.iter().map(|v| of(*v)).sum::<f64>() / values.len() as f64
}
