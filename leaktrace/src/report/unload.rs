//! The part of the report on watched modules that were removed.

use serde::{Deserialize, Serialize};

use super::model::{Amount, Frame, Word};

/// A watched module was removed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Unload {
    /// Its name.
    pub module: String,
    /// When, since the start of the trace.
    pub after_s: f64,
    /// `leak`, or `suspect` where all of them may have been freed unseen, or nothing is left.
    pub verdict: Word,
    /// Why some may have been freed unseen.
    pub doubt: Option<String>,
    /// What it allocated itself and nobody has freed since.
    pub left: Amount,
    /// The same by call site, the most bytes first.
    pub sites: Vec<LeftSite>,
}

/// What a removed module left behind from one call site.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LeftSite {
    /// The module's function that allocated it.
    pub function: Frame,
    /// As of a finding.
    pub family: Word,
    /// Name of the slab cache, or what stands for it.
    pub cache: String,
    /// What is left.
    pub left: Amount,
}
