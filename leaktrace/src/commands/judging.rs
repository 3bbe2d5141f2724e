//! Judging while a trace goes on, dropping caches at its end, and what the exit status says.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustc_hash::FxHashMap;

use super::{
    assemble::{self, Before},
    output::say,
    session::Session,
};
use crate::{
    analysis::verdict,
    cli::{FailOn, TraceArgs},
    report::{headline, model::Report},
    tracer::{Snapshot, Tracer},
    units,
};

/// Judging takes this share of a core at most.
const SHARE: u32 = 8;
/// However long one judgement took, the next one comes after that.
const LONGEST: Duration = Duration::from_secs(5);
/// Inodes and dentries are freed a grace period after they are dropped, in batches that a busy machine puts off: as long as
/// there are fewer objects at each look, more are on their way. This is the time between two looks.
const GRACE: Duration = Duration::from_millis(700);
/// Looks at most.
const LOOKS: u32 = 8;
/// Objects that come and go between two looks anyway.
const NOISE: u64 = 100;
/// What was used lately has a second chance, and the kernel stops early where a first round frees little.
const DROPS: usize = 3;
/// Exit status when what a run is to fail on was found.
const FOUND: u8 = 3;

/// What is needed to judge while tracing.
pub(super) struct Judging<'a> {
    pub(super) args: &'a TraceArgs,
    next: Instant,
}

impl<'a> Judging<'a> {
    pub(super) fn new(args: &'a TraceArgs) -> Self {
        let soonest = verdict::soonest(args.survivor_age().as_secs_f64());
        Self { args, next: Instant::now() + Duration::from_secs_f64(soonest) }
    }

    /// The report, with what it is of, if a leak is certain that no baseline has and that is waited for. It is what the trace ends
    /// with: a while later the same leak may be less certain, on a busy machine all the more.
    ///
    /// # Errors
    /// When the kernel refuses a look.
    pub(super) fn leak(&mut self, session: &mut Session) -> Result<Option<(Snapshot, Report)>> {
        let begun = Instant::now();
        if !self.args.until_leak || begun < self.next {
            return Ok(None);
        }
        let snapshot = session.tracer.snapshot()?;
        session.surroundings.refresh(Path::new("/"));
        let found = session.report_of_leak(&snapshot)?.map(|report| (snapshot, report));
        self.next = after(begun);
        Ok(found)
    }
}

/// When to judge again after a judgement that began then: the clock also runs while others have the CPU, so not too late.
pub(super) fn after(begun: Instant) -> Instant {
    begun + (begun.elapsed() * SHARE).min(LONGEST)
}

/// Drops dentries and inodes, and returns what was alive before. Where that is refused it is told,
/// and nothing is said of what would have gone away.
///
/// # Errors
/// When the kernel refuses a look.
pub(super) async fn shake(tracer: &mut Tracer) -> Result<Option<Before>> {
    let before = assemble::before(&tracer.snapshot()?);
    // SAFETY: sync has no preconditions. What is not written yet cannot be dropped.
    unsafe { libc::sync() };
    for _ in 0..DROPS {
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "2\n") {
            say(&format!("note: cannot drop caches: {error}: what would have gone away is not known"));
            return Ok(None);
        }
    }
    tracer.wait_for_grace_period();
    let dropped: FxHashMap<u32, u64> = levels(tracer);
    let mut last = 0;
    for _ in 0..LOOKS {
        tokio::time::sleep(GRACE).await;
        let now = gone(&dropped, &levels(tracer));
        if now <= last + NOISE {
            break;
        }
        last = now;
    }
    Ok(Some(before))
}

/// Live objects of all sites.
fn levels(tracer: &Tracer) -> FxHashMap<u32, u64> {
    tracer.levels().iter().map(|level| (level.site, level.live)).collect()
}

/// How many objects went away. What others allocate meanwhile, of which a busy machine has much, hides none of that.
fn gone(before: &FxHashMap<u32, u64>, now: &FxHashMap<u32, u64>) -> u64 {
    before.iter().map(|(site, live)| live.saturating_sub(now.get(site).copied().unwrap_or(0))).sum()
}

/// Whether anything could have been called a leak: by its growth, by what points to it, or by a module that left it behind.
fn may_tell_a_leak(report: &Report, args: &TraceArgs) -> bool {
    let proven = report.reachability.as_ref().is_some_and(|reach| reach.error.is_none());
    proven
        || report.all_removed()
        || report.window.duration_s >= verdict::soonest(args.survivor_age().as_secs_f64())
}

/// The exit status of a run with this report.
///
/// # Errors
/// When the run was to fail on something, and nobody can say whether that is there.
pub(super) fn exit_code(report: &Report, args: &TraceArgs) -> Result<ExitCode> {
    let has =
        |verdict: &str| report.findings.iter().any(|finding| finding.verdict == verdict && !finding.known);
    let left = report.unloads.iter().any(|unload| unload.verdict == "leak" && unload.left.objects > 0);
    let leak = has("leak") || left;
    let fails = match args.fail_on {
        Some(FailOn::Suspect) => leak || has("suspect"),
        Some(FailOn::Leak) => leak,
        None => args.until_leak && leak,
    };
    if fails {
        return Ok(ExitCode::from(FOUND));
    }
    if args.fail_on.is_some() || args.until_leak {
        // A leak that is known, or a suspect where only leaks fail, does not make up for what was not traced.
        let floor = report.headline.floor_objects_per_s;
        if let Some(why) = headline::unknown(report, floor) {
            bail!("cannot tell whether anything leaks: {why}");
        }
        let refused = report.reachability.as_ref().and_then(|reach| reach.error.as_ref());
        if let (true, Some(why)) = (args.prove, refused) {
            bail!("--prove could prove nothing: {why}");
        }
        if let Some(why) = report.kmemleak.as_ref().and_then(|kmemleak| kmemleak.error.as_ref()) {
            bail!("--kmemleak could not be asked: {why}");
        }
        if !matches!(args.fail_on, Some(FailOn::Suspect)) && !may_tell_a_leak(report, args) {
            let enough = verdict::soonest(args.survivor_age().as_secs_f64()).ceil();
            bail!(
                "cannot tell whether anything leaks: {} is too short to be certain; trace for {} or longer, or use --fail-on suspect",
                units::seconds(report.window.duration_s),
                units::seconds(enough)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_allocate_hides_nothing_that_went_away() {
        let before = FxHashMap::from_iter([(1, 3_000), (2, 50), (3, 10)]);
        let now = FxHashMap::from_iter([(1, 400), (2, 9_000), (4, 700)]);
        assert_eq!(gone(&before, &now), 2_600 + 10);
    }
}
