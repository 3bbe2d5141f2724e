//! kmemleak's word beside ours, and that tracing does not blind it.

use std::{fs, path::Path, process::Command, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

use super::trace::{LEAKTRACE, Trace, items, number, owner};

const LIST: &str = "/sys/kernel/debug/kmemleak";
/// Objects of each leak while it is traced, and before.
const OBJECTS: u64 = 200;
const BEFORE: u64 = 150;
/// kmemleak misses those that an old pointer is left to, on a stack: hardly one where what is allocated is zeroed...
const MISSED: u64 = OBJECTS / 20;
/// ...but in the sheaves of newer kernels there are more, with or without us. Of a tracer that keeps addresses it lists
/// nothing until the trace has ended, and then so many at once.
const BLINDED: u64 = OBJECTS / 2;
/// Of those leaked before, sheaves hide so many at most: they keep pointers to what they have given out.
const BEFORE_HIDDEN: u64 = BEFORE / 2;
/// Where a kernel has sheaves for all caches.
const SHEAVES: &str = "/sys/kernel/slab/kmalloc-256/sheaf_capacity";

/// What the report says of kmemleak and a function: in both, only here, only there.
fn side(report: &Value, function: &str) -> Option<(u64, u64, u64)> {
    let finding = items(&report["findings"]).find(|finding| {
        items(&finding["stacks"]).next().and_then(owner).is_some_and(|owner| owner == function)
    })?;
    let side = &finding["proof"]["kmemleak"];
    let objects = |name: &str| number(&side[name]["objects"]);
    Some((objects("both"), objects("only_here"), objects("only_there")))
}

/// Of what only kmemleak lists, how many objects a function has.
fn only_there(report: &Value, function: &str) -> u64 {
    items(&report["kmemleak"]["others"])
        .filter(|other| {
            other["function"].as_str().is_some_and(|name| name.split('.').next() == Some(function))
        })
        .map(|other| number(&other["objects"]))
        .sum()
}

/// Where there is no kmemleak, that is told and the report comes all the same.
fn without() -> Result<bool> {
    let trace = Trace::start(&["--kmemleak"])?;
    let told = trace.said.contains("kmemleak cannot be asked: this kernel has no kmemleak");
    let report = trace.stop()?;
    let error = report.0["kmemleak"]["error"].as_str().unwrap_or_default().to_owned();
    let right = told && error.contains("CONFIG_DEBUG_KMEMLEAK");
    println!("  no kmemleak here: {error}{}", if right { "" } else { "   WRONG" });
    Ok(right)
}

/// All that it lists of what leaked while tracing is live here, and most of what is live here is listed.
pub fn test() -> Result<bool> {
    driver::need()?;
    if !Path::new(LIST).exists() {
        driver::unload()?;
        return without();
    }
    // Its own scan, a minute after boot, would change the list between two readings of it.
    fs::write(LIST, "scan=off").context("cannot stop kmemleak's own scans")?;
    driver::run("memdup", Mode::Leak, BEFORE)?;
    // Functions are found by their stacks, all of which are wanted.
    let trace = Trace::start(&["--kmemleak", "--overhead", "100"])?;
    // At once: what else happens between leaks leaves old pointers on the stack, and memory that is leaked has such to what
    // is leaked later.
    for path in ["kmalloc", "cache", "unbounded_list"] {
        driver::run(path, Mode::Leak, OBJECTS)?;
        driver::run("kmalloc", Mode::Balanced, 500)?;
    }
    sleep(Duration::from_secs(2));
    let report = trace.stop()?.0;
    let mut good = saved(&report)?;
    let after = listed_again()?;
    for (function, after) in ["kmalloc_leak", "cache_leak"].into_iter().zip(after) {
        let (both, here, there) = side(&report, function).context("it is no finding")?;
        // All that kmemleak lists of them is live here.
        let sheaves = Path::new(SHEAVES).exists();
        let blinded = if sheaves { both == 0 && after >= BLINDED } else { both + MISSED < OBJECTS };
        let right = !blinded && both + here == OBJECTS && there == 0;
        good &= right;
        println!(
            "  {function:<20} {both} in both, {here} only here, {there} only there; {after} listed after the trace{}",
            mark(right)
        );
    }
    let (both, here, _) = side(&report, "unbounded_list_leak").context("the list is no finding")?;
    let right = both == 0 && here == OBJECTS;
    good &= right;
    println!("  unbounded_list_leak  {both} in both, {here} only here{}", mark(right));
    let before = only_there(&report, "memdup_leak");
    let hidden = if Path::new(SHEAVES).exists() { BEFORE_HIDDEN } else { MISSED };
    let right = before <= BEFORE && before + hidden >= BEFORE;
    good &= right;
    println!("  memdup_leak          {before} of {BEFORE} before the trace only there{}", mark(right));
    if !good {
        println!("  {}", report["kmemleak"]);
    }
    driver::unload()?;
    Ok(good)
}

/// What it lists of the two leaks when nobody traces any more.
fn listed_again() -> Result<[u64; 2]> {
    fs::write(LIST, "scan")?;
    sleep(Duration::from_secs(6));
    fs::write(LIST, "scan")?;
    let list = fs::read_to_string(LIST)?;
    // The innermost frame of the driver is the one that leaks.
    Ok(["kmalloc_leak+", "cache_leak+"].map(|function| list.matches(&format!(" {function}")).count() as u64))
}

fn mark(right: bool) -> &'static str {
    if right { "" } else { "   WRONG" }
}

/// The same from files.
fn saved(report: &Value) -> Result<bool> {
    // While others free objects a reading may skip some of the list: the longest of three is it.
    let readings = (0..3).map(|_| fs::read(LIST)).collect::<Result<Vec<_>, _>>();
    let longest = readings.context("cannot read kmemleak's list")?.into_iter().max_by_key(Vec::len);
    fs::write("/tmp/kmemleak", longest.unwrap_or_default())?;
    fs::write("/tmp/report.json", report.to_string())?;
    let output = Command::new(LEAKTRACE)
        .args(["compare", "--kmemleak", "/tmp/kmemleak", "--format", "json", "/tmp/report.json"])
        .output()?;
    ensure!(output.status.success(), "compare failed: {}", String::from_utf8_lossy(&output.stderr));
    let again: Value = serde_json::from_slice(&output.stdout)?;
    let right = ["kmalloc_leak", "cache_leak", "unbounded_list_leak"].iter().all(|function| {
        // The list is read again, and some objects are matched by their function now.
        let near = |a: u64, b: u64| a.abs_diff(b) <= OBJECTS / 20;
        side(&again, function)
            .zip(side(report, function))
            .is_some_and(|(files, run)| near(files.0, run.0) && near(files.1, run.1) && near(files.2, run.2))
    });
    println!("  the same from files{}", mark(right));
    if !right {
        println!("  {}", again["kmemleak"]);
    }
    Ok(right)
}
