//! From the snapshot and its surroundings to the report.

mod blind_spots;
pub(super) mod coverage;
mod finding;
mod judge;
pub(super) mod steps;
mod unload;
mod usage;
mod words;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use rustc_hash::{FxHashMap, FxHashSet};

pub(super) use self::judge::{Before, Judgement, before, judge};
use self::judge::{Checks, Judged};
use super::surroundings::Surroundings;
use crate::{
    kernel::machine::boot_id,
    report::{
        groups, headline,
        known::Known,
        model::{
            Account, Amount, Cache, Headline, Machine, MemoryChange, Module, Report, SCHEMA, Shake,
            ShakenCache, SlabChange, TracedReport, Window, Word,
        },
    },
    tracer::Snapshot,
};

/// Builds the report.
pub(super) fn report(
    snapshot: &Snapshot,
    judgement: Judgement<'_>,
    shaken: Option<&Before>,
    surroundings: &Surroundings,
    baseline: Option<&Known>,
) -> Report {
    let Judgement { judged, refuted, checks, look_error } = judgement;
    let modules = modules(&judged);
    let mut findings: Vec<_> = judged
        .iter()
        .filter(|judged| judged.site.live > 0)
        .enumerate()
        // Leaks are told however many there are.
        .take_while(|(index, judged)| {
            *index < surroundings.scope.findings
                || judged.evidence.verdict() == crate::analysis::verdict::Verdict::Leak
        })
        .map(|(index, judged)| finding::finding(index + 1, judged, snapshot, surroundings))
        .collect();
    if let Some(baseline) = baseline {
        baseline.mark(&mut findings);
    }
    let coverage = coverage::coverage(snapshot, surroundings, &refuted, &checks, look_error.as_deref());
    let mut report = Report {
        schema: SCHEMA.into(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        kernel: surroundings.machine.release.clone(),
        machine: Machine {
            architecture: surroundings.machine.architecture.clone(),
            cpus: surroundings.machine.online_cpus,
            memory_kb: surroundings.machine.memory / 1_024,
            boot_id: boot_id(Path::new("/")).unwrap_or_default(),
        },
        window: Window {
            started: surroundings.started.clone(),
            duration_s: snapshot.duration.as_secs_f64(),
            ticks: snapshot.ticks,
            scans: snapshot.scans,
            min_age_s: surroundings.scope.min_age.as_secs_f64(),
            allocated: Some(allocated(snapshot)),
        },
        filters: surroundings.filters.clone(),
        headline: Headline::default(),
        coverage,
        overhead: coverage::overhead(snapshot, surroundings),
        memory: memory(surroundings),
        caches: caches(checks, surroundings),
        groups: groups::groups(&findings),
        findings,
        modules,
        unloads: unload::unloads(snapshot, surroundings),
        accounts: accounts(surroundings),
        kmemleak: None,
        reachability: surroundings.proofs.as_ref().map(|proofs| proofs.report.clone()),
        shake: shaken.map(|before| shake(before, snapshot)),
        recorded: None,
    };
    report.headline = headline::headline(&report);
    report
}

/// Objects that were recorded, whether they still live or not.
fn allocated(snapshot: &Snapshot) -> u64 {
    // The counts of a site are those of each of its callers.
    let mut counted = FxHashSet::default();
    snapshot.sites.iter().filter(|site| counted.insert(site.site)).map(|site| site.allocated).sum()
}

/// Accounts that are reported.
const ACCOUNTS: usize = 50;

fn accounts(surroundings: &Surroundings) -> Vec<Account> {
    let most = surroundings.accounts.iter().flat_map(|(_, accounts)| accounts.most(ACCOUNTS));
    most.map(|account| Account {
        place: account.place,
        bytes_before: account.before,
        bytes_after: account.after,
    })
    .collect()
}

/// What of the traced objects went away when caches were dropped.
fn shake(before: &Before, snapshot: &Snapshot) -> Shake {
    let mut caches: FxHashMap<&str, ShakenCache> = FxHashMap::default();
    for site in &snapshot.sites {
        let was = before.get(&(site.site, site.owner.unwrap_or(0))).copied().unwrap_or(0);
        let gone = was.saturating_sub(site.live);
        let cache = caches.entry(&site.cache).or_insert_with(|| ShakenCache {
            cache: site.cache.clone(),
            before: 0,
            freed: Amount { objects: 0, bytes: 0 },
        });
        cache.before += was;
        cache.freed.objects += gone;
        cache.freed.bytes += gone * u64::from(site.object_size);
    }
    let mut caches: Vec<_> = caches.into_values().filter(|cache| cache.freed.objects > 0).collect();
    caches.sort_by(|a, b| b.freed.bytes.cmp(&a.freed.bytes).then_with(|| a.cache.cmp(&b.cache)));
    let freed = caches.iter().fold(Amount { objects: 0, bytes: 0 }, |sum, cache| Amount {
        objects: sum.objects + cache.freed.objects,
        bytes: sum.bytes + cache.freed.bytes,
    });
    Shake { freed, caches }
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
                agreement: check.agreement.word().into(),
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

fn modules(judged: &[Judged<'_>]) -> Vec<Module> {
    let mut modules: HashMap<&str, Module> = HashMap::new();
    for judged in judged.iter().filter(|judged| judged.site.live > 0) {
        let site = judged.site;
        let name = judged.module.as_deref().unwrap_or("vmlinux");
        let module = modules.entry(name).or_insert_with(|| Module {
            name: name.to_owned(),
            findings: 0,
            live_bytes: 0,
            survivor_bytes: 0,
            bytes_per_s: 0.0,
        });
        module.findings += 1;
        module.live_bytes += site.live_bytes;
        module.survivor_bytes += site.survivor_bytes;
        if judged.evidence.growth.shape.grows() {
            module.bytes_per_s += judged.evidence.growth.per_s * f64::from(site.object_size);
        }
    }
    let mut modules: Vec<_> = modules.into_values().collect();
    modules.sort_by_key(|module| std::cmp::Reverse(module.survivor_bytes));
    modules
}

fn memory(surroundings: &Surroundings) -> BTreeMap<Word, MemoryChange> {
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
            Some((Word::from(name), change))
        })
        .collect()
}
