//! Every path by which the kernel allocates and frees: what is leaked lives, at the right function,
//! and nothing else does.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Result, bail};

use leaktrace_tests::driver::{self, Mode};

use super::trace::{Live, Report, Trace};

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
/// Packets of which NAPI frees the heads and data.
const PACKETS: u64 = 2_000;
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
    for row in &ROWS {
        driver::run(row.path, Mode::Leak, row.times)?;
        if row.path != "unbounded_list" {
            driver::run(row.path, Mode::Balanced, row.times)?;
        }
    }
    for context in CONTEXTS {
        driver::run(context, Mode::Leak, 300)?;
        driver::run(context, Mode::Balanced, 300)?;
    }
    driver::run("hidden", Mode::Leak, HIDDEN)?;
    driver::run("napi", Mode::Balanced, PACKETS)?;
    driver::run("rhashtable", Mode::Balanced, 5_000)?;
    driver::run("maple", Mode::Leak, KEYS)?;
    driver::run("maple", Mode::Balanced, KEYS)?;
    driver::run("pool", Mode::Balanced, POOL)?;
    driver::run("slow", Mode::Balanced, 10)?;
    std::thread::sleep(SETTLE);
    let report = trace.stop()?;
    Ok(compare(&report, hooked, fresh))
}

/// Whether an object of a function of the driver is a vmalloc area; of all others it is none.
fn is_area(function: &str) -> bool {
    ["vrcu_", "vmalloc_", "vzalloc_", "vmap_", "kvmalloc_large_"]
        .iter()
        .any(|path| function.starts_with(path))
}

/// A report beside what the driver did, printed as it is compared.
struct Table<'a> {
    report: &'a Report,
    live: BTreeMap<(String, bool), Live>,
    verdicts: BTreeMap<String, String>,
    hooked: Hooked,
    /// Whether the driver was loaded during the trace.
    fresh: bool,
    good: bool,
}

/// Prints the table; true when it is right.
fn compare(report: &Report, hooked: Hooked, fresh: bool) -> bool {
    let (live, verdicts) = (report.live(), report.verdicts());
    let mut table = Table { report, live, verdicts, hooked, fresh, good: true };
    for row in &ROWS {
        table.path(row);
    }
    for context in CONTEXTS {
        table.exactly(context, &format!("{context}_work"), 300);
    }
    table.exactly("hidden", "hidden_leak", HIDDEN);
    table.exactly("rhashtable", "rhashtable_balanced", 0);
    if fresh {
        table.exactly("init", "leak_in_init", AT_INIT);
    }
    table.kept_by_napi();
    table.maple();
    table.held();
    table.coverage();
    table.good
}

impl Table<'_> {
    fn tell(&mut self, path: &str, text: &str, right: bool) {
        self.good &= right;
        println!("  {path:<18} {text}{}", if right { "" } else { "   WRONG" });
    }

    fn of(&self, function: &str) -> Live {
        self.live.get(&(function.to_owned(), is_area(function))).copied().unwrap_or_default()
    }

    fn verdict(&self, function: &str) -> &str {
        self.verdicts.get(function).map_or("", String::as_str)
    }

    /// What leaked lives, and what was balanced does not.
    fn path(&mut self, row: &Row) {
        let leaked = self.of(&format!("{}_leak", row.path));
        let balanced = self.of(&format!("{}_balanced", row.path));
        let expected = row.times * row.each;
        let verdict = self.verdict(&format!("{}_balanced", row.path));
        let text = format!(
            "leak {expected:>5}: {:>5} live, {:>9} bytes   balanced {expected:>5}: {:>4} live {verdict}",
            leaked.objects, leaked.bytes, balanced.objects
        );
        let unseen_areas =
            is_area(&format!("{}_", row.path)) && self.report.mechanism("alloc_vmap_area").is_none();
        if self.hooked == Hooked::Not && (row.freed_by.is_some() || unseen_areas) {
            let visible = match row.freed_by {
                Some(Unseen::AllocBulk) => 0,
                _ if unseen_areas => 0,
                _ => expected,
            };
            let right = verdict != "leak" && leaked.objects == visible;
            self.tell(row.path, &format!("{text}   a blind spot"), right);
            return;
        }
        // The heads of packets may be those that NAPI has kept since an earlier trace.
        let kept = if row.path == "packet" && !self.fresh { NAPI } else { 0 };
        let bytes = row.bytes.is_none_or(|bytes| leaked.bytes == bytes * row.times);
        let right = leaked.objects <= expected && leaked.objects + kept >= expected;
        self.tell(row.path, &text, right && balanced.objects == 0 && bytes);
    }

    fn exactly(&mut self, path: &str, function: &str, expected: u64) {
        let live = self.of(function).objects;
        self.tell(path, &format!("{function}: {live} of {expected} live"), live == expected);
    }

    /// What NAPI keeps for the next packet is not free.
    fn kept_by_napi(&mut self) {
        let live = self.of("napi_balanced").objects;
        let most = if self.hooked == Hooked::Not { 2 * PACKETS } else { NAPI };
        self.tell("napi", &format!("balanced {}: {live} live, {most} at most", 2 * PACKETS), live <= most);
    }

    /// A tree has a node for each 5 to 16 keys (`lib/maple_tree.c`); they are freed by RCU.
    fn maple(&mut self) {
        let nodes =
            ["maple_leak", "maple_balanced"].map(|function| self.report.passing(function, "maple_node"));
        let right = match self.hooked {
            // Up to 6.17 they come in bulk; and how they are freed cannot be seen.
            Hooked::Not => self.verdict("maple_balanced") != "leak",
            _ => (KEYS / 16..KEYS / 3).contains(&nodes[0]) && nodes[1] == 0,
        };
        let text = format!("leak a tree of {KEYS}: {} nodes live; balanced: {} live", nodes[0], nodes[1]);
        self.tell("maple", &text, right);
    }

    /// Held on purpose, and no leak. The pool is full after the first time.
    fn held(&mut self) {
        for (path, function, most) in [("pool", "pool_balanced", POOL), ("slow", "slow_tick", POOL)] {
            let held = self.of(function).objects;
            let verdict = self.verdict(function);
            let right = verdict != "leak"
                && held <= most
                && (path != "pool" || held == if self.fresh { POOL } else { 0 });
            self.tell(path, &format!("balanced: {held} held {verdict}"), right);
        }
    }

    /// Hooks are had as asked for, what is not seen is told, and nothing is lost.
    fn coverage(&mut self) {
        let report = self.report;
        let hooks = ["kvfree_call_rcu", "kmem_cache_free_bulk", "kmem_cache_alloc_bulk", "alloc_vmap_area"];
        let mechanisms: Vec<_> = hooks
            .iter()
            .map(|hook| format!("{hook}: {}", report.mechanism(hook).unwrap_or("refused")))
            .collect();
        let wanted = match self.hooked {
            Hooked::Fentry => Some("fentry"),
            Hooked::Kprobe => Some("kprobe"),
            Hooked::Not => None,
        };
        let right = hooks[..3].iter().all(|hook| report.mechanism(hook) == wanted);
        self.tell("hooks", &mechanisms.join(", "), right);
        let told = report.blind_spots().iter().any(|spot| spot.contains("kfree_rcu"));
        self.tell("blind spots", &report.blind_spots().join("; "), told == (self.hooked == Hooked::Not));
        let lost = &report.0["coverage"]["lost"];
        let right =
            ["live_overflow", "stack_overflow", "site_overflow"].iter().all(|counter| lost[counter] == 0);
        self.tell("lost", &lost.to_string(), right);
    }
}
