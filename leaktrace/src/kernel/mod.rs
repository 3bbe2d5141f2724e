//! What the running kernel is and what it offers. Everything else asks here.

pub mod btf;
pub mod data;
pub mod dwarf;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod modules;
pub mod places;
pub mod privilege;
pub mod symbols;
