//! `leaktrace prove`: looking for the objects of a saved report, as long as the machine has not been started again.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustc_hash::FxHashMap;
use tokio::time::Instant as Deadline;

use super::{Pace, kind, makes_tables, open, pace, report, summary, word};
use crate::{
    analysis::{steps, verdict::Proven},
    cli::{ProveArgs, limit_of},
    commands::{assemble::steps::after_leak, output::Output, probe, saved, session, stop::Stop},
    kernel::{machine::Machine, privilege, symbols::Symbols},
    proof::{Candidate, Limit},
    report::{headline, model::Report},
};

/// Proves what can be proven, and tells the whole report with it.
///
/// # Errors
/// When the report is of another boot or lists no objects, memory cannot be read, or the answer cannot be written.
pub(in crate::commands) fn run(args: &ProveArgs) -> Result<()> {
    let mut whole = saved::read(&args.report)?;
    let output = Output::open(args.output.as_deref())?;
    output.check(args.format)?;
    privilege::check()?;
    saved::is_of_this_boot(&whole, &args.report)?;
    let (candidates, places) = listed(&whole);
    if candidates.is_empty() {
        bail!("{} lists no objects of a leak or a suspect", args.report.display());
    }
    let prover = open()?;
    let runtime = session::runtime()?;
    let _guard = runtime.enter();
    let stop = Stop::new().context("cannot catch signals")?;
    let limit = limit_of(&args.prove_limit, Limit::default());
    let mut pace = Pace::new(args.overhead / 100.0, Machine::current()?.online_cpus, limit.time, args.quiet);
    let mut go_on = |done: u64, expected: u64| {
        let until = Deadline::now() + pace.rest(done, expected);
        let stopped = runtime.block_on(stop.wait_until(until));
        pace.resume();
        Ok(!stopped)
    };
    let proof = pace::politely(|| prover.prove(candidates.clone(), limit, &mut go_on))?;
    pace.finish();
    let symbols = Symbols::read(Path::new("/")).unwrap_or_else(|_| Symbols::empty());
    let name = |caller: u64| symbols.locate_return(caller).map(|location| location.label());
    let labels: Vec<String> = whole
        .findings
        .iter()
        .map(|finding| format!("{} ({})", finding.responsible.label(), finding.cache))
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let made_by: FxHashMap<u64, String> = places
        .iter()
        .map(|&(finding, object)| {
            let finding = &whole.findings[finding];
            (finding.objects[object].address, finding.responsible.label())
        })
        .collect();
    let group_of: Vec<u32> = places.iter().map(|&(finding, _)| finding as u32).collect();
    let lives = vec![true; candidates.len()];
    let sides = summary::sides(&proof, &group_of, &labels, &lives, &made_by, &name);
    let offers = probe::offers(Path::new("/"), None);
    for (finding, side) in whole.findings.iter_mut().zip(sides) {
        if side.candidates == 0 {
            continue;
        }
        finding.evidence.extend(side.sentences());
        let proven =
            Proven { checked: side.candidates, orphans: side.orphans, held: side.held, free: side.free };
        if proven.is_lost() && finding.verdict == "suspect" {
            finding.verdict = "leak".into();
            finding.open.clear();
            let module = finding.is_module.then(|| after_leak(&finding.module, whole.window.duration_s));
            finding.settle = steps::usable(module.as_slice(), &offers);
        }
        finding.proof.get_or_insert_default().reachability = Some(side);
    }
    for (&(finding, object), found) in places.iter().zip(&proof.found) {
        whole.findings[finding].objects[object].reach = Some(word(found.outcome).into());
    }
    whole.reachability = Some(report(&proof, candidates.len() as u64, 0));
    whole.headline = headline::headline(&whole);
    let top = whole.findings.len() as u32;
    output.tell(&whole, args.format, false, top)
}

/// The objects that a report lists of leaks, of suspects and of what was lost, and where in it they are.
fn listed(report: &Report) -> (Vec<Candidate>, Vec<(usize, usize)>) {
    let (mut candidates, mut places) = (Vec::new(), Vec::new());
    let cpus = u64::from(report.machine.cpus.max(1));
    for (index, finding) in report.findings.iter().enumerate() {
        // Or of what was lost then: the nodes of a tree hold what hangs on them.
        let lost = finding.objects.iter().any(|object| object.reach.as_deref() == Some("orphan"));
        if !finding.is_of_note() && !lost {
            continue;
        }
        let Some(kind) = kind(&finding.family) else { continue };
        for (at, object) in finding.objects.iter().enumerate() {
            let bytes = u64::from(object.size);
            let bytes = if finding.family == "percpu" { bytes / cpus } else { bytes };
            let may_be_table = !finding.is_module || makes_tables(&finding.module);
            candidates.push(Candidate::new(object.address, bytes, kind, index as u32).or_table(may_be_table));
            places.push((index, at));
        }
    }
    (candidates, places)
}
