//! Channel permutations: an order of the columns under which an N:M mask keeps more.

pub mod assign;
mod block;
pub mod bound;
mod chain;
mod gain;
mod measure;
pub mod search;
mod tile;
