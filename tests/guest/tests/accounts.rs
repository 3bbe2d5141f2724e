//! The kernel's own accounts (/proc/allocinfo) beside what was traced, where this kernel keeps them.

use std::{fs, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use leaktrace_tests::driver::{self, Mode};

use super::trace::{Trace, items, number, owner};

const ACCOUNTS: &str = "/proc/allocinfo";
/// There with `slub_debug=U`; has functions, and slab objects only.
const TRACES: &str = "/sys/kernel/debug/slab/kmalloc-256/alloc_traces";
const SIZE: &str = "/sys/kernel/slab/kmalloc-256/slab_size";
/// Objects of each leak while it is traced, and before.
const OBJECTS: u64 = 600;
const BEFORE: u64 = 900;

/// The accounts agree with each leak, and tell what is held since before the trace.
pub fn test() -> Result<bool> {
    driver::need()?;
    let kept = Path::new(ACCOUNTS).exists();
    if kept {
        fs::write("/proc/sys/vm/mem_profiling", "1").context("cannot switch the accounts on")?;
    }
    driver::run("track_caller", Mode::Leak, BEFORE)?;
    let trace = Trace::start(&[])?;
    for _ in 0..10 {
        driver::run("track_caller", Mode::Leak, OBJECTS / 10)?;
        driver::run("vzalloc", Mode::Leak, OBJECTS / 60)?;
        driver::run("track_caller", Mode::Balanced, 100)?;
        sleep(Duration::from_millis(200));
    }
    let report = trace.stop()?.0;
    driver::unload()?;
    let traced = Path::new(TRACES).exists();
    if !kept && !traced {
        let none = items(&report["accounts"]).next().is_none();
        println!("  no accounts here{}", if none { "" } else { "   WRONG" });
        return Ok(none);
    }
    let mut good = true;
    // What is noted beside each object makes it larger.
    let size: u64 = if kept { 256 } else { fs::read_to_string(SIZE)?.trim().parse()? };
    let sites = [("track_caller_leak", BEFORE * size), ("vzalloc_leak", 0)];
    for (function, before) in &sites[..if kept { 2 } else { 1 }] {
        let finding = items(&report["findings"])
            .find(|finding| {
                items(&finding["stacks"]).next().and_then(owner).is_some_and(|owner| owner == *function)
            })
            .with_context(|| format!("{function} is no finding"))?;
        let side = &finding["proof"]["accounts"];
        let place = side["place"].as_str().unwrap_or_default();
        let right = side["agreement"] == "agrees"
            && place.contains("[leakdrv]")
            && place.contains(".c:") == kept
            && number(&side["bytes_before"]) == *before
            && items(&finding["evidence"])
                .any(|sentence| sentence.as_str().is_some_and(|text| text.contains(place)));
        good &= right;
        println!("  {function:<20} {side}{}", if right { "" } else { "   WRONG" });
        if !right {
            println!("    {} of {}", finding["live"], report["accounts"]);
        }
    }
    if kept {
        fs::write("/proc/sys/vm/mem_profiling", "0")?;
    }
    Ok(good)
}
