//! From the snapshot and its surroundings to the report.

use std::collections::{BTreeMap, HashMap};

use super::trace::Surroundings;
use crate::{
    analysis::{
        crosscheck::{self, Agreement, Check, Traced},
        growth, lifetime,
        verdict::{self, Evidence},
    },
    cli::TraceArgs,
    report::model::{
        Amount, BlindSpot, Cache, Coverage, Finding, Frame, Growth, HookReport, Lifetime, LostReport, Machine,
        MemoryChange, Module, Object, Overhead, ProgramReport, Report, SCHEMA, SlabChange, Stack, Survivors, Task,
        TracedReport, Window,
    },
    tracer::{SiteRecord, Snapshot, hooks},
    units,
};

/// One site with what was concluded of it.
struct Judged<'a> {
    site: &'a SiteRecord,
    evidence: Evidence,
    check: Option<Check>,
}

/// Builds the report.
pub(super) fn report(snapshot: Snapshot, surroundings: &Surroundings, args: &TraceArgs) -> Report {
    let window_s = snapshot.duration.as_secs_f64();
    let checks = check_caches(&snapshot, surroundings);
    let mut judged: Vec<Judged<'_>> = snapshot
        .sites
        .iter()
        .map(|site| Judged {
            site,
            evidence: evidence(site, window_s, is_reclaimable(surroundings, &site.cache)),
            check: checks.get(&site.cache).map(|(_, check)| *check),
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
        .map(|(index, judged)| finding(index + 1, judged, &snapshot, surroundings, args))
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
        coverage: coverage(&snapshot, surroundings, &refuted, &checks),
        overhead: overhead(&snapshot, surroundings),
        memory: memory(surroundings),
        caches: caches(checks, surroundings),
        findings,
        modules,
    }
}

impl Judged<'_> {
    fn is_refuted(&self) -> bool {
        self.check.is_some_and(|check| {
            check.agreement == Agreement::Contradicts && !crosscheck::explains(&check, self.site.live)
        })
    }
}

/// Kinds of caches whose objects the kernel frees when memory is short, where sysfs does not say.
const RECLAIMABLE: [&str; 6] = ["dentry", "inode", "buffer_head", "radix_tree_node", "kmalloc-rcl", "extent_status"];

fn is_reclaimable(surroundings: &Surroundings, cache: &str) -> bool {
    match surroundings.traits.get(cache) {
        Some(traits) => traits.reclaimable,
        None => RECLAIMABLE.iter().any(|kind| cache.contains(kind)),
    }
}

fn evidence(site: &SiteRecord, window_s: f64, reclaimable: bool) -> Evidence {
    let points: Vec<_> = site.series.points().collect();
    Evidence {
        allocated: site.allocated,
        live: site.live,
        survivors: site.survivors,
        object_size: site.object_size,
        growth: growth::objects_per_second(&points),
        window_s,
        reclaimable,
    }
}

type Checks = BTreeMap<String, (Traced, Check)>;

fn check_caches(snapshot: &Snapshot, surroundings: &Surroundings) -> Checks {
    let mut traced: BTreeMap<String, Traced> = BTreeMap::new();
    for site in &snapshot.sites {
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
                surroundings.machine.online_cpus,
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
            let (before, after) = (slabinfo.and_then(|(b, _)| b.get(&name)), slabinfo.and_then(|(_, a)| a.get(&name)));
            let active = |cache: Option<&crate::proc::slab::SlabCache>| cache.map_or(0, |cache| cache.active_objects);
            Cache {
                aliases: surroundings.traits.get(&name).map(|traits| traits.aliases.clone()).unwrap_or_default(),
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
    caches.sort_by_key(|cache| std::cmp::Reverse(cache.traced.net.max(0) as u64 * u64::from(cache.object_size.max(1))));
    caches
}

fn finding(rank: usize, judged: &Judged<'_>, snapshot: &Snapshot, surroundings: &Surroundings, args: &TraceArgs) -> Finding {
    let site = judged.site;
    let size = u64::from(site.object_size);
    let stacks: Vec<Stack> = site
        .stacks
        .iter()
        .map(|stack| Stack {
            objects: stack.objects,
            bytes: stack.objects * size,
            frames: stack
                .frames
                .iter()
                .take(args.stack_depth as usize)
                .flat_map(|&address| surroundings.places.frames(address))
                .collect(),
        })
        .collect();
    let call_site = call_site(site, surroundings);
    let (module, is_module) = culprit(&call_site, stacks.first());
    Finding {
        rank,
        verdict: judged.evidence.verdict().word(),
        score: judged.evidence.score().round(),
        family: site.family,
        cache: site.cache.clone(),
        module,
        is_module,
        call_site,
        allocated: site.allocated,
        freed: site.freed,
        implicit_frees: site.implicit_frees,
        live: Amount { objects: site.live, bytes: site.live * size },
        survivors: Survivors { objects: site.survivors, bytes: site.survivors * size, oldest_s: site.oldest_s },
        growth: Growth { bytes_per_s: judged.evidence.growth * f64::from(site.object_size), p_value: None },
        lifetime: Lifetime {
            p50_us: lifetime::percentile_us(&site.lifetimes, 0.5),
            p99_us: lifetime::percentile_us(&site.lifetimes, 0.99),
        },
        tasks: site
            .tasks
            .iter()
            .map(|task| Task { comm: task.comm.clone(), pid: task.pid, objects: task.objects })
            .collect(),
        stacks,
        objects: site
            .objects
            .iter()
            .map(|object| Object {
                address: object.address,
                size: if object.size == 0 { site.object_size } else { object.size },
                age_s: snapshot.taken_ns.saturating_sub(object.time_ns) as f64 / 1e9,
            })
            .collect(),
        evidence: words(judged, snapshot, args),
    }
}

fn call_site(site: &SiteRecord, surroundings: &Surroundings) -> Frame {
    if site.call_site == 0 {
        return Frame { symbol: Some("(site table full)".into()), ..Frame::default() };
    }
    // The innermost inlined function has the line, the function around it the symbol.
    let mut frames = surroundings.places.frames(site.call_site);
    let line = frames.first().map(|frame| (frame.file.clone(), frame.line)).unwrap_or_default();
    let outer = frames.pop().unwrap_or_default();
    Frame { file: line.0, line: line.1, ..outer }
}

/// Functions that allocate for others: their callers are to blame.
const WRAPPERS: [&str; 12] = [
    "kmemdup", "kstrdup", "kvmalloc", "__kvmalloc", "krealloc", "kasprintf", "kvasprintf", "__alloc_skb", "alloc_skb",
    "devm_kmalloc", "memdup_user", "mempool_",
];

/// The innermost module on the stack, or the innermost function that allocates for itself.
fn culprit(call_site: &Frame, stack: Option<&Stack>) -> (String, bool) {
    let frames = || std::iter::once(call_site).chain(stack.into_iter().flat_map(|stack| stack.frames.iter()));
    if let Some(module) = frames().find_map(|frame| frame.module.clone()) {
        return (module, true);
    }
    let own = frames().find_map(|frame| {
        frame.symbol.as_ref().filter(|symbol| !WRAPPERS.iter().any(|wrapper| symbol.starts_with(wrapper)))
    });
    (own.cloned().unwrap_or_else(|| call_site.label()), false)
}

fn words(judged: &Judged<'_>, snapshot: &Snapshot, args: &TraceArgs) -> Vec<String> {
    let site = judged.site;
    let mut words = vec![format!(
        "{} of {} objects allocated in {} are alive, the oldest {} old; {} older than {}",
        units::count(site.live),
        units::count(site.allocated),
        units::seconds(snapshot.duration.as_secs_f64()),
        units::seconds(site.oldest_s),
        units::count(site.survivors),
        units::seconds(args.survivor_age().as_secs_f64()),
    )];
    let growth = judged.evidence.growth * f64::from(site.object_size);
    words.push(if growth.abs() < 1.0 {
        "no steady growth".to_owned()
    } else {
        let sign = if growth > 0.0 { "+" } else { "" };
        format!("median growth {sign}{}/s over {} ticks", units::bytes(growth), snapshot.ticks)
    });
    if let (Some(half), Some(most)) =
        (lifetime::percentile_us(&site.lifetimes, 0.5), lifetime::percentile_us(&site.lifetimes, 0.99))
    {
        words.push(format!(
            "{} were freed: half within {}, 99 % within {}",
            units::count(site.freed),
            units::seconds(half / 1e6),
            units::seconds(most / 1e6)
        ));
    }
    if site.implicit_frees > 0 {
        words.push(format!(
            "{} frees were not seen when they happened: some of the live objects may be freed too",
            units::count(site.implicit_frees)
        ));
    }
    if let Some(Check { agreement, change: Some(change), .. }) = judged.check {
        words.push(format!("/proc/slabinfo: {} {} objects, {}", site.cache, units::change(change), agreement.word()));
    }
    if snapshot.sampling > 1 {
        words.push(format!("scaled from 1 in {} addresses", snapshot.sampling));
    }
    words
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
        let size = u64::from(site.object_size);
        module.findings += 1;
        module.live_bytes += site.live * size;
        module.survivor_bytes += site.survivors * size;
        module.bytes_per_s += judged.evidence.growth * f64::from(site.object_size);
    }
    let mut modules: Vec<_> = modules.into_values().collect();
    modules.sort_by_key(|module| std::cmp::Reverse(module.survivor_bytes));
    modules
}

fn coverage(snapshot: &Snapshot, surroundings: &Surroundings, refuted: &[Judged<'_>], checks: &Checks) -> Coverage {
    let lost = &snapshot.lost;
    Coverage {
        hooks: snapshot
            .hooks
            .iter()
            .map(|state| HookReport {
                name: state.hook.name,
                path: state.hook.path,
                mechanism: hooks::MECHANISM,
                attached: state.error.is_none(),
                error: state.error.clone(),
            })
            .collect(),
        blind_spots: blind_spots(snapshot, surroundings, refuted, checks),
        lost: LostReport {
            recursion_misses: lost.recursion_misses,
            live_overflow: lost.live_overflow,
            stack_overflow: lost.stack_overflow,
            implicit_frees: lost.implicit_frees,
            site_overflow: lost.site_overflow,
            stacks_failed: lost.stacks_failed,
            unknown_caches: lost.unknown_caches,
        },
        sampling: snapshot.sampling,
    }
}

fn blind_spots(snapshot: &Snapshot, surroundings: &Surroundings, refuted: &[Judged<'_>], checks: &Checks) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    let mut spot = |path: &str, effect: &str, caches: Vec<String>| {
        spots.push(BlindSpot { path: path.to_owned(), effect: effect.to_owned(), caches });
    };
    let with = |wanted: Agreement| {
        checks.iter().filter(|(_, (_, check))| check.agreement == wanted).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let [frees, allocations] = hooks::UNSEEN;
    spot(frees.path, frees.effect, with(Agreement::Contradicts));
    spot(allocations.path, allocations.effect, with(Agreement::MoreInSlabinfo));
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
    for state in snapshot.hooks.iter().filter(|state| state.error.is_some()) {
        spot(state.hook.path, state.hook.without, Vec::new());
    }
    if !snapshot.page_lookup {
        let reason = surroundings.no_page_lookup.as_deref().unwrap_or("the page of an object led to another cache");
        let effect = format!("{reason}: kmalloc caches are named by size, and frees by kfree of older objects have no cache");
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

fn overhead(snapshot: &Snapshot, surroundings: &Surroundings) -> Overhead {
    let ns: u64 = snapshot.costs.iter().map(|(_, cost)| cost.ns).sum();
    let cpu_s = snapshot.measured_s * f64::from(surroundings.machine.online_cpus);
    Overhead {
        programs: snapshot
            .costs
            .iter()
            .map(|(name, cost)| ProgramReport { name, runs: cost.runs, ns_per_run: cost.ns_per_run() })
            .collect(),
        cpu_percent: (cpu_s > 0.0).then(|| ns as f64 / 1e9 / cpu_s * 100.0),
        user_space_cpu_s: own_cpu_s(),
        tables_kb: snapshot.sizes.bytes() / 1_024,
        max_objects: snapshot.sizes.max_objects,
        slowest_scan_ms: snapshot.slowest_scan.as_secs_f64() * 1e3,
    }
}

/// CPU time of this process in seconds.
fn own_cpu_s() -> f64 {
    // SAFETY: all-zero is a valid rusage, and the pointer is valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn memory(surroundings: &Surroundings) -> BTreeMap<&'static str, MemoryChange> {
    let (before, after) = &surroundings.memory;
    let fields: [(&'static str, fn(&procfs::Meminfo) -> Option<u64>); 11] = [
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
