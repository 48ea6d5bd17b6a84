//! N:M sparsity: which weights stay, and how the rest is stored.

pub mod check;
mod compare;
mod deal;
pub(crate) mod network;
mod octets;
pub mod pack;
pub mod pattern;
pub mod quadratic;
mod quads;
pub mod select;
pub mod transposable;

pub use pattern::{Fibers, Pattern};
