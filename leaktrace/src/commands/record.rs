//! `leaktrace record`: every tick and a report now and then, into a file.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use procfs::{Current as _, Meminfo};
use tokio::time::Instant as Deadline;

use super::{
    judging,
    output::{Output, say},
    probe,
    session::{self, How, Session, Woken},
};
use crate::{
    analysis::verdict,
    cli::RecordArgs,
    kernel::machine::boot_id,
    recording::{Recorder, Site, Start},
    report::escape,
    units,
};

/// Findings in each report; leaks are told however many there are.
const FINDINGS: u32 = 200;
/// After so long the first report is made; it only says how things stand.
const FIRST: Duration = Duration::from_millis(500);
/// Between two reports at least, once anything can be a leak, and part of the time since the start: a week has some hundred of them.
const BETWEEN: Duration = Duration::from_mins(1);
const PART: u32 = 60;

/// Records until the time is up or a signal comes.
///
/// # Errors
/// When tracing cannot work here, or the file cannot be written.
pub(super) fn run(args: &RecordArgs) -> Result<()> {
    // What is there is replaced once everything else works.
    if !matches!(Output::open(Some(&args.output))?, Output::File { .. }) {
        bail!("cannot record to {}: it is no file", args.output.display());
    }
    let root = Path::new("/");
    let kernel = probe::probe(root)?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let how = How::watching(&args.watch, FINDINGS, args.quiet);
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    let machine = &session.surroundings.machine;
    let start = Start {
        kernel: machine.release.clone(),
        started: session.surroundings.started.clone(),
        boot_id: boot_id(root).unwrap_or_default(),
        architecture: machine.architecture.clone(),
        cpus: machine.online_cpus,
        memory_kb: machine.memory / 1_024,
        min_age_s: how.min_age.as_secs_f64(),
    };
    let mut recorder = Recorder::create(&args.output, &start, args.max_file)?;
    let recorded = runtime.block_on(watch(&mut session, &mut recorder, args));
    // Whatever went wrong, what can still be told is written.
    session.surroundings.refresh(root);
    session.tracer.detach()?;
    let snapshot = session.tracer.snapshot()?;
    let report = session.report(&snapshot, None)?;
    let ticks = recorded
        .with_context(|| format!("the recording ends after {}", units::seconds(report.window.duration_s)))?;
    recorder.report(&report)?;
    if !args.quiet {
        say(&escape(&report.headline.text));
        say(&format!(
            "Recorded {} in {}: {}{}. Tell it with: leaktrace report {}",
            units::plural(ticks as usize, "tick"),
            units::seconds(report.window.duration_s),
            units::bytes(recorder.bytes() as f64),
            match recorder.parts() {
                1 => String::new(),
                parts => format!(" in {parts} files, of which the last two are kept"),
            },
            escape(&args.output.to_string_lossy()),
        ));
    }
    Ok(())
}

/// Records ticks and reports; returns how many ticks.
async fn watch(session: &mut Session, recorder: &mut Recorder, args: &RecordArgs) -> Result<u64> {
    let begun = Instant::now();
    let end = args.duration.map_or_else(session::never, |duration| Deadline::from_std(begun + duration));
    let soonest = Duration::from_secs_f64(verdict::soonest(args.watch.survivor_age().as_secs_f64()));
    let mut report = begun + FIRST;
    // From now on there is something to tell.
    note(session, recorder, begun)?;
    let mut ticks = 1;
    if args.watch.interval() > FIRST {
        // The first tick would be late for the first report.
        if session.rest(end.min(Deadline::from_std(report))).await? == Woken::Stopped {
            return Ok(ticks);
        }
        note(session, recorder, begun)?;
        ticks += 1;
        report = next_report(session, recorder, begun, soonest)?;
    }
    loop {
        let (woken, _) = session.tick(end).await?;
        if woken == Woken::Stopped {
            return Ok(ticks);
        }
        note(session, recorder, begun)?;
        ticks += 1;
        if Deadline::now() >= end {
            return Ok(ticks);
        }
        if report <= Instant::now() {
            report = next_report(session, recorder, begun, soonest)?;
        }
    }
}

/// Records where every site stands.
fn note(session: &Session, recorder: &mut Recorder, begun: Instant) -> Result<()> {
    let available = Meminfo::current().context("cannot read /proc/meminfo")?.mem_available.unwrap_or(0);
    let tracer = &session.tracer;
    let at_ms = begun.elapsed().as_millis() as u64;
    recorder.tick(at_ms, available / 1_024, tracer.levels(), |id| {
        let (address, family, cache, object_size) = tracer.describe(id);
        let place = session.surroundings.places.locate(address);
        Site {
            id,
            address,
            family,
            cache,
            object_size,
            symbol: place.map(|place| place.symbol.to_owned()).unwrap_or_default(),
            offset: place.map_or(0, |place| place.offset),
            module: place.and_then(|place| place.module).map(ToOwned::to_owned).unwrap_or_default(),
        }
    })
}

/// Records a report; says when the next one is due. At first each comes when twice the time is over, so that one that is killed
/// has a report of the second half of it, then one as soon as anything can be a leak.
fn next_report(
    session: &mut Session,
    recorder: &mut Recorder,
    begun: Instant,
    soonest: Duration,
) -> Result<Instant> {
    // To look may take long, and what is known by then is not lost.
    recorder.flush()?;
    let judged = Instant::now();
    let age = judged - begun;
    recorder.report(&session.look()?)?;
    let next = if age < soonest { (age * 2).min(soonest) } else { age + BETWEEN.max(age / PART) };
    Ok((begun + next).max(judging::after(judged)))
}
