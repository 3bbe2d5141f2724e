//! `leaktrace`: trace, and report.

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Result;
use tokio::{runtime::Runtime, time::Instant as Deadline};

use super::{
    assemble::Before,
    judging::{self, Judging},
    kmemleak::{self, Kmemleak},
    output::Output,
    probe,
    progress::Progress,
    prove::{self, Proofs},
    session::{self, How, Session, Woken},
};
use crate::{
    cli::{TraceArgs, prove_limit},
    proof::Prover,
    report::escape,
    tracer::Snapshot,
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
            eprintln!("note: {}", escape(text));
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
    let shaken = runtime.block_on(watch(&mut session, &mut judging))?;
    let listed = kmemleak.map(|kmemleak| {
        let kmemleak = kmemleak?;
        kmemleak.scan()?;
        let second = Deadline::now() + kmemleak::BETWEEN;
        runtime.block_on(session.rest(second))?;
        kmemleak.list()
    });
    // What is freed while programs are detached one by one is not seen, so /proc is read before.
    session.surroundings.refresh(root);
    let snapshot = if let Some(prover) = prover {
        // A proof takes time, in which nobody looks at survivors: the trace is judged as it stood before.
        let snapshot = session.tracer.snapshot_at_the_end()?;
        let proofs = prover
            .and_then(|prover| prove(&prover, &mut session, &runtime, &snapshot, (args, shaken.as_ref())));
        session.surroundings.proofs = Some(proofs.unwrap_or_else(|error| Proofs::failed(&error)));
        session.tracer.detach()?;
        snapshot
    } else {
        session.tracer.detach()?;
        session.tracer.snapshot()?
    };
    let mut report = session.report(&snapshot, shaken.as_ref())?;
    if let Some(listed) = listed {
        kmemleak::compare(&mut session.tracer, &snapshot, listed, &mut report)?;
    }
    output.tell(&report, args.format, args.verbose, args.top())?;
    Ok(judging::exit_code(&report, args))
}

/// Looks for pointers to survivors, while tracing goes on: what is freed meanwhile is no orphan.
fn prove(
    prover: &Prover,
    session: &mut Session,
    runtime: &Runtime,
    snapshot: &Snapshot,
    (args, shaken): (&TraceArgs, Option<&Before>),
) -> Result<Proofs> {
    let cpus = session.surroundings.machine.possible_cpus;
    let sites = {
        let judgement = session.judge(snapshot, shaken);
        prove::sites(&judgement, &session.surroundings.places)
    };
    let chosen = prove::choose(&mut session.tracer, snapshot, sites, args.survivor_age(), cpus)?;
    if chosen.is_empty() {
        return Ok(Proofs::default());
    }
    let limit = prove_limit(&args.prove_limit);
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

/// Ticks until the time is up, a signal comes or what is waited for is found; and then drops caches, if
/// that is asked for, and returns what was alive before.
async fn watch(session: &mut Session, judging: &mut Judging<'_>) -> Result<Option<Before>> {
    let args = judging.args;
    let begun = Instant::now();
    let end = Deadline::from_std(begun + args.duration);
    let mut progress = Progress::new(args.duration, args.quiet);
    loop {
        let (woken, tick) = session.tick(end).await?;
        if woken == Woken::Stopped {
            break;
        }
        progress.show(&tick);
        progress.say(&session.tracer.messages());
        if Deadline::now() >= end || judging.has_leak(session)? {
            break;
        }
    }
    progress.finish();
    progress.say(&session.tracer.messages());
    if args.shake { judging::shake(&mut session.tracer).await } else { Ok(None) }
}
