//! `--module` under churn from other code, and what is told when the module is removed.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};

use leaktrace_tests::driver::{self, Mode};

use super::trace::{Trace, items, number};

/// The largest first: path, objects in each slice, bytes of each.
const LEAKS: [(&str, u64, u64); 4] =
    [("large", 30, 32 << 10), ("krealloc_moved", 300, 1_024), ("cache", 300, 272), ("memdup", 150, 256)];
/// Slices over which a leak is spread: a slow guest still sees enough of them to tell growth from a step.
const SLICES: u64 = 14;

/// What other processes do meanwhile: pipes, sockets, files of /proc, threads.
fn churn(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        for _ in 0..20 {
            let _pipe = std::io::pipe();
            let _pair = std::os::unix::net::UnixStream::pair();
            let _ = fs::read("/proc/self/status");
            let _ = fs::read_dir("/proc/self/fd").map(Iterator::count);
        }
        let _ = std::thread::spawn(|| ()).join();
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The module's four largest leaks in their order, exactly; and the same when it is removed.
pub fn test() -> Result<bool> {
    if !std::path::Path::new("/sys/module").join(driver::NAME).exists() {
        driver::load(0)?;
    }
    let trace = Trace::start(&["--module", driver::NAME])?;
    let stop = Arc::new(AtomicBool::new(false));
    let churning = Arc::clone(&stop);
    let others = std::thread::spawn(move || churn(&churning));
    for _ in 0..SLICES {
        for (path, objects, _) in LEAKS {
            driver::run(path, Mode::Leak, objects)?;
            driver::run(path, Mode::Balanced, objects)?;
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    driver::unload()?;
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Relaxed);
    let _ = others.join();
    let report = trace.stop()?;
    let findings: Vec<_> = items(&report.0["findings"]).collect();
    let mut good = true;
    for (index, (path, objects, bytes)) in LEAKS.into_iter().enumerate() {
        let expected = objects * SLICES;
        let finding = findings.get(index).context("there are too few findings")?;
        let function = super::trace::owner(&finding["stacks"][0]).unwrap_or_default();
        let live = number(&finding["live"]["objects"]);
        let right = function == format!("{path}_leak")
            && live == expected
            && number(&finding["live"]["bytes"]) == expected * bytes
            && finding["module"] == driver::NAME;
        good &= right;
        let mark = if right { "" } else { "   WRONG" };
        println!(
            "  rank {}  {function:<20} {live} of {expected} live, {}{mark}",
            index + 1,
            finding["verdict"]
        );
        if !right {
            println!("    {}", finding["growth"]);
        }
    }
    let unload = &report.0["unloads"][0];
    let all: u64 = LEAKS.iter().map(|(_, objects, _)| objects * SLICES).sum();
    let sites: Vec<_> = items(&unload["sites"])
        .map(|site| {
            let symbol = site["function"]["symbol"].as_str().unwrap_or_default();
            (symbol.split('.').next().unwrap_or_default().to_owned(), number(&site["left"]["objects"]))
        })
        .collect();
    let expected: Vec<_> =
        LEAKS.iter().map(|(path, objects, _)| (format!("{path}_leak"), objects * SLICES)).collect();
    let right =
        unload["module"] == driver::NAME && number(&unload["left"]["objects"]) == all && sites == expected;
    // No more than a few events are missed, and each is one free at most.
    let sure = unload["verdict"] == "leak";
    good &= right && sure;
    let mark = if right && sure { "" } else { "   WRONG" };
    if !right {
        println!("  {}", unload["sites"]);
    }
    println!("  removed: {} {} objects left, {sites:?}{mark}", unload["verdict"], unload["left"]["objects"]);
    let modules: Vec<_> = items(&report.0["modules"]).map(|module| module["name"].to_string()).collect();
    println!("  modules ranked: {}", modules.join(", "));
    Ok(good)
}

/// Interrupts in the middle of the programs: what they hide is counted, for each program.
pub fn storm() -> Result<bool> {
    if !std::path::Path::new("/sys/module").join(driver::NAME).exists() {
        driver::load(0)?;
    }
    let trace = Trace::start(&["--module", driver::NAME])?;
    driver::run("storm", Mode::Balanced, 4_000)?;
    let report = trace.stop()?;
    let misses = number(&report.0["coverage"]["lost"]["recursion_misses"]);
    let programs: Vec<_> = items(&report.0["overhead"]["programs"])
        .map(|program| (program["name"].as_str().unwrap_or_default(), number(&program["recursion_misses"])))
        .filter(|&(_, misses)| misses > 0)
        .collect();
    let live: u64 = report
        .live()
        .iter()
        .filter(|((function, _), _)| function.starts_with("storm_"))
        .map(|(_, live)| live.objects)
        .sum();
    let sum: u64 = programs.iter().map(|(_, misses)| misses).sum();
    let right = misses > 0 && sum == misses && live <= misses;
    println!(
        "  {misses} events missed ({programs:?}), {live} objects left over{}",
        if right { "" } else { "   WRONG" }
    );
    Ok(right)
}
