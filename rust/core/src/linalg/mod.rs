//! Dense linear algebra: what faer offers, behind guards, and what it lacks.

pub mod dense;
