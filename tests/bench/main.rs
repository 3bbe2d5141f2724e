//! What tracing costs: three kinds of work, untraced, under an empty program, under leaktrace
//! and under a peer, in turns.

mod churn;
mod programs;
mod subject;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use churn::Churn;
use clap::Parser;
use subject::Subject;

/// Heading of the part of the file that is not measured.
const NOTES: &str = "\n## Notes\n";

/// Measures what tracing costs.
#[derive(Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench --")]
struct Cli {
    /// The leaktrace to measure.
    #[arg(long, hide = true)]
    leaktrace: PathBuf,
    /// Command that runs libbpf-tools' memleak; without it, one in PATH is used.
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
    /// How often everything is measured.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Milliseconds for each kind of work in each round.
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    time: u64,
    /// Write the results to a file as well.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What one subject showed in one round, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// For each operation, by kind of work.
    pub(crate) op: [f64; 3],
    /// For each allocation event in the subject's programs.
    pub(crate) alloc: Option<f64>,
    /// For each free event.
    pub(crate) free: Option<f64>,
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<()> {
    let peer = cli.peer.clone().or_else(peer_in_path);
    let subjects = Subject::all(peer.is_some());
    if peer.is_none() {
        eprintln!(
            "bench: no memleak in PATH and no --peer: leaktrace is compared with an empty program only"
        );
    }
    churn::stay_on_one_cpu()?;
    let mut rounds = Vec::new();
    for number in 1..=cli.rounds {
        eprintln!("bench: round {number} of {}", cli.rounds);
        let mut round = Vec::new();
        for subject in &subjects {
            round.push(
                measure(subject, cli, peer.as_deref())
                    .with_context(|| format!("measuring: {}", subject.name()))?,
            );
        }
        rounds.push(round);
    }
    let names: Vec<_> = subjects.iter().map(Subject::name).collect();
    let text = table::render(&names, &rounds, &command_line());
    print!("{text}");
    if let Some(file) = &cli.write {
        // What people wrote about the figures stays.
        let notes = std::fs::read_to_string(file)
            .ok()
            .and_then(|old| old.find(NOTES).map(|at| old[at..].to_owned()))
            .unwrap_or_default();
        std::fs::write(file, text.clone() + &notes)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Runs all work under one subject: first timed as it is, then with the kernel's statistics on,
/// which add to what they measure.
fn measure(subject: &Subject, cli: &Cli, peer: Option<&str>) -> Result<Measured> {
    let time = Duration::from_millis(cli.time);
    let running = subject.start(&cli.leaktrace, peer)?;
    let mut op = [0.0; 3];
    for (churn, ns) in Churn::ALL.into_iter().zip(&mut op) {
        // Long enough for the burst of stacks with which leaktrace begins.
        churn.run(time / 3)?;
        *ns = churn.run(time)?;
    }
    let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("cannot turn bpf_stats on")?;
    let before = running.costs()?;
    for churn in Churn::ALL {
        churn.run(time / 3)?;
    }
    let costs = running.costs()?.since(before);
    drop(statistics);
    Ok(Measured { op, alloc: costs.allocations.each(), free: costs.frees.each() })
}

/// memleak of libbpf-tools by the names that distributions give it.
fn peer_in_path() -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let names = ["memleak-libbpf", "libbpf-memleak", "bpf-memleak"];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|file| file.is_file())
        .map(|file| file.to_string_lossy().into_owned())
}

/// The command for a reader: the peer's place is nobody else's.
fn command_line() -> String {
    let command = "cargo xtask bench";
    let mut args = std::env::args().skip(1);
    let mut rest = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--leaktrace" => drop(args.next()),
            "--peer" => {
                args.next();
                rest.push("--peer memleak-libbpf".to_owned());
            }
            _ => rest.push(arg),
        }
    }
    if rest.is_empty() { command.to_owned() } else { format!("{command} -- {}", rest.join(" ")) }
}
