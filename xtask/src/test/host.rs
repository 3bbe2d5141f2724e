//! The test programs that run on this machine: unit tests, and the whole tool on its kernel.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Tier, tally::Tally, times::Times};
use crate::run::{as_root, cargo, workspace};

/// The package of the tests that trace this machine, one at a time.
const TRACING: &str = "tests";

/// Tests that the quick tier leaves out, because they mostly wait: for growth, for idleness, for thousands of processes, for
/// a tool of somebody else's, or for every command of the guide.
const NOT_QUICK: [&str; 9] = [
    "clients_that_mean_harm_do_none",
    "frees_in_an_interrupt_of_a_free_are_seen",
    "growth_is_suspected_baselined_and_compared",
    "idling_costs_next_to_nothing",
    "prometheus_and_the_dashboard_understand_the_metrics",
    "ten_thousand_processes_are_no_burden",
    "ten_thousand_processes_more_are_told_as_such",
    "what_is_written_works",
    "what_was_written_before_a_full_disk_is_readable",
];

/// A program with tests.
struct Program {
    /// `leaktrace`, or `tests/trace`.
    name: String,
    path: PathBuf,
    /// Where cargo would run it.
    directory: PathBuf,
}

impl Program {
    /// What cargo has built, of a line of its messages.
    fn read(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["profile"]["test"] != true {
            return None;
        }
        let path = PathBuf::from(message["executable"].as_str()?);
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let package = directory.strip_prefix(workspace()).ok()?.display().to_string();
        let target = message["target"]["name"].as_str()?;
        let name = if package.replace('-', "_") == target.replace('-', "_") {
            package
        } else {
            format!("{package}/{target}")
        };
        Some(Self { name, path, directory })
    }

    /// Whether its tests trace this machine.
    fn traces(&self) -> bool {
        self.directory == workspace().join(TRACING)
    }
}

/// Builds all test programs.
///
/// # Errors
/// When cargo fails.
fn programs(offline: bool) -> Result<Vec<Program>> {
    let output = cargo(offline)
        .args(["test", "--quiet", "--workspace", "--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo test")?;
    if !output.status.success() {
        bail!("cargo test --no-run failed ({})", output.status);
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
    let mut programs: Vec<_> = text.lines().filter_map(Program::read).collect();
    programs.sort_by(|a, b| (a.traces(), &a.name).cmp(&(b.traces(), &b.name)));
    Ok(programs)
}

/// The programs of a tier, built.
pub(crate) struct Host {
    programs: Vec<Program>,
    tier: Tier,
    /// What their tests are told by the environment.
    environment: Vec<(&'static str, PathBuf)>,
}

impl Host {
    /// Builds them.
    ///
    /// # Errors
    /// When cargo fails, or a test that the quick tier leaves out is not there.
    pub(crate) fn build(
        offline: bool,
        tier: Tier,
        environment: Vec<(&'static str, PathBuf)>,
    ) -> Result<Self> {
        let host = Self { programs: programs(offline)?, tier, environment };
        let mut names = String::new();
        for program in host.programs.iter().filter(|program| program.traces()) {
            let output = Command::new(&program.path).args(["--list", "--format", "terse"]).output()?;
            names += &String::from_utf8_lossy(&output.stdout);
        }
        match NOT_QUICK.iter().find(|name| !names.contains(&format!("{name}: test"))) {
            Some(name) => bail!("the quick tier leaves out a test that is not there: {name}"),
            None => Ok(host),
        }
    }

    /// Runs them one after the other.
    ///
    /// # Errors
    /// When one cannot be run.
    pub(crate) fn run(&self, tally: &mut Tally, times: &mut Times) -> Result<()> {
        self.programs.iter().try_for_each(|program| self.one(program, tally, times))
    }

    fn one(&self, program: &Program, tally: &mut Tally, times: &mut Times) -> Result<()> {
        // Test binaries trace the kernel: they run as root, the compiler does not.
        let mut command =
            if program.traces() { as_root(&program.path)? } else { Command::new(&program.path) };
        if program.traces() {
            // They take turns anyway; so it is known how long each takes.
            command.arg("--test-threads=1");
        }
        match self.tier {
            Tier::Quick => command.args(NOT_QUICK.iter().flat_map(|name| ["--skip", name])),
            Tier::Default => &mut command,
            Tier::All => command.arg("--include-ignored"),
        };
        println!("\n{}", program.name);
        let begun = Instant::now();
        let failed = tally.failed;
        let mut child = command
            .current_dir(&program.directory)
            .env("CARGO_MANIFEST_DIR", &program.directory)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.path.display()))?;
        let mut last = begun;
        for line in BufReader::new(child.stdout.take().context("it is piped")?).lines() {
            let line = line.with_context(|| format!("cannot read what {} prints", program.name))?;
            if let Some(test) = ended(&line).filter(|_| program.traces()) {
                let took = last.elapsed();
                last = Instant::now();
                println!("{line}{}", seconds(took));
                times.test(format!("{}: {test}", program.name), took);
            } else {
                println!("{line}");
            }
            tally.add(&line);
        }
        let status = child.wait().with_context(|| format!("cannot wait for {}", program.name))?;
        tally.end(&format!("{} ended in the middle of its tests ({status})", program.name));
        if !status.success() && tally.failed == failed {
            tally.broken(1, &format!("{} failed ({status})", program.name));
        }
        if !program.traces() {
            times.test(program.name.clone(), begun.elapsed());
        }
        println!("{} took{}", program.name, seconds(begun.elapsed()));
        Ok(())
    }
}

/// The test that a line says the end of.
fn ended(line: &str) -> Option<&str> {
    let (name, how) = line.strip_prefix("test ")?.split_once(" ... ")?;
    // Its reason stands after what is left out.
    (how == "ok" || how == "FAILED").then_some(name)
}

fn seconds(took: Duration) -> String {
    format!(" {:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_tests_are_told_from_other_lines() {
        assert_eq!(ended("test a_test ... ok"), Some("a_test"));
        assert_eq!(ended("test module::a_test ... FAILED"), Some("module::a_test"));
        assert_eq!(ended("test slow ... ignored, slow: an hour"), None);
        assert_eq!(ended("test result: ok. 4 passed; 0 failed"), None);
    }

    #[test]
    fn programs_are_those_with_tests() {
        let root = workspace().display();
        let line = |package: &str, target: &str, test: bool| {
            format!(
                "{{\"manifest_path\":\"{root}/{package}/Cargo.toml\",\"profile\":{{\"test\":{test}}},\
                 \"target\":{{\"name\":\"{target}\"}},\"executable\":\"/x/{target}\"}}"
            )
        };
        let name = |line: &str| Program::read(line).map(|program| (program.name.clone(), program.traces()));
        assert_eq!(
            name(&line("leaktrace-common", "leaktrace_common", true)),
            Some(("leaktrace-common".to_owned(), false))
        );
        assert_eq!(name(&line("tests", "trace", true)), Some(("tests/trace".to_owned(), true)));
        assert_eq!(name(&line("tests", "culprit", false)), None);
        assert_eq!(name("no message"), None);
    }
}
