//! `cargo xtask eval`: scenarios whose truth is known, in guests and here, and how they were judged.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::{EVAL, Extra, Guest, Prepared, Programs, kernels, qemu, real};
use crate::{
    arch::Arch,
    run::{as_root, build_of_tests, build_release},
    test::tally::Tally,
};

/// Begins a line with an outcome, as `tests/eval` prints it.
const MARK: &str = "eval: ";
/// The section of the file that is written.
const SECTION: &str = "## Verdicts";
/// This machine, among the kernels.
const HERE: &str = "here";

/// Options of `cargo xtask eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// Which kernels to boot, as in `vm --list`, or `here` for this machine; may be given several times.
    #[arg(long, value_name = "NAME", default_values = ["6.12", HERE])]
    kernel: Vec<String>,
    /// Only scenarios whose name contains this, or whose truth is this: leak, subtle or innocent.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) only: String,
    /// Only a dozen scenarios, one or two of each kind.
    #[arg(long)]
    core: bool,
    /// Seconds that an innocent scenario is watched.
    #[arg(long, value_name = "S", default_value_t = 45)]
    innocent: u64,
    /// Leave the peer out: leaks are then watched only until they are found.
    #[arg(long)]
    pub(super) no_peer: bool,
    /// Guests at a time, each with its part of the scenarios.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(super) jobs: u32,
    /// Instead of all that, leaks that real drivers once had: upstream fixes taken back on Debian's source. Of the other
    /// options, --only, --no-peer, and --jobs apply.
    #[arg(long)]
    real: bool,
    /// Write the table into this file, in place of its section on verdicts.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What came of a scenario, as `tests/eval` prints it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Outcome {
    pub(super) name: String,
    pub(super) truth: String,
    pub(super) right: bool,
    pub(super) verdict: String,
    pub(super) rank: Option<u64>,
    pub(super) seconds: Option<f64>,
    pub(super) wrong: Vec<String>,
    pub(super) peer_rank: Option<i64>,
    pub(super) why: Vec<String>,
    pub(super) blamed: String,
}

/// Runs the evaluation; true when every scenario was judged right.
///
/// # Errors
/// When something cannot be had or built, or a guest hangs.
pub(crate) fn eval(offline: bool, args: &EvalArgs) -> Result<bool> {
    if args.real {
        return real::eval(offline, args);
    }
    let mut outcomes: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
    let programs = args
        .kernel
        .iter()
        .any(|kernel| kernel != HERE)
        .then(|| Programs::build(Arch::X86_64, offline))
        .transpose()?;
    for kernel in &args.kernel {
        let found = match &programs {
            Some(programs) if kernel != HERE => in_guests(offline, args, programs, kernel)?,
            _ => here(offline, args)?,
        };
        outcomes.insert(kernel.clone(), found);
    }
    let mut text = String::new();
    let mut right = true;
    for (kernel, outcomes) in &outcomes {
        right &= !outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.right);
        table(&mut text, kernel, outcomes)?;
    }
    println!("\n{text}");
    if let Some(path) = &args.write {
        write_section(path, &text)?;
    }
    Ok(right)
}

/// Runs the core of the evaluation in guests, and counts each scenario as a test.
///
/// # Errors
/// As [`eval`].
pub(crate) fn evaluate_core(offline: bool, tally: &mut Tally) -> Result<()> {
    let programs = Programs::build(Arch::X86_64, offline)?;
    let args = EvalArgs {
        kernel: Vec::new(),
        only: String::new(),
        core: true,
        innocent: 45,
        no_peer: true,
        jobs: 2,
        real: false,
        write: None,
    };
    let outcomes = in_guests(offline, &args, &programs, "6.12")?;
    if outcomes.is_empty() {
        bail!("the evaluation has no scenarios");
    }
    for outcome in outcomes {
        if outcome.right {
            tally.passed += 1;
        } else {
            tally.broken(1, &format!("evaluation: {} was judged {}", outcome.name, outcome.verdict));
        }
    }
    Ok(())
}

/// The scenarios in guests with one kernel.
fn in_guests(offline: bool, args: &EvalArgs, programs: &Programs, kernel: &str) -> Result<Vec<Outcome>> {
    let name = kernel;
    let kernel = kernels::find(kernel)?;
    if kernel.arch != Arch::X86_64 {
        bail!("the evaluation has no peer for {}", kernel.arch.name());
    }
    let with: &[Extra] = if args.no_peer { &[] } else { &[Extra::Peer] };
    let prepared = Prepared::new(kernel, with, offline)?;
    let one = |part: u32| -> Result<Vec<Outcome>> {
        let name = format!("{name}-{part}");
        let guest = Guest {
            offline,
            programs,
            accelerator: "tcg",
            // Leaks of each scenario add up.
            memory: 2_048,
            limit: Duration::from_mins(90),
            silence: Duration::from_mins(15),
            driver_parameters: "",
            boot: "",
            files: &[],
            with,
            name: &name,
        };
        let (innocent, part) = (args.innocent.to_string(), format!("{part}/{}", args.jobs));
        let mut command = vec![EVAL, "--only", &args.only, "--innocent", &innocent, "--part", &part];
        command.extend(args.core.then_some("--core"));
        let mut outcomes = Vec::new();
        qemu::again(|| {
            outcomes.clear();
            guest.run(&prepared, &command, |line| read(line, &mut outcomes))
        })?;
        Ok(outcomes)
    };
    let mut all = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let one = &one;
        let guests: Vec<_> = (1..=args.jobs).map(|part| scope.spawn(move || one(part))).collect();
        for guest in guests {
            all.extend(guest.join().map_err(|_| anyhow::anyhow!("a guest's thread panicked"))??);
        }
        Ok(())
    })?;
    Ok(all)
}

/// The scenarios that need no driver, on this machine.
fn here(offline: bool, args: &EvalArgs) -> Result<Vec<Outcome>> {
    let leaktrace = build_release(offline)?;
    let mut child = as_root(build_of_tests(offline, EVAL)?)?
        .arg("--leaktrace")
        .arg(leaktrace)
        .args(["--only", &args.only, "--innocent", &args.innocent.to_string()])
        .args(args.core.then_some("--core"))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the evaluation")?;
    let mut outcomes = Vec::new();
    for line in BufReader::new(child.stdout.take().context("it is piped")?).lines() {
        read(&line.context("cannot read what the evaluation prints")?, &mut outcomes);
    }
    child.wait().context("cannot wait for the evaluation")?;
    Ok(outcomes)
}

/// Reads an outcome, and shows it.
pub(super) fn read(line: &str, outcomes: &mut Vec<Outcome>) {
    let Some(outcome) = line.strip_prefix(MARK).and_then(|json| serde_json::from_str::<Outcome>(json).ok())
    else {
        qemu::print(line);
        return;
    };
    let mark = if outcome.right { "" } else { "   WRONG" };
    let seconds = outcome.seconds.map(|seconds| format!(" after {seconds:.0} s")).unwrap_or_default();
    let peer = outcome.peer_rank.map(|rank| format!(", memleak {}", peer_rank(rank))).unwrap_or_default();
    qemu::print(&format!("{:<52} {}{seconds}{peer}{mark}", outcome.name, outcome.verdict));
    if !outcome.right {
        for line in outcome.wrong.iter().chain(&outcome.why) {
            qemu::print(&format!("      {line}"));
        }
    }
    outcomes.push(outcome);
}

pub(super) fn peer_rank(rank: i64) -> String {
    if rank < 0 { "not listed".to_owned() } else { rank.to_string() }
}

/// One kernel's table, with precision and recall of `leak`.
fn table(out: &mut String, kernel: &str, outcomes: &[Outcome]) -> Result<()> {
    let name = if kernel == HERE { "this machine".to_owned() } else { format!("a guest with {kernel}") };
    writeln!(out, "### On {name}\n")?;
    writeln!(out, "| scenario | truth | verdict | rank | seconds | memleak's rank |")?;
    writeln!(out, "|---|---|---|---:|---:|---:|")?;
    for outcome in outcomes {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        writeln!(
            out,
            "| {} | {} | {}{} | {} | {} | {} |",
            outcome.name,
            outcome.truth,
            outcome.verdict,
            if outcome.right { "" } else { " (wrong)" },
            or_dash(outcome.rank.map(|rank| rank.to_string())),
            or_dash(outcome.seconds.map(|seconds| format!("{seconds:.0}"))),
            or_dash(outcome.peer_rank.map(peer_rank)),
        )?;
    }
    let count = |of: &dyn Fn(&&Outcome) -> bool| outcomes.iter().filter(of).count();
    let leaks = count(&|outcome| outcome.truth == "leak");
    let found = count(&|outcome| outcome.truth == "leak" && outcome.verdict == "leak");
    let called = count(&|outcome| outcome.verdict == "leak");
    let wrong = outcomes.iter().filter(|outcome| !outcome.wrong.is_empty()).count()
        + count(&|outcome| {
            outcome.truth == "innocent" && outcome.verdict == "leak" && outcome.wrong.is_empty()
        });
    let innocent = count(&|outcome| outcome.truth == "innocent");
    let percent = |part: usize, whole: usize| part as f64 * 100.0 / whole.max(1) as f64;
    writeln!(
        out,
        "\n{} scenarios, {innocent} of them innocent. Precision of `leak`: {:.0} % ({} of {called} are leaks); recall: {:.0} % \
         ({found} of {leaks} leaks of 10 or more objects a second). Judged right: {} of {}.\n",
        outcomes.len(),
        if called == 0 { 100.0 } else { percent(called.saturating_sub(wrong), called) },
        called.saturating_sub(wrong),
        if leaks == 0 { 100.0 } else { percent(found, leaks) },
        count(&|outcome| outcome.right),
        outcomes.len()
    )?;
    Ok(())
}

/// Puts the tables into a file, in place of its section on verdicts or at its end.
fn write_section(path: &Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    let Some(begin) = old.find(&format!("\n{SECTION}\n")).map(|at| at + 1) else {
        bail!("{} has no section {SECTION}", path.display());
    };
    let end =
        old[begin + SECTION.len()..].find("\n## ").map_or(old.len(), |at| begin + SECTION.len() + at + 1);
    // What stands before the first table is written by hand.
    let intro = old[begin..end].find("\n### ").map_or(&old[begin..end], |at| &old[begin..=begin + at]);
    let new = format!("{}{}\n\n{}\n{}", &old[..begin], intro.trim_end(), text.trim_end(), &old[end..]);
    fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))
}
