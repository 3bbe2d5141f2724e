//! From what was seen of each site to a verdict, and their order.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use super::{Surroundings, usage::unused};
use crate::{
    analysis::{
        blame::{self, Context, Function},
        crosscheck::{self, Agreement, Check, Processors, Traced},
        growth::{self, Growth, Seen},
        holders::{self, Holder},
        lifetime,
        linkage::Linkage,
        verdict::{self, Allocators, Evidence, Verdict},
        visibility,
    },
    tracer::{HookState, SiteRecord, Snapshot},
};

/// Sites whose survivors are looked at in memory at most, the highest ranks first.
const MOST_LOOKED_AT: usize = 32;

/// One site with what was concluded of it.
pub(in crate::commands) struct Judged<'a> {
    pub(in crate::commands) site: &'a SiteRecord,
    pub(in crate::commands) index: usize,
    pub(in crate::commands) evidence: Evidence,
    pub(super) check: Option<Check>,
    /// Why its frees may not all be seen.
    pub(super) doubt: Option<String>,
    /// The first module on its stack.
    pub(in crate::commands) module: Option<String>,
}

/// What the stacks of a site say.
struct People {
    /// In whose name it allocates.
    context: Context,
    /// The innermost module of the first stack.
    module: Option<String>,
    /// Whether that module's code is responsible, or near what is. Far out on the stack of received packets
    /// there is always some network driver.
    responsible: bool,
    /// Who is known to hold what one of the functions up to the responsible one allocates.
    holder: Option<Holder>,
}

/// Frames between the responsible one and a module's that still make it the module's allocation.
const NEAR: usize = 4;
/// Stacks, the most frequent ones, that say in whose name a site allocates.
const STACKS_ASKED: usize = 6;

/// Everything that was concluded.
pub(in crate::commands) struct Judgement<'a> {
    /// Sites, the likeliest leak first.
    pub(in crate::commands) judged: Vec<Judged<'a>>,
    /// Sites that /proc/slabinfo refutes.
    pub(super) refuted: Vec<Judged<'a>>,
    /// Caches compared.
    pub(super) checks: Checks,
    /// Why survivors were not looked at, if they were not.
    pub(super) look_error: Option<String>,
}

pub(super) type Checks = BTreeMap<String, (Traced, Check)>;

/// What was alive before caches were dropped: objects by site and responsible caller.
pub(in crate::commands) type Before = rustc_hash::FxHashMap<(usize, u64), u64>;

/// Notes what is alive.
pub(in crate::commands) fn before(snapshot: &Snapshot) -> Before {
    snapshot.sites.iter().map(|site| ((site.site, site.owner.unwrap_or(0)), site.live)).collect()
}

/// Looks at survivors of some of the snapshot's sites in memory.
pub(in crate::commands) type Look<'a> = &'a dyn Fn(&Snapshot, &[usize], &[&str]) -> Result<Vec<Linkage>>;

/// Judges all sites; `shaken` is what was alive before caches were dropped.
pub(in crate::commands) fn judge<'a>(
    snapshot: &'a Snapshot,
    surroundings: &Surroundings,
    shaken: Option<&Before>,
    look: Look<'_>,
) -> Judgement<'a> {
    let checks = check_caches(snapshot, surroundings);
    let missing = missing_frees(snapshot);
    let areas = snapshot.sites.iter().any(|site| site.family == "vmalloc");
    let mut judged: Vec<Judged<'a>> = snapshot
        .sites
        .iter()
        .enumerate()
        .filter(|(_, site)| !blame::is_bookkeeping(&site.cache))
        .filter(|(_, site)| !(areas && site.is_slab && notes_areas(site, surroundings)))
        .map(|(index, site)| {
            let doubt = doubt(site, &checks, &missing, surroundings);
            let check = checks.get(&site.cache).map(|(_, check)| *check);
            let People { context, module, responsible, holder } = people(site, surroundings);
            let allocators = Allocators {
                context,
                alive: site.alive,
                // Asked below, of those that grow.
                module_in_use: module.as_ref().map(|_| true),
            };
            let mut evidence = evidence(site, snapshot, surroundings);
            evidence.replaces = checks
                .get(&site.cache)
                .is_some_and(|(traced, _)| verdict::replaces(site.live, traced.net(), traced.unknown_freed));
            evidence.doubted = doubt.is_some();
            evidence.agreement = check.map(|check| check.agreement);
            evidence.cache_grew = check.and_then(|check| check.change);
            evidence.in_module = responsible;
            if responsible {
                // Of a module's own, the processes are asked for, not names that its cache may have by merging.
                evidence.holder = evidence.holder.filter(|holder| holder.seconds.is_some());
            }
            evidence.holder = holder.or(evidence.holder);
            evidence.allocators = allocators;
            evidence.shaken = shaken.map(|before| {
                let key = (site.site, site.owner.unwrap_or(0));
                before.get(&key).copied().unwrap_or(0).saturating_sub(site.live)
            });
            Judged { site, index, evidence, check, doubt, module }
        })
        .collect();
    let mut modules: Vec<String> = judged
        .iter()
        .filter(|judged| judged.evidence.verdict() >= Verdict::Suspect)
        .filter_map(|judged| judged.module.clone())
        .collect();
    modules.sort_unstable();
    modules.dedup();
    let unused = unused(Path::new("/"), &modules);
    for judged in &mut judged {
        if judged.module.as_ref().is_some_and(|module| unused.contains(module)) {
            judged.evidence.allocators.module_in_use = Some(false);
        }
    }
    judged.sort_by(|a, b| verdict::by_rank(&a.evidence, &b.evidence));
    let mut worth: Vec<&mut Judged<'a>> =
        judged.iter_mut().filter(|judged| judged.evidence.is_worth_a_look()).take(MOST_LOOKED_AT).collect();
    let which: Vec<usize> = worth.iter().map(|judged| judged.index).collect();
    let mut look_error = None;
    if !which.is_empty() {
        let mut modules: Vec<String> = worth.iter().filter_map(|judged| judged.module.clone()).collect();
        modules.sort_unstable();
        modules.dedup();
        let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
        match look(snapshot, &which, &modules) {
            Ok(found) => {
                for (judged, linkage) in worth.iter_mut().zip(found) {
                    judged.evidence.linkage = Some(linkage);
                }
            }
            Err(error) => look_error = Some(format!("{error:#}")),
        }
    }
    judged.sort_by(|a, b| verdict::by_rank(&a.evidence, &b.evidence));
    // What slabinfo refutes is no finding: its frees were not seen.
    let (judged, refuted) = judged.into_iter().partition(|judged| !judged.is_refuted());
    Judgement { judged, refuted, checks, look_error }
}

impl Judged<'_> {
    fn is_refuted(&self) -> bool {
        self.check.is_some_and(|check| {
            check.agreement == Agreement::Contradicts && !crosscheck::explains(&check, self.site.live)
        })
    }
}

/// Reads a site's stacks.
fn people(site: &SiteRecord, surroundings: &Surroundings) -> People {
    let places = &surroundings.places;
    let (mut kernel, mut all) = (0, 0);
    let mut first = None;
    // Of what does not survive, nobody asks who allocated it.
    let stacks = if site.survivors > 0 { STACKS_ASKED } else { 1 };
    for stack in site.stacks.iter().take(stacks) {
        let functions: Vec<_> = stack
            .frames
            .iter()
            .map(|&address| {
                places.locate(address).map(|place| Function { symbol: place.symbol, module: place.module })
            })
            .collect();
        all += stack.objects;
        if blame::context(&functions) == Context::Kernel {
            kernel += stack.objects;
        }
        first.get_or_insert((stack.frames.as_slice(), functions));
    }
    let context = match (kernel, all) {
        (_, 0) => Context::Unknown,
        (kernel, all) if kernel * 5 > all * 4 => Context::Kernel,
        _ => Context::Process,
    };
    let call_site = [site.call_site];
    let (frames, functions) = first.unwrap_or((call_site.as_slice(), Vec::new()));
    let module_of = |address: u64| places.locate(address).and_then(|place| place.module);
    let owner = site
        .owner
        .and_then(|owner| frames.iter().position(|&frame| frame == owner))
        .or_else(|| blame::responsible(&functions, &[], &blame::NoneKnown))
        .unwrap_or(0);
    // The responsible one's module, past the libraries that it uses; else the innermost.
    let in_module = |at: &usize| module_of(frames[*at]).is_some();
    let at = Some(owner)
        .filter(|at| *at < frames.len() && in_module(at))
        .or_else(|| (0..frames.len()).find(in_module));
    let holder = frames
        .iter()
        .take(owner + 1)
        .chain(&call_site)
        .filter_map(|&address| places.locate(address))
        .find_map(|place| holders::holder_by_function(blame::plain(place.symbol), place.module));
    People {
        context,
        module: at.and_then(|at| module_of(frames[at])).map(str::to_owned),
        responsible: at.is_some_and(|at| at <= owner + NEAR),
        holder,
    }
}

/// Whether a site is vmalloc's own notes on areas, which are judged themselves.
fn notes_areas(site: &SiteRecord, surroundings: &Surroundings) -> bool {
    surroundings.places.locate(site.call_site).is_some_and(|place| blame::notes_areas(place.symbol))
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
    missing: &[&'static str],
    surroundings: &Surroundings,
) -> Option<String> {
    visibility::doubt(&visibility::Seen {
        slab: site.is_slab,
        cache: &site.cache,
        sheaves: surroundings.traits.get(&site.cache).is_some_and(|traits| traits.sheaf_capacity > 0),
        implicit_frees: site.implicit_frees,
        live: site.live,
        agreement: checks.get(&site.cache).map(|(_, check)| check.agreement),
        missing,
    })
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

fn evidence(site: &SiteRecord, snapshot: &Snapshot, surroundings: &Surroundings) -> Evidence {
    let growth = growth(site, snapshot, surroundings);
    // Lifetimes are of all callers of a site that allocates for others; what this one's do is known, then.
    let lifetimes = Some(&site.lifetimes).filter(|_| site.owner.is_none() || !growth.stays());
    let in_memory = !matches!(site.family, "vmalloc" | "percpu");
    Evidence {
        allocated: site.allocated,
        live: site.live,
        survivors: site.survivors,
        seen: site.seen,
        object_size: site.object_size,
        growth,
        min_age_s: surroundings.scope.min_age.as_secs_f64(),
        window_s: snapshot.duration.as_secs_f64(),
        lifetime_s: lifetimes
            .and_then(|all| lifetime::percentile_us(all, 0.999, snapshot.duration))
            .map(|us| us / 1e6),
        reclaimable: is_reclaimable(surroundings, &site.cache),
        shaken: None,
        left_behind: is_left_behind(site, snapshot),
        replaces: false,
        for_everybody: site.cache.starts_with("kmalloc"),
        doubted: false,
        missed: missed_frees(snapshot, site.family),
        agreement: None,
        cache_grew: None,
        in_module: false,
        allocators: Allocators { context: Context::Unknown, alive: 1.0, module_in_use: None },
        holder: (site.family == "kmem_cache").then(|| holders::holder(&site.cache)).flatten(),
        can_be_linked: in_memory,
        linkage: None,
        proven: surroundings.proven(site),
    }
}

/// Whether a site's code was a module's that has been removed.
fn is_left_behind(site: &SiteRecord, snapshot: &Snapshot) -> bool {
    let address = site.owner.unwrap_or(site.call_site).wrapping_sub(1);
    let mut of = snapshot.stays.iter().filter(|stay| stay.contains(address)).peekable();
    of.peek().is_some() && of.all(|stay| stay.removed_ns.is_some())
}

/// How a site's survivors grow.
fn growth(site: &SiteRecord, snapshot: &Snapshot, surroundings: &Surroundings) -> Growth {
    let levels: Vec<_> = site.counted().points().collect();
    let min_age_s = surroundings.scope.min_age.as_secs_f64();
    let told = site.births.until(snapshot.duration.as_secs_f64() - min_age_s);
    growth::measure(&Seen {
        births: Some(&site.births),
        now_s: snapshot.duration.as_secs_f64(),
        min_age_s,
        stay: site.stay,
        levels: &levels,
        events: (site.allocated, site.freed),
        scale: if told == 0 { 1.0 } else { site.survivors as f64 / told as f64 },
    })
}

/// Frees of a family that were missed because their program was busy on that CPU.
fn missed_frees(snapshot: &Snapshot, family: &str) -> u64 {
    snapshot.costs.iter().filter(|(name, ..)| books_frees_of(name, family)).map(|(_, _, misses)| misses).sum()
}

/// Whether a program books frees of a family.
fn books_frees_of(program: &str, family: &str) -> bool {
    match family {
        "page" => program == "mm_page_free",
        "vmalloc" => program.contains("free_vmap"),
        "percpu" => program.contains("percpu_free"),
        // `kmem_cache_free` takes what is of its cache only (`mm/slub.c`), and no cache of kmalloc is given to it.
        "kmalloc" | "kmalloc-large" if program.starts_with("kmem_cache_free") => false,
        _ => ["kfree", "cache_free", "kvfree"].iter().any(|part| program.contains(part)),
    }
}

fn check_caches(snapshot: &Snapshot, surroundings: &Surroundings) -> Checks {
    let mut traced: BTreeMap<String, Traced> = BTreeMap::new();
    // What does not pass through a watched module was not traced: there is nothing to compare.
    if !snapshot.modules.is_empty() {
        return Checks::new();
    }
    // Counts of events are of a whole site, however many callers it is told apart by.
    let mut counted = rustc_hash::FxHashSet::default();
    for site in snapshot.sites.iter().filter(|site| site.is_slab) {
        let cache = traced.entry(site.cache.clone()).or_default();
        if counted.insert(site.site) {
            cache.allocated += site.allocated;
            cache.freed += site.freed;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_books_whose_frees() {
        let programs = ["kfree", "kmem_cache_free", "fentry_kmem_cache_free_bulk", "kprobe_kvfree_call_rcu"];
        let booking = |family| programs.map(|program| books_frees_of(program, family));
        assert_eq!(booking("kmem_cache"), [true; 4]);
        assert_eq!(booking("kmalloc"), [true, false, true, true]);
        assert_eq!(booking("page"), [false; 4]);
        assert!(!books_frees_of("percpu_free_percpu", "kmalloc"));
        assert!(books_frees_of("percpu_free_percpu", "percpu"));
    }
}
