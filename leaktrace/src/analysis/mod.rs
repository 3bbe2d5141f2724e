//! Judgement: pure functions from what was seen to what it means.

pub mod accounts;
pub mod blame;
pub mod crosscheck;
pub mod growth;
pub mod holders;
pub mod lifetime;
pub mod linkage;
pub mod reach;
pub mod triage;
pub mod verdict;
pub mod visibility;
pub mod witness;
