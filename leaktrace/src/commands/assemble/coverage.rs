//! What the numbers cover, and what they cost.

use super::{Checks, Judged, Surroundings};
use crate::{
    analysis::{blame, crosscheck::Agreement},
    report::model::{BlindSpot, Coverage, HookReport, LostReport, Overhead, ProgramReport},
    tracer::{
        Snapshot,
        hooks::{self, Family},
    },
    units,
};

pub(super) fn coverage(
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    refuted: &[Judged<'_>],
    checks: &Checks,
    look_error: Option<&str>,
) -> Coverage {
    let lost = &snapshot.lost;
    Coverage {
        hooks: snapshot
            .hooks
            .iter()
            .map(|state| HookReport {
                name: state.hook.name.into(),
                path: state.hook.path.into(),
                mechanism: state.mechanism().into(),
                attached: state.error.is_none(),
                error: state.error.clone(),
            })
            .collect(),
        blind_spots: blind_spots(snapshot, surroundings, refuted, checks, look_error),
        lost: LostReport {
            recursion_misses: lost.recursion_misses,
            live_overflow: lost.live_overflow,
            stack_overflow: lost.stack_overflow,
            implicit_frees: lost.implicit_frees,
            site_overflow: lost.site_overflow,
            stacks_failed: lost.stacks_failed,
            unknown_caches: lost.unknown_caches,
            callers: snapshot.callers_lost,
            series: snapshot.series_lost,
        },
        sampling: snapshot.sampling,
    }
}

fn blind_spots(
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    refuted: &[Judged<'_>],
    checks: &Checks,
    look_error: Option<&str>,
) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    let mut spot = |path: &str, effect: &str, caches: Vec<String>| {
        spots.push(BlindSpot { path: path.to_owned(), effect: effect.to_owned(), caches });
    };
    let with = |wanted: Agreement| {
        checks
            .iter()
            .filter(|(_, (_, check))| check.agreement == wanted)
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    for state in snapshot.hooks.iter().filter(|state| state.error.is_some()) {
        let caches = match state.hook.family {
            Some(Family::Slab) if state.hook.frees => with(Agreement::Contradicts),
            Some(Family::Slab) => with(Agreement::MoreInSlabinfo),
            _ => Vec::new(),
        };
        spot(state.hook.path, state.hook.without, caches);
    }
    let tracked = |family: Family| snapshot.hooks.iter().any(|state| state.hook.family == Some(family));
    for unseen in hooks::UNSEEN.iter().filter(|unseen| tracked(unseen.family)) {
        spot(unseen.path, unseen.effect, Vec::new());
    }
    if !refuted.is_empty() {
        let mut caches: Vec<_> = refuted.iter().map(|judged| judged.site.cache.clone()).collect();
        caches.sort();
        caches.dedup();
        let effect = format!(
            "{} sites look as if they leaked, but /proc/slabinfo contradicts their caches: not ranked",
            refuted.len()
        );
        spot("frees without an event", &effect, caches);
    }
    let mut late: Vec<_> =
        snapshot.sites.iter().filter(|site| site.implicit_frees > 0).map(|site| site.cache.clone()).collect();
    if !late.is_empty() {
        late.sort();
        late.dedup();
        let effect = format!(
            "{} frees were noticed only when the address was allocated again",
            units::count(snapshot.lost.implicit_frees)
        );
        spot("frees that were not seen", &effect, late);
    }
    let notes: Vec<_> = snapshot
        .sites
        .iter()
        .filter(|site| blame::is_bookkeeping(&site.cache) && site.live > 0)
        .map(|site| site.cache.clone())
        .collect();
    if !notes.is_empty() {
        spot("kmemleak's own notes", "one for each object of this kernel: not ranked", notes);
    }
    if let Some(error) = &snapshot.page_uses_error {
        let effect = format!("{error}: pages of the page cache and of users may be among the findings");
        spot("/proc/kpageflags", &effect, Vec::new());
    }
    if let Some(error) = look_error {
        let effect =
            format!("{error}: whether survivors are on lists could not be seen, so none is called a leak");
        spot("objects in memory", &effect, Vec::new());
    }
    if let Some(error) = &snapshot.processes_error {
        let effect = format!("{error}: every process is taken to be running still");
        spot("processes", &effect, Vec::new());
    }
    if snapshot.module_events_missed > 0 {
        let effect =
            format!("{} loads or removals of watched modules were not seen", snapshot.module_events_missed);
        spot("modules that come and go", &effect, Vec::new());
    }
    if !snapshot.page_lookup && tracked(Family::Slab) {
        let reason =
            surroundings.no_page_lookup.as_deref().unwrap_or("the page of an object led to another cache");
        let effect = format!(
            "{reason}: kmalloc caches are named by size, and frees by kfree of older objects have no cache"
        );
        spot("cache of a kmalloc object", &effect, Vec::new());
    }
    if let Some(error) = &surroundings.slabinfo_error {
        spot("/proc/slabinfo", &format!("{error}: nothing could be compared with it"), Vec::new());
    }
    if let Some(note) = surroundings.places.note() {
        spot("/proc/kallsyms", note, Vec::new());
    }
    spots
}

/// Share of all CPUs that the programs take, in percent. Where it could only be measured at the beginning, it is what an event
/// took then for each event since.
fn programs_percent(snapshot: &Snapshot, cpus: u32) -> Option<f64> {
    let (runs, ns) =
        snapshot.costs.iter().fold((0, 0), |(runs, ns), (_, cost, _)| (runs + cost.runs, ns + cost.ns));
    let (ns, seconds) = if snapshot.measuring_ended {
        // The counts of a site are those of each of its callers.
        let mut counted = rustc_hash::FxHashSet::default();
        let sites = snapshot.sites.iter().filter(|site| counted.insert(site.site));
        let events: u64 =
            sites.map(|site| site.allocated + site.freed - site.implicit_frees.min(site.freed)).sum();
        let events = events + snapshot.unknown_frees.values().sum::<u64>();
        (ns as f64 / runs.max(1) as f64 * events as f64, snapshot.duration.as_secs_f64())
    } else {
        (ns as f64, snapshot.measured_s)
    };
    let cpu_s = seconds * f64::from(cpus);
    (cpu_s > 0.0 && snapshot.measured_s > 0.0).then(|| ns / 1e9 / cpu_s * 100.0)
}

pub(super) fn overhead(snapshot: &Snapshot, surroundings: &Surroundings) -> Overhead {
    Overhead {
        programs: snapshot
            .costs
            .iter()
            .map(|(name, cost, misses)| ProgramReport {
                name: (*name).into(),
                runs: cost.runs,
                ns_per_run: cost.ns_per_run(),
                recursion_misses: *misses,
            })
            .collect(),
        cpu_percent: programs_percent(snapshot, surroundings.machine.online_cpus),
        user_space_cpu_s: own_cpu_s(),
        tables_kb: snapshot.sizes.bytes() / 1_024,
        max_objects: snapshot.sizes.max_objects,
        ranking_ms: 0.0,
        slowest_scan_ms: snapshot.slowest_scan.as_secs_f64() * 1e3,
    }
}

/// CPU time of this process in seconds.
pub(in crate::commands) fn own_cpu_s() -> f64 {
    // SAFETY: all-zero is a valid rusage, and the pointer is valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
