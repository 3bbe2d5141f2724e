//! The part of the report on one site.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use super::{escape, kmemleak::KmemleakSide, model::Word, reach::ReachSide};
use crate::units;

/// A site, or of a function that allocates for others one of its callers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Finding {
    /// Which of the snapshot's sites it is of; no part of the schema.
    #[serde(skip)]
    pub site: usize,
    /// From 1.
    pub rank: usize,
    /// `leak`, `suspect`, `plateau`, `cache` or `churn`; of a recording's ticks alone `unknown`.
    pub verdict: Word,
    /// Whether a baseline has it already.
    #[serde(default)]
    pub known: bool,
    /// Why its frees may not all have been seen, if they may not.
    pub doubt: Option<String>,
    /// What it will have taken in an hour, in bytes; of what does not grow the bytes that survive.
    pub score: f64,
    /// `kmalloc`, `kmalloc-large`, `kmem_cache`, `page`, `vmalloc` or `percpu`.
    pub family: Word,
    /// Name of the slab cache; of other families the size of the block (`pages-16k`) or the family.
    pub cache: String,
    /// Of several caches that the kernel has merged the one that fits who allocates, where that is another one.
    #[serde(default)]
    pub object: Option<String>,
    /// The module to blame, or the kernel's function where none is on the stack.
    pub module: String,
    /// Whether `module` is a loadable module.
    pub is_module: bool,
    /// Where it allocates.
    pub call_site: Frame,
    /// The first frame past functions that allocate for others.
    #[serde(default)]
    pub responsible: Frame,
    /// The first frame in a loadable module, if one is on the stack.
    #[serde(default)]
    pub in_module: Option<Frame>,
    /// Whether this is about one caller of the call site: then `allocated`, `freed`, `implicit_frees`,
    /// `lifetime` and `freed_by` are those of all its callers.
    #[serde(default)]
    pub split: bool,
    /// Allocations.
    pub allocated: u64,
    /// Frees.
    pub freed: u64,
    /// Frees among them that were not seen when they happened.
    pub implicit_frees: u64,
    /// What is allocated and not freed.
    pub live: Amount,
    /// What of it is older than the minimum age.
    pub survivors: Survivors,
    /// How it grows.
    pub growth: Growth,
    /// Its live objects over time, of a recording: seconds since the start, and objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<(f32, f32)>,
    /// How long freed objects had lived.
    pub lifetime: Lifetime,
    /// Who frees its objects, the most frequent first.
    #[serde(default)]
    pub freed_by: Vec<FreedBy>,
    /// What survivors look like in memory, where they were looked at.
    #[serde(default)]
    pub linkage: Option<LinkageReport>,
    /// Who allocated the live objects.
    pub tasks: Vec<Task>,
    /// From where.
    pub stacks: Vec<Stack>,
    /// The oldest of them.
    pub objects: Vec<Object>,
    /// What others say of its objects, where they were asked.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// Why, in words.
    pub evidence: Vec<String>,
    /// Of a suspect: what is open, in words.
    #[serde(default)]
    pub open: Vec<String>,
    /// What to do next, the best first: of a suspect what would settle it. Only what this machine can do.
    #[serde(default)]
    pub settle: Vec<String>,
}

/// What others say of a finding's objects.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Proof {
    /// kmemleak.
    #[serde(default)]
    pub kmemleak: Option<KmemleakSide>,
    /// The kernel's own accounts: /proc/allocinfo, or `alloc_traces` and `page_owner`.
    #[serde(default)]
    pub accounts: Option<AccountSide>,
    /// The kernel's own memory: whether anything points to them.
    #[serde(default)]
    pub reachability: Option<ReachSide>,
}

/// What the kernel's own accounts have for the function of a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct AccountSide {
    /// The place in the kernel's source that holds most of it.
    pub place: String,
    /// Held at the beginning.
    pub bytes_before: u64,
    /// Held at the end.
    pub bytes_after: u64,
    /// Whether the change agrees with what was traced.
    pub agreement: Word,
    /// How the place was found: by the name of the `function`, or as the only one of the module whose `size` agrees.
    pub matched_by: Word,
}

/// A caller that frees.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FreedBy {
    /// Its place, or `kfree_rcu` or `in bulk`.
    pub caller: String,
    /// The loadable module that it lies in, if it does.
    #[serde(default)]
    pub module: Option<String>,
    /// Its share of the frees, of a sample.
    pub percent: f64,
}

/// What survivors look like in memory.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct LinkageReport {
    /// Survivors that were read.
    pub looked_at: u64,
    /// Those that are linked into a structure: a neighbour points back.
    pub linked: u64,
    /// Others that are pointed to by data of the kernel or its modules, or by a traced object that is linked.
    pub held: u64,
    /// Survivors that could not be read.
    pub unreadable: u64,
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Objects that stay.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Survivors {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
    /// Age of the oldest.
    pub oldest_s: f64,
    /// Where a sample was tracked: 95 % of the time the true number of objects lies so much around it.
    #[serde(default)]
    pub error_percent: f64,
}

/// Growth of the survivors.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Growth {
    /// Bytes of the survivors that came to be in a second, without the first third of the time, in which it fills up.
    pub bytes_per_s: f64,
    /// 95 % of the time the true number lies so much around it, as parts of the time differ.
    #[serde(default)]
    pub bytes_per_s_error: f64,
    /// Always `null`: earlier versions printed a test here that does not hold for running sums.
    pub p_value: Option<f64>,
    /// Looks at the survivors.
    #[serde(default)]
    pub ticks: usize,
    /// Whether the growth is certain: see `walk` and `stayed`.
    #[serde(default)]
    pub sure: bool,
    /// How long it has been growing.
    #[serde(default)]
    pub sustained_s: f64,
    /// Parts of the time in which survivors were allocated.
    #[serde(default)]
    pub born_in: usize,
    /// Parts of the time since the first survivor.
    #[serde(default)]
    pub parts: usize,
    /// How likely a coming and going by chance, in the same steps, would rise as much, at most; `null` where it was not counted.
    #[serde(default)]
    pub walk: Option<f64>,
    /// What became of the survivors of a look near the middle of the time; `null` where there was none.
    #[serde(default)]
    pub stayed: Option<Stayed>,
    /// `steady`, `bursty`, `step`, `plateau`, `sawtooth` or `unclear`; `ticks` where only live objects at a recording's ticks are
    /// known, and `bytes_per_s` is theirs.
    #[serde(default)]
    pub shape: Word,
    /// Bytes of the survivors over time: seconds since the start, and bytes.
    #[serde(default)]
    pub points: Vec<(f32, f32)>,
}

/// What became of the survivors of an earlier look.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Stayed {
    /// Survivors then.
    pub aged: u64,
    /// Those that were freed since.
    pub freed: u64,
    /// Time since.
    pub watched_s: f64,
    /// What such objects live on for, on average, at least, 95 % of the time.
    pub lives_on_s: Option<f64>,
}

/// Lifetimes of freed objects.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Lifetime {
    /// Half did not live longer.
    pub p50_us: Option<f64>,
    /// 99 of 100 did not live longer.
    pub p99_us: Option<f64>,
    /// How many lived up to so many microseconds, and longer than the class before: the classes that are not empty, of a
    /// sample. The last class has no end.
    #[serde(default)]
    pub classes: Vec<(f64, u64)>,
}

/// A process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Task {
    /// Its name.
    pub comm: String,
    /// Its id; 0 for interrupts on the idle task.
    pub pid: u32,
    /// Objects.
    pub objects: u64,
}

/// A stack.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stack {
    /// Objects that were allocated from it, of those that have a stack.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The call site first.
    pub frames: Vec<Frame>,
}

/// A place in the code.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Frame {
    /// Return address.
    #[serde(serialize_with = "hex", deserialize_with = "from_hex")]
    pub address: u64,
    /// Function, where it is known.
    pub symbol: Option<String>,
    /// Bytes into it.
    pub offset: u64,
    /// Loadable module, if it is in one.
    pub module: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Whether the function is inlined into the next frame's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}

/// One outstanding object.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Object {
    /// Its address; of pages that of the `struct page`, of per-CPU memory that of the first CPU's copy.
    #[serde(serialize_with = "hex", deserialize_with = "from_hex")]
    pub address: u64,
    /// Bytes that were asked for.
    pub size: u32,
    /// Its age.
    pub age_s: f64,
    /// `orphan`, `held`, `undecided` or `free`, where it was looked for in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Word>,
}

/// JSON has no 64-bit integers that everyone reads alike.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
pub(super) fn hex<S: serde::Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}

pub(super) fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = <Cow<'_, str>>::deserialize(deserializer)?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(serde::de::Error::custom)
}

impl Finding {
    /// What the objects are: the cache's name, or a better one.
    pub fn what(&self) -> Cow<'_, str> {
        match &self.object {
            Some(object) => Cow::from(format!("{object} ({})", self.cache)),
            None => Cow::from(&self.cache),
        }
    }

    /// Whether it is a leak or a suspect.
    pub fn is_of_note(&self) -> bool {
        matches!(&*self.verdict, "leak" | "suspect")
    }
}

impl Growth {
    /// The growth where there is one, else 0.
    pub fn rate(&self) -> f64 {
        if matches!(&*self.shape, "steady" | "bursty") { self.bytes_per_s } else { 0.0 }
    }

    /// The same in words; of what does not grow its shape.
    pub fn in_words(&self) -> String {
        if matches!(&*self.shape, "steady" | "bursty" | "ticks") {
            units::rate(self.bytes_per_s)
        } else {
            escape(&self.shape).into_owned()
        }
    }
}

impl Frame {
    /// `symbol+0xoffset [module]`, or the address.
    pub fn label(&self) -> String {
        let place = match (&self.symbol, self.inlined) {
            (Some(symbol), true) => symbol.clone(),
            (Some(symbol), false) => format!("{symbol}+{:#x}", self.offset),
            (None, _) => format!("{:#x}", self.address),
        };
        match &self.module {
            Some(module) => format!("{place} [{module}]"),
            None => place,
        }
    }
}
