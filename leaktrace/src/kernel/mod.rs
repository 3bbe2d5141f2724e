//! What the running kernel is and what it offers. Everything else asks here.

pub mod btf;
pub mod dwarf;
pub mod layout;
pub mod machine;
pub mod modules;
pub mod places;
pub mod privilege;
pub mod symbols;
