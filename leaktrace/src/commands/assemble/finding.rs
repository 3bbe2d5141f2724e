//! One finding: a site, where it is, who is to blame, and why in words.

use std::time::Duration;

use leaktrace_common::{FREED_BY_RCU, FREED_IN_BULK};

use super::{Judged, Surroundings, steps, words};
use crate::{
    analysis::{accounts::Agreement, lifetime, naming, verdict},
    report::model::{
        AccountSide, Amount, Finding, Frame, FreedBy, Growth, Lifetime, LinkageReport, Proof, ReachSide,
        Stack, Stayed, Survivors, Task,
    },
    tracer::{SiteRecord, Snapshot},
};

pub(super) fn finding(
    rank: usize,
    judged: &Judged<'_>,
    snapshot: &Snapshot,
    surroundings: &Surroundings,
) -> Finding {
    let (site, evidence) = (judged.site, &judged.evidence);
    let stacks = stacks(site, surroundings);
    let call_site = call_site(site, surroundings);
    let responsible = responsible(site, &call_site, surroundings);
    let frames =
        || std::iter::once(&call_site).chain(stacks.first().into_iter().flat_map(|stack| &stack.frames));
    // The responsible one's own, past the libraries that it uses; else the innermost.
    let in_module =
        std::iter::once(&responsible).chain(frames()).find(|frame| frame.module.is_some()).cloned();
    let freed_by = freed_by(site, surroundings);
    let frees_it = in_module.is_none().then(|| culprit(site, &freed_by)).flatten();
    let module = match (&in_module, frees_it) {
        (Some(frame), _) => frame.module.clone().unwrap_or_default(),
        (None, Some(module)) => module.to_owned(),
        (None, None) => responsible.symbol.clone().unwrap_or_else(|| responsible.label()),
    };
    let accounts = account(site, [&responsible, &call_site], surroundings);
    let reachability = surroundings.reachability(site).cloned();
    let is_module = in_module.is_some() || frees_it.is_some();
    let (open, settle) =
        steps::open(judged, snapshot, surroundings, &call_site, is_module.then_some(&*module));
    Finding {
        site: judged.index,
        rank,
        verdict: evidence.verdict().word().into(),
        known: false,
        doubt: judged.doubt.clone(),
        score: evidence.score().round(),
        family: site.family.into(),
        cache: site.cache.clone(),
        object: object(site, [&call_site, &responsible], in_module.as_ref(), surroundings),
        is_module,
        module,
        evidence: {
            let mut words = words::evidence(judged, snapshot, &freed_by, &call_site, surroundings.scope);
            words.extend(frees_it.map(words::culprit));
            words.extend(reachability.iter().flat_map(ReachSide::sentences));
            words.extend(accounts.as_ref().map(words::account));
            words
        },
        open,
        settle,
        call_site,
        responsible,
        in_module,
        proof: (accounts.is_some() || reachability.is_some()).then(|| Proof {
            accounts,
            reachability,
            ..Proof::default()
        }),
        split: site.owner.is_some(),
        allocated: site.allocated,
        freed: site.freed,
        implicit_frees: site.implicit_frees,
        live: Amount { objects: site.live, bytes: site.live_bytes },
        survivors: survivors(site, snapshot.sampling),
        growth: growth(judged),
        recorded: Vec::new(),
        lifetime: lifetime(site, snapshot.duration),
        freed_by,
        linkage: evidence.linkage.map(|linkage| LinkageReport {
            looked_at: linkage.looked_at,
            linked: linkage.linked,
            held: linkage.held,
            unreadable: linkage.unreadable,
        }),
        tasks: site
            .tasks
            .iter()
            .map(|task| Task { comm: task.comm.clone(), pid: task.pid, objects: task.objects })
            .collect(),
        stacks,
        objects: site.objects.iter().map(|object| surroundings.object(object, site, snapshot)).collect(),
    }
}

fn stacks(site: &SiteRecord, surroundings: &Surroundings) -> Vec<Stack> {
    let size = u64::from(site.object_size);
    site.stacks
        .iter()
        .map(|stack| Stack {
            objects: stack.objects,
            bytes: stack.objects * size,
            frames: stack
                .frames
                .iter()
                .take(surroundings.scope.frames)
                .flat_map(|&address| surroundings.places.frames(address))
                .collect(),
        })
        .collect()
}

fn survivors(site: &SiteRecord, sampling: u64) -> Survivors {
    Survivors {
        objects: site.survivors,
        bytes: site.survivor_bytes,
        oldest_s: site.oldest_s,
        error_percent: if site.freed == 0 {
            0.0
        } else {
            verdict::sampling_error(site.seen, sampling) * 100.0
        },
    }
}

/// How the survivors grew, in bytes.
fn growth(judged: &Judged<'_>) -> Growth {
    let (growth, size) = (&judged.evidence.growth, f64::from(judged.site.object_size));
    Growth {
        bytes_per_s: growth.per_s * size,
        bytes_per_s_error: growth.error_per_s * size,
        p_value: None,
        ticks: judged.site.series.points().len(),
        shape: growth.shape.word().into(),
        sure: growth.surely(),
        sustained_s: growth.sustained_s,
        born_in: growth.born_in,
        parts: growth.bins,
        walk: growth.walk,
        stayed: growth.stay.map(|stay| Stayed {
            aged: stay.aged,
            freed: stay.died,
            watched_s: stay.watched_s,
            lives_on_s: stay.lives_on_s(),
        }),
        points: judged
            .site
            .series
            .points()
            .map(|(seconds, objects)| (seconds as f32, (objects * size) as f32))
            .collect(),
    }
}

fn lifetime(site: &SiteRecord, traced: Duration) -> Lifetime {
    Lifetime {
        p50_us: lifetime::percentile_us(&site.lifetimes, 0.5, traced),
        p99_us: lifetime::percentile_us(&site.lifetimes, 0.99, traced),
        classes: lifetime::classes(&site.lifetimes),
    }
}

/// What the kernel's own accounts have for the function that is responsible.
fn account(site: &SiteRecord, frames: [&Frame; 2], surroundings: &Surroundings) -> Option<AccountSide> {
    let (_, accounts) = surroundings.accounts.as_ref()?;
    // A function that allocates for others has everybody's.
    let frames = frames.into_iter().take(if site.owner.is_some() { 1 } else { 2 });
    let functions: Vec<_> =
        frames.filter_map(|frame| Some((frame.symbol.clone()?, frame.module.clone()))).collect();
    let by_function = accounts.of(&functions);
    let module = || functions.iter().find_map(|(_, module)| module.as_deref());
    let matched_by = if by_function.is_some() { "function" } else { "size" };
    let account = by_function.or_else(|| accounts.alike(module()?, site.live_bytes))?;
    Some(AccountSide {
        matched_by: matched_by.into(),
        agreement: Agreement::of(account.grown(), site.live_bytes).word().into(),
        place: account.place,
        bytes_before: account.before,
        bytes_after: account.after,
    })
}

fn call_site(site: &SiteRecord, surroundings: &Surroundings) -> Frame {
    if site.call_site == 0 {
        let what = if site.site == 0 { "(site table full)" } else { "(callers not captured)" };
        return Frame { symbol: Some(what.into()), ..Frame::default() };
    }
    outermost(site.call_site, surroundings)
}

/// Of inlined functions the outermost frame is the code that calls them: its line is the one to read.
fn outermost(address: u64, surroundings: &Surroundings) -> Frame {
    surroundings.places.frames(address).pop().unwrap_or_default()
}

/// The responsible frame: the call site's own, unless that allocates for others and a stack tells whom.
fn responsible(site: &SiteRecord, call_site: &Frame, surroundings: &Surroundings) -> Frame {
    site.owner.map_or_else(|| call_site.clone(), |owner| outermost(owner, surroundings))
}

/// The name of the cache that fits best, of those that were merged.
fn object(
    site: &SiteRecord,
    frames: [&Frame; 2],
    in_module: Option<&Frame>,
    surroundings: &Surroundings,
) -> Option<String> {
    let aliases = &surroundings.traits.get(&site.cache)?.aliases;
    let functions: Vec<&str> = frames.into_iter().filter_map(|frame| frame.symbol.as_deref()).collect();
    let module = in_module.and_then(|frame| frame.module.as_deref());
    naming::object_name(&site.cache, aliases, &functions, module).map(str::to_owned)
}

/// Frees of a site without which it is not told whose they are, and the share that one module has to have.
const FEWEST_FREES: u64 = 8;
const MOST_FREES: f64 = 60.0;

/// The module that frees nearly all objects that the kernel itself allocates there: what is not freed it has most likely lost.
fn culprit<'a>(site: &SiteRecord, freed_by: &'a [FreedBy]) -> Option<&'a str> {
    let seen: u64 = site.free_callers.iter().map(|caller| caller.frees).sum();
    // Of a site that allocates for others it is not known which caller's were freed by whom.
    if seen < FEWEST_FREES || site.owner.is_some() {
        return None;
    }
    let module = freed_by.first()?.module.as_deref()?;
    let of_module = freed_by.iter().filter(|by| by.module.as_deref() == Some(module));
    (of_module.map(|by| by.percent).sum::<f64>() >= MOST_FREES).then_some(module)
}

fn freed_by(site: &SiteRecord, surroundings: &Surroundings) -> Vec<FreedBy> {
    let all: u64 = site.free_callers.iter().map(|caller| caller.frees).sum();
    site.free_callers
        .iter()
        .map(|caller| {
            let (caller_name, module) = match caller.caller {
                FREED_BY_RCU => ("kfree_rcu".to_owned(), None),
                FREED_IN_BULK => ("in bulk".to_owned(), None),
                address => {
                    let frame = outermost(address, surroundings);
                    (frame.label(), frame.module)
                }
            };
            let percent = caller.frees as f64 * 100.0 / all.max(1) as f64;
            FreedBy { caller: caller_name, module, percent }
        })
        .collect()
}
