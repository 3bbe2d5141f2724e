//! A look at the heap: what is lost, who holds the rest, and what grew since an earlier look.

pub mod difference;
pub mod forms;
pub mod model;
pub mod text;
