//! The model of a triage, which is its JSON schema. Numbers are in the unit that their name ends in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::analysis::triage::Diagnosis;

/// Name and version of the schema.
pub const SCHEMA: &str = "leaktrace.triage/1";

/// Who has the memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Triage {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of leaktrace.
    pub tool_version: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture.
    pub architecture: String,
    /// Online CPUs.
    pub cpus: u32,
    /// When it was looked.
    pub window: Window,
    /// Memory and swap.
    pub memory: Memory,
    /// Findings, the likeliest first.
    pub diagnosis: Vec<Diagnosis>,
    /// Uses of all memory: they add up.
    pub ledger: Vec<Row>,
    /// The largest processes and those that grow most.
    pub processes: Vec<Process>,
    /// How many processes there are.
    pub process_count: usize,
    /// Processes of one name together, the largest first.
    pub process_names: Vec<Name>,
    /// Slab caches, the largest first.
    pub caches: Vec<Cache>,
    /// vmalloc by caller, the largest first.
    pub vmalloc: Vec<Caller>,
    /// File systems in memory, the largest first.
    pub mounts: Vec<Mount>,
    /// Control groups, the largest first, the root left out.
    pub cgroups: Vec<Cgroup>,
    /// Protocols with sockets.
    pub protocols: Vec<Protocol>,
    /// Swap areas.
    pub swap: Vec<SwapArea>,
    /// zram devices.
    pub zram: Vec<Zram>,
    /// Pools of huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Loaded modules, the largest first.
    pub modules: Vec<Module>,
    /// Places in the kernel's source by bytes, where the kernel keeps such accounts.
    pub places: Vec<Place>,
    /// All numbers of /proc/meminfo at the end, as it has them.
    pub meminfo: BTreeMap<String, u64>,
    /// Lines of /proc/meminfo that were not understood.
    pub unknown_lines: Vec<String>,
    /// What could not be read, and what is missing therefore.
    pub unreadable: Vec<Unreadable>,
    /// What looking cost.
    pub cost: Cost,
}

/// When it was looked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Window {
    /// Beginning, RFC 3339.
    pub started: String,
    /// From the first look to the last.
    pub duration_s: f64,
    /// Looks that the trends were taken from.
    pub looks: usize,
}

/// Memory and swap.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// All.
    pub total_kb: i64,
    /// By the kernel's own estimate.
    pub available_kb: u64,
    /// All swap.
    pub swap_total_kb: u64,
    /// Swap in use.
    pub swap_used_kb: u64,
}

/// A use of memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// Its name for programs.
    pub class: String,
    /// Its name for people.
    pub title: String,
    /// At the first look.
    pub before_kb: i64,
    /// At the last look.
    pub after_kb: i64,
    /// Growth.
    pub kb_per_hour: f64,
    /// Whether it rises or falls all the time.
    pub steady: bool,
    /// Whether the kernel takes it back when memory is short.
    pub reclaimable: bool,
    /// The lines of /proc that it came from.
    pub source: String,
}

/// A process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// Resident memory.
    pub rss_kb: u64,
    /// Proportional set size, where it was cheap to ask for.
    pub pss_kb: Option<u64>,
    /// Address space.
    pub vsz_kb: u64,
    /// Anonymous memory, what is swapped out included.
    pub anon_kb: u64,
    /// Shared memory.
    pub shmem_kb: u64,
    /// Swapped out.
    pub swap_kb: u64,
    /// Page tables.
    pub page_tables_kb: u64,
    /// Threads.
    pub threads: u32,
    /// Open files.
    pub fds: Option<u32>,
    /// Mappings.
    pub maps: Option<u64>,
    /// Growth of the anonymous memory.
    pub anon_grown_kb: i64,
    /// Growth of the number of open files.
    pub fds_grown: i64,
    /// What it is written in, as far as it can be seen.
    pub language: Option<String>,
}

/// Processes of one name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Name {
    /// The name.
    pub comm: String,
    /// How many.
    pub processes: usize,
    /// Their anonymous memory; what they share by a fork is counted for each.
    pub anon_kb: u64,
}

/// A slab cache.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cache {
    /// Name.
    pub name: String,
    /// What its objects are.
    pub purpose: Option<String>,
    /// The module whose it is.
    pub module: Option<String>,
    /// How that is known: `constructor` or `name`.
    pub module_by: Option<String>,
    /// Other caches that the kernel has merged with it: its objects may be theirs.
    pub merged_with: Vec<String>,
    /// Whether the kernel shrinks it; `None` where that could not be read.
    pub reclaimable: Option<bool>,
    /// Objects in use.
    pub objects: u64,
    /// Bytes of each.
    pub object_size: u32,
    /// Memory that its slabs take.
    pub kb: u64,
    /// Change of objects.
    pub objects_grown: i64,
    /// Change of memory of its objects.
    pub grown_kb: i64,
}

/// A caller of vmalloc.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Caller {
    /// `function` or `function [module]`.
    pub caller: String,
    /// Areas.
    pub areas: u64,
    /// Memory.
    pub kb: u64,
    /// Change.
    pub grown_kb: i64,
}

/// A file system in memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// Type.
    pub kind: String,
    /// In use.
    pub used_kb: u64,
    /// What it may have; 0 for no limit.
    pub limit_kb: u64,
    /// Change.
    pub grown_kb: i64,
}

/// A control group, with all below it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cgroup {
    /// Path.
    pub path: String,
    /// Charged.
    pub used_kb: u64,
    /// What it may have.
    pub limit_kb: Option<u64>,
    /// Of processes.
    pub anon_kb: u64,
    /// Page cache.
    pub file_kb: u64,
    /// tmpfs and shared memory.
    pub shmem_kb: u64,
    /// The kernel's.
    pub kernel_kb: u64,
    /// Times that something was killed in it.
    pub oom_kills: u64,
    /// Change.
    pub grown_kb: i64,
}

/// A protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Protocol {
    /// Name.
    pub name: String,
    /// Sockets in this network namespace.
    pub sockets: u64,
    /// Memory of buffers in all of them, where it is counted.
    pub buffers_kb: Option<u64>,
    /// Module.
    pub module: String,
}

/// A swap area.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SwapArea {
    /// Device or file.
    pub path: String,
    /// Size.
    pub size_kb: u64,
    /// In use.
    pub used_kb: u64,
}

/// A zram device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Zram {
    /// Name.
    pub name: String,
    /// What is stored.
    pub stored_kb: u64,
    /// What this takes.
    pub memory_kb: u64,
}

/// A pool of huge pages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HugePages {
    /// Size of a page.
    pub page_kb: u64,
    /// Pages.
    pub pages: u64,
    /// Those that nobody uses.
    pub free: u64,
}

/// A loaded module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Module {
    /// Name.
    pub name: String,
    /// Code and data.
    pub bytes: u64,
    /// Letters of /proc/modules, `O` for one from outside of the kernel's tree.
    pub taints: String,
}

/// A place in the kernel's source, or a function of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Place {
    /// `file:line [module] function`, or `function [module]`.
    pub place: String,
    /// Bytes.
    pub bytes: u64,
    /// Change.
    pub bytes_grown: i64,
}

/// Something that could not be read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unreadable {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
    /// What is missing therefore.
    pub effect: String,
}

/// What looking cost.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time.
    pub cpu_s: f64,
    /// Longest look.
    pub slowest_look_ms: f64,
    /// Largest resident memory.
    pub peak_rss_kb: u64,
}
