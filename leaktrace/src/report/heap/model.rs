//! The model of a look at the heap, which is its JSON schema. Numbers are in the unit that their name ends in.

use serde::{Deserialize, Serialize};

use crate::report::reach::ReachSide;

/// Name and version of the schema.
pub const SCHEMA: &str = "leaktrace.heap/1";

/// What is lost, and who holds the rest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heap {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of leaktrace.
    pub tool_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture.
    pub architecture: String,
    /// When it was looked, in RFC 3339.
    pub taken: String,
    /// What was looked at.
    pub scanned: Scanned,
    /// What nothing leads to, together.
    pub lost: Amount,
    /// What nothing leads to, by kinds, the most bytes first.
    pub groups: Vec<Group>,
    /// What a kernel that is well shows, too: it is not counted in `lost`.
    pub known: Vec<Known>,
    /// Who holds the caches that take the most.
    pub holders: Vec<Holding>,
    /// What could not be looked at or told apart.
    pub notes: Vec<String>,
}

/// What was looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Scanned {
    /// Bytes that were read.
    pub bytes: u64,
    /// Seconds that it took, without rests.
    pub seconds: f64,
    /// Bytes per second that /proc/kcore gave, compared with nothing.
    pub kcore_bytes_per_s: f64,
    /// Allocated objects.
    pub objects: u64,
    /// Their bytes.
    pub slab_bytes: u64,
    /// Caches.
    pub caches: usize,
    /// Bytes of our own that were needed to note them.
    pub memory_bytes: u64,
    /// Objects that nothing led to at first, and were looked at once more.
    pub candidates: u64,
    /// Objects of which it is not clear: they changed meanwhile, or looks differ.
    pub unclear: u64,
    /// Objects that nothing led to, and that were too many to be looked at once more.
    pub left_out: u64,
    /// Bytes of the caches that did not fit into our own memory: what is in them counts as holding.
    pub unfit_bytes: u64,
    /// Lost objects of all caches and modules, whatever was asked for.
    pub lost_in_all: u64,
    /// Why less is known than should be.
    pub cut_short: Option<String>,
}

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Lost objects of one kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Group {
    /// Always `lost`.
    pub verdict: String,
    /// The slab cache.
    pub cache: String,
    /// The module whose functions or variables are in them, or in what they were lost with.
    pub module: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is in them.
    pub content: Vec<Sign>,
    /// How memory was asked.
    pub proof: ReachSide,
    /// Some of them.
    pub objects_sample: Vec<Object>,
}

/// What most objects of a kind have at one place.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sign {
    /// Where, in bytes.
    pub offset: u32,
    /// `symbol`, `text`, `object` or `itself`.
    pub what: String,
    /// The function or variable with the offset, the text, the cache, or the place in the object itself.
    pub name: String,
    /// Of a function or variable its module.
    pub module: Option<String>,
    /// In what share of the objects.
    pub share: f64,
}

/// An object.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Object {
    /// Its address.
    pub address: u64,
    /// Bytes that it takes.
    pub size: u64,
}

/// What is always there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Known {
    /// The slab cache.
    pub cache: String,
    /// Objects.
    pub objects: u64,
    /// Why nothing leads to them.
    pub why: String,
}

/// A cache, and who holds what is in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Holding {
    /// The slab cache.
    pub cache: String,
    /// Allocated objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects of a sample, whose holders were asked for.
    pub sampled: u64,
    /// Who holds them, those of most objects first.
    pub holders: Vec<Holder>,
}

/// What objects hang on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Holder {
    /// Objects of the sample.
    pub objects: u64,
    /// Whether they hang on one another first: a list, a tree.
    pub on_each_other: bool,
    /// What they hang on, and what that, up to a variable, a stack, or a page: an object by its cache and the place in it.
    pub chain: Vec<String>,
}
