//! Numerical core of mpcore: spectra of random matrices, N:M masks, permutations, compensation, sparse products.
//!
//! It knows nothing of Python. Every routine is a pure function of its arguments: the same input gives the same bits,
//! whatever the number of threads.

pub mod certify;
pub mod compensate;
pub mod error;
pub mod linalg;
pub mod mp;
pub mod nm;
pub mod permute;
pub mod random;
pub mod sparse;
pub mod threads;
pub mod vector;

pub use error::{Error, Result};
