//! `cargo xtask test`: what has to hold before anything lands, in three tiers; CONTRIBUTING.md says what each holds.

pub(crate) mod tally;
pub(crate) mod times;

mod host;
mod hygiene;

use std::path::PathBuf;

use anyhow::{Result, bail};

use self::{host::Host, tally::Tally, times::Times};
use crate::{
    arch::Arch,
    debian::Suite,
    run::{cargo, check, find, target},
    setup::need,
    vm::{self, Programs},
};

/// How much is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// What a change breaks most often.
    Quick,
    /// What has to hold before anything lands.
    Default,
    /// The slow ones as well.
    All,
}

/// Formatting, lints, hygiene and the tests of a tier; those that trace run as root, here and in guests.
///
/// # Errors
/// When a step fails.
pub(crate) fn test(offline: bool, tier: Tier, run_guests: bool) -> Result<()> {
    let (mut times, mut tally) = (Times::default(), Tally::default());
    let result = steps(offline, tier, run_guests, &mut tally, &mut times);
    if !tally.said().is_empty() {
        println!("test: what failed tests said, once more");
        for line in tally.said() {
            println!("{line}");
        }
    }
    println!("{}", times.table());
    result?;
    println!("test: {} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.passed == 0 {
        bail!("the tests failed");
    }
    Ok(())
}

fn steps(offline: bool, tier: Tier, run_guests: bool, tally: &mut Tally, times: &mut Times) -> Result<()> {
    // cargo fmt takes no --offline.
    times.step("formatting", |_| check(cargo(false).args(["fmt", "--all", "--check"])))?;
    times.step("lints", |_| {
        let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
        check(cargo(offline).args(lints))
    })?;
    if tier != Tier::Quick {
        times.step("hygiene", |_| hygiene::check_all(offline))?;
    }
    let (programs, host) = times.step("building", |_| -> Result<_> {
        let programs = Programs::build(Arch::X86_64, offline)?;
        let mut environment = vec![("LEAKTRACE_BIN", programs.leaktrace.clone())];
        environment.extend(tools(offline)?);
        Ok((programs, Host::build(offline, tier, environment)?))
    })?;
    times.step("tests on this machine", |times| host.run(tally, times))?;
    if run_guests {
        let lab = times.step("preparing guests", |_| vm::Lab::prepare(offline, tier, programs))?;
        times.step("guests", |times| lab.run(tally, times));
    }
    if run_guests && tier == Tier::All {
        times.step("evaluation", |_| vm::evaluate_core(offline, tally))?;
    }
    Ok(())
}

/// Programs that tests use, installed where they are missing; what the tests are told of them.
fn tools(offline: bool) -> Result<Option<(&'static str, PathBuf)>> {
    // What a run asks of the kernel, keys on a terminal, and the agent by TLS.
    for tool in ["strace", "tmux", "curl"] {
        need(tool, offline)?;
    }
    // A report is read in a browser.
    if ["chromium-browser", "google-chrome"].into_iter().all(|browser| find(browser).is_none()) {
        need("chromium", offline)?;
    }
    Ok(prometheus(offline)?.map(|place| ("LEAKTRACE_PROMETHEUS", place)))
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
