//! Who has the memory: pure functions from what was read of /proc to a ledger and a diagnosis.

pub mod caches;
pub mod files;
pub mod growing;
pub mod holding;
pub mod kernel;
pub mod kin;
pub mod language;
pub mod ledger;
pub mod processes;
pub mod trend;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::{ledger::Class, trend::Trend};
use crate::proc::{
    cgroups::Groups, fds::OpenFiles, maps::Program, mounts::InMemory, profile::Places, slab::SlabCache,
    vmallocinfo::Callers,
};

/// Whether a caller of vmalloc allocates stacks of threads, which have a class of their own: how much of
/// `copy_process` (`kernel/fork.c`) the compiler puts into its callers differs.
pub fn allocates_stacks(caller: &str) -> bool {
    let functions = [
        "kernel_clone",
        "copy_process",
        "dup_task_struct",
        "alloc_thread_stack_node",
        "fork_idle",
        "create_io_thread",
    ];
    functions.iter().any(|function| caller.starts_with(function))
}

/// A process at one look; small, because there may be ten thousand of them, many times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Anonymous memory, resident or swapped out, in kB.
    pub anon_kb: u32,
    /// Resident pages of files in kB.
    pub file_kb: u32,
    /// Resident shared memory in kB.
    pub shmem_kb: u32,
    /// Swapped out, in kB.
    pub swap_kb: u32,
    /// Page tables in kB.
    pub page_tables_kb: u32,
    /// Address space in kB.
    pub vsz_kb: u64,
    /// Threads.
    pub threads: u32,
    /// Open files; `None` where they may not be counted.
    pub fds: Option<u32>,
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// Parent.
    pub ppid: u32,
    /// `R`, `S`, `Z` ...
    pub state: char,
}

/// One look at the machine.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Seconds since the first one.
    pub at_s: f64,
    /// All memory in kB.
    pub total_kb: i64,
    /// What could be used without swapping, by the kernel's own estimate, in kB.
    pub available_kb: u64,
    /// Swap in kB: all, and what is in use.
    pub swap_kb: (u64, u64),
    /// The ledger.
    pub levels: Vec<(Class, i64)>,
    /// Slab caches, where they can be read.
    pub caches: Option<BTreeMap<String, SlabCache>>,
    /// vmalloc by caller, where it can be read.
    pub callers: Option<Callers>,
    /// File systems in memory.
    pub mounts: Vec<InMemory>,
    /// Control groups.
    pub groups: Groups,
    /// Processes, by id.
    pub processes: Vec<Process>,
    /// Other leaktraces.
    pub kin: Vec<kin::Kin>,
}

impl Look {
    /// kB of a class.
    pub fn level(&self, class: Class) -> i64 {
        self.levels.iter().find(|(other, _)| *other == class).map_or(0, |&(_, kb)| kb)
    }
}

/// What was looked at in depth of one process.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// What its mappings tell.
    pub program: Option<Program>,
    /// Its open files when they were found to grow.
    pub files_before: Option<OpenFiles>,
    /// Its open files at the end.
    pub files: Option<OpenFiles>,
    /// Its sockets by protocol and state.
    pub sockets: BTreeMap<String, u64>,
    /// Proportional set size in kB.
    pub pss_kb: Option<u64>,
    /// Files that it may open (`RLIMIT_NOFILE`).
    pub max_fds: Option<u64>,
}

/// All that a diagnosis is made from.
#[derive(Debug, Default)]
pub struct Observation {
    /// The looks, in the order of time: at least one.
    pub looks: Vec<Look>,
    /// Who the processes are.
    pub names: BTreeMap<u32, Identity>,
    /// Processes that were looked at in depth.
    pub details: BTreeMap<u32, Details>,
    /// What is known of the largest and most growing caches.
    pub natures: BTreeMap<String, caches::Nature>,
    /// Bytes by place in the source before and after, on kernels that know.
    pub places: Option<(Places, Places)>,
    /// Size of a page in kB.
    pub page_kb: u64,
    /// CPUs, each of which keeps a part of the counters to itself for a while.
    pub cpus: u32,
}

impl Observation {
    /// The first look.
    pub fn first(&self) -> &Look {
        self.looks.first().expect("there is a look")
    }

    /// The last look.
    pub fn last(&self) -> &Look {
        self.looks.last().expect("there is a look")
    }

    /// Seconds from the first look to the last.
    pub fn duration_s(&self) -> f64 {
        self.last().at_s - self.first().at_s
    }

    /// The trend of something that each look has, or some do.
    pub fn trend(&self, level: impl Fn(&Look) -> Option<f64>) -> Trend {
        let points: Vec<_> =
            self.looks.iter().filter_map(|look| level(look).map(|value| (look.at_s, value))).collect();
        Trend::of(&points)
    }

    /// The trend of a class, in kB.
    pub fn class_trend(&self, class: Class) -> Trend {
        self.trend(|look| Some(look.level(class) as f64))
    }

    /// The trends of something of each process that was there at the last look: those of a process
    /// that came later begin with nothing.
    pub fn process_trends(&self, level: impl Fn(&Process) -> f64) -> BTreeMap<u32, Trend> {
        let mut points: BTreeMap<u32, Vec<(f64, f64)>> =
            self.last().processes.iter().map(|process| (process.pid, Vec::new())).collect();
        for look in &self.looks {
            for process in &look.processes {
                if let Some(points) = points.get_mut(&process.pid) {
                    points.push((look.at_s, level(process)));
                }
            }
        }
        let start = self.first().at_s;
        points
            .into_iter()
            .map(|(pid, mut points)| {
                if points.first().is_some_and(|&(at, _)| at > start) {
                    points.insert(0, (start, 0.0));
                }
                (pid, Trend::of(&points))
            })
            .collect()
    }

    /// What is known of a cache.
    pub fn nature(&self, cache: &str) -> caches::Nature {
        self.natures.get(cache).cloned().unwrap_or_default()
    }

    /// A process's name, or its id.
    pub fn comm(&self, pid: u32) -> &str {
        self.names.get(&pid).map_or("?", |identity| &identity.comm)
    }
}

/// What has memory or takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A process's own memory.
    ProcessMemory,
    /// Open files.
    Fds,
    /// Threads.
    Threads,
    /// Processes.
    Processes,
    /// Files on a file system in memory.
    Tmpfs,
    /// Shared memory of processes.
    SharedMemory,
    /// The page cache.
    PageCache,
    /// A slab cache.
    Slab,
    /// A slab cache that is shrunk when memory is short.
    SlabReclaimable,
    /// vmalloc.
    Vmalloc,
    /// Per-CPU memory.
    Percpu,
    /// Page tables.
    PageTables,
    /// Stacks of threads.
    KernelStacks,
    /// Buffers of sockets.
    Sockets,
    /// Huge pages that are set aside.
    HugePages,
    /// zram and zswap.
    CompressedSwap,
    /// Pages that nobody accounts for.
    Unaccounted,
    /// A control group at its limit.
    CgroupLimit,
    /// A process at its limit of open files.
    FdLimit,
    /// Something else of the ledger.
    Other,
    /// A trace by leaktrace, and what it takes itself.
    Leaktrace,
    /// Nothing of note.
    Nothing,
}

/// Who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// Process id.
    pub pid: Option<u32>,
    /// Name of the process, or of all those with this name.
    pub comm: Option<String>,
    /// Slab cache.
    pub cache: Option<String>,
    /// Module.
    pub module: Option<String>,
    /// Mount point or control group.
    pub path: Option<String>,
    /// Function of the kernel, or place in its source.
    pub caller: Option<String>,
    /// Kind of open files.
    pub file_kind: Option<String>,
}

/// One finding: what it is, how much, what it means, what to do next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What.
    pub kind: Kind,
    /// Who.
    pub culprit: Culprit,
    /// Whether it grew, or merely has much.
    pub grows: bool,
    /// Whether it grows all the time, and not at one time.
    #[serde(default)]
    pub steady: bool,
    /// Bytes now; of open files and processes what is known of them.
    pub bytes: f64,
    /// Bytes by which it grew between the first look and the last.
    pub bytes_grown: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Objects, files, threads or processes by which it grew.
    pub count_grown: Option<i64>,
    /// The sentence.
    pub text: String,
    /// Commands that lead on, the best one first.
    pub next: Vec<String>,
}

impl Diagnosis {
    /// One that has no figures yet.
    pub(crate) fn new(kind: Kind, culprit: Culprit, text: String, next: Vec<String>) -> Self {
        Self {
            kind,
            culprit,
            grows: false,
            steady: false,
            bytes: 0.0,
            bytes_grown: 0.0,
            bytes_per_s: 0.0,
            count_grown: None,
            text,
            next,
        }
    }

    /// With figures of a trend, given in kB.
    pub(crate) fn grown(mut self, trend_kb: &Trend) -> Self {
        self.grows = true;
        self.steady = trend_kb.steady;
        self.bytes = trend_kb.after * 1_024.0;
        self.bytes_grown = trend_kb.change() * 1_024.0;
        self.bytes_per_s = trend_kb.per_s * 1_024.0;
        self
    }
}

/// A diagnosis with what it is ranked by: bytes, by how bad they are.
pub(crate) type Ranked = (f64, Diagnosis);

/// The diagnosis, the likeliest first: what grows, what has much, and then leaktraces. There is always one.
pub fn diagnose(seen: &Observation) -> Vec<Diagnosis> {
    let mut growing = growing::all(seen);
    growing::put_steps_below(&mut growing);
    growing.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut all: Vec<Diagnosis> = growing.into_iter().map(|(_, diagnosis)| diagnosis).collect();
    let (first, holding): (Vec<_>, Vec<_>) =
        holding::all(seen, &all).into_iter().partition(|diagnosis| holding::is_told_first(seen, diagnosis));
    // Slab that grows, too, says more.
    let at = usize::from(all.first().is_some_and(|grows| grows.kind == Kind::Slab));
    all.splice(at..at, first);
    all.extend(holding);
    if all.is_empty() {
        all.push(holding::nothing(seen));
    }
    all.extend(kin::all(seen));
    all
}

#[cfg(test)]
mod tests;
