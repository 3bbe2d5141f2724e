//! A look at the heap: what is lost, and who holds the rest.

pub mod model;
pub mod text;
