//! `cargo xtask test`: what has to hold before anything lands.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    run::{build, cargo, check, find, is_root},
    setup::need,
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
    step("tests");
    let mut command = cargo(offline);
    command.args(["test", "--workspace"]).env("LEAKTRACE_BIN", leaktrace);
    if !is_root() && find("sudo").is_some() {
        // Test binaries trace the kernel: run them, not the compiler, as root.
        let runner = format!("CARGO_TARGET_{}_RUNNER", host().to_uppercase().replace('-', "_"));
        command.env(runner, "sudo -E");
    }
    let (mut total, mut succeeded) = count(&mut command)?;
    if run_guests {
        step("guests");
        succeeded &= vm::test(offline, |line| total.add(line))?;
    }
    println!("test: {} passed, {} failed", total.passed, total.failed);
    if !succeeded || total.failed > 0 || total.passed == 0 {
        bail!("the tests failed");
    }
    Ok(())
}

/// Tests of all test binaries together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
}

impl Total {
    /// Adds a line like `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }
}

/// Runs `cargo test`, shows what it prints, and counts; also whether it succeeded.
fn count(command: &mut Command) -> Result<(Total, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut total = Total::default();
    for line in BufReader::new(child.stdout.take().context("it is piped")?).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        println!("{line}");
        total.add(&line);
    }
    Ok((total, child.wait().context("cannot wait for cargo test")?.success()))
}

fn step(what: &str) {
    eprintln!("test: {what}");
}

/// The triple that this program was built for.
fn host() -> &'static str {
    env!("XTASK_HOST")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut total = Total::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 6.45s",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 6.45s",
        ] {
            total.add(line);
        }
        assert_eq!(total, Total { passed: 16, failed: 1 });
    }
}
