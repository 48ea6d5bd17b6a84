//! Products with N:M-sparse weights.

pub mod linear;
