//! From the snapshot and its surroundings to the report.

mod coverage;
mod finding;
mod unload;

use std::collections::{BTreeMap, HashMap};

use super::trace::Surroundings;
use crate::{
    analysis::{
        blame,
        crosscheck::{self, Agreement, Check, Processors, Traced},
        growth,
        verdict::{self, Evidence},
        visibility,
    },
    cli::TraceArgs,
    report::model::{Cache, Machine, MemoryChange, Module, Report, SCHEMA, SlabChange, TracedReport, Window},
    tracer::{HookState, SiteRecord, Snapshot},
};

/// One site with what was concluded of it.
struct Judged<'a> {
    site: &'a SiteRecord,
    evidence: Evidence,
    check: Option<Check>,
    /// Why its frees may not all be seen.
    doubt: Option<String>,
}

/// Builds the report.
pub(super) fn report(snapshot: &Snapshot, surroundings: &Surroundings, args: &TraceArgs) -> Report {
    let window_s = snapshot.duration.as_secs_f64();
    let checks = check_caches(snapshot, surroundings);
    let mut judged: Vec<Judged<'_>> = snapshot
        .sites
        .iter()
        .filter(|site| !blame::is_bookkeeping(&site.cache))
        .map(|site| Judged {
            site,
            evidence: Evidence {
                reclaimable: is_reclaimable(surroundings, &site.cache),
                replaces: checks.get(&site.cache).is_some_and(|(traced, _)| {
                    verdict::replaces(site.live, traced.net(), traced.unknown_freed)
                }),
                ..evidence(site, window_s)
            },
            check: checks.get(&site.cache).map(|(_, check)| *check),
            doubt: doubt(site, &checks, snapshot, surroundings),
        })
        .collect();
    judged.sort_by(|a, b| verdict::by_rank(&a.evidence, &b.evidence));
    // What slabinfo refutes is no finding: its frees were not seen.
    let (believed, refuted): (Vec<_>, Vec<_>) = judged.into_iter().partition(|judged| !judged.is_refuted());
    let modules = modules(&believed, surroundings);
    let findings = believed
        .iter()
        .filter(|judged| judged.site.live > 0)
        .take(args.top as usize)
        .enumerate()
        .map(|(index, judged)| finding::finding(index + 1, judged, snapshot, surroundings, args))
        .collect();
    Report {
        schema: SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION"),
        kernel: surroundings.machine.release.clone(),
        machine: Machine {
            architecture: surroundings.machine.architecture.clone(),
            cpus: surroundings.machine.online_cpus,
            memory_kb: surroundings.machine.memory / 1_024,
        },
        window: Window {
            started: surroundings.started.clone(),
            duration_s: window_s,
            ticks: snapshot.ticks,
            min_age_s: args.survivor_age().as_secs_f64(),
        },
        coverage: coverage::coverage(snapshot, surroundings, &refuted, &checks),
        overhead: coverage::overhead(snapshot, surroundings),
        memory: memory(surroundings),
        caches: caches(checks, surroundings),
        findings,
        modules,
        unloads: unload::unloads(snapshot, surroundings),
    }
}

/// Hooks that see frees of slab objects which fire no tracepoint.
pub(super) fn missing_frees(snapshot: &Snapshot) -> Vec<&'static str> {
    let missing = |state: &&HookState| state.hook.frees && state.error.is_some();
    snapshot.hooks.iter().filter(missing).map(|state| state.hook.path).collect()
}

/// Why a site's frees may not all be seen, if they may not.
fn doubt(
    site: &SiteRecord,
    checks: &Checks,
    snapshot: &Snapshot,
    surroundings: &Surroundings,
) -> Option<String> {
    visibility::doubt(&visibility::Seen {
        slab: site.is_slab,
        cache: &site.cache,
        sheaves: surroundings.traits.get(&site.cache).is_some_and(|traits| traits.sheaf_capacity > 0),
        implicit_frees: site.implicit_frees,
        agreement: checks.get(&site.cache).map(|(_, check)| check.agreement),
        missing: &missing_frees(snapshot),
    })
}

impl Judged<'_> {
    fn is_refuted(&self) -> bool {
        self.check.is_some_and(|check| {
            check.agreement == Agreement::Contradicts && !crosscheck::explains(&check, self.site.live)
        })
    }
}

/// Kinds of caches whose objects the kernel frees when memory is short, where sysfs does not say.
const RECLAIMABLE: [&str; 6] =
    ["dentry", "inode", "buffer_head", "radix_tree_node", "kmalloc-rcl", "extent_status"];

fn is_reclaimable(surroundings: &Surroundings, cache: &str) -> bool {
    match surroundings.traits.get(cache) {
        Some(traits) => traits.reclaimable,
        None => RECLAIMABLE.iter().any(|kind| cache.contains(kind)),
    }
}

fn evidence(site: &SiteRecord, window_s: f64) -> Evidence {
    let points: Vec<_> = site.series.points().collect();
    Evidence {
        allocated: site.allocated,
        live: site.live,
        survivors: site.survivors,
        object_size: site.object_size,
        growth: growth::objects_per_second(&points),
        window_s,
        ..Evidence::default()
    }
}

type Checks = BTreeMap<String, (Traced, Check)>;

fn check_caches(snapshot: &Snapshot, surroundings: &Surroundings) -> Checks {
    let mut traced: BTreeMap<String, Traced> = BTreeMap::new();
    // What does not pass through a watched module was not traced: there is nothing to compare.
    if !snapshot.modules.is_empty() {
        return Checks::new();
    }
    for site in snapshot.sites.iter().filter(|site| site.is_slab) {
        let cache = traced.entry(site.cache.clone()).or_default();
        cache.allocated += site.allocated;
        cache.freed += site.freed;
        cache.live += site.live;
    }
    for (name, frees) in &snapshot.unknown_frees {
        if let Some(cache) = traced.get_mut(name) {
            cache.unknown_freed += frees;
        }
    }
    let (before, after) = surroundings.slabinfo.as_ref().map_or((None, None), |(b, a)| (Some(b), Some(a)));
    traced
        .into_iter()
        .map(|(name, traced)| {
            let check = crosscheck::check(
                &traced,
                before.and_then(|caches| caches.get(&name)),
                after.and_then(|caches| caches.get(&name)),
                surroundings.traits.get(&name),
                Processors { cpus: surroundings.machine.online_cpus, nodes: surroundings.machine.nodes },
                snapshot.sampling,
            );
            (name, (traced, check))
        })
        .collect()
}

fn caches(checks: Checks, surroundings: &Surroundings) -> Vec<Cache> {
    let slabinfo = surroundings.slabinfo.as_ref();
    let mut caches: Vec<Cache> = checks
        .into_iter()
        .map(|(name, (traced, check))| {
            let (before, after) =
                (slabinfo.and_then(|(b, _)| b.get(&name)), slabinfo.and_then(|(_, a)| a.get(&name)));
            let active =
                |cache: Option<&crate::proc::slab::SlabCache>| cache.map_or(0, |cache| cache.active_objects);
            Cache {
                aliases: surroundings
                    .traits
                    .get(&name)
                    .map(|traits| traits.aliases.clone())
                    .unwrap_or_default(),
                object_size: after.or(before).map_or(0, |cache| cache.object_size),
                slabinfo: (before.or(after).is_some())
                    .then(|| SlabChange { before: active(before), after: active(after) }),
                traced: TracedReport {
                    allocated: traced.allocated,
                    freed: traced.freed,
                    unknown_freed: traced.unknown_freed,
                    live: traced.live,
                    net: traced.net(),
                },
                agreement: check.agreement.word(),
                tolerance: check.tolerance,
                name,
            }
        })
        .collect();
    caches.sort_by_key(|cache| {
        std::cmp::Reverse(cache.traced.net.max(0) as u64 * u64::from(cache.object_size.max(1)))
    });
    caches
}

fn modules(judged: &[Judged<'_>], surroundings: &Surroundings) -> Vec<Module> {
    let mut modules: HashMap<String, Module> = HashMap::new();
    for judged in judged.iter().filter(|judged| judged.site.live > 0) {
        let site = judged.site;
        let frames = site.stacks.first().map(|stack| stack.frames.as_slice()).unwrap_or_default();
        let name = std::iter::once(&site.call_site)
            .chain(frames)
            .find_map(|&address| surroundings.places.frames(address).pop().and_then(|frame| frame.module))
            .unwrap_or_else(|| "vmlinux".into());
        let module = modules.entry(name.clone()).or_insert(Module {
            name,
            findings: 0,
            live_bytes: 0,
            survivor_bytes: 0,
            bytes_per_s: 0.0,
        });
        module.findings += 1;
        module.live_bytes += site.live_bytes;
        module.survivor_bytes += site.survivor_bytes;
        module.bytes_per_s += judged.evidence.growth * f64::from(site.object_size);
    }
    let mut modules: Vec<_> = modules.into_values().collect();
    modules.sort_by_key(|module| std::cmp::Reverse(module.survivor_bytes));
    modules
}

fn memory(surroundings: &Surroundings) -> BTreeMap<&'static str, MemoryChange> {
    type Field = fn(&procfs::Meminfo) -> Option<u64>;
    let (before, after) = &surroundings.memory;
    let fields: [(&'static str, Field); 11] = [
        ("MemTotal", |m| Some(m.mem_total)),
        ("MemFree", |m| Some(m.mem_free)),
        ("MemAvailable", |m| m.mem_available),
        ("Cached", |m| Some(m.cached)),
        ("Slab", |m| Some(m.slab)),
        ("SReclaimable", |m| m.s_reclaimable),
        ("SUnreclaim", |m| m.s_unreclaim),
        ("KernelStack", |m| m.kernel_stack),
        ("PageTables", |m| m.page_tables),
        ("VmallocUsed", |m| Some(m.vmalloc_used)),
        ("Percpu", |m| m.per_cpu),
    ];
    fields
        .into_iter()
        .filter_map(|(name, field)| {
            let change = MemoryChange { before_kb: field(before)? / 1_024, after_kb: field(after)? / 1_024 };
            Some((name, change))
        })
        .collect()
}
