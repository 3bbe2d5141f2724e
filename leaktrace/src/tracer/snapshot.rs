//! The last look: everything that analysis needs, as plain values.

use std::time::{Duration, Instant};

use anyhow::Result;
use leaktrace_common::{FAMILY_UNKNOWN_FREE, LIFETIME_CLASSES, SITE_IGNORED};
use rustc_hash::FxHashMap;

use super::{
    Tracer,
    cost::ProgramCost,
    hooks::Hook,
    monotonic_ns, names,
    scan::{self, LiveObject},
    series::Series,
    sizes::Sizes,
};

/// Distinct stacks reported for one site, the most frequent ones.
const STACKS_PER_SITE: usize = 16;
/// Processes reported for one site, likewise.
const TASKS_PER_SITE: usize = 16;

/// A hook, and why it is not attached, if it is not.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// The kernel's refusal.
    pub error: Option<String>,
}

/// What was missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Events skipped because their program was running on that CPU already.
    pub recursion_misses: u64,
    /// Allocations that found the live table and the overflow map full.
    pub live_overflow: u64,
    /// Stacks that did not fit the stack table.
    pub stack_overflow: u64,
    /// Stack captures that the kernel refused.
    pub stacks_failed: u64,
    /// Events of sites that did not fit the site table.
    pub site_overflow: u64,
    /// Frees that were not seen, found when the address was allocated again.
    pub implicit_frees: u64,
    /// Sites whose slab cache could not be read.
    pub unknown_caches: u64,
}

/// Live objects of one site with one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackShare {
    /// Objects.
    pub objects: u64,
    /// Return addresses, the call site first.
    pub frames: Vec<u64>,
}

/// Live objects of one site from one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskShare {
    /// Process id; 0 for the idle task, on which interrupts run too.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Objects.
    pub objects: u64,
}

/// Everything known of one site.
#[derive(Clone, Debug, Default)]
pub struct SiteRecord {
    /// Return address in the allocating code; 0 for the events that did not fit the site table.
    pub call_site: u64,
    /// `kmalloc`, `kmalloc-large` or `kmem_cache`.
    pub family: &'static str,
    /// Name of the slab cache.
    pub cache: String,
    /// Bytes that an object takes.
    pub object_size: u32,
    /// Allocations.
    pub allocated: u64,
    /// Frees, seen ones and implicit ones.
    pub freed: u64,
    /// Those of them that were not seen when they happened.
    pub implicit_frees: u64,
    /// Live objects, scaled if sampled.
    pub live: u64,
    /// Tracked live objects: what lists and shares below are of.
    pub tracked_live: u64,
    /// Live objects older than the minimum age, scaled.
    pub survivors: u64,
    /// Age of the oldest live object in seconds.
    pub oldest_s: f64,
    /// Seen frees by lifetime.
    pub lifetimes: [u64; LIFETIME_CLASSES],
    /// Live objects over time.
    pub series: Series,
    /// Who allocated the live objects, the most first.
    pub tasks: Vec<TaskShare>,
    /// From where, the most first.
    pub stacks: Vec<StackShare>,
    /// The oldest live objects.
    pub objects: Vec<LiveObject>,
}

/// Everything that was seen.
#[derive(Debug)]
pub struct Snapshot {
    /// How long was traced.
    pub duration: Duration,
    /// Looks at the tables.
    pub ticks: u64,
    /// Sites with their counts.
    pub sites: Vec<SiteRecord>,
    /// Frees of objects that were not seen allocated, by cache; those of no known cache under "".
    pub unknown_frees: FxHashMap<String, u64>,
    /// One address in so many was tracked at the end.
    pub sampling: u64,
    /// What was missed.
    pub lost: Lost,
    /// The hooks.
    pub hooks: Vec<HookState>,
    /// What each program cost while it was measured.
    pub costs: Vec<(&'static str, ProgramCost)>,
    /// Seconds that were measured.
    pub measured_s: f64,
    /// Sizes of the tables.
    pub sizes: Sizes,
    /// Whether pages could be looked up and led to the right caches.
    pub page_lookup: bool,
    /// Monotonic time of the snapshot.
    pub taken_ns: u64,
    /// The slowest scan of the live table, that of the snapshot included.
    pub slowest_scan: Duration,
}

/// Takes the last look; the programs are detached.
pub(super) fn take(
    tracer: &mut Tracer,
    duration: Duration,
    costs: Vec<(&'static str, ProgramCost, u64)>,
) -> Result<Snapshot> {
    let begun = Instant::now();
    let now = monotonic_ns();
    let control = tracer.control.read(0);
    let born_before = now.saturating_sub(tracer.settings.min_age.as_nanos() as u64);
    let overflow = tracer.overflowed()?;
    let (counts, mut details) = scan::detail(&tracer.live, &overflow, tracer.sites.len(), born_before);
    let tasks = names::read_tasks(&tracer.ebpf)?;
    let (mut by_task, mut by_stack) = split_groups(&details.groups);
    let trusted = control.page_lookups_wrong == 0;
    let used: Vec<_> = tracer.sites.used().collect();
    let mut unknown_frees: FxHashMap<String, u64> = FxHashMap::default();
    let mut sites = Vec::new();
    let mut lost = Lost {
        recursion_misses: costs.iter().map(|(_, _, misses)| misses).sum(),
        stack_overflow: control.stacks_full,
        stacks_failed: control.stacks_failed,
        site_overflow: control.sites_full,
        unknown_caches: control.cache_unknown,
        ..Lost::default()
    };
    for (index, site) in used {
        let sum = tracer.sites.sum(index);
        if site.family == FAMILY_UNKNOWN_FREE {
            // A free by kfree finds its cache by the page, so it is as trusted as that.
            let name = if trusted { names::cache_name(&site, true) } else { String::new() };
            *unknown_frees.entry(name).or_default() += tracer.sites.unknown_frees(index, &sum);
            continue;
        }
        lost.live_overflow += sum.overflowed;
        lost.implicit_frees += sum.implicit_frees;
        if sum.allocated == 0 || site.flags & SITE_IGNORED != 0 {
            continue;
        }
        let count = counts[index];
        let live = tracer.sites.estimate(index, &sum, count.objects, count.objects);
        let id = index as u32;
        sites.push(SiteRecord {
            call_site: site.call_site,
            family: names::family_name(site.family),
            cache: if index == 0 {
                "(site table full)".to_owned()
            } else {
                names::cache_name(&site, trusted)
            },
            object_size: site.object_size,
            allocated: sum.allocated,
            freed: if sum.raw().untracked == 0 && control.sample_shift == 0 {
                sum.raw().freed
            } else {
                sum.allocated - live
            },
            implicit_frees: sum.implicit_frees,
            live,
            tracked_live: count.objects,
            survivors: tracer.sites.estimate(index, &sum, count.objects, count.survivors),
            oldest_s: if count.oldest_ns == 0 {
                0.0
            } else {
                now.saturating_sub(count.oldest_ns) as f64 / 1e9
            },
            lifetimes: sum.lifetimes,
            series: tracer.sites.series(index),
            tasks: task_shares(by_task.remove(&id).unwrap_or_default(), &tasks),
            stacks: largest(by_stack.remove(&id).unwrap_or_default(), STACKS_PER_SITE)
                .into_iter()
                .filter(|&(stack, _)| stack != 0)
                .map(|(stack, objects)| StackShare {
                    objects,
                    frames: names::read_stack(&tracer.stacks, stack, site.call_site),
                })
                .collect(),
            objects: details.oldest.remove(&id).unwrap_or_default(),
        });
    }
    Ok(Snapshot {
        duration,
        ticks: tracer.ticks,
        sites,
        unknown_frees,
        sampling: 1 << control.sample_shift,
        lost,
        hooks: std::mem::take(&mut tracer.attached),
        costs: costs.into_iter().map(|(name, cost, _)| (name, cost)).collect(),
        measured_s: tracer.meter.measured_s(),
        sizes: tracer.sizes.clone(),
        page_lookup: trusted && control.page_lookups_right > 0,
        taken_ns: now,
        slowest_scan: tracer.slowest_scan.max(begun.elapsed()),
    })
}

/// Objects by task and by stack, for each site.
type Shares = FxHashMap<u32, FxHashMap<u32, u64>>;

fn split_groups(groups: &FxHashMap<(u32, u32, u32), u64>) -> (Shares, Shares) {
    let (mut by_task, mut by_stack) = (Shares::default(), Shares::default());
    for (&(site, stack, tgid), &objects) in groups {
        *by_task.entry(site).or_default().entry(tgid).or_default() += objects;
        *by_stack.entry(site).or_default().entry(stack).or_default() += objects;
    }
    (by_task, by_stack)
}

fn largest(shares: FxHashMap<u32, u64>, limit: usize) -> Vec<(u32, u64)> {
    let mut shares: Vec<_> = shares.into_iter().collect();
    shares.sort_unstable_by_key(|&(id, objects)| (std::cmp::Reverse(objects), id));
    shares.truncate(limit);
    shares
}

fn task_shares(shares: FxHashMap<u32, u64>, tasks: &FxHashMap<u32, String>) -> Vec<TaskShare> {
    largest(shares, TASKS_PER_SITE)
        .into_iter()
        .map(|(pid, objects)| TaskShare { pid, comm: task_name(pid, tasks), objects })
        .collect()
}

/// The name that the programs noted, or else what /proc says of a process that still lives.
fn task_name(pid: u32, tasks: &FxHashMap<u32, String>) -> String {
    if pid == 0 {
        return "(interrupt or idle)".to_owned();
    }
    tasks.get(&pid).cloned().unwrap_or_else(|| {
        std::fs::read(format!("/proc/{pid}/comm")).map_or_else(
            |_| "(exited)".to_owned(),
            |name| String::from_utf8_lossy(&name).trim_end().to_owned(),
        )
    })
}
