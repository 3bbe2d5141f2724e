//! Why, in words: the evidence for a verdict.

use std::time::Duration;

use super::Judged;
use crate::{
    analysis::{
        crosscheck::Check,
        growth::Shape,
        lifetime,
        verdict::{self, FEWEST_SUSPECT, Verdict},
    },
    commands::surroundings::Scope,
    report::model::{AccountSide, Frame, FreedBy},
    tracer::Snapshot,
    units,
};

/// The evidence, a sentence each.
pub(super) fn evidence(
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    freed_by: &[FreedBy],
    call_site: &Frame,
    scope: Scope,
) -> Vec<String> {
    let mut words = vec![survivors(judged, snapshot, call_site, scope)];
    words.extend(lifetimes(judged, snapshot.duration));
    words.push(growth(judged));
    words.extend(stays(judged, scope));
    if judged.evidence.left_behind {
        words.push("they were still there after the module that allocated them was removed".to_owned());
    }
    if judged.evidence.replaces {
        words.push(
            "the cache lost older objects meanwhile, whose place these may take: a longer run tells"
                .to_owned(),
        );
    }
    if judged.site.shared > 0 {
        words.push(format!(
            "{} of them have no stack: they are shared out to the callers of such blocks by what each keeps",
            units::count(judged.site.shared)
        ));
    }
    let callers: Vec<_> =
        freed_by.iter().take(3).map(|by| format!("{} ({:.0} %)", by.caller, by.percent)).collect();
    if !callers.is_empty() {
        let whose = if judged.site.owner.is_some() { "of all its callers " } else { "" };
        words.push(format!("objects {whose}are normally freed by {}", callers.join(", ")));
    }
    words.extend(slabinfo(judged));
    words.extend(linkage(judged));
    words.extend(allocators(judged));
    if let Some(gone) = judged.evidence.shaken.filter(|&gone| gone > 0) {
        let was = units::count(gone + judged.site.live);
        words.push(format!("{} of {was} went away when caches were dropped", units::count(gone)));
    }
    if snapshot.sampling > 1 {
        // Of a site that never frees the share of what is in the sample is known.
        let error = if judged.site.freed == 0 {
            0.0
        } else {
            verdict::sampling_error(judged.site.seen, snapshot.sampling) * 100.0
        };
        words.push(format!("scaled from 1 in {} addresses, give or take {error:.0} %", snapshot.sampling));
    }
    words
}

/// From which size on it is told what is held since before the trace.
const HELD_BEFORE: u64 = 64 << 10;

/// Why a module is named that did not allocate.
pub(super) fn culprit(module: &str) -> String {
    format!(
        "the kernel allocates them, and {module} frees most: those that stay have most likely been lost there"
    )
}

/// What the kernel's own accounts say.
pub(super) fn account(side: &AccountSide) -> String {
    let grown = side.bytes_after as f64 - side.bytes_before as f64;
    let sign = if grown < 0.0 { "" } else { "+" };
    let before = if side.bytes_before >= HELD_BEFORE {
        format!("; it held {} before the trace", units::bytes(side.bytes_before as f64))
    } else {
        String::new()
    };
    format!(
        "the kernel's own accounts have {sign}{} at {}: {}{before}",
        units::bytes(grown),
        side.place,
        side.agreement
    )
}

fn survivors(judged: &Judged<'_>, snapshot: &Snapshot, call_site: &Frame, scope: Scope) -> String {
    let site = judged.site;
    let window = units::seconds(snapshot.duration.as_secs_f64());
    let ages = format!(
        "the oldest {} old; {} older than {}",
        units::seconds(site.oldest_s),
        units::count(site.survivors),
        units::seconds(scope.min_age.as_secs_f64()),
    );
    if site.owner.is_some() {
        return format!(
            "{} objects of this caller are alive, {ages}; {} allocated {} for all its callers in {window}, of which {} were freed",
            units::count(site.live),
            call_site.symbol.as_deref().unwrap_or("the call site"),
            units::count(site.allocated),
            units::count(site.freed),
        );
    }
    format!(
        "{} of {} objects allocated in {window} are alive, {ages}",
        units::count(site.live),
        units::count(site.allocated),
    )
}

fn lifetimes(judged: &Judged<'_>, traced: Duration) -> Option<String> {
    let site = judged.site;
    let half = lifetime::percentile_us(&site.lifetimes, 0.5, traced)?;
    let most = lifetime::percentile_us(&site.lifetimes, 0.99, traced)?;
    Some(format!(
        "{} were freed: half within {}, 99 % within {}",
        units::count(site.freed),
        units::seconds(half / 1e6),
        units::seconds(most / 1e6)
    ))
}

fn growth(judged: &Judged<'_>) -> String {
    let growth = &judged.evidence.growth;
    let size = f64::from(judged.site.object_size);
    match growth.shape {
        Shape::Steady | Shape::Bursty if !growth.grows() => format!(
            "rises by {}/s, but was counted only {} times, and what comes and goes at random would rise as much in 1 of {} cases: a \
             longer run tells",
            units::bytes(growth.per_s * size),
            judged.site.counted().points().len(),
            units::count((1.0 / growth.walk.unwrap_or(1.0)).round() as u64)
        ),
        Shape::Steady | Shape::Bursty => format!(
            "{} {} by {}/s, give or take {}/s, in {} of {} parts of the time, for {}",
            if growth.surely() { "grows" } else { "seems to grow" },
            if growth.shape == Shape::Steady { "steadily" } else { "in bursts" },
            units::bytes(growth.per_s * size),
            units::bytes(growth.error_per_s * size),
            growth.born_in,
            growth.bins,
            units::seconds(growth.sustained_s)
        ),
        Shape::Step => "grew once, in one step".to_owned(),
        Shape::Plateau => "has stopped growing, or never grew".to_owned(),
        Shape::Sawtooth => "does not stay: what survives is freed in the end".to_owned(),
        Shape::Unclear => "too little time to see a growth".to_owned(),
    }
}

/// What became of those that had come of age when it was looked before.
fn stays(judged: &Judged<'_>, scope: Scope) -> Option<String> {
    let stay = judged.evidence.growth.stay.filter(|stay| stay.aged >= FEWEST_SUSPECT)?;
    let (aged, watched) = (units::count(stay.aged), units::seconds(stay.watched_s));
    let age = units::seconds(scope.min_age.as_secs_f64());
    if stay.died > 0 {
        return Some(format!(
            "of {aged} that were older than {age} {watched} ago {} were freed since",
            units::count(stay.died)
        ));
    }
    let lives_on = stay.lives_on_s().map(units::seconds).unwrap_or_default();
    Some(format!(
        "none of {aged} that were older than {age} {watched} ago was freed since: such objects live on for {lives_on} or more on \
         average (95 %)"
    ))
}

fn slabinfo(judged: &Judged<'_>) -> Option<String> {
    let Check { agreement, change: Some(change), .. } = judged.check? else { return None };
    Some(format!(
        "{} in /proc/slabinfo changed by {} objects: {}",
        judged.site.cache,
        units::change(change),
        agreement.word()
    ))
}

fn linkage(judged: &Judged<'_>) -> Option<String> {
    let linkage = judged.evidence.linkage.filter(|linkage| linkage.looked_at > 0)?;
    let looked = units::count(linkage.looked_at);
    Some(match (linkage.linked, linkage.held) {
        (0, 0) => format!("of {looked} looked at in memory nothing was found that holds one"),
        (linked, 0) => format!(
            "of {looked} looked at in memory {} are linked into a list, a tree or a hash table",
            units::count(linked)
        ),
        (linked, held) => format!(
            "of {looked} looked at in memory {} are linked into a list, a tree or a hash table, and {} others are pointed to by data \
             of the kernel or a module, or by objects that are linked",
            units::count(linked),
            units::count(held)
        ),
    })
}

fn allocators(judged: &Judged<'_>) -> Option<String> {
    let alive = judged.evidence.allocators.alive;
    let named = judged.site.tasks.iter().any(|task| task.pid != 0);
    if judged.evidence.verdict() < Verdict::Suspect || !named {
        return None;
    }
    Some(if alive <= 0.0 {
        "no process that was running when they were allocated runs any more, or it was the kernel's own"
            .to_owned()
    } else if let (Some(false), Some(module)) = (judged.evidence.allocators.module_in_use, &judged.module) {
        format!(
            "the processes of {:.0} % of them still run, but nothing uses {module}: its reference count is 0",
            alive * 100.0
        )
    } else {
        format!("the processes of {:.0} % of them still run", alive * 100.0)
    })
}
