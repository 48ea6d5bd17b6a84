//! Products with N:M-sparse weights: linear layers and convolutions on CPUs.

mod activation;
mod blocking;
mod field;
mod grid;
mod lanes;
mod layer;
mod output;
mod pairs;
mod panel;
mod simd;
mod team;
mod weights;

pub use activation::Activation;
pub use field::{Field, Input, Order};
pub use layer::Layer;
pub use output::Output;
pub use team::Team;
pub use weights::Weights;

#[cfg(test)]
mod tests;
