//! The scenarios, with their labels.

use std::{path::Path, sync::atomic::AtomicBool};

use leaktrace_tests::driver::{self, Mode};

use super::loads;

/// What a scenario really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// This function of the driver leaks: at 10 objects a second or more, so that it must be called a leak.
    Leak(&'static str),
    /// It leaks more slowly, or the leak is still held by something that only grows: it must be
    /// suspected at least.
    Subtle(&'static str),
    /// Nothing is leaked: nothing may be called a leak.
    Innocent,
}

impl Truth {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Leak(_) => "leak",
            Self::Subtle(_) => "subtle",
            Self::Innocent => "innocent",
        }
    }
}

/// Something that goes on while leaktrace traces.
#[derive(Clone, Copy)]
pub enum Load {
    /// A path of the driver, so many times every so many milliseconds.
    Driver(&'static str, Mode, u64, u64),
    /// A function that runs until it is told to stop.
    Run(fn(&AtomicBool)),
}

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Its label.
    pub truth: Truth,
    /// What goes on.
    pub loads: Vec<Load>,
    /// Seconds for which it goes on before tracing begins.
    pub before_s: u64,
    /// Whether the driver is loaded for it.
    pub driver: bool,
}

impl Scenario {
    /// Whether it can run on this machine: what takes a module runs in a guest only.
    pub fn can_run_here(&self) -> bool {
        let guest = Path::new(driver::FILE).exists();
        let needs_guest = self.driver || self.name.starts_with("module");
        (guest || !needs_guest) && (!guest || !self.name.ends_with("(here)"))
    }
}

use Load::{Driver, Run};
use Mode::{Balanced, Leak};

/// Leaks of each family, 10 objects a second: the driver's path, and its function that allocates.
const FAMILIES: [(&str, &str); 18] = [
    ("kmalloc", "kmalloc_leak"),
    ("kmalloc_on_node", "kmalloc_on_node_leak"),
    ("memdup", "memdup_leak"),
    ("large", "large_leak"),
    ("krealloc_moved", "krealloc_moved_leak"),
    ("cache", "cache_leak"),
    ("cache_on_node", "cache_on_node_leak"),
    ("typesafe", "typesafe_leak"),
    ("rcu_two", "rcu_two_leak"),
    ("packet", "packet_leak"),
    ("vmalloc", "vmalloc_leak"),
    ("percpu", "percpu_leak"),
    ("page", "page_leak"),
    ("compound", "compound_leak"),
    ("alloc_bulk", "alloc_bulk_leak"),
    ("softirq", "softirq_work"),
    ("workqueue", "workqueue_work"),
    ("kthread", "kthread_work"),
];

/// What stands for all of them where time is short.
pub const CORE: [&str; 12] = [
    "kmalloc",
    "packet",
    "vmalloc",
    "page",
    "leak: 1 in 1,000 of a busy site",
    "leak: in bursts of 100",
    "subtle: a list that only grows",
    "balanced: kfree_rcu storm",
    "pool that fills up in 12 s",
    "objects that live for 30 s, since long",
    "connections that stay open, ever more",
    "pipes that stay open, ever more",
];

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = FAMILIES
        .iter()
        .map(|&(path, function)| scenario(path, Truth::Leak(function), vec![Driver(path, Leak, 1, 100)]))
        .collect();
    all.extend(leaks());
    all.extend(subtle_leaks());
    all.extend(balanced_use());
    all.extend(pools_and_long_lives());
    all.extend(everyday_work());
    all
}

fn scenario(name: &'static str, truth: Truth, loads: Vec<Load>) -> Scenario {
    let driver = loads.iter().any(|load| matches!(load, Driver(..)));
    Scenario { name, truth, loads, before_s: 0, driver }
}

/// Leaks under conditions that make them harder to find.
fn leaks() -> Vec<Scenario> {
    vec![
        scenario("leak: interrupts off", Truth::Leak("irq_off_work"), vec![Driver("irq_off", Leak, 2, 100)]),
        scenario(
            "leak: 1 in 1,000 of a busy site",
            Truth::Leak("hidden_leak"),
            vec![Driver("hidden", Leak, 1, 80)],
        ),
        scenario(
            "leak: beside much balanced use of the same helper",
            Truth::Leak("memdup_leak"),
            vec![Driver("memdup", Balanced, 2_000, 40), Driver("memdup", Leak, 2, 100)],
        ),
        scenario(
            "leak: packets beside busy sockets",
            Truth::Leak("packet_leak"),
            vec![Run(loads::sockets), Driver("packet", Leak, 2, 100)],
        ),
        scenario(
            "leak: in bursts of 100",
            Truth::Leak("kmalloc_leak"),
            vec![Driver("kmalloc", Leak, 100, 2_500)],
        ),
        scenario(
            "leak: beside a fork storm",
            Truth::Leak("kmalloc_leak"),
            vec![Run(loads::forks), Driver("kmalloc", Leak, 2, 100)],
        ),
    ]
}

fn subtle_leaks() -> Vec<Scenario> {
    vec![
        scenario(
            "subtle: 1 object a second",
            Truth::Subtle("kmalloc_leak"),
            vec![Driver("kmalloc", Leak, 1, 1_000)],
        ),
        scenario(
            "subtle: 1 page in 3 seconds",
            Truth::Subtle("page_leak"),
            vec![Driver("page", Leak, 1, 3_000)],
        ),
        scenario(
            "subtle: 1 vmalloc area in 2 seconds",
            Truth::Subtle("vmalloc_leak"),
            vec![Driver("vmalloc", Leak, 1, 2_000)],
        ),
        scenario(
            "subtle: 5 MiB of kvmalloc a second",
            Truth::Subtle("kvmalloc_large_leak"),
            vec![Driver("kvmalloc_large", Leak, 1, 1_000)],
        ),
        scenario(
            "subtle: a list that only grows",
            Truth::Subtle("unbounded_list_leak"),
            vec![Driver("unbounded_list", Leak, 2, 100)],
        ),
    ]
}

/// Much use of the driver's paths, all of which is freed.
fn balanced_use() -> Vec<Scenario> {
    vec![
        scenario("balanced: kfree_rcu storm", Truth::Innocent, vec![Driver("rcu_two", Balanced, 2_000, 50)]),
        scenario(
            "balanced: bulk allocations and frees",
            Truth::Innocent,
            vec![Driver("kfree_bulk", Balanced, 2_000, 80), Driver("alloc_bulk", Balanced, 2_000, 80)],
        ),
        scenario(
            "balanced: vmalloc, pages and per-CPU memory",
            Truth::Innocent,
            vec![
                Driver("vmalloc", Balanced, 50, 50),
                Driver("compound", Balanced, 100, 50),
                Driver("percpu", Balanced, 50, 50),
            ],
        ),
        scenario("balanced: interrupt storm", Truth::Innocent, vec![Driver("storm", Balanced, 2_000, 500)]),
        scenario(
            "balanced: hash tables and maple trees",
            Truth::Innocent,
            vec![Driver("rhashtable", Balanced, 2_000, 200), Driver("maple", Balanced, 500, 200)],
        ),
        scenario(
            "balanced: packets",
            Truth::Innocent,
            vec![Driver("packet", Balanced, 1_000, 50), Driver("napi", Balanced, 1_000, 50)],
        ),
    ]
}

/// What grows for a while, and then no more. These functions use the driver, too.
fn pools_and_long_lives() -> Vec<Scenario> {
    let run = |name, run| Scenario { driver: true, ..innocent(name, run) };
    vec![
        run("pool that fills up in 12 s", loads::fill_pool),
        run("pool that fills up for as long as one looks", loads::fill_pool_slowly),
        run("objects that live for 30 s, from now on", loads::slow_objects),
        Scenario { before_s: 35, ..run("objects that live for 30 s, since long", loads::slow_objects) },
    ]
}

/// What a machine does all day, and what holds memory for good reasons.
fn everyday_work() -> Vec<Scenario> {
    vec![
        Scenario { driver: true, ..innocent("objects held by an open file", loads::handles) },
        innocent("module loaded and removed all the time", loads::modules),
        innocent("connections opened and closed", loads::connections),
        innocent("connections that stay open, ever more", loads::held_connections),
        innocent("pipes that stay open, ever more", loads::held_pipes),
        innocent("processes that stay, ever more", loads::held_processes),
        innocent("files written and read", loads::files),
        innocent("files that stay in tmpfs, ever more", loads::held_files),
        innocent("page cache filled by one large file", loads::page_cache),
        innocent("find over /proc and /sys", loads::walk),
        innocent("fork storm", loads::forks),
        innocent("sockets, pipes, timers", loads::sockets),
        innocent("network namespaces made and removed", loads::namespaces),
        innocent("tar of /usr (here)", loads::tar),
        innocent("everything at once", loads::everything),
    ]
}

fn innocent(name: &'static str, run: fn(&AtomicBool)) -> Scenario {
    scenario(name, Truth::Innocent, vec![Run(run)])
}
