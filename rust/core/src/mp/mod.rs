//! Random-matrix theory of weight matrices: the Marchenko-Pastur law, its edge in data, and what stands out of it.

pub mod bootstrap;
pub mod edge;
pub mod energy;
pub mod fit;
pub mod free;
pub mod gof;
pub mod lanczos;
pub mod law;
mod parametric;
pub mod ranks;
pub mod report;
pub mod spike;
pub mod tracy_widom;
pub mod whiten;
