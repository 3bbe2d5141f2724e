//! Judgement: pure functions from what was seen to what it means.

pub mod accounts;
pub mod births;
pub mod blame;
pub mod claims;
pub mod content;
pub mod crosscheck;
pub mod growth;
#[cfg(test)]
mod growth_rates;
pub mod holders;
pub mod lifetime;
pub mod linkage;
pub mod naming;
pub mod objects;
pub mod reach;
pub mod steps;
pub mod triage;
pub mod verdict;
pub mod visibility;
pub mod witness;
