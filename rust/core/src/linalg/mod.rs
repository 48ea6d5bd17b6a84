//! Dense linear algebra: what faer offers, behind guards, and what it lacks.

pub(crate) mod band;
pub(crate) mod change;
pub(crate) mod chase;
pub mod dense;
mod gram;
pub(crate) mod krylov;
pub(crate) mod orthogonal;
pub(crate) mod pass;
pub(crate) mod reduce;
pub mod rsvd;
pub(crate) mod side;
pub mod survey;
pub(crate) mod symmetric;
pub mod tridiagonal;
pub mod values;
