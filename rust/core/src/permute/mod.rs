//! Channel permutations: an order of the columns under which an N:M mask keeps more.

pub mod assign;
mod block;
mod gain;
mod measure;
pub mod search;
mod tile;
