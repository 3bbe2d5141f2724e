//! What cannot be seen here, and what follows from that.

use super::{Checks, Judged, Surroundings};
use crate::{
    analysis::{blame, crosscheck::Agreement},
    report::{headline, model::BlindSpot},
    tracer::{
        Snapshot,
        hooks::{self, Family},
    },
    units,
};

pub(super) fn blind_spots(
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    refuted: &[Judged<'_>],
    checks: &Checks,
    look_error: Option<&str>,
) -> Vec<BlindSpot> {
    let mut spots = unseen_paths(snapshot, checks);
    spots.extend(unseen_frees(snapshot, refuted));
    spots.extend(kmemleaks_notes(snapshot));
    spots.extend(without_stack(snapshot));
    spots.extend(not_told(snapshot, look_error));
    spots.extend(no_names(snapshot, surroundings));
    spots
}

fn spot(path: &str, effect: impl Into<String>, caches: Vec<String>) -> BlindSpot {
    BlindSpot { path: path.to_owned(), effect: effect.into(), caches }
}

fn tracks(snapshot: &Snapshot, family: Family) -> bool {
    snapshot.hooks.iter().any(|state| state.hook.family == Some(family))
}

/// Paths of the kernel whose events do not come: their hook failed, or there is none.
fn unseen_paths(snapshot: &Snapshot, checks: &Checks) -> Vec<BlindSpot> {
    let with = |wanted: Agreement| {
        checks
            .iter()
            .filter(|(_, (_, check))| check.agreement == wanted)
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    let failed = snapshot.hooks.iter().filter(|state| state.error.is_some()).map(|state| {
        let caches = match state.hook.family {
            Some(Family::Slab) if state.hook.frees => with(Agreement::Contradicts),
            Some(Family::Slab) => with(Agreement::MoreInSlabinfo),
            _ => Vec::new(),
        };
        spot(state.hook.path, state.hook.without, caches)
    });
    let without_hook = hooks::UNSEEN
        .iter()
        .filter(|unseen| tracks(snapshot, unseen.family))
        .map(|unseen| spot(unseen.path, unseen.effect, Vec::new()));
    failed.chain(without_hook).collect()
}

/// Frees that must have been, as /proc/slabinfo or later allocations show.
fn unseen_frees(snapshot: &Snapshot, refuted: &[Judged<'_>]) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    if !refuted.is_empty() {
        let effect = format!(
            "{} sites look as if they leaked, but /proc/slabinfo contradicts their caches: not ranked",
            refuted.len()
        );
        let caches = distinct(refuted.iter().map(|judged| &judged.site.cache));
        spots.push(spot(headline::UNSEEN_FREES, effect, caches));
    }
    let late = distinct(snapshot.sites.iter().filter(|site| site.implicit_frees > 0).map(|site| &site.cache));
    if !late.is_empty() {
        let effect = format!(
            "{} frees were noticed only when the address was allocated again",
            units::count(snapshot.lost.implicit_frees)
        );
        spots.push(spot("frees that were not seen", effect, late));
    }
    spots
}

fn distinct<'a>(caches: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut caches: Vec<_> = caches.cloned().collect();
    caches.sort();
    caches.dedup();
    caches
}

/// What has no stack, and of which no caller is known.
fn without_stack(snapshot: &Snapshot) -> Option<BlindSpot> {
    let bytes: u64 = snapshot.nobodys.iter().map(|nobodys| nobodys.bytes).sum();
    let effect = format!(
        "{} are alive of which no stack was kept, so nobody is named{}",
        units::bytes(bytes as f64),
        if snapshot.lost.stack_overflow > 0 { "" } else { ": `--overhead 100` captures all" }
    );
    let caches = distinct(snapshot.nobodys.iter().map(|nobodys| &nobodys.cache));
    (bytes > 0).then(|| spot("allocations without a stack", effect, caches))
}

fn kmemleaks_notes(snapshot: &Snapshot) -> Option<BlindSpot> {
    let notes: Vec<_> = snapshot
        .sites
        .iter()
        .filter(|site| blame::is_bookkeeping(&site.cache) && site.live > 0)
        .map(|site| site.cache.clone())
        .collect();
    (!notes.is_empty())
        .then(|| spot("kmemleak's own notes", "one for each object of this kernel: not ranked", notes))
}

/// What the kernel did not tell of pages, objects, processes and modules.
fn not_told(snapshot: &Snapshot, look_error: Option<&str>) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    if let Some(error) = &snapshot.page_uses_error {
        let effect = format!("{error}: pages of the page cache and of users may be among the findings");
        spots.push(spot("/proc/kpageflags", effect, Vec::new()));
    }
    if let Some(error) = look_error {
        let effect =
            format!("{error}: whether survivors are on lists could not be seen, so none is called a leak");
        spots.push(spot("objects in memory", effect, Vec::new()));
    }
    if let Some(error) = &snapshot.processes_error {
        let effect = format!("{error}: every process is taken to be running still");
        spots.push(spot("processes", effect, Vec::new()));
    }
    if snapshot.module_events_missed > 0 {
        let effect =
            format!("{} loads or removals of watched modules were not seen", snapshot.module_events_missed);
        spots.push(spot("modules that come and go", effect, Vec::new()));
    }
    spots
}

/// Where names are missing: of caches, what /proc/slabinfo has by them, and of functions.
fn no_names(snapshot: &Snapshot, surroundings: &Surroundings) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    if !snapshot.page_lookup && tracks(snapshot, Family::Slab) {
        let reason =
            surroundings.no_page_lookup.as_deref().unwrap_or("the page of an object led to another cache");
        let effect = format!(
            "{reason}: kmalloc caches are named by size, and frees by kfree of older objects have no cache"
        );
        spots.push(spot("cache of a kmalloc object", effect, Vec::new()));
    }
    if let Some(error) = &surroundings.slabinfo_error {
        let effect = format!("{error}: nothing could be compared with it");
        spots.push(spot("/proc/slabinfo", effect, Vec::new()));
    }
    if let Some(note) = surroundings.places.note() {
        spots.push(spot("/proc/kallsyms", note, Vec::new()));
    }
    spots
}
