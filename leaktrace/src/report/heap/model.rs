//! The model of a look at the heap, which is its JSON schema. Numbers are in the unit that their name ends in.

use serde::{Deserialize, Serialize};

use crate::report::{
    finding::{from_hex, hex},
    reach::ReachSide,
};

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
    /// What this boot of the kernel is called by it.
    pub boot: String,
    /// When it was looked, in RFC 3339.
    pub taken: String,
    /// What was asked for.
    pub asked: Asked,
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
    /// All caches that have objects, and vmalloc by who allocated, the most bytes first.
    pub caches: Vec<Cache>,
    /// What grew since an earlier look, where there was one.
    pub grown: Option<Grown>,
    /// What could not be looked at or told apart.
    pub notes: Vec<String>,
}

/// What was asked for; nothing is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Patterns of names of caches.
    pub caches: Vec<String>,
    /// A module.
    pub module: Option<String>,
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
    /// Allocated objects of slab.
    pub objects: u64,
    /// Their bytes.
    pub slab_bytes: u64,
    /// Areas of vmalloc.
    pub areas: u64,
    /// Compound pages and pieces of per-CPU memory.
    #[serde(default)]
    pub blocks: u64,
    /// Pieces of per-CPU memory that are not looked at: their addresses are numbers like any other.
    #[serde(default)]
    pub untold: u64,
    /// Caches.
    pub caches: usize,
    /// Bytes of our own that were needed to note them.
    pub memory_bytes: u64,
    /// Objects that nothing led to at first, and were looked at once more.
    pub candidates: u64,
    /// Objects of which it is not clear: nothing leads to them and their content changed, or looks differ.
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
    /// The slab cache, `vmalloc`, `percpu`, or `pages-32k` of compound pages of that size.
    pub cache: String,
    /// Of vmalloc the function that allocated them.
    pub caller: Option<String>,
    /// The module that allocated them, where that is known; else whose functions or variables are in them, or in what they
    /// were lost with.
    pub module: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is in them.
    pub content: Vec<Sign>,
    /// Who allocated them or others of their cache, where that was noted at the time, the most objects first.
    pub allocated_by: Vec<Maker>,
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

/// Who allocated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Maker {
    /// The function, with its module.
    pub place: String,
    /// Objects.
    pub objects: u64,
    /// Who says so: `report`, which knows these objects, or `alloc_traces`, which has all objects of the cache.
    pub by: String,
}

/// An object.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Object {
    /// Its address.
    #[serde(serialize_with = "hex", deserialize_with = "from_hex")]
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
    /// `chain` where something in the kernel holds them, `file` where open files of one process do and nothing else, `negative`
    /// where they are names of nothing that the kernel keeps until it needs the memory.
    pub by: String,
    /// Whether they hang on one another first: a list, a tree.
    pub on_each_other: bool,
    /// What they hang on, and what that, up to a variable, a stack, or a page: an object by its cache and the place in it. Of
    /// files what these are: `pipe`, `socket`, `inotify`, the path of a device.
    pub chain: Vec<String>,
    /// The process that has the files open.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
}

/// What is allocated of a cache, or by vmalloc for one function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// The slab cache, `vmalloc`, `percpu`, or `pages-32k` of compound pages of that size.
    pub cache: String,
    /// Of vmalloc the function that allocated it.
    pub caller: Option<String>,
    /// And its module.
    pub module: Option<String>,
    /// Objects or areas.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Name and version of the schema of a difference.
pub const GROWN_SCHEMA: &str = "leaktrace.heap-diff/1";

/// What differs between two looks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grown {
    /// [`GROWN_SCHEMA`].
    pub schema: String,
    /// When the two looks were, in RFC 3339.
    pub taken: [String; 2],
    /// Seconds between them.
    pub seconds: f64,
    /// Lost objects, by kinds, what grew most first.
    pub lost: Vec<Growth>,
    /// Everything that is allocated, by caches, what grew most first.
    pub caches: Vec<Growth>,
    /// What makes them hard to compare.
    pub notes: Vec<String>,
}

/// Something of which there is more or less than before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// The slab cache, `vmalloc`, `percpu`, or `pages-32k` of compound pages of that size.
    pub cache: String,
    /// Of vmalloc the function that allocated it.
    pub caller: Option<String>,
    /// The module.
    pub module: Option<String>,
    /// Of what is lost the first functions and variables that are in it.
    pub content: Vec<String>,
    /// Objects before and after.
    pub objects: [u64; 2],
    /// Bytes before and after.
    pub bytes: [u64; 2],
    /// Bytes by which it grew in an hour.
    pub bytes_per_h: f64,
}
