//! The results as Markdown: medians of what each round showed side by side.

use std::fmt::Write as _;

use crate::{
    Measured,
    churn::{Churn, SLICES},
};

/// Writes the results down. Subject 0 is untraced, 1 the empty program, 3 leaktrace as it is
/// used, and 5, if there, the peer.
pub(crate) fn render(names: &[&str], rounds: &[Vec<Measured>], command: &str) -> String {
    let mut out = format!(
        "# What tracing costs\n\nMade by `{command}` on {}.\n\
         Medians of {} rounds, in each of which everything was measured in turn, each operation by the fastest of {}\n\
         slices; ratios are medians of the rounds' ratios. The work runs on one CPU and does nothing but allocate\n\
         and free: a real load slows less.\n",
        machine(),
        rounds.len(),
        SLICES,
    );
    out += "\n## Each operation\n\n| | ";
    out += &Churn::ALL.map(Churn::name).join(" | ");
    out += " |\n|---|---:|---:|---:|\n";
    for (subject, name) in names.iter().enumerate() {
        let cells = [0, 1, 2].map(|churn| {
            let ns = median(rounds.iter().map(|round| round[subject].op[churn]));
            let slowdown = median(rounds.iter().map(|round| round[subject].op[churn] / round[0].op[churn]));
            if subject == 0 { format!("{ns:.0} ns") } else { format!("{ns:.0} ns, {slowdown:.2}x") }
        });
        let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
    }
    out += "\n## Each event (`kernel.bpf_stats_enabled`)\n\n\
            | | allocation | of the empty program's | free | of the empty program's |\n|---|---:|---:|---:|---:|\n";
    for (subject, name) in names.iter().enumerate().skip(1) {
        let row = |of: fn(&Measured) -> Option<f64>| {
            let ns = median(rounds.iter().filter_map(|round| of(&round[subject])));
            let ratio = median(rounds.iter().filter_map(|round| Some(of(&round[subject])? / of(&round[1])?)));
            format!("{ns:.0} ns | {ratio:.2}x")
        };
        let _ = writeln!(out, "| {name} | {} | {} |", row(|m| m.alloc), row(|m| m.free));
    }
    if let Some(peer) = names.iter().position(|name| *name == "memleak") {
        out += "\n## What each adds to an operation, as part of what memleak adds\n\n| | ";
        out += &Churn::ALL.map(Churn::name).join(" | ");
        out += " |\n|---|---:|---:|---:|\n";
        for (subject, name) in names.iter().enumerate().take(peer).skip(1) {
            let cells = [0, 1, 2].map(|churn| {
                let added =
                    |round: &[Measured], subject: usize| round[subject].op[churn] - round[0].op[churn];
                let ns = median(rounds.iter().map(|round| added(round, subject)));
                let part =
                    median(rounds.iter().map(|round| added(round, peer) / added(round, subject).max(1.0)));
                format!("{ns:.0} ns, 1/{part:.0}")
            });
            let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
        }
    }
    out
}

/// Kernel, architecture and CPUs.
fn machine() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // The thread that measures stays on one CPU: ask for all that are online.
    // SAFETY: sysconf takes an integer only.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(cpus as libc::c_long);
    format!("Linux {} ({}, {online} CPUs)", release.trim(), std::env::consts::ARCH)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
