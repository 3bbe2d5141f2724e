//! What is open of a suspect, in words, and what to do next.

use super::{Judged, Surroundings};
use crate::{
    analysis::{
        holders::Holder,
        steps,
        verdict::{Evidence, Open, Verdict},
    },
    report::model::Frame,
    tracer::Snapshot,
    units,
};

/// What is open, and what to do next: what would settle it, or what leads on.
pub(super) fn open(
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    call_site: &Frame,
    module: Option<&str>,
) -> (Vec<String>, Vec<String>) {
    let evidence = &judged.evidence;
    let (mut open, mut next) = (Vec::new(), Vec::new());
    match evidence.verdict() {
        Verdict::Leak => {
            next.extend(module.map(|module| after_leak(module, snapshot.duration.as_secs_f64())));
        }
        Verdict::Cache if evidence.shaken.is_none() => {
            next.push("leaktrace --shake   (drops such objects, and tells what stays)".to_owned());
        }
        Verdict::Suspect => {
            if evidence.proven.is_none() && evidence.seen > 0 {
                let filter = module.map(|module| format!(" --module {module}")).unwrap_or_default();
                next.push(format!("leaktrace --prove{filter}   (does anything point to them, and what?)"));
            }
            for reason in evidence.open() {
                let (why, how) = one(&reason, judged, snapshot, call_site, module);
                open.push(why);
                next.extend(how);
            }
        }
        _ => {}
    }
    (open, steps::usable(&next, &surroundings.offers))
}

/// What leads on from a module's leak, after a trace of so many seconds.
pub(in crate::commands) fn after_leak(module: &str, traced_s: f64) -> String {
    let time = steps::time(300.0, traced_s);
    format!(
        "leaktrace --duration {time} --module {module}   (every stack, and what it leaves when it is removed)"
    )
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

/// A longer run, with the filter that fits.
fn longer(judged: &Judged<'_>, module: Option<&str>, duration: &str) -> String {
    let filter = match (module, judged.site.family) {
        (Some(module), _) => format!("--module {module}"),
        (None, family @ ("page" | "vmalloc" | "percpu")) => format!("--family {family}"),
        (None, _) => format!("--cache '{}'", judged.site.cache),
    };
    format!("leaktrace --duration {duration} {filter}")
}

/// Who is known to hold such objects, and how to ask.
fn held(holder: &Holder, judged: &Judged<'_>, traced_s: f64) -> (String, Option<String>) {
    let times = holder.seconds.map(|seconds| seconds * 3.0).filter(|seconds| steps::is_advisable(*seconds));
    let how = times.map_or_else(
        || holder.ask.to_owned(),
        |seconds| {
            let time = steps::time(seconds, traced_s);
            format!("leaktrace --duration {time} --cache '{}'", judged.site.cache)
        },
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
    let traced_s = snapshot.duration.as_secs_f64();
    let longer = |least_s: f64| {
        let time = steps::time(least_s, traced_s);
        Some(longer(judged, module, time))
    };
    match reason {
        Open::Few => (format!("{} survivors are too few to be sure", units::count(evidence.seen)), longer(300.0)),
        Open::Short => (
            format!(
                "it has been seen to grow for {} only, in {} of {} parts of the time",
                units::seconds(evidence.growth.sustained_s),
                evidence.growth.born_in,
                evidence.growth.bins
            ),
            // In the kernel's own code growth takes longer to be certain.
            longer(if evidence.in_module { 60.0 } else { 300.0 }),
        ),
        Open::Core => (
            "it is the kernel's own code, where growth has many good reasons: that takes a longer look".to_owned(),
            longer(300.0),
        ),
        Open::Uncertain => (uncertain(evidence), longer(300.0)),
        Open::LongLived => (
            format!(
                "objects of this site may live for {}",
                units::seconds(evidence.lifetime_s.unwrap_or_default())
            ),
            longer(evidence.lifetime_s.unwrap_or_default().mul_add(3.0, 600.0)),
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
            longer(300.0),
        ),
        Open::Linked => (
            "they are on a list, in a tree or in a hash table: if nothing ever removes them, that is the leak"
                .to_owned(),
            Some(format!(
                "read {} for the removal, or trace longer than an entry lives",
                call_site.symbol.as_deref().unwrap_or("the call site")
            )),
        ),
        Open::Reached => (
            "memory has pointers to most of them: if nothing ever removes them, that is the leak".to_owned(),
            Some("read the code of what holds them, named above, for the removal".to_owned()),
        ),
        Open::Replaced => (
            format!("as many older objects of {} were freed meanwhile, whose place these may take", judged.site.cache),
            longer(300.0),
        ),
        Open::NotLookedAt if evidence.can_be_linked => (
            "too few of them could be looked at in memory to see whether something holds them".to_owned(),
            longer(60.0),
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
        Open::Held(holder) => held(holder, judged, traced_s),
    }
}
