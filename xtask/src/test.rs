//! `cargo xtask test`: what has to hold before anything lands.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    arch::Arch,
    debian::Suite,
    run::{build, cargo, check, find, is_root, target},
    setup::need,
    tally::Tally,
    vm,
};

/// Formatting, lints, and all tests; those that trace run as root, here and in guests.
///
/// # Errors
/// When a step fails.
pub(crate) fn test(offline: bool, run_guests: bool) -> Result<()> {
    step("formatting");
    // cargo fmt takes no --offline.
    check(cargo(false).args(["fmt", "--all", "--check"]))?;
    step("lints");
    check(cargo(offline).args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("building");
    let leaktrace = build(offline)?;
    // One test reads what strace shows of a run.
    need("strace", offline)?;
    // Others press keys on a terminal, and read a report in a browser.
    need("tmux", offline)?;
    // Another asks the agent by TLS.
    need("curl", offline)?;
    if ["chromium-browser", "google-chrome"].into_iter().all(|browser| find(browser).is_none()) {
        need("chromium", offline)?;
    }
    let prometheus = prometheus(offline)?;
    step("tests");
    let mut command = cargo(offline);
    // One failure must not hide those of other test programs.
    command.args(["test", "--workspace", "--no-fail-fast"]).env("LEAKTRACE_BIN", leaktrace);
    if let Some(place) = prometheus {
        command.env("LEAKTRACE_PROMETHEUS", place);
    }
    if !is_root() && find("sudo").is_some() {
        // Test binaries trace the kernel: run them, not the compiler, as root.
        let runner = format!("CARGO_TARGET_{}_RUNNER", host().to_uppercase().replace('-', "_"));
        command.env(runner, "sudo -E");
    }
    let mut tally = Tally::default();
    count(&mut command, &mut tally)?;
    if run_guests {
        step("guests");
        vm::test(offline, &mut tally)?;
    }
    if !tally.said().is_empty() {
        println!("test: what failed tests said, once more");
        for line in tally.said() {
            println!("{line}");
        }
    }
    println!("test: {} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the tests failed");
    }
    Ok(())
}

/// Where Prometheus is, unless it is in PATH: unpacked, not installed, because its package starts a server.
fn prometheus(offline: bool) -> Result<Option<PathBuf>> {
    if find("promtool").is_some() {
        return Ok(None);
    }
    let root = target().join("vm/prometheus");
    let place = root.join("usr/bin");
    if !place.join("promtool").exists() {
        Suite::open("bookworm", Arch::host()?, offline)?.unpack(&["prometheus"], &root)?;
    }
    Ok(Some(place))
}

/// Runs `cargo test`, shows what it prints, and counts.
fn count(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    for line in BufReader::new(child.stdout.take().context("it is piped")?).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        println!("{line}");
        tally.add(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    tally.end("a program ended in the middle of its tests");
    if !status.success() && tally.failed == 0 {
        tally.broken(1, &format!("cargo test failed ({status})"));
    }
    Ok(())
}

fn step(what: &str) {
    eprintln!("test: {what}");
}

/// The triple that this program was built for.
fn host() -> &'static str {
    env!("XTASK_HOST")
}
