//! N:M sparsity: which weights stay, and how the rest is stored.

pub mod check;
mod deal;
pub(crate) mod network;
pub mod pack;
pub mod pattern;
pub mod quadratic;
pub mod select;
pub mod transposable;

pub use pattern::{Fibers, Pattern};
