//! Balanced traffic that fires no tracepoint when it is freed: what leaktrace says, and what the
//! peer, memleak of libbpf-tools, says of the same traffic.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use leaktrace_tests::driver::{self, Mode};

use super::trace::{Trace, items, number};

/// Paths, each of which allocates and frees so many objects.
const PATHS: [&str; 3] = ["rcu_two", "kfree_bulk", "free_bulk"];
const OBJECTS: u64 = 10_000;

/// What it needs.
pub const LOADER: &str = "/peer/lib/ld-linux-x86-64.so.2";
/// Seconds in which the peer comes up, and in which it then watches.
const STARTUP: Duration = Duration::from_secs(8);
const WATCHED: &str = "16";

fn traffic() -> Result<()> {
    for path in PATHS {
        driver::run(path, Mode::Balanced, OBJECTS)?;
    }
    Ok(())
}

/// Each ends with nothing live here.
pub fn test() -> Result<bool> {
    driver::need()?;
    let trace = Trace::start(&[])?;
    traffic()?;
    std::thread::sleep(Duration::from_secs(3));
    let report = trace.stop()?;
    let peer = memleak().context("memleak")?;
    let mut good = true;
    for path in PATHS {
        let function = format!("{path}_balanced");
        let live: u64 = items(&report.0["findings"])
            .filter(|finding| {
                let symbol = finding["call_site"]["symbol"].as_str().unwrap_or_default();
                symbol.split('.').next() == Some(&function)
            })
            .map(|finding| number(&finding["live"]["objects"]))
            .sum();
        // It has seen them, and not that they were freed: else this compares nothing. Its walk of its own map may end early.
        let theirs = peer.get(function.as_str()).copied().unwrap_or(0);
        let right = live == 0 && theirs >= OBJECTS / 20;
        good &= right;
        let mark = if right { "" } else { "   WRONG" };
        println!("  {path:<12} {OBJECTS} balanced: leaktrace {live} live, memleak {theirs}{mark}");
    }
    Ok(good)
}

/// Outstanding allocations by function of the driver, says the peer.
fn memleak() -> Result<BTreeMap<String, u64>> {
    let mut child = Command::new(LOADER)
        .args(["--library-path", "/peer/lib", "/peer/memleak-libbpf", "-T", "10000", WATCHED, "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot be run")?;
    std::thread::sleep(STARTUP);
    if let Some(status) = child.try_wait()? {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        anyhow::bail!("does not run here ({status}): {said}");
    }
    traffic()?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    let mut objects = 0;
    for line in text.lines() {
        // "51200 bytes in 200 allocations from stack", and then a line for each frame.
        if let Some((_, rest)) = line.split_once(" bytes in ") {
            objects = rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            continue;
        }
        for path in PATHS {
            let function = format!("{path}_balanced");
            if line.contains(&function) {
                *found.entry(function).or_default() += objects;
                // Once for each stack.
                objects = 0;
            }
        }
    }
    anyhow::ensure!(text.contains("allocations from stack"), "printed nothing that is understood");
    Ok(found)
}
