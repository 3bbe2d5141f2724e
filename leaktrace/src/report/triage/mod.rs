//! The answer of `leaktrace triage`: its model, which is the JSON schema, and its text.

pub mod model;
pub mod process;
mod tables;
pub mod text;
