//! Every path by which the kernel allocates and frees: what is leaked lives, at the right function,
//! and nothing else does.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use leaktrace_tests::driver::{self, Mode};

use super::trace::{Report, Trace, items};

/// One path of the driver.
struct Row {
    /// Its name.
    path: &'static str,
    /// How often it is done.
    times: u64,
    /// Objects of the driver's each time.
    each: u64,
    /// Bytes that each takes, where they are certain.
    bytes: Option<u64>,
    /// How it is freed, where no tracepoint tells.
    freed_by: Option<Unseen>,
}

/// Ways of freeing or allocating that only functions tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Rcu,
    FreeBulk,
    AllocBulk,
}

const fn row(path: &'static str, times: u64) -> Row {
    Row { path, times, each: 1, bytes: None, freed_by: None }
}

const fn sized(path: &'static str, times: u64, bytes: u64) -> Row {
    Row { bytes: Some(bytes), ..row(path, times) }
}

const fn unseen(path: &'static str, times: u64, how: Unseen) -> Row {
    Row { freed_by: Some(how), ..row(path, times) }
}

/// Paths with a leaking and a balanced function.
const ROWS: [Row; 36] = [
    sized("kmalloc", 1_000, 256),
    row("kmalloc_on_node", 1_000),
    row("track_caller", 1_000),
    sized("large", 200, 32 << 10),
    row("krealloc_in_place", 1_000),
    sized("krealloc_moved", 1_000, 1_024),
    row("kvmalloc_small", 1_000),
    // An area, and one for the list of its pages.
    Row { each: 2, ..row("kvmalloc_large", 3) },
    row("sensitive", 1_000),
    row("memdup", 1_000),
    row("cache", 1_000),
    row("cache_on_node", 1_000),
    row("cache_lru", 1_000),
    row("freed_by_kfree", 1_000),
    row("typesafe", 1_000),
    unseen("rcu_two", 1_000, Unseen::Rcu),
    unseen("rcu_one", 100, Unseen::Rcu),
    unseen("rcu_cached", 1_000, Unseen::Rcu),
    unseen("vrcu_two", 50, Unseen::Rcu),
    unseen("vrcu_one", 20, Unseen::Rcu),
    // A head and its data.
    Row { each: 2, ..row("packet", 500) },
    unseen("alloc_bulk", 1_000, Unseen::AllocBulk),
    unseen("free_bulk", 1_000, Unseen::FreeBulk),
    unseen("kfree_bulk", 1_000, Unseen::FreeBulk),
    row("destroyed", 500),
    sized("page", 500, 4 << 10),
    sized("free_pages", 200, 16 << 10),
    sized("compound", 100, 32 << 10),
    sized("exact", 200, 12 << 10),
    sized("split", 200, 16 << 10),
    sized("batch", 500, 4 << 10),
    sized("vmalloc", 200, 12 << 10),
    sized("vzalloc", 200, 8 << 10),
    sized("vmap", 200, 16 << 10),
    row("percpu", 300),
    row("unbounded_list", 700),
];

/// Contexts, whose leaking and balanced work are done by one function.
const CONTEXTS: [&str; 4] = ["softirq", "workqueue", "kthread", "irq_off"];

/// Objects that are leaked while the driver is loaded.
const AT_INIT: u64 = 150;
/// Objects that are forgotten among a thousand times as many.
const HIDDEN: u64 = 20;
/// Keys of a maple tree, whose leaves have room for 16 or 10 of them.
const KEYS: u64 = 3_000;
/// Objects of the driver's pool.
const POOL: u64 = 400;
/// Heads that NAPI keeps on the guest's two CPUs (`NAPI_SKB_CACHE_SIZE`, net/core/skbuff.c).
const NAPI: u64 = 2 * 128;
/// Time for grace periods, and for batches of `kfree_rcu` to be freed.
const SETTLE: Duration = Duration::from_secs(3);

/// How the hooks without a tracepoint are had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hooked {
    /// By ftrace's trampolines.
    Fentry,
    /// By kprobes, because fentry is refused.
    Kprobe,
    /// Not at all.
    Not,
}

/// Runs every path under `--module`, and compares; true when all is right.
pub fn test(hooked: Hooked) -> Result<bool> {
    let begun = Instant::now();
    let mut args = vec!["--module", driver::NAME];
    match hooked {
        Hooked::Fentry => {}
        Hooked::Kprobe => args.extend(["--refuse", "fentry"]),
        Hooked::Not => args.extend(["--refuse", "fentry,kprobe"]),
    }
    let trace = Trace::start(&args)?;
    let fresh = !Path::new("/sys/module").join(driver::NAME).exists();
    if fresh {
        if !trace.said.contains("not loaded: waiting") {
            bail!("leaktrace does not say that it waits for the module: {}", trace.said);
        }
        driver::load(AT_INIT)?;
    }
    let mut missing = Vec::new();
    for row in &ROWS {
        if !driver::run(row.path, Mode::Leak, row.times)? {
            missing.push(row.path);
        } else if row.path != "unbounded_list" {
            driver::run(row.path, Mode::Balanced, row.times)?;
        }
    }
    for context in CONTEXTS {
        driver::run(context, Mode::Leak, 300)?;
        driver::run(context, Mode::Balanced, 300)?;
    }
    driver::run("hidden", Mode::Leak, HIDDEN)?;
    driver::run("napi", Mode::Balanced, 2_000)?;
    driver::run("rhashtable", Mode::Balanced, 5_000)?;
    driver::run("maple", Mode::Leak, KEYS)?;
    driver::run("maple", Mode::Balanced, KEYS)?;
    driver::run("pool", Mode::Balanced, POOL)?;
    driver::run("slow", Mode::Balanced, 10)?;
    std::thread::sleep(SETTLE);
    let report = trace.stop()?;
    let good = compare(&report, hooked, fresh, &missing);
    println!("  took {:.1} s", begun.elapsed().as_secs_f64());
    Ok(good)
}

/// Prints the table; true when it is right.
fn compare(report: &Report, hooked: Hooked, fresh: bool, missing: &[&str]) -> bool {
    let live = report.live();
    let verdicts = report.verdicts();
    // Of these a driver's object is a vmalloc area, of all others it is none.
    let area = |function: &str| {
        ["vrcu_", "vmalloc_", "vzalloc_", "vmap_", "kvmalloc_large_"]
            .iter()
            .any(|path| function.starts_with(path))
    };
    let of = |function: &str| live.get(&(function.to_owned(), area(function))).copied().unwrap_or_default();
    let mut good = true;
    let mut tell = |path: &str, text: String, right: bool| {
        good &= right;
        println!("  {:<18} {text}{}", path, if right { "" } else { "   WRONG" });
    };
    for row in &ROWS {
        if missing.contains(&row.path) {
            tell(row.path, "not on this kernel: the driver was built without it".to_owned(), true);
            continue;
        }
        let leaked = of(&format!("{}_leak", row.path));
        let balanced = of(&format!("{}_balanced", row.path));
        let expected = row.times * row.each;
        let verdict = verdicts.get(&format!("{}_balanced", row.path)).map_or("", String::as_str);
        let no_areas = area(&format!("{}_", row.path)) && report.mechanism("alloc_vmap_area").is_none();
        let blind = hooked == Hooked::Not && (row.freed_by.is_some() || no_areas);
        let bytes = row.bytes.is_none_or(|bytes| leaked.bytes == bytes * row.times);
        let text = format!(
            "leak {expected:>5}: {:>5} live, {:>9} bytes   balanced {expected:>5}: {:>4} live {verdict}",
            leaked.objects, leaked.bytes, balanced.objects
        );
        if blind {
            let right = verdict != "leak"
                && match row.freed_by {
                    Some(Unseen::AllocBulk) => leaked.objects == 0,
                    _ if no_areas => leaked.objects == 0,
                    _ => leaked.objects == expected,
                };
            tell(row.path, format!("{text}   a blind spot"), right);
        } else {
            // The heads of packets may be those that NAPI has kept since an earlier trace.
            let kept = if row.path == "packet" && !fresh { NAPI } else { 0 };
            let right = leaked.objects <= expected && leaked.objects + kept >= expected;
            tell(row.path, text, right && balanced.objects == 0 && bytes);
        }
    }
    for context in CONTEXTS {
        let found = of(&format!("{context}_work"));
        tell(
            context,
            format!("leak   300: {:>5} live after 300 more, balanced", found.objects),
            found.objects == 300,
        );
    }
    let hidden = of("hidden_leak");
    tell(
        "hidden",
        format!("leak {HIDDEN} in {}: {} live", HIDDEN * 1_000, hidden.objects),
        hidden.objects == HIDDEN,
    );
    let napi = of("napi_balanced");
    // What NAPI keeps for the next packet is not free.
    let kept = if hooked == Hooked::Not { u64::MAX } else { NAPI };
    tell("napi", format!("balanced 4000: {} live in NAPI's cache", napi.objects), napi.objects <= kept);
    let rhashtable = of("rhashtable_balanced");
    tell("rhashtable", format!("balanced 5000: {} live", rhashtable.objects), rhashtable.objects == 0);
    // A tree has a node for each 5 to 16 keys (lib/maple_tree.c); they are freed by RCU.
    let nodes = ["maple_leak", "maple_balanced"].map(|function| report.passing(function, "maple_node"));
    // Up to 6.17 they come in bulk, which without its hook is a blind spot.
    let right = (KEYS / 16..KEYS / 3).contains(&nodes[0]) && nodes[1] == 0 || hooked == Hooked::Not;
    tell(
        "maple",
        format!("leak a tree of {KEYS}: {} nodes live; balanced: {} live", nodes[0], nodes[1]),
        right,
    );
    for (path, function, most) in [("pool", "pool_balanced", POOL), ("slow", "slow_tick", POOL)] {
        // Held on purpose, and no leak. The pool is full after the first time.
        let held = of(function).objects;
        let verdict = verdicts.get(function).map_or("", String::as_str);
        let right =
            verdict != "leak" && held <= most && (path != "pool" || held == if fresh { POOL } else { 0 });
        tell(path, format!("balanced: {held} held {verdict}"), right);
    }
    if fresh {
        let init = of("leak_in_init");
        tell("init", format!("leak {AT_INIT}: {} live", init.objects), init.objects == AT_INIT);
    }
    let hooks = ["kvfree_call_rcu", "kmem_cache_free_bulk", "kmem_cache_alloc_bulk", "alloc_vmap_area"];
    let mechanisms: Vec<_> =
        hooks.iter().map(|hook| format!("{hook}: {}", report.mechanism(hook).unwrap_or("refused"))).collect();
    let wanted = match hooked {
        Hooked::Fentry => Some("fentry"),
        Hooked::Kprobe => Some("kprobe"),
        Hooked::Not => None,
    };
    let right = hooks[..3].iter().all(|hook| report.mechanism(hook) == wanted);
    tell("hooks", mechanisms.join(", "), right);
    let told = report.blind_spots().iter().any(|spot| spot.contains("kfree_rcu"));
    tell("blind spots", report.blind_spots().join("; "), told == (hooked == Hooked::Not));
    for spot in
        items(&report.0["coverage"]["blind_spots"]).filter(|spot| spot["path"] == "frees that were not seen")
    {
        tell("freed unseen", format!("{} {}", spot["effect"], spot["caches"]), true);
    }
    let lost = &report.0["coverage"]["lost"];
    tell("lost", lost.to_string(), lost["live_overflow"] == 0 && lost["stack_overflow"] == 0);
    good
}
