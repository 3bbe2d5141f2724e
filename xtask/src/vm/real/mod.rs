//! `cargo xtask eval --real`: leaks that real drivers once had, in guests with Debian's stock kernel. Nothing of the kernel's
//! source is kept here: a case says in which function of Debian's source which few words are taken out.

mod cases;
mod source;

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use self::{
    cases::{CASES, Case},
    source::{Sources, depends},
};
use super::{
    EVAL, Extra, Guest, Prepared, Programs,
    eval::{EvalArgs, Outcome, peer_rank, read},
    kernels, qemu,
};
use crate::{arch::Arch, run::target};

/// The kernel in the guests: the one that the source is of.
const KERNEL: &str = "6.12";
/// Where the guest has the modules.
const PLACE: &str = "/guest";

/// Runs all cases; true when every one was judged right.
///
/// # Errors
/// When something cannot be had or built, or an edit does not fit the source.
pub(crate) fn eval(offline: bool, args: &EvalArgs) -> Result<bool> {
    let chosen: Vec<(&Case, bool)> = CASES
        .iter()
        .flat_map(|case| [(case, true), (case, false)])
        .filter(|&(case, leaks)| name(case, leaks).contains(&args.only) || truth(leaks) == args.only)
        .collect();
    let with: &[Extra] = if args.no_peer { &[] } else { &[Extra::Peer] };
    let prepared = Prepared::new(kernels::find(KERNEL)?, with, offline)?;
    let headers = kernels::directory(KERNEL).join("build");
    let sources = Sources::get(&headers, offline)?;
    let lab = Lab {
        offline,
        headers,
        sources,
        programs: Programs::build(Arch::X86_64, offline)?,
        prepared,
        with,
        building: Mutex::new(()),
    };
    let left = Mutex::new(VecDeque::from(chosen));
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let next = left.lock().ok().and_then(|mut left| left.pop_front());
                    let Some((case, leaks)) = next else { return };
                    let outcome = lab.run(case, leaks).unwrap_or_else(|error| {
                        qemu::print(&format!("{}: {error:#}", name(case, leaks)));
                        failed(case, leaks)
                    });
                    let _ = outcomes.lock().map(|mut outcomes| outcomes.push((case.fix, outcome)));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|(_, outcome): &(_, Outcome)| (outcome.truth.clone(), outcome.name.clone()));
    println!("\n{}", table(&outcomes)?);
    Ok(!outcomes.is_empty() && outcomes.iter().all(|(_, outcome)| outcome.right))
}

fn truth(leaks: bool) -> &'static str {
    if leaks { "leak" } else { "innocent" }
}

fn name(case: &Case, leaks: bool) -> String {
    if leaks { case.name.to_owned() } else { format!("{} (fixed)", case.name) }
}

/// What all guests share.
struct Lab<'a> {
    offline: bool,
    headers: PathBuf,
    sources: Sources,
    programs: Programs,
    prepared: Prepared,
    with: &'a [Extra],
    building: Mutex<()>,
}

impl Lab<'_> {
    /// Runs a case, or the driver unmodified under the same load, in a guest of its own.
    fn run(&self, case: &Case, leaks: bool) -> Result<Outcome> {
        let guest_name = format!("real-{}-{}", case.trigger, truth(leaks));
        let mut files = {
            // Copies lie beside the originals, and one directory may be in another.
            let _one_at_a_time = self.building.lock();
            modules(&self.sources, &self.headers, case, leaks, &guest_name)?
        };
        let description = target().join("vm/real/built").join(&guest_name).join("case.json");
        std::fs::write(&description, describe(case, leaks, &files).to_string())?;
        files.push(description);
        let guest = Guest {
            offline: self.offline,
            programs: &self.programs,
            accelerator: "tcg",
            memory: 1_024,
            limit: Duration::from_mins(5),
            silence: Duration::from_mins(4),
            driver_parameters: "",
            boot: "",
            files: &files,
            with: self.with,
            name: &guest_name,
        };
        let mut outcomes = Vec::new();
        let command = [EVAL, "--real", "/guest/case.json"];
        qemu::again(|| {
            outcomes.clear();
            guest.run(&self.prepared, &command, |line| read(line, &mut outcomes))
        })?;
        let outcome: Outcome = outcomes.pop().with_context(|| format!("{} has no outcome", case.name))?;
        let said = target().join("vm/real/said");
        std::fs::create_dir_all(&said)?;
        std::fs::write(said.join(format!("{guest_name}.txt")), outcome.why.join("\n") + "\n")?;
        Ok(outcome)
    }
}

/// A case for the program in the guest.
fn describe(case: &Case, leaks: bool, modules: &[PathBuf]) -> serde_json::Value {
    let last = case.builds.last().map(|build| format!("{}.ko", build.module));
    let load: Vec<_> = modules
        .iter()
        .map(|file| {
            let file = file.file_name().unwrap_or_default().to_string_lossy();
            let parameters = if last.as_deref() == Some(&*file) { case.parameters } else { "" };
            json!({"file": format!("{PLACE}/{file}"), "parameters": parameters})
        })
        .collect();
    json!({
        "name": name(case, leaks),
        "trigger": case.trigger,
        "load": load,
        "right": if leaks { vec![case.module] } else { vec![] },
        "function": case.function,
    })
}

/// The modules of a case, in the order in which they are loaded.
fn modules(sources: &Sources, headers: &Path, case: &Case, leaks: bool, place: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut seen: BTreeSet<String> = case.builds.iter().map(|build| build.module.replace('-', "_")).collect();
    for (index, build) in case.builds.iter().enumerate() {
        let module = sources.build(headers, place, &case.builds[..index], build, leaks)?;
        for name in depends(&module)? {
            stock(sources, &name, &mut seen, &mut all)?;
        }
        all.push(module);
    }
    for name in case.stock {
        stock(sources, name, &mut seen, &mut all)?;
    }
    Ok(all)
}

/// Adds a stock module, after those that it depends on.
fn stock(sources: &Sources, name: &str, seen: &mut BTreeSet<String>, all: &mut Vec<PathBuf>) -> Result<()> {
    if !seen.insert(name.replace('-', "_")) {
        return Ok(());
    }
    if let Some(module) = sources.stock(name)? {
        for name in depends(&module)? {
            stock(sources, &name, seen, all)?;
        }
        all.push(module);
    }
    Ok(())
}

/// The outcome of a case that did not run.
fn failed(case: &Case, leaks: bool) -> Outcome {
    Outcome {
        name: name(case, leaks),
        truth: truth(leaks).to_owned(),
        right: false,
        verdict: "failed".to_owned(),
        rank: None,
        seconds: None,
        wrong: Vec::new(),
        peer_rank: None,
        why: Vec::new(),
        blamed: String::new(),
    }
}

fn table(outcomes: &[(&str, Outcome)]) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "| case | fix | truth | verdict | rank | blamed first | seconds | memleak's rank |")?;
    writeln!(out, "|---|---|---|---|---:|---|---:|---:|")?;
    for (fix, outcome) in outcomes {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        writeln!(
            out,
            "| {} | {fix} | {} | {}{} | {} | {} | {} | {} |",
            outcome.name,
            outcome.truth,
            outcome.verdict,
            if outcome.right { "" } else { " (wrong)" },
            or_dash(outcome.rank.map(|rank| rank.to_string())),
            outcome.blamed,
            or_dash(outcome.seconds.map(|seconds| format!("{seconds:.0}"))),
            or_dash(outcome.peer_rank.map(peer_rank)),
        )?;
    }
    let right = outcomes.iter().filter(|(_, outcome)| outcome.right).count();
    writeln!(out, "\nJudged right: {right} of {}.", outcomes.len())?;
    Ok(out)
}
