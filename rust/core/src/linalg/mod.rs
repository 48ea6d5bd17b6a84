//! Dense linear algebra: what faer offers, behind guards, and what it lacks.

pub mod dense;
pub mod survey;
pub mod tridiagonal;
pub mod values;
