//! N:M sparsity: which weights stay, and how the rest is stored.

pub mod check;
pub(crate) mod network;
pub mod pattern;
pub mod select;

pub use pattern::{Fibers, Pattern};
