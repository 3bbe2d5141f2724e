//! The report, schema `leaktrace.report/1`. Fields may be added, never renamed; numbers are in
//! the unit that their name ends in.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

pub use super::{
    filters::Filters,
    finding::{
        AccountSide, Amount, Finding, Frame, FreedBy, Growth, Lifetime, LinkageReport, Object, Proof, Stack,
        Stayed, Survivors, Task,
    },
    groups::Group,
    kmemleak::KmemleakReport,
    reach::{HolderSide, LostStructure, OldPointers, ReachReport, ReachSide},
    unload::{LeftSite, Unload},
};

/// One of a few words, or whatever a report of another version has in its place.
pub type Word = Cow<'static, str>;

/// Name and version of the schema.
pub const SCHEMA: &str = "leaktrace.report/1";

/// Everything that a run found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: Word,
    /// Version of leaktrace.
    pub tool_version: Word,
    /// Release of the kernel.
    pub kernel: String,
    /// Architecture and size of the machine.
    pub machine: Machine,
    /// When and how long.
    pub window: Window,
    /// What was recorded, where that is not everything.
    #[serde(default)]
    pub filters: Filters,
    /// The answer.
    #[serde(default)]
    pub headline: Headline,
    /// What was watched, and what was not or got lost.
    pub coverage: Coverage,
    /// What the run itself cost.
    pub overhead: Overhead,
    /// From /proc/meminfo.
    pub memory: BTreeMap<Word, MemoryChange>,
    /// Slab caches, those that grew most first.
    pub caches: Vec<Cache>,
    /// Sites, the likeliest leak first.
    pub findings: Vec<Finding>,
    /// Findings with one cause, where that is a process.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The findings' modules.
    pub modules: Vec<Module>,
    /// Watched modules that were removed, and what they left behind.
    #[serde(default)]
    pub unloads: Vec<Unload>,
    /// The kernel's own accounts, where it keeps them: what grew most, and then the largest.
    #[serde(default)]
    pub accounts: Vec<Account>,
    /// kmemleak's word, with `--kmemleak`.
    #[serde(default)]
    pub kmemleak: Option<KmemleakReport>,
    /// How the kernel's memory was looked at, by `--prove` or for suspects.
    #[serde(default)]
    pub reachability: Option<ReachReport>,
    /// What went away when caches were dropped, with `--shake`.
    #[serde(default)]
    pub shake: Option<Shake>,
    /// What a recording has, of a report that was read from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Recorded>,
}

/// What a recording has up to its report.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Recorded {
    /// Ticks.
    pub ticks: u64,
    /// When the last tick was, since the start.
    pub until_s: f64,
    /// Reports.
    pub reports: u64,
    /// The tick that this report is of, since the start; `null` where there was no report yet, and findings are what ticks alone
    /// tell: live objects, and not how old they are.
    #[serde(default)]
    pub report_s: Option<f64>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Sites that were seen.
    pub sites: u64,
    /// `MemAvailable` over time: seconds since the start, and kilobytes.
    pub available_kb: Vec<(f32, f32)>,
    /// What of the file is not readable, in words.
    pub damage: Option<String>,
    /// The same in numbers: the first hundred gaps.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// Bytes of all gaps.
    #[serde(default)]
    pub bytes_lost: u64,
}

/// Part of a recording that is not readable.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Gap {
    /// The file.
    pub file: String,
    /// Where in it.
    pub at_byte: u64,
    /// How much.
    pub bytes: u64,
    /// The last tick before it, since the start; 0 where there is none.
    pub from_s: f64,
    /// The first tick after it; `null` where there is none.
    pub to_s: Option<f64>,
}

impl Report {
    /// Whether it was made of a recording's ticks alone.
    pub fn is_of_ticks(&self) -> bool {
        self.recorded.as_ref().is_some_and(|recorded| recorded.report_s.is_none())
    }

    /// Whether all modules that were asked for have been removed: what they left behind needs no growth to be told.
    pub fn all_removed(&self) -> bool {
        let removed = |module: &String| self.unloads.iter().any(|unload| unload.module == *module);
        !self.filters.modules.is_empty() && self.filters.modules.iter().all(removed)
    }
}

/// What a place in the kernel's source holds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Account {
    /// `file:line [module] function`, or `function [module]` where no lines are noted.
    pub place: String,
    /// At the beginning.
    pub bytes_before: u64,
    /// At the end.
    pub bytes_after: u64,
}

/// The answer in one sentence, and its numbers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Headline {
    /// `leak`, `suspect` or `none`: the strongest verdict on what a baseline does not have. `unknown` where none can be
    /// given: the window was too short, or what was to be traced was never there.
    pub verdict: Word,
    /// The sentence.
    pub text: String,
    /// What all leaks together take, with what is suspected of the same modules.
    pub bytes_per_s: f64,
    /// How long the memory that is available lasts at that rate; `null` without a leak.
    pub memory_lasts_s: Option<f64>,
    /// A slower leak would not have been seen; `null` when the window is too short to see any.
    pub floor_objects_per_s: Option<f64>,
}

/// The machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Machine {
    /// As `uname -m` says.
    pub architecture: String,
    /// CPUs online.
    pub cpus: u32,
    /// Memory.
    pub memory_kb: u64,
    /// Which boot it was: addresses of another one mean nothing.
    #[serde(default)]
    pub boot_id: String,
}

/// The time that was traced.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Window {
    /// Start, in RFC 3339.
    pub started: String,
    /// Length.
    pub duration_s: f64,
    /// Looks at the tables.
    pub ticks: u64,
    /// Those of them that counted survivors.
    #[serde(default)]
    pub scans: u64,
    /// Age from which a live object is a survivor.
    pub min_age_s: f64,
    /// Objects whose allocation was recorded; `null` where that is not known.
    #[serde(default)]
    pub allocated: Option<u64>,
}

/// What the numbers cover.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Coverage {
    /// All hooks of this kernel.
    pub hooks: Vec<HookReport>,
    /// What was not seen.
    pub blind_spots: Vec<BlindSpot>,
    /// What was missed.
    pub lost: LostReport,
    /// One address in so many was tracked; counts are scaled.
    pub sampling: u64,
}

/// A hook.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HookReport {
    /// Name of the tracepoint.
    pub name: Word,
    /// The path of the allocator that it sees.
    pub path: Word,
    /// How it is attached.
    pub mechanism: Word,
    /// Whether it was.
    pub attached: bool,
    /// The kernel's refusal.
    pub error: Option<String>,
}

/// Something that was not seen.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BlindSpot {
    /// The path of the allocator, or the source of knowledge that is missing.
    pub path: String,
    /// What that does to the numbers.
    pub effect: String,
    /// Caches that are known to be touched.
    pub caches: Vec<String>,
}

/// Events and objects that were missed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct LostReport {
    /// Events skipped because their program was running on that CPU already, and not seen by a second program either.
    pub recursion_misses: u64,
    /// Allocations for which the tables had no place.
    pub live_overflow: u64,
    /// Stacks for which the table had no place.
    pub stack_overflow: u64,
    /// Frees that were not seen, noticed when the address was allocated again.
    pub implicit_frees: u64,
    /// Events of sites for which the table had no place.
    pub site_overflow: u64,
    /// Stacks that the kernel could not capture.
    pub stacks_failed: u64,
    /// Frees whose caller found no place.
    #[serde(default)]
    pub callers: u64,
    /// Callers whose growth found no place.
    #[serde(default)]
    pub series: u64,
    /// Sites whose slab cache could not be read.
    pub unknown_caches: u64,
}

/// What the run cost.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Overhead {
    /// The programs in the kernel.
    pub programs: Vec<ProgramReport>,
    /// Their share of all CPUs; `null` when the kernel would not say.
    pub cpu_percent: Option<f64>,
    /// CPU time of leaktrace itself in user space and in system calls.
    pub user_space_cpu_s: f64,
    /// Kernel memory of the tables.
    pub tables_kb: u64,
    /// Outstanding objects that the tables were made for.
    pub max_objects: u64,
    /// The slowest look at all objects.
    pub slowest_scan_ms: f64,
    /// Ranking the sites and finding their symbols.
    pub ranking_ms: f64,
}

/// What one program cost.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ProgramReport {
    /// Its name.
    pub name: Word,
    /// Runs that were measured.
    pub runs: u64,
    /// Time of each.
    pub ns_per_run: Option<f64>,
    /// Events that came while it was running on that CPU, and that were skipped and not seen by a second program either.
    pub recursion_misses: u64,
}

/// One line of /proc/meminfo.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct MemoryChange {
    /// Before the run.
    pub before_kb: u64,
    /// After it.
    pub after_kb: u64,
}

/// A slab cache.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cache {
    /// Its name.
    pub name: String,
    /// Other names of the same cache.
    pub aliases: Vec<String>,
    /// Bytes of one object.
    pub object_size: u32,
    /// What /proc/slabinfo says, where it has the cache.
    pub slabinfo: Option<SlabChange>,
    /// What was traced.
    pub traced: TracedReport,
    /// `agrees`, `partly`, `contradicts`, `more in slabinfo` or `unchecked`.
    pub agreement: Word,
    /// Difference up to which both agree: objects that SLUB may hold back as active.
    pub tolerance: u64,
}

/// Active objects in /proc/slabinfo.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SlabChange {
    /// Before the run.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// Traced events of a cache.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct TracedReport {
    /// Allocations.
    pub allocated: u64,
    /// Frees of objects that were seen allocated.
    pub freed: u64,
    /// Frees of others, which are older than the run or were allocated unseen.
    pub unknown_freed: u64,
    /// Allocated and not freed.
    pub live: u64,
    /// By how much the cache should have grown.
    pub net: i64,
}

/// What dropping caches did.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Shake {
    /// Traced objects that lived before and did not afterwards.
    pub freed: Amount,
    /// The same by cache, the most bytes first.
    pub caches: Vec<ShakenCache>,
}

/// What of a cache went away.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ShakenCache {
    /// Its name.
    pub cache: String,
    /// Live objects before.
    pub before: u64,
    /// What went away.
    pub freed: Amount,
}

/// What a module's sites hold.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Module {
    /// Its name; `vmlinux` for the kernel itself.
    pub name: String,
    /// Sites that are findings.
    pub findings: usize,
    /// Bytes allocated and not freed.
    pub live_bytes: u64,
    /// Bytes of survivors.
    pub survivor_bytes: u64,
    /// Growth.
    pub bytes_per_s: f64,
}
