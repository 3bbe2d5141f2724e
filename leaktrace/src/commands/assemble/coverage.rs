//! What the numbers cover, and what they cost.

use super::{Checks, Judged, Surroundings, blind_spots::blind_spots};
use crate::{
    report::model::{Coverage, HookReport, LostReport, Overhead, ProgramReport},
    tracer::Snapshot,
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
