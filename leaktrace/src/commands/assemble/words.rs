//! Why, in words: the evidence for a verdict, what is open, and what would settle it.

use super::Judged;
use crate::{
    analysis::{
        crosscheck::Check,
        growth::Shape,
        holders::Holder,
        lifetime,
        verdict::{self, Evidence, FEWEST_SUSPECT, Open, Verdict},
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
    words.extend(lifetimes(judged));
    words.push(growth(judged));
    words.extend(stays(judged, scope));
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

fn lifetimes(judged: &Judged<'_>) -> Option<String> {
    let site = judged.site;
    let half = lifetime::percentile_us(&site.lifetimes, 0.5)?;
    let most = lifetime::percentile_us(&site.lifetimes, 0.99)?;
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

/// What is open, and what would settle it.
pub(super) fn open(
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    call_site: &Frame,
    module: Option<&str>,
) -> (Vec<String>, Vec<String>) {
    if judged.evidence.verdict() != Verdict::Suspect {
        return (Vec::new(), Vec::new());
    }
    let (mut open, mut settle) = (Vec::new(), Vec::new());
    if judged.evidence.proven.is_none() && judged.evidence.seen > 0 {
        let filter = module.map(|module| format!(" --module {module}")).unwrap_or_default();
        settle.push(format!("leaktrace --prove{filter}   (does anything point to them, and what?)"));
    }
    for reason in judged.evidence.open() {
        let (why, how) = one(&reason, judged, snapshot, call_site, module);
        open.push(why);
        if let Some(how) = how.filter(|how| !settle.contains(how)) {
            settle.push(how);
        }
    }
    (open, settle)
}

/// What may be chance.
fn uncertain(evidence: &Evidence) -> String {
    match (evidence.growth.walk, evidence.growth.stays()) {
        (_, false) => "too few of them were watched for long enough to be sure that they stay".to_owned(),
        (Some(walk), true) => {
            let cases = units::count((1.0 / walk) as u64);
            format!(
                "the growth may be chance: what comes and goes at random would rise as much in 1 of {cases} cases"
            )
        }
        (None, true) => "their number was not counted often enough to tell a growth from chance".to_owned(),
    }
}

/// A run of so many seconds, with the filter that fits.
fn longer(judged: &Judged<'_>, module: Option<&str>, duration: &str) -> String {
    let filter = match (module, judged.site.family) {
        (Some(module), _) => format!("--module {module}"),
        (None, family @ ("page" | "vmalloc" | "percpu")) => format!("--family {family}"),
        (None, _) => format!("--cache '{}'", judged.site.cache),
    };
    format!("leaktrace --duration {duration} {filter}")
}

/// Who is known to hold such objects, and how to ask.
fn held(holder: &Holder, judged: &Judged<'_>) -> (String, Option<String>) {
    let how = holder.seconds.map_or_else(
        || holder.ask.to_owned(),
        |seconds| format!("leaktrace --duration {:.0}s --cache '{}'", seconds * 3.0, judged.site.cache),
    );
    (format!("such objects are held {}", holder.why), Some(how))
}

fn one(
    reason: &Open,
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    call_site: &Frame,
    module: Option<&str>,
) -> (String, Option<String>) {
    let evidence = &judged.evidence;
    let longer = |duration| Some(longer(judged, module, duration));
    match reason {
        Open::Few => (format!("{} survivors are too few to be sure", units::count(evidence.seen)), longer("5m")),
        Open::Short => (
            format!(
                "it has been seen to grow for {} only, in {} of {} parts of the time",
                units::seconds(evidence.growth.sustained_s),
                evidence.growth.born_in,
                evidence.growth.bins
            ),
            longer(if snapshot.duration.as_secs() < 60 { "60s" } else { "5m" }),
        ),
        Open::Core => (
            "it is the kernel's own code, where growth has many good reasons: that takes a longer look".to_owned(),
            longer("5m"),
        ),
        Open::Uncertain => (uncertain(evidence), longer("5m")),
        Open::LongLived => (
            format!(
                "objects of this site may live for {}",
                units::seconds(evidence.lifetime_s.unwrap_or_default())
            ),
            longer("10m"),
        ),
        Open::FreesUnseen => (
            judged.doubt.clone().unwrap_or_else(|| {
                format!(
                    "{} frees were missed because their program was busy: so many may be freed",
                    units::count(evidence.missed)
                )
            }),
            Some("/proc/slabinfo over a longer time, or `leaktrace check` for what this kernel refuses".to_owned()),
        ),
        Open::Contradicted => (
            format!("/proc/slabinfo shows less growth of {} than was traced", judged.site.cache),
            longer("5m"),
        ),
        Open::Linked => (
            "they are part of a structure in memory: one that only grows is a leak, one that is emptied later is not"
                .to_owned(),
            Some(format!(
                "who empties it? The code around {}; and a run longer than its entries should live",
                call_site.symbol.as_deref().unwrap_or("the call site")
            )),
        ),
        Open::Reached => (
            "memory has pointers to most of them: something that only grows is a leak all the same, what is emptied later is not"
                .to_owned(),
            Some("who empties what holds them? See above".to_owned()),
        ),
        Open::Replaced => (
            format!("as many older objects of {} were freed meanwhile, whose place these may take", judged.site.cache),
            longer("5m"),
        ),
        Open::NotLookedAt if evidence.can_be_linked => (
            "too few of them could be looked at in memory to see whether something holds them".to_owned(),
            longer("60s"),
        ),
        Open::NotLookedAt => (
            "whether something holds such memory cannot be seen, and the kernel has many uses for it".to_owned(),
            Some("see whether processes, network devices or mounts have become as many".to_owned()),
        ),
        Open::ProcessesRun => {
            let task = judged.site.tasks.iter().find(|task| task.pid != 0);
            let who = task.map_or_else(String::new, |task| format!(" ({}, {})", task.comm, task.pid));
            (
                format!("the process that allocated them{who} still runs, and may hold them"),
                Some("end that process while tracing: what stays is leaked".to_owned()),
            )
        }
        Open::Held(holder) => held(holder, judged),
    }
}
