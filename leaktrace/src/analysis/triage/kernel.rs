//! Growth in the kernel: slab caches, vmalloc, and pages that nobody accounts for.

use std::fmt::Write as _;

use super::{
    Culprit, Diagnosis, Kind, Observation, Ranked, allocates_stacks, caches,
    growing::{FLOOR_KB, how, rank},
    holding::{KERNEL_SHARE, heap_of},
    ledger::Class,
    trend::Trend,
};
use crate::{proc::slab::SlabCache, units};

/// Caches and callers that are named at most.
const NAMED: usize = 3;
/// Growth of a cache in kB below which nothing is said.
const CACHE_FLOOR_KB: f64 = 512.0;
/// Of what nobody accounts for, each CPU hides so much: its counters are added up only now and then.
const CPU_KB: f64 = 512.0;
/// kB of a cache's objects.
fn cache_kb(cache: &SlabCache) -> f64 {
    cache.active_objects as f64 * f64::from(cache.object_size) / 1_024.0
}

/// The trend of a cache's objects, in kB.
pub(super) fn cache_trend(seen: &Observation, name: &str) -> Trend {
    seen.trend(|look| Some(look.caches.as_ref()?.get(name).map_or(0.0, cache_kb)))
}

/// Slab caches that grow, but for those that are explained by something else.
pub(super) fn slab(seen: &Observation, explained: &[String]) -> Vec<Ranked> {
    let Some(last) = &seen.last().caches else { return hidden_slab(seen) };
    let mut growing: Vec<_> = last
        .keys()
        .map(|name| (name.as_str(), cache_trend(seen, name)))
        .filter(|(_, trend)| trend.change() >= CACHE_FLOOR_KB)
        .collect();
    growing.sort_by(|a, b| b.1.change().total_cmp(&a.1.change()));
    let all_kb: f64 = growing.iter().map(|(_, trend)| trend.change()).sum();
    growing.retain(|(name, _)| !explained.iter().any(|other| other == name));
    let mut found: Vec<Ranked> =
        growing.iter().take(NAMED).map(|(name, trend)| cache(seen, name, trend)).collect();
    // kmalloc of more than two pages is no cache's, and counted as unreclaimable slab.
    let total = seen.class_trend(Class::SlabUnreclaimable);
    let large = total.change() - all_kb;
    if large >= FLOOR_KB.max(total.change() / 2.0) {
        let trend = Trend {
            before: 0.0,
            after: large,
            per_s: large / seen.duration_s().max(1e-3),
            steady: total.steady,
        };
        let text = format!(
            "Slab memory {}, and no cache does: it is kmalloc of more than 8 KiB, which takes whole pages.",
            how(&total, seen.duration_s())
        );
        let next = vec!["sudo leaktrace --family slab --min-size 8193 --duration 60".into()];
        found.push((large, Diagnosis::new(Kind::Slab, Culprit::default(), text, next).grown(&trend)));
    }
    found
}

fn cache(seen: &Observation, name: &str, trend: &Trend) -> Ranked {
    let nature = seen.nature(name);
    let reclaimable = nature.reclaimable;
    let purpose = nature.purpose(name).map_or_else(String::new, |purpose| format!(" ({purpose})"));
    let object_size =
        seen.last().caches.as_ref().and_then(|caches| caches.get(name)).map_or(1, |c| c.object_size);
    let objects = trend.change() * 1_024.0 / f64::from(object_size.max(1));
    let mut text = format!(
        "The slab cache {name}{purpose} {}: {} objects of {object_size} bytes, to {}.",
        how(trend, seen.duration_s()),
        units::change(objects as i64),
        units::bytes(trend.after * 1_024.0)
    );
    text += &whose(&nature);
    text += if reclaimable {
        " It is a cache in the other sense, too: the kernel shrinks it when memory is short."
    } else {
        " The kernel does not take it back."
    };
    let trace = format!("sudo leaktrace --cache '{name}' --duration 60");
    let module = nature.owner.map(|owner| owner.module);
    let mut next = match &module {
        _ if reclaimable => vec![
            "sync; echo 2 > /proc/sys/vm/drop_caches   (as root) shows how much of it can go".into(),
            format!("{trace} --shake"),
        ],
        Some(module) => vec![format!("sudo leaktrace --module {module} --duration 60"), trace],
        None => vec![trace],
    };
    if trend.after >= seen.last().total_kb as f64 * KERNEL_SHARE {
        next.push(heap_of(name));
    }
    let culprit = Culprit { cache: Some(name.into()), module, ..Culprit::default() };
    let kind = if reclaimable { Kind::SlabReclaimable } else { Kind::Slab };
    (rank(reclaimable, trend.change()), Diagnosis::new(kind, culprit, text, next).grown(trend))
}

/// Aliases that are named at most.
const ALIASES: usize = 6;

/// Whose a cache is, in sentences.
fn whose(nature: &caches::Nature) -> String {
    let mut text = String::new();
    let by = |known| if known == caches::Known::ByName { ", by its name" } else { "" };
    if !nature.aliases.is_empty() {
        let mut names = nature.aliases.clone();
        // The one that is somebody's comes first.
        let own = nature.owner.as_ref().and_then(|owner| owner.alias.clone());
        names.sort_by_key(|name| Some(name) != own.as_ref());
        let more = names.len().saturating_sub(ALIASES);
        names.truncate(ALIASES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ =
            write!(text, " The kernel has merged it with {}{more}: it may be any of them.", names.join(", "));
    }
    if let Some(owner) = &nature.owner {
        let what = owner.alias.as_deref().unwrap_or("It");
        let _ = write!(text, " {what} is the module {}'s{}.", owner.module, by(owner.known));
    }
    text
}

/// Slab memory grows, and nobody may see whose.
fn hidden_slab(seen: &Observation) -> Vec<Ranked> {
    let mut found = Vec::new();
    for (class, kind) in
        [(Class::SlabUnreclaimable, Kind::Slab), (Class::SlabReclaimable, Kind::SlabReclaimable)]
    {
        let trend = seen.class_trend(class);
        if trend.change() < FLOOR_KB {
            continue;
        }
        let text = format!(
            "Memory of {} {}, to {}. Which cache it is only root may see.",
            class.title(),
            how(&trend, seen.duration_s()),
            units::bytes(trend.after * 1_024.0)
        );
        let next = vec!["sudo leaktrace triage".into()];
        let rank = rank(class.is_reclaimable(), trend.change());
        found.push((rank, Diagnosis::new(kind, Culprit::default(), text, next).grown(&trend)));
    }
    found
}

/// The module of `function [module]`.
pub(super) fn module_of(caller: &str) -> Option<String> {
    Some(caller.split_once('[')?.1.split(']').next()?.to_owned())
}

/// vmalloc, by who allocates.
pub(super) fn vmalloc(seen: &Observation) -> Vec<Ranked> {
    let total = seen.trend_of_others(Class::Vmalloc);
    let floor = seen.floor_beside_kin();
    let callers = seen.last().callers.iter().flat_map(|callers| callers.keys());
    let mut growing: Vec<_> = callers
        .filter(|caller| !allocates_stacks(caller))
        .map(|caller| {
            let kb = |look: &super::Look| {
                let pages = look.callers.as_ref()?.get(caller).map_or(0, |areas| areas.pages);
                Some(look.caller_of_others(caller, (pages * seen.page_kb) as f64))
            };
            (caller, seen.trend(kb))
        })
        .filter(|(caller, trend)| {
            trend.change() >= if caller.ends_with("_map_alloc") { floor } else { FLOOR_KB }
        })
        .collect();
    growing.sort_by(|a, b| b.1.change().total_cmp(&a.1.change()));
    if growing.is_empty() {
        if total.change() < floor {
            return Vec::new();
        }
        let kin = seen.unread_kin().map_or_else(String::new, |pid| {
            format!(" leaktrace (pid {pid}) runs, and its BPF maps are a part of it that only root may see.")
        });
        let text = format!(
            "Memory of vmalloc {}, to {}.{}{kin}",
            how(&total, seen.duration_s()),
            units::bytes(total.after * 1_024.0),
            if seen.last().callers.is_some() { "" } else { " Who allocates it only root may see." }
        );
        let next = vec!["sudo leaktrace --family vmalloc --duration 60".into()];
        return vec![(
            total.change(),
            Diagnosis::new(Kind::Vmalloc, Culprit::default(), text, next).grown(&total),
        )];
    }
    growing
        .into_iter()
        .take(NAMED)
        .map(|(caller, trend)| {
            let module = module_of(caller);
            let text = format!(
                "{caller} allocates by vmalloc and keeps it: it {}, to {}.",
                how(&trend, seen.duration_s()),
                units::bytes(trend.after * 1_024.0)
            );
            let next = match &module {
                Some(module) => format!("sudo leaktrace --module {module} --duration 60"),
                None => "sudo leaktrace --family vmalloc --duration 60".into(),
            };
            let culprit = Culprit { module, caller: Some(caller.clone()), ..Culprit::default() };
            (trend.change(), Diagnosis::new(Kind::Vmalloc, culprit, text, vec![next]).grown(&trend))
        })
        .collect()
}

/// Pages that nobody accounts for.
pub(super) fn unaccounted(seen: &Observation) -> Vec<Ranked> {
    let trend = seen.class_trend(Class::Unaccounted);
    if trend.change() < FLOOR_KB + CPU_KB * f64::from(seen.cpus) {
        return Vec::new();
    }
    let place = grown_place(seen, trend.change() * 1_024.0);
    let by = place.as_ref().map_or_else(String::new, |(place, bytes)| {
        format!(" The kernel's own accounts have {} more at {place}.", units::bytes(*bytes))
    });
    let text = format!(
        "Memory that nobody accounts for {}, to {}: somebody in the kernel, mostly a driver, takes pages straight from the \
         page allocator and keeps them.{by}",
        how(&trend, seen.duration_s()),
        units::bytes(trend.after * 1_024.0)
    );
    let module = place.as_ref().and_then(|(place, _)| module_of(place));
    let mut next = vec!["sudo leaktrace --family page --duration 60".to_owned()];
    if let Some(module) = &module {
        next.insert(0, format!("sudo leaktrace --module {module} --duration 60"));
    }
    let culprit = Culprit { module, caller: place.map(|(place, _)| place), ..Culprit::default() };
    vec![(trend.change(), Diagnosis::new(Kind::Unaccounted, culprit, text, next).grown(&trend))]
}

/// The place in the kernel's source that has most more bytes than before, if they are a good part of so many.
fn grown_place(seen: &Observation, bytes: f64) -> Option<(String, f64)> {
    let (before, after) = seen.places.as_ref()?;
    let grown = |(place, &now): (&String, &u64)| {
        (place.clone(), now as f64 - before.get(place).map_or(0.0, |&b| b as f64))
    };
    // What is counted elsewhere (slab, page tables, processes) is larger by other reasons.
    let near = |(_, grown): &(String, f64)| *grown >= bytes * 0.5 && *grown <= bytes * 2.0;
    after.iter().map(grown).filter(near).min_by(|a, b| (a.1 - bytes).abs().total_cmp(&(b.1 - bytes).abs()))
}
