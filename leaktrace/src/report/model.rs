//! The report, schema `leaktrace.report/1`. Fields may be added, never renamed; numbers are in
//! the unit that their name ends in.

use std::collections::BTreeMap;

use serde::Serialize;

pub use super::unload::{LeftSite, Unload};

/// Name and version of the schema.
pub const SCHEMA: &str = "leaktrace.report/1";

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: &'static str,
    /// Version of leaktrace.
    pub tool_version: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// Architecture and size of the machine.
    pub machine: Machine,
    /// When and how long.
    pub window: Window,
    /// What was watched, and what was not or got lost.
    pub coverage: Coverage,
    /// What the run itself cost.
    pub overhead: Overhead,
    /// From /proc/meminfo.
    pub memory: BTreeMap<&'static str, MemoryChange>,
    /// Slab caches, those that grew most first.
    pub caches: Vec<Cache>,
    /// Sites, the likeliest leak first.
    pub findings: Vec<Finding>,
    /// The findings' modules.
    pub modules: Vec<Module>,
    /// Watched modules that were removed, and what they left behind.
    pub unloads: Vec<Unload>,
}

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// As `uname -m` says.
    pub architecture: String,
    /// CPUs online.
    pub cpus: u32,
    /// Memory.
    pub memory_kb: u64,
}

/// The time that was traced.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// Start, in RFC 3339.
    pub started: String,
    /// Length.
    pub duration_s: f64,
    /// Looks at the tables.
    pub ticks: u64,
    /// Age from which a live object is a survivor.
    pub min_age_s: f64,
}

/// What the numbers cover.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    /// Name of the tracepoint.
    pub name: &'static str,
    /// The path of the allocator that it sees.
    pub path: &'static str,
    /// How it is attached.
    pub mechanism: &'static str,
    /// Whether it was.
    pub attached: bool,
    /// The kernel's refusal.
    pub error: Option<String>,
}

/// Something that was not seen.
#[derive(Clone, Debug, Serialize)]
pub struct BlindSpot {
    /// The path of the allocator, or the source of knowledge that is missing.
    pub path: String,
    /// What that does to the numbers.
    pub effect: String,
    /// Caches that are known to be touched.
    pub caches: Vec<String>,
}

/// Events and objects that were missed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LostReport {
    /// Events skipped because their program was running on that CPU already.
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
    /// Sites whose slab cache could not be read.
    pub unknown_caches: u64,
}

/// What the run cost.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    /// Its name.
    pub name: &'static str,
    /// Runs that were measured.
    pub runs: u64,
    /// Time of each.
    pub ns_per_run: Option<f64>,
    /// Events that came while it was running on that CPU and were skipped.
    pub recursion_misses: u64,
}

/// One line of /proc/meminfo.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryChange {
    /// Before the run.
    pub before_kb: u64,
    /// After it.
    pub after_kb: u64,
}

/// A slab cache.
#[derive(Clone, Debug, Serialize)]
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
    pub agreement: &'static str,
    /// Difference up to which both agree: objects that SLUB may hold back as active.
    pub tolerance: u64,
}

/// Active objects in /proc/slabinfo.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SlabChange {
    /// Before the run.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// Traced events of a cache.
#[derive(Clone, Copy, Debug, Serialize)]
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

/// A site.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// From 1.
    pub rank: usize,
    /// `suspect`, `cache`, `plateau` or `churn`.
    pub verdict: &'static str,
    /// Why it can be no more than suspected, where its frees may not all be seen.
    pub doubt: Option<String>,
    /// Surviving bytes weighed by verdict and growth.
    pub score: f64,
    /// `kmalloc`, `kmalloc-large`, `kmem_cache`, `page`, `vmalloc` or `percpu`.
    pub family: &'static str,
    /// Name of the slab cache; of other families the size of the block (`pages-16k`) or the family.
    pub cache: String,
    /// The module to blame, or the kernel's function where none is on the stack.
    pub module: String,
    /// Whether `module` is a loadable module.
    pub is_module: bool,
    /// Where it allocates.
    pub call_site: Frame,
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
    /// How long freed objects had lived.
    pub lifetime: Lifetime,
    /// Who allocated the live objects.
    pub tasks: Vec<Task>,
    /// From where.
    pub stacks: Vec<Stack>,
    /// The oldest of them.
    pub objects: Vec<Object>,
    /// Why, in words.
    pub evidence: Vec<String>,
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Objects that stay.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Survivors {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
    /// Age of the oldest.
    pub oldest_s: f64,
}

/// Growth of the live objects.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Growth {
    /// Theil-Sen slope.
    pub bytes_per_s: f64,
    /// Not computed yet.
    pub p_value: Option<f64>,
}

/// Lifetimes of freed objects.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lifetime {
    /// Half did not live longer.
    pub p50_us: Option<f64>,
    /// 99 of 100 did not live longer.
    pub p99_us: Option<f64>,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
pub struct Task {
    /// Its name.
    pub comm: String,
    /// Its id; 0 for interrupts on the idle task.
    pub pid: u32,
    /// Objects.
    pub objects: u64,
}

/// A stack.
#[derive(Clone, Debug, Serialize)]
pub struct Stack {
    /// Objects that were allocated from it, of those that have a stack.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The call site first.
    pub frames: Vec<Frame>,
}

/// A place in the code.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Frame {
    /// Return address.
    #[serde(serialize_with = "hex")]
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}

/// One outstanding object.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Object {
    /// Its address; of pages that of the `struct page`, of per-CPU memory that of the first CPU's copy.
    #[serde(serialize_with = "hex")]
    pub address: u64,
    /// Bytes that were asked for.
    pub size: u32,
    /// Its age.
    pub age_s: f64,
}

/// What a module's sites hold.
#[derive(Clone, Debug, Serialize)]
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

/// JSON has no 64-bit integers that everyone reads alike.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn hex<S: serde::Serializer>(address: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
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
