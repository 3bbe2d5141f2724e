//! What watched modules left behind when they were removed.

use std::collections::BTreeMap;

use super::{Surroundings, judge::missing_frees};
use crate::{
    analysis::blame::Function,
    report::model::{Amount, Frame, LeftSite, Unload},
    tracer::{Left, Snapshot, Stay},
    units,
};

/// Each removal, in the order in which they happened.
pub(super) fn unloads(snapshot: &Snapshot, surroundings: &Surroundings) -> Vec<Unload> {
    let mut unloads: Vec<_> = snapshot
        .stays
        .iter()
        .filter_map(|stay| Some((stay.removed_ns?, unload(stay, snapshot, surroundings))))
        .collect();
    unloads.sort_by_key(|&(removed_ns, _)| removed_ns);
    unloads.into_iter().map(|(_, unload)| unload).collect()
}

fn unload(stay: &Stay, snapshot: &Snapshot, surroundings: &Surroundings) -> Unload {
    // By function, and of one function by cache: the addresses of one differ by call.
    let mut sites: BTreeMap<(String, String), LeftSite> = BTreeMap::new();
    let (mut total, mut implicit) = (Amount { objects: 0, bytes: 0 }, 0);
    for left in &snapshot.left {
        // The first removal after its allocation is this one, or another module's during this stay:
        // what an earlier stay at the same addresses left is that one's.
        let first = snapshot.stays[left.stay].removed_ns.unwrap_or(0);
        let own = first > stay.loaded_ns && first <= stay.removed_ns.unwrap_or(0);
        let Some(function) = owner(left, stay, surroundings).filter(|_| own) else { continue };
        total.objects += left.objects;
        total.bytes += left.bytes;
        implicit += left.implicit_frees;
        let key = (function.symbol.clone().unwrap_or_else(|| function.label()), left.cache.clone());
        let site = sites.entry(key).or_insert_with(|| LeftSite {
            function,
            family: left.family.into(),
            cache: left.cache.clone(),
            left: Amount { objects: 0, bytes: 0 },
        });
        site.left.objects += left.objects;
        site.left.bytes += left.bytes;
    }
    let mut sites: Vec<_> = sites.into_values().collect();
    sites.sort_by_key(|site| std::cmp::Reverse((site.left.bytes, site.left.objects)));
    let missing = missing_frees(snapshot);
    let doubt = if total.objects == 0 {
        None
    } else if !missing.is_empty() {
        Some(format!("some may have been freed by {}, which cannot be seen here", missing.join(" and ")))
    } else if implicit > 0 {
        Some(format!("{} frees were not seen when they happened", units::count(implicit)))
    } else if snapshot.lost.recursion_misses > 0 {
        let missed = units::count(snapshot.lost.recursion_misses);
        Some(format!("{missed} events were missed: so many of these at most may have been freed"))
    } else {
        None
    };
    // A missed event is one free at most: what is left beyond that is left for sure.
    let sure = missing.is_empty() && implicit == 0 && total.objects > snapshot.lost.recursion_misses;
    Unload {
        module: stay.module.clone(),
        after_s: stay.removed_ns.unwrap_or(0).saturating_sub(snapshot.started_ns) as f64 / 1e9,
        verdict: if sure { "leak" } else { "suspect" }.into(),
        doubt,
        left: total,
        sites,
    }
}

/// The module's function that allocated: the first frame that does not allocate for others, if it
/// is the module's. What the kernel allocated on its behalf is the kernel's to free.
fn owner(left: &Left, stay: &Stay, surroundings: &Surroundings) -> Option<Frame> {
    for &address in &left.frames {
        let mut frames = surroundings.places.frames(address);
        let frame = frames.pop()?;
        let inside = stay.contains(address.wrapping_sub(1));
        let helper = frame
            .symbol
            .as_deref()
            .is_some_and(|symbol| Function { symbol, module: frame.module.as_deref() }.is_helper());
        if inside && !helper {
            return Some(Frame { module: Some(stay.module.clone()), ..frame });
        }
        if !helper {
            return None;
        }
    }
    None
}
