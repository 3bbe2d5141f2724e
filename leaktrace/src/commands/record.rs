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
    recording::{Recorder, Start},
    report::escape,
    units,
};

/// Findings in each report; leaks are told however many there are.
const FINDINGS: u32 = 200;
/// Between two reports at least, and part of the time since the start: a week has some hundred of them.
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
    let release = kernel.machine.release.clone();
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let how = How::watching(&args.watch, FINDINGS, args.quiet);
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    let start = Start {
        kernel: release,
        started: session.surroundings.started.clone(),
        boot_id: boot_id(root).unwrap_or_default(),
    };
    let mut recorder = Recorder::create(&args.output, &start, args.max_file)?;
    let recorded = runtime.block_on(watch(&mut session, &mut recorder, args));
    // Whatever went wrong, what can still be told is written.
    session.surroundings.refresh(root);
    session.tracer.detach()?;
    let snapshot = session.tracer.snapshot()?;
    let report = session.report(&snapshot, None)?;
    let ticks = recorded?;
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
    let mut report =
        begun + Duration::from_secs_f64(verdict::soonest(args.watch.survivor_age().as_secs_f64()));
    let mut ticks = 0;
    loop {
        let (woken, _) = session.tick(end).await?;
        if woken == Woken::Stopped {
            return Ok(ticks);
        }
        let available = Meminfo::current().context("cannot read /proc/meminfo")?.mem_available.unwrap_or(0);
        let tracer = &session.tracer;
        let at_ms = begun.elapsed().as_millis() as u64;
        recorder.tick(at_ms, available / 1_024, tracer.levels(), |site| tracer.describe(site))?;
        ticks += 1;
        if Deadline::now() >= end {
            return Ok(ticks);
        }
        if report <= Instant::now() {
            let judged = Instant::now();
            recorder.report(&session.look()?)?;
            report = (judged + BETWEEN.max(begun.elapsed() / PART)).max(judging::after(judged));
        }
    }
}
