//! The commands: each puts together kernel, tracer, analysis and report.

mod assemble;
mod attribute;
mod check;
mod compare;
mod completions;
mod diff;
mod filter;
mod heap;
mod judging;
mod kmemleak;
mod manual;
mod objects;
mod output;
mod probe;
mod progress;
mod prove;
mod record;
mod report;
mod reporting;
mod saved;
mod selftest;
mod serve;
mod session;
mod stop;
mod surroundings;
mod top;
mod trace;
mod triage;

pub use self::output::{is_broken_pipe, say};

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};

/// Runs what the command line asks for.
///
/// # Errors
/// The one line that tells the user what is wrong and what to do.
pub fn run(cli: Cli) -> Result<ExitCode> {
    // A limit of file size is an error that is told, as a full disk is, and no sudden end that leaves half a file.
    // SAFETY: SIG_IGN is no function, and nothing else in this process uses the signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    match cli.command {
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Diff(args)) => diff::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Compare(args)) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Prove(args)) => prove::saved::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Record(args)) => record::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Report(args)) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Serve(args)) => serve::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Top(args)) => top::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Triage(args)) => triage::run(&args),
        Some(Command::Completions(args)) => completions::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Heap(args)) => heap::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Man(args)) => manual::run(&args).map(|()| ExitCode::SUCCESS),
        None => trace::run(&cli.trace),
    }
}
