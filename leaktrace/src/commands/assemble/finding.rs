//! One finding: a site, where it is, who is to blame, and why in words.

use super::{Judged, Surroundings};
use crate::{
    analysis::{blame::Function, crosscheck::Check, lifetime},
    cli::TraceArgs,
    report::model::{Amount, Finding, Frame, Growth, Lifetime, Object, Stack, Survivors, Task},
    tracer::{SiteRecord, Snapshot},
    units,
};

pub(super) fn finding(
    rank: usize,
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    surroundings: &Surroundings,
    args: &TraceArgs,
) -> Finding {
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
        doubt: judged.doubt.clone(),
        score: judged.evidence.score().round(),
        family: site.family,
        cache: site.cache.clone(),
        module,
        is_module,
        call_site,
        allocated: site.allocated,
        freed: site.freed,
        implicit_frees: site.implicit_frees,
        live: Amount { objects: site.live, bytes: site.live_bytes },
        survivors: Survivors { objects: site.survivors, bytes: site.survivor_bytes, oldest_s: site.oldest_s },
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
        // Of one family a stack tells the site, and there was none.
        let what = if site.family == "unknown" { "(site table full)" } else { "(no stack)" };
        return Frame { symbol: Some(what.into()), ..Frame::default() };
    }
    // Of inlined functions the outermost frame is the code that calls them: its line is the one to read.
    surroundings.places.frames(site.call_site).pop().unwrap_or_default()
}

/// The innermost module on the stack, or the innermost function that allocates for itself.
fn culprit(call_site: &Frame, stack: Option<&Stack>) -> (String, bool) {
    let frames = || std::iter::once(call_site).chain(stack.into_iter().flat_map(|stack| stack.frames.iter()));
    if let Some(module) = frames().find_map(|frame| frame.module.clone()) {
        return (module, true);
    }
    let own = frames().find_map(|frame| {
        frame.symbol.as_ref().filter(|symbol| !Function { symbol, in_module: false }.is_helper())
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
    if judged.evidence.replaces {
        words.push(
            "the cache lost older objects meanwhile, whose place these may take: a longer run tells"
                .to_owned(),
        );
    }
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
    if let Some(doubt) = &judged.doubt {
        words.push(doubt.clone());
    }
    // One interrupt at the wrong moment can hide a whole batch of RCU frees.
    let missed = snapshot.lost.recursion_misses;
    if missed * 10 > site.live && missed > 0 {
        words.push(format!(
            "{} events came while their program was busy and were missed: some of the live objects may be freed",
            units::count(missed)
        ));
    }
    if let Some(Check { agreement, change: Some(change), .. }) = judged.check {
        words.push(format!(
            "/proc/slabinfo: {} {} objects, {}",
            site.cache,
            units::change(change),
            agreement.word()
        ));
    }
    if snapshot.sampling > 1 {
        // Of a site that frees, which objects are in the sample is chance: two standard deviations.
        let chance = if site.freed == 0 { 0.0 } else { 200.0 / (site.tracked_live.max(1) as f64).sqrt() };
        words.push(format!("scaled from 1 in {} addresses, give or take {chance:.0} %", snapshot.sampling));
    }
    words
}
