//! The last look: everything that analysis needs, as plain values.

use std::time::{Duration, Instant};

use anyhow::Result;
use leaktrace_common::{FAMILY_PAGE, FAMILY_PERCPU, FAMILY_VMALLOC, LIFETIME_CLASSES};
use rustc_hash::FxHashMap;

use super::{
    Tracer,
    cost::ProgramCost,
    left::{self, Left},
    merge::{Merged, Parts},
    monotonic_ns, names, page_uses,
    processes::People,
    programs::HookState,
    records::{self, Cohorts},
    scan::{self, LiveObject, Question},
    series::Series,
    sizes::Sizes,
    unknown::{self, Nobodys},
    watch::Stay,
};
use crate::analysis::{births::Births, growth, verdict::FEWEST_LOOKS};

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

/// Frees by one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeCaller {
    /// Its return address, or a `FREED_*` value.
    pub caller: u64,
    /// Frees, of a sample.
    pub frees: u64,
}

/// Everything known of one site, or of one responsible caller of a site that allocates for others.
#[derive(Clone, Debug, Default)]
pub struct SiteRecord {
    /// Index of the site, or the first one of its call site.
    pub site: usize,
    /// Return address of the responsible frame, where this is about one caller of the site only: then
    /// counts of events are still those of the whole site.
    pub owner: Option<u64>,
    /// Return address in the allocating code; 0 for the events that did not fit the site table.
    pub call_site: u64,
    /// `kmalloc`, `kmalloc-large`, `kmem_cache`, `page`, `vmalloc` or `percpu`.
    pub family: &'static str,
    /// Name of the slab cache, or what stands for it.
    pub cache: String,
    /// Whether it is of slab.
    pub is_slab: bool,
    /// Bytes that an object takes; of objects of many sizes those of the live ones on average.
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
    /// Bytes of the live objects, scaled.
    pub live_bytes: u64,
    /// Live objects older than the minimum age, scaled.
    pub survivors: u64,
    /// Their bytes, scaled.
    pub survivor_bytes: u64,
    /// Age of the oldest live object in seconds.
    pub oldest_s: f64,
    /// Seen frees by lifetime.
    pub lifetimes: [u64; LIFETIME_CLASSES],
    /// Who usually frees the site's objects, the most first.
    pub free_callers: Vec<FreeCaller>,
    /// Survivors over time.
    pub series: Series,
    /// Live objects over time, counted more often; empty where only a part of them is this record's.
    pub levels: Series,
    /// When the live objects were allocated, of those that are tracked.
    pub births: Births,
    /// What became of the survivors of an earlier look.
    pub stay: Option<growth::Stay>,
    /// Live objects among them that have no stack, and are taken to be of this caller.
    pub shared: u64,
    /// Survivors that were really seen.
    pub seen: u64,
    /// Survivors that are others' pages, as the kernel says, and not counted.
    pub excluded_survivors: u64,
    /// Share of the survivors whose process still runs, 0 to 1.
    pub alive: f64,
    /// Survivors, a sample by address.
    pub samples: Vec<LiveObject>,
    /// Who allocated the live objects, the most first.
    pub tasks: Vec<TaskShare>,
    /// From where, the most first.
    pub stacks: Vec<StackShare>,
    /// The oldest live objects.
    pub objects: Vec<LiveObject>,
}

impl SiteRecord {
    /// How many objects it had over time: its survivors, or where looks at the tables were too few to tell anything from
    /// chance, because each takes long, all that were live. Which of them does not depend on what they show.
    pub fn counted(&self) -> &Series {
        let few = (self.series.points().len() as f64) < FEWEST_LOOKS;
        if few && self.levels.points().len() > self.series.points().len() {
            &self.levels
        } else {
            &self.series
        }
    }
}

/// Everything that was seen.
#[derive(Debug)]
pub struct Snapshot {
    /// How long was traced.
    pub duration: Duration,
    /// Looks at the tables.
    pub ticks: u64,
    /// Those at which survivors were counted.
    pub scans: u64,
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
    /// What each program cost while it was measured, and the events that it missed.
    pub costs: Vec<(&'static str, ProgramCost, u64)>,
    /// Watched modules.
    pub modules: Vec<String>,
    /// Their stays in the kernel.
    pub stays: Vec<Stay>,
    /// Monotonic time of the start.
    pub started_ns: u64,
    /// What removed modules left.
    pub left: Vec<Left>,
    /// Module events that were not seen.
    pub module_events_missed: u64,
    /// Why the uses of pages are not known, if they are not.
    pub page_uses_error: Option<String>,
    /// Seconds that were measured.
    pub measured_s: f64,
    /// Whether measuring ended long before the trace did.
    pub measuring_ended: bool,
    /// Sizes of the tables.
    pub sizes: Sizes,
    /// Whether pages could be looked up and led to the right caches.
    pub page_lookup: bool,
    /// Monotonic time of the snapshot.
    pub taken_ns: u64,
    /// The slowest scan of the live table, that of the snapshot included.
    pub slowest_scan: Duration,
    /// What has no stack, and of which no caller is known.
    pub nobodys: Vec<Nobodys>,
    /// Frees whose caller found no place.
    pub callers_lost: u64,
    /// Subjects whose growth found no place.
    pub series_lost: u64,
    /// Why it is not known which processes still run, if it is not.
    pub processes_error: Option<String>,
}

/// What is only known until the programs are detached.
#[derive(Clone, Debug)]
pub(super) struct Last {
    /// What each program cost, and the events that it missed.
    pub(super) costs: Vec<(&'static str, ProgramCost, u64)>,
    /// How long was traced.
    pub(super) duration: Duration,
}

/// Takes a whole look.
pub(super) fn take(tracer: &mut Tracer, last: Last) -> Result<Snapshot> {
    let begun = Instant::now();
    let now = monotonic_ns();
    let control = tracer.control.read(0);
    let overflow = tracer.overflowed()?;
    let (excluded, page_uses_error) = page_uses::of_others(tracer, &control, &overflow);
    let removals: Vec<u64> = left::ended(tracer.watch.stays()).map(|(_, removed)| removed).collect();
    let question = Question {
        born_before_ns: now.saturating_sub(tracer.settings.min_age.as_nanos() as u64),
        excluded: Some(&excluded).filter(|pages| !pages.is_empty()),
        split: tracer.subjects.split(),
        removals_ns: &removals,
        window_ns: (tracer.started_ns, now),
    };
    let (counts, details) = scan::detail(&tracer.live, &overflow, tracer.sites.len(), &question);
    let trusted = control.page_lookups_wrong == 0;
    let Merged { groups, unknown_frees, implicit_frees } = Merged::of(&tracer.sites, trusted);
    let left = left::behind(tracer, &details, trusted);
    let mut parts = Parts::read(tracer, counts, details, trusted, now)?;
    let now_s = now.saturating_sub(tracer.started_ns) as f64 / 1e9;
    let mut cohorts = Cohorts::new(tracer.by_owner(&std::mem::take(&mut parts.births)), now_s);
    let mut people = People::new(names::read_tasks(&tracer.ebpf)?);
    let mut sites = Vec::with_capacity(groups.len());
    for (first, members) in groups {
        let (record, shares) = parts.merge(tracer, first, &members);
        records::complete(tracer, record, &shares, (&mut people, &mut cohorts), now, &mut sites);
    }
    let nobodys = unknown::share_out(&mut sites);
    Ok(Snapshot {
        nobodys,
        duration: last.duration,
        ticks: tracer.ticks,
        scans: tracer.scans,
        sites,
        unknown_frees,
        sampling: 1 << control.sample_shift,
        lost: Lost {
            recursion_misses: last.costs.iter().map(|(_, _, misses)| misses).sum(),
            live_overflow: control.overflow_lost,
            stack_overflow: control.stacks_full,
            stacks_failed: control.stacks_failed,
            site_overflow: control.sites_full,
            implicit_frees,
            unknown_caches: control.cache_unknown,
        },
        hooks: tracer.programs.hooks().to_vec(),
        costs: last.costs,
        modules: tracer.settings.modules.clone(),
        stays: tracer.watch.stays().to_vec(),
        started_ns: tracer.started_ns,
        left,
        module_events_missed: tracer.watch.missed(),
        page_uses_error,
        measured_s: tracer.meter.measured_s(),
        measuring_ended: tracer.meter.is_ended(),
        sizes: tracer.sizes.clone(),
        page_lookup: trusted && control.page_lookups_right > 0,
        taken_ns: now,
        slowest_scan: tracer.slowest_scan.max(begun.elapsed()),
        callers_lost: control.callers_full,
        series_lost: tracer.subjects.untold,
        processes_error: people.error(),
    })
}

/// Whether a family is of slab.
pub(super) fn is_slab(family: u32) -> bool {
    !matches!(family, FAMILY_PAGE | FAMILY_VMALLOC | FAMILY_PERCPU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_objects_stand_in_where_survivors_were_seldom_counted() {
        let series = |points: u32, objects: f64| {
            let mut series = Series::default();
            (0..points).for_each(|second| series.push(f64::from(second), objects));
            series
        };
        let counted = |survivors: u32, live: u32| {
            let (series, levels) = (series(survivors, 1.0), series(live, 2.0));
            SiteRecord { series, levels, ..SiteRecord::default() }.counted().last()
        };
        assert_eq!((counted(6, 60), counted(11, 12)), (2.0, 2.0));
        // Enough of them, a caller's alone, or both seldom.
        assert_eq!((counted(12, 60), counted(6, 0), counted(6, 6)), (1.0, 1.0, 1.0));
    }
}
