//! What the user wants of a trace.

use std::time::Duration;

use super::hooks::{Family, Mechanism};

/// What the user wants of a trace.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Share of each CPU for stack captures, 0 to 1; 1 captures every stack.
    pub stack_share: f64,
    /// Frames that a captured stack may have, those of the tracing itself included.
    pub stack_depth: u32,
    /// Smallest object size recorded.
    pub min_size: u32,
    /// Largest object size recorded.
    pub max_size: u32,
    /// Whether only the caches below are recorded.
    pub filter_caches: bool,
    /// Names of the caches that the filter lets through.
    pub caches: Vec<String>,
    /// What is tracked.
    pub families: Vec<Family>,
    /// Names of the modules that the stack of what is recorded has to pass through; none: everything is.
    pub modules: Vec<String>,
    /// Mechanisms that are not to be used.
    pub refused: Vec<Mechanism>,
    /// Age from which a live object is a survivor.
    pub min_age: Duration,
    /// Time between two ticks.
    pub interval: Duration,
    /// Ask the verifier for its log when it refuses.
    pub verbose: bool,
}
