//! `leaktrace`: trace, and report.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{runtime::Runtime, time::Instant as Deadline};

use super::{
    assemble::{Before, Judgement},
    judging::{self, Judging},
    kmemleak::{self, Kmemleak},
    output::{Output, say},
    probe,
    progress::Progress,
    prove::{self, Proofs, Wanted},
    session::{self, How, Session, Woken},
};
use crate::{
    analysis::verdict::Verdict,
    cli::{TraceArgs, limit_of},
    proof::{Limit, Prover},
    report::{
        escape,
        model::{Finding, Report},
    },
    tracer::Snapshot,
    units,
};

/// Traces and reports.
///
/// # Errors
/// When tracing cannot work here, or the report cannot be written.
pub(super) fn run(args: &TraceArgs) -> Result<ExitCode> {
    let root = Path::new("/");
    let output = Output::open(args.output.as_deref())?;
    output.check(args.format)?;
    let how = How {
        min_age: args.survivor_age(),
        interval: args.interval(),
        top: args.top(),
        verbose: args.verbose,
        quiet: args.quiet,
    };
    let kernel = probe::probe(root)?;
    let note = |text: &str| {
        if !args.quiet {
            say(&format!("note: {}", escape(text)));
        }
    };
    let kmemleak = args.kmemleak.then(|| Kmemleak::find(root));
    if let Some(Err(error)) = &kmemleak {
        note(&format!("kmemleak cannot be asked: {error:#}"));
    }
    let prover = args.prove.then(prove::open);
    if let Some(Err(error)) = &prover {
        note(&format!("nothing can be proven: {error:#}"));
    }
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let mut session = Session::begin(kernel, &args.watch, &how)?;
    let mut judging = Judging::new(args);
    let Watched { shaken, in_a_hurry, leak } = runtime.block_on(watch(&mut session, &mut judging))?;
    let listed = kmemleak.map(|kmemleak| {
        let kmemleak = kmemleak?;
        kmemleak.scan()?;
        let second = Deadline::now() + kmemleak::BETWEEN;
        runtime.block_on(session.rest(second))?;
        kmemleak.list()
    });
    let quickly = prover.is_none() && !args.no_prove && !in_a_hurry;
    // What is asked of others at the end is of the end.
    let as_it_was = prover.is_none() && shaken.is_none() && listed.is_none();
    let (snapshot, mut report) = match leak.filter(|_| as_it_was) {
        Some(leak) => {
            session.tracer.detach()?;
            leak
        }
        None => conclude(&mut session, &runtime, (args, shaken.as_ref()), (prover, quickly))?,
    };
    if quickly && report.reachability.is_none() && report.findings.iter().any(Finding::is_of_note) {
        report.reachability = prove::open().err().map(|error| Proofs::failed(&error).report);
    }
    if let Some(listed) = listed {
        kmemleak::compare(&mut session.tracer, &snapshot, listed, &mut report)?;
    }
    let in_a_file = !matches!(output, Output::Stdout);
    let written = output.tell(&report, args.format, args.verbose, args.top());
    let code = judging::exit_code(&report, args);
    // Whoever reads only the terminal or the log of a job learns why the status is what it is, all the more where the report is lost.
    let is_told = matches!(code, Ok(code) if code == ExitCode::SUCCESS) && args.quiet && written.is_ok();
    if (in_a_file || written.is_err()) && !is_told && code.is_ok() {
        say(&escape(&report.headline.text));
    }
    written.and(code)
}

/// Proves what is to be proven, ends tracing, and judges.
fn conclude(
    session: &mut Session,
    runtime: &Runtime,
    (args, shaken): (&TraceArgs, Option<&Before>),
    (asked, quickly): (Option<Result<Prover>>, bool),
) -> Result<(Snapshot, Report)> {
    // What is freed while programs are detached one by one is not seen, so /proc is read before.
    session.surroundings.refresh(Path::new("/"));
    let proven = prove_at_the_end(session, runtime, (args, shaken), (asked, quickly))?;
    session.tracer.detach()?;
    let snapshot = match proven {
        Some(snapshot) => snapshot,
        None => session.tracer.snapshot()?,
    };
    let report = session.report(&snapshot, shaken)?;
    Ok((snapshot, report))
}

/// What was traced, and whose survivors are looked for.
struct Found<'a> {
    snapshot: &'a Snapshot,
    sites: &'a [Wanted],
}

/// What a proof may read and take that nobody asked for, in all of its looks.
const QUICKLY: Limit = Limit { bytes: 32 << 30, time: Duration::from_secs(10) };

/// Proves what was asked for, or what is suspected, and returns what the trace saw until then: a proof takes time, in which
/// nobody looks at survivors. `None` where nothing is to be proven.
fn prove_at_the_end(
    session: &mut Session,
    runtime: &Runtime,
    (args, shaken): (&TraceArgs, Option<&Before>),
    (asked, quickly): (Option<Result<Prover>>, bool),
) -> Result<Option<Snapshot>> {
    let quickly = quickly && Path::new("/proc/kcore").exists();
    if asked.is_none() && !quickly {
        return Ok(None);
    }
    let snapshot = session.tracer.snapshot_at_the_end()?;
    // Judged once for both: it looks at objects in memory and waits for modules' reference counts.
    let (sites, suspected) = {
        let judgement = session.judge(&snapshot, shaken);
        (prove::sites(&judgement, &session.surroundings.places), suspects(&judgement))
    };
    let found = Found { snapshot: &snapshot, sites: &sites };
    let proofs = match asked {
        Some(prover) => prover.and_then(|prover| {
            prove(&prover, session, runtime, (args, &found, limit_of(&args.prove_limit, Limit::default())))
        }),
        None if suspected => prove_quickly(session, runtime, (args, &found)),
        None => return Ok(None),
    };
    // It was just done: to do it again leads nowhere.
    session.surroundings.offers.prove &= !args.prove;
    session.surroundings.proofs = Some(proofs.unwrap_or_else(|error| Proofs::failed(&error)));
    Ok(Some(snapshot))
}

/// Whether anything is suspected or called a leak, or would be if it were not for others.
fn suspects(judgement: &Judgement<'_>) -> bool {
    // What surely grows may be taken for older objects' replacement: a proof tells.
    judgement.judged.iter().any(|judged| {
        let verdict = judged.evidence.verdict();
        verdict >= Verdict::Suspect || (verdict == Verdict::Plateau && judged.evidence.growth.surely())
    })
}

/// Looks for suspects in memory where that is cheap: it decides most of them.
fn prove_quickly(
    session: &mut Session,
    runtime: &Runtime,
    (args, found): (&TraceArgs, &Found<'_>),
) -> Result<Proofs> {
    let limit = Limit { bytes: QUICKLY.bytes / prove::LOOKS as u64, ..QUICKLY };
    // To count what there is to read takes long itself where there is much memory.
    let memory = &session.surroundings.memory.1;
    let others = memory.mem_free + memory.buffers + memory.cached + memory.active_anon.unwrap_or(0);
    let least = memory.mem_total.saturating_sub(others + memory.inactive_anon.unwrap_or(0)) / 2;
    if least > limit.bytes {
        bail!(
            "the kernel has {} or more, and {} is what is read unasked; --prove reads more",
            units::bytes(least as f64),
            units::bytes(limit.bytes as f64)
        );
    }
    prove(&prove::open()?, session, runtime, (args, found, limit))
}

/// Looks for pointers to survivors, while tracing goes on: what is freed meanwhile is no orphan.
fn prove(
    prover: &Prover,
    session: &mut Session,
    runtime: &Runtime,
    (args, found, limit): (&TraceArgs, &Found<'_>, Limit),
) -> Result<Proofs> {
    let snapshot = found.snapshot;
    let cpus = session.surroundings.machine.possible_cpus;
    let chosen = prove::choose(&mut session.tracer, snapshot, found.sites, args.survivor_age(), cpus)?;
    if chosen.is_empty() {
        return Ok(Proofs::default());
    }
    let cpus = session.surroundings.machine.online_cpus;
    let mut pace = prove::Pace::new(args.watch.overhead / 100.0, cpus, limit.time, args.quiet);
    let mut go_on = |done: u64, expected: u64| {
        let until = Deadline::now() + pace.rest(done, expected);
        let woken = runtime.block_on(session.rest(until))?;
        pace.resume();
        Ok(woken == Woken::Tick)
    };
    let proof = prove::look(prover, &chosen, limit, &mut go_on)?;
    pace.finish();
    prove::conclude(&mut session.tracer, snapshot, &chosen, &proof, &session.surroundings.places)
}

/// How a trace ended.
struct Watched {
    /// What was alive before caches were dropped, if they were.
    shaken: Option<Before>,
    /// Whether a signal ended it, or the leak that was waited for: then nobody waits for what was not asked for.
    in_a_hurry: bool,
    /// That leak.
    leak: Option<(Snapshot, Report)>,
}

/// Ticks until the time is up, a signal comes or what is waited for is found; and then drops caches, if
/// that is asked for.
async fn watch(session: &mut Session, judging: &mut Judging<'_>) -> Result<Watched> {
    let args = judging.args;
    let begun = Instant::now();
    let end = Deadline::from_std(begun + args.duration);
    let mut progress = Progress::new(args.duration, args.quiet);
    let mut leak = None;
    let in_a_hurry = loop {
        let (woken, tick) = session.tick(end).await?;
        if woken == Woken::Stopped {
            break true;
        }
        progress.show(&tick);
        progress.say(&session.tracer.messages());
        leak = judging.leak(session)?;
        if leak.is_some() {
            break true;
        }
        if Deadline::now() >= end {
            break false;
        }
    };
    progress.finish();
    progress.say(&session.tracer.messages());
    let shaken = if args.shake { judging::shake(&mut session.tracer).await? } else { None };
    Ok(Watched { shaken, in_a_hurry, leak })
}
