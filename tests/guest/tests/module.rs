//! `--module` under churn from other code, and what is told when the module is removed.

use std::{
    collections::BTreeMap,
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
    [("large", 15, 32 << 10), ("krealloc_moved", 75, 1_024), ("cache", 75, 272), ("memdup", 40, 256)];
/// Slices over which a leak is spread, and time between them.
const SLICES: u64 = 60;
const PAUSE: Duration = Duration::from_millis(200);
/// Between two ticks: so short that a slow guest, too, has enough of them to tell growth from a step.
const TICK: &str = "200ms";

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
    driver::need()?;
    let trace = Trace::start(&["--module", driver::NAME, "--interval", TICK])?;
    let stop = Arc::new(AtomicBool::new(false));
    let churning = Arc::clone(&stop);
    let others = std::thread::spawn(move || churn(&churning));
    for _ in 0..SLICES {
        for (path, objects, _) in LEAKS {
            driver::run(path, Mode::Leak, objects)?;
            driver::run(path, Mode::Balanced, objects)?;
        }
        std::thread::sleep(PAUSE);
    }
    driver::unload()?;
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Relaxed);
    let _ = others.join();
    let report = trace.stop()?;
    let mut good = true;
    // Ranks of those that were told so far, by verdict: those of one verdict are in the order of their size.
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for (path, objects, bytes) in LEAKS {
        let expected = objects * SLICES;
        let function = format!("{path}_leak");
        let finding = items(&report.0["findings"])
            .find(|finding| super::trace::owner(&finding["stacks"][0]).is_some_and(|owner| owner == function))
            .with_context(|| format!("{function} is no finding"))?;
        let (rank, live) = (number(&finding["rank"]), number(&finding["live"]["objects"]));
        let verdict = finding["verdict"].as_str().unwrap_or_default().to_owned();
        let in_order = last.insert(verdict.clone(), rank).is_none_or(|before| before < rank);
        let right = in_order
            && matches!(verdict.as_str(), "leak" | "suspect")
            && live == expected
            && number(&finding["live"]["bytes"]) == expected * bytes
            && finding["module"] == driver::NAME;
        good &= right;
        let mark = if right { "" } else { "   WRONG" };
        println!("  rank {rank}  {function:<20} {live} of {expected} live, {verdict}{mark}");
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
    driver::need()?;
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
