//! What is looked for, how much may be looked at, and what came of it.

use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::analysis::reach::{Edge, Held};

/// What kind of memory a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A slab object.
    Slab,
    /// A large kmalloc, which has pages to itself.
    Large,
    /// A block of pages; its address is that of the `struct page`.
    Page,
    /// An area of vmalloc.
    Area,
    /// Per-CPU memory; its address is the one that its allocator goes by.
    PerCpu,
}

/// An object that is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its address.
    pub address: u64,
    /// How many bytes; of per-CPU memory those of one CPU.
    pub bytes: u64,
    /// What it is.
    pub kind: Kind,
    /// Objects of one group are told of together.
    pub group: u32,
    /// Whether it may be a table that a device reads, which is pointed to by its physical address only.
    pub(super) may_be_table: bool,
    /// The page frame of a block of pages, once it is known.
    pub(super) frame: u64,
}

impl Candidate {
    /// A candidate of a group.
    pub fn new(address: u64, bytes: u64, kind: Kind, group: u32) -> Self {
        Self { address, bytes: bytes.max(1), kind, group, may_be_table: false, frame: 0 }
    }

    /// The same, which may be a table that a device reads.
    #[must_use]
    pub fn or_table(self, may_be_table: bool) -> Self {
        Self { may_be_table, ..self }
    }
}

/// How much may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of one look.
    pub bytes: u64,
    /// Time for all of them.
    pub time: Duration,
}

impl Default for Limit {
    fn default() -> Self {
        Self { bytes: 64 << 30, time: Duration::from_mins(1) }
    }
}

/// What came of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing points to it: it is lost.
    Orphan,
    /// Something does.
    Held,
    /// The looks differ.
    Undecided,
    /// It is free, whatever was traced.
    Free,
}

/// What was found of one candidate.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The answer.
    pub outcome: Outcome,
    /// How it is reached, if it is.
    pub held: Option<Held>,
    /// Memory out of use that has an old pointer to it: what misleads kmemleak.
    pub old: Option<&'static str>,
}

/// Who holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// A variable, `NAME object` of a cache, a stack or a page.
    pub what: String,
    /// Where in it the pointer is, in bytes, where that says something.
    pub at: Option<u64>,
    /// What is said behind that: of a variable its module.
    pub suffix: String,
    /// Start of the object, where it is one whose allocation may have been traced.
    pub object: Option<u64>,
    /// Return address of who made it, of areas of vmalloc.
    pub caller: Option<u64>,
}

/// Everything that was found.
pub struct Proof {
    /// Of each candidate, in their order.
    pub found: Vec<Found>,
    /// Pointers among candidates in the last look, without the allocator's own in free objects that were.
    pub edges: Vec<Edge>,
    /// By the number of a root's place: who holds, and who holds that, up to three steps.
    pub holders: FxHashMap<u32, Vec<Holder>>,
    /// What it cost.
    pub cost: Cost,
    /// Why it is less than it should be, if it is.
    pub cut_short: Option<String>,
    /// What could not be told apart, so that it counts as holding.
    pub notes: Vec<String>,
}

/// What the looks cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Looks that were finished.
    pub looks: usize,
    /// Bytes that one of them read.
    pub bytes: u64,
    /// Seconds of all of them, without rests.
    pub seconds: f64,
    /// Bytes per second that they read and compared.
    pub bytes_per_s: f64,
    /// Bytes per second that /proc/kcore gave, compared with nothing.
    pub kcore_bytes_per_s: f64,
}
