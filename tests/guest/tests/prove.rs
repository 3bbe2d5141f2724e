//! What is lost is proven to be, and what anything holds is not: in data, per-CPU memory, vmalloc memory, a page, a
//! scatterlist, on a stack; by the start and by pointers into the middle.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

use super::{
    terminal,
    trace::{LEAKTRACE, Trace, items, number, owner},
};

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Paths that lose what they allocate, the function that does, and objects at least.
const LOST: [(&str, &str, u64); 7] = [
    ("kmalloc", "kmalloc_leak", 150),
    ("cache", "cache_leak", 150),
    ("memdup", "memdup_leak", 60),
    ("large", "large_leak", 10),
    ("page", "page_leak", 20),
    ("vmalloc", "vmalloc_leak", 10),
    ("percpu", "percpu_leak", 20),
];
/// Paths whose objects are held, the function, objects, and what is to be named as the holder, or as what holds that.
const HELD: [(&str, &str, u64, &str); 7] = [
    ("held_data", "held_data_leak", 120, "in_data [leakdrv]"),
    ("held_percpu", "held_percpu_leak", 40, "in_percpu [leakdrv] of CPU 0"),
    ("held_area", "held_area_leak", 120, "in_area+0x0 [leakdrv]"),
    ("held_page", "held_page_leak", 120, "in_page+0x0 [leakdrv]"),
    ("held_list", "held_list_leak", 40, "in_list+0x0 [leakdrv]"),
    ("held_stack", "stack_object", 40, "the stack of leakdrv-sleeper"),
    ("unbounded_list", "unbounded_list_leak", 100, "sessions"),
];
/// Lost structures: a head and four parts.
const WHOLE: u64 = 20;
/// Lost trees, and what each has.
const TREES: u64 = 20;
const LEAVES: u64 = 8;
/// An old pointer that nobody has overwritten yet may still lead to some of those that are lost, mostly to none: so many of
/// a hundred, and a few. None that is held may be called lost, ever.
const MISSED_PERCENT: u64 = 10;
const MISSED: u64 = 3;

const PAGE: usize = 4_096;

/// Proves; with other numbers in each machine.
pub fn test() -> Result<bool> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let seed = boot.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    driver::load(0)?;
    let good = once(seed)?;
    driver::unload()?;
    Ok(good)
}

fn once(seed: u64) -> Result<bool> {
    let more = |base: u64| base + seed % 50;
    let kmemleak = Path::new(KMEMLEAK).exists();
    // With all stacks, so that pages are told apart; and as much time as an emulated machine beside others takes.
    let args = ["--prove", "--prove-limit", "5m", "--overhead", "100", "--kmemleak"];
    let trace = Trace::start(&args[..if kmemleak { 6 } else { 5 }])?;
    // A little of each at a time, so that they lie among each other.
    for tenth in 0..10 {
        let part = |whole: u64| whole * (tenth + 1) / 10 - whole * tenth / 10;
        for (path, _, objects) in LOST {
            driver::run(path, Mode::Leak, part(more(objects)))?;
            driver::run("kmalloc", Mode::Balanced, 200)?;
        }
        for (path, _, objects, _) in HELD {
            let objects = if path == "held_stack" { objects } else { part(objects) };
            driver::run(path, Mode::Leak, objects)?;
        }
        driver::run("lost_whole", Mode::Leak, part(WHOLE))?;
        driver::run("lost_tree", Mode::Leak, part(TREES))?;
        driver::run("pool", Mode::Balanced, 20 * (tenth + 1))?;
        sleep(Duration::from_millis(300));
    }
    sleep(Duration::from_secs(2));
    let report = trace.stop()?.0;
    let how = &report["reachability"];
    println!(
        "  {} objects looked for, {} looks of {} MiB, {:.0} MiB/s of {:.0} that kcore gives",
        how["candidates"],
        how["looks"],
        number(&how["bytes"]) >> 20,
        how["bytes_per_s"].as_f64().unwrap_or(0.0) / 1_048_576.0,
        how["kcore_bytes_per_s"].as_f64().unwrap_or(0.0) / 1_048_576.0,
    );
    let mut good = how["error"].is_null() && how["cut_short"].is_null() && number(&how["looks"]) == 3;
    for (_, function, objects) in LOST {
        good &= lost(&report, function, more(objects))?;
    }
    for (_, function, objects, holder) in HELD {
        good &= held(&report, function, objects, holder)?;
    }
    good &= whole(&report)?;
    good &= lost(&report, "lost_leaf", TREES * LEAVES)?;
    good &= others(&report);
    good &= saved(&report)?;
    if kmemleak {
        good &= listed(&report)?;
    }
    if !good {
        println!("  {how}");
    }
    Ok(good)
}

/// The finding of a function of the driver that allocates, not what describes its areas.
fn finding<'a>(report: &'a Value, function: &str) -> Result<&'a Value> {
    let is = |finding: &&Value| {
        items(&finding["stacks"]).next().and_then(owner).is_some_and(|owner| owner == function)
            && !(function == "vmalloc_leak" && finding["family"] != "vmalloc")
    };
    items(&report["findings"]).find(is).with_context(|| format!("{function} is no finding"))
}

fn lost(report: &Value, function: &str, objects: u64) -> Result<bool> {
    let finding = finding(report, function)?;
    let side = &finding["proof"]["reachability"];
    let orphans = number(&side["orphans"]);
    let undecided = number(&side["undecided"]);
    let untold = match function {
        // Addresses in the first chunk of per-CPU memory are numbers like any other: all of these, some, or none are there.
        "percpu_leak" => undecided,
        // Areas lie where stacks were, whose addresses threads of the kernel have had on their own stacks since the start; and
        // on a busy machine one of the looks may meet an old copy of what describes areas.
        "vmalloc_leak" => (undecided + on_stacks(side)).min(objects / 2),
        _ => 0,
    };
    let told = objects.saturating_sub(untold);
    let right = number(&side["candidates"]) == objects
        && orphans + MISSED + told * MISSED_PERCENT / 100 >= told
        && orphans <= told
        && (told == 0 || finding["verdict"] == "leak");
    println!("  {function:<20} {orphans} of {objects} unreachable{}", mark(right));
    if orphans < objects {
        println!("    {} {} {}", side["holders"], side["free"], side["undecided"]);
    }
    Ok(right)
}

/// Objects that stacks hold.
fn on_stacks(side: &Value) -> u64 {
    let stacks = items(&side["holders"])
        .filter(|holder| holder["what"].as_str().is_some_and(|what| what.starts_with("the stack of ")));
    stacks.map(|holder| number(&holder["objects"])).sum()
}

fn held(report: &Value, function: &str, objects: u64, holder: &str) -> Result<bool> {
    let finding = finding(report, function)?;
    let side = &finding["proof"]["reachability"];
    let (orphans, held) = (number(&side["orphans"]), number(&side["held"]));
    let first = items(&side["holders"]).next().map(Value::to_string).unwrap_or_default();
    let right = orphans == 0
        && number(&side["candidates"]) == objects
        && held + MISSED >= objects
        && first.contains(holder)
        && finding["verdict"] != "leak";
    println!("  {function:<20} {held} of {objects} held{}", mark(right));
    if !right {
        println!("    {side}");
    }
    Ok(right)
}

/// Parts and heads are one structure each.
fn whole(report: &Value) -> Result<bool> {
    let mut good = true;
    for finding in items(&report["findings"]) {
        let function = items(&finding["stacks"]).next().and_then(owner);
        if !matches!(function.as_deref(), Some("lost_whole_leak" | "lost_part")) {
            continue;
        }
        let side = &finding["proof"]["reachability"];
        let structure = items(&side["structures"]).next().context("no structure is told")?;
        let right = number(&structure["structures"]) + MISSED >= WHOLE
            && number(&structure["objects"]) + MISSED * 5 >= WHOLE * 5
            && structure["root"].as_str().is_some_and(|root| root.starts_with("lost_whole_leak+"));
        good &= right;
        println!("  {:<20} {structure}{}", function.unwrap_or_default(), mark(right));
    }
    Ok(good)
}

/// The kernel itself loses nothing meanwhile, and neither do a pool and what is balanced.
fn others(report: &Value) -> bool {
    let mut good = true;
    let keeps = |finding: &&Value| {
        finding["module"] != driver::NAME
            || items(&finding["stacks"])
                .next()
                .and_then(owner)
                .is_some_and(|owner| owner.ends_with("_balanced"))
    };
    for finding in items(&report["findings"]).filter(keeps) {
        let side = &finding["proof"]["reachability"];
        // The lost trees' nodes.
        let nodes = finding["cache"] == "radix_tree_node" && number(&side["orphans"]) <= TREES;
        if number(&side["orphans"]) > 0 && !nodes {
            good = false;
            println!("  {} in {}: {side}   WRONG", finding["responsible"]["symbol"], finding["cache"]);
        }
    }
    good
}

/// What the report says of single objects.
fn fates(report: &Value) -> BTreeMap<String, String> {
    items(&report["findings"])
        .flat_map(|finding| items(&finding["objects"]))
        .filter_map(|object| {
            Some((object["address"].as_str()?.to_owned(), object["reach"].as_str()?.to_owned()))
        })
        .collect()
}

/// Asked again for the saved report, memory says the same.
fn saved(report: &Value) -> Result<bool> {
    fs::write("/tmp/proven.json", report.to_string())?;
    let known = fates(report);
    let addresses = known.keys().filter_map(|address| u64::from_str_radix(address.get(2..)?, 16).ok());
    // What leaktrace itself has given back meanwhile is such a page, too.
    run_on(0)?;
    let page = note(&addresses.take(PAGE / 8).collect::<Vec<_>>())?;
    run_on(1)?;
    give_back(page)?;
    let output = Command::new(LEAKTRACE)
        .args(["prove", "--quiet", "--prove-limit", "5m", "--format", "json", "/tmp/proven.json"])
        .output()?;
    run_on_all()?;
    ensure!(output.status.success(), "prove failed: {}", String::from_utf8_lossy(&output.stderr));
    let again: Value = serde_json::from_slice(&output.stdout)?;
    let count = |report: &Value, fate: &str| fates(report).values().filter(|is| *is == fate).count();
    let (before, after) = (count(report, "orphan"), count(&again, "orphan"));
    // A busy machine may show one of the looks an old copy of what describes areas, so that these are undecided. And what a page
    // of kvfree_rcu held with an old pointer is lost once that page is used again.
    let by_rcu = |holder: &&Value| holder["chain"].to_string().contains("per-CPU krc");
    let by_rcu: u64 = items(&report["findings"])
        .flat_map(|finding| items(&finding["proof"]["reachability"]["holders"]).filter(by_rcu))
        .map(|holder| number(&holder["objects"]))
        .sum();
    let most = before + count(report, "undecided") + by_rcu as usize + MISSED as usize * 2;
    let right = after * 4 >= before * 3 && after <= most;
    println!("  by a saved report: {after} unreachable, {before} before{}", mark(right));
    if !right {
        println!("    {}", again["reachability"]);
        for finding in items(&again["findings"]) {
            let side = &finding["proof"]["reachability"];
            let [candidates, orphans, held, undecided, free] =
                ["candidates", "orphans", "held", "undecided", "free"].map(|what| number(&side[what]));
            println!(
                "    {candidates} in {}: {orphans} unreachable, {held} held, {undecided} undecided, {free} free; {}",
                finding["cache"], side["holders"]
            );
        }
    }
    let right = right && without_a_terminal()?;
    // Of another boot the addresses mean nothing.
    let mut other = report.clone();
    other["machine"]["boot_id"] = "another".into();
    fs::write("/tmp/proven.json", other.to_string())?;
    let output = Command::new(LEAKTRACE).args(["prove", "/tmp/proven.json"]).output()?;
    let refused = output.status.code() == Some(1)
        && String::from_utf8_lossy(&output.stderr).contains("was made before this machine was started");
    println!("  a report of another boot{}", mark(refused));
    Ok(right && refused)
}

/// Has this process and what it starts run on one CPU only.
fn run_on(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is borrowed, and the number is below its size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    allow(&set)
}

fn run_on_all() -> Result<()> {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in 0..libc::CPU_SETSIZE as usize {
        // SAFETY: as above.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    allow(&set)
}

fn allow(set: &libc::cpu_set_t) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the set has.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(set), set) };
    ensure!(result == 0, "cannot choose a CPU: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A hang-up ends a proof early, with its report.
fn without_a_terminal() -> Result<bool> {
    let args = [
        "prove",
        "--prove-limit",
        "5m",
        "--format",
        "json",
        "--output",
        "/tmp/hung.json",
        "/tmp/proven.json",
    ];
    let status = terminal::hang_up(&args)?;
    let report: Value = serde_json::from_slice(&fs::read("/tmp/hung.json")?)?;
    let why = report["reachability"]["cut_short"].as_str().unwrap_or_default();
    let right = status.success() && why.starts_with("a signal ended it after ");
    println!("  without its terminal: {status}, {why}{}", mark(right));
    Ok(right)
}

/// Notes words in a new page of this process. On the CPU's way to the LRU list it is kept even when it is given back on
/// another.
fn note(words: &[u64]) -> Result<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at any place.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, kind, -1, 0) };
    ensure!(page != libc::MAP_FAILED, "cannot get a page: {}", std::io::Error::last_os_error());
    // SAFETY: the page is new and as large as the words at most, which lie somewhere else.
    unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), page.cast(), words.len().min(PAGE / 8)) };
    Ok(page)
}

fn give_back(page: *mut libc::c_void) -> Result<()> {
    // SAFETY: the page is from `note`, and nobody uses it any more.
    let result = unsafe { libc::munmap(page, PAGE) };
    ensure!(result == 0, "cannot give a page back: {}", std::io::Error::last_os_error());
    Ok(())
}

/// All that kmemleak lists, of what was traced, is lost.
fn listed(report: &Value) -> Result<bool> {
    let list = fs::read_to_string(KMEMLEAK)?;
    let listed: BTreeSet<String> = list
        .lines()
        .filter_map(|line| line.strip_prefix("unreferenced object 0x"))
        .filter_map(|line| Some(format!("0x{}", line.split(' ').next()?)))
        .collect();
    let fates = fates(report);
    let all = fates.values().filter(|fate| *fate == "orphan").count();
    let traced: Vec<(&String, &String)> =
        listed.iter().filter_map(|address| fates.get_key_value(address)).collect();
    let orphans = traced.iter().filter(|(_, fate)| *fate == "orphan").count();
    // What only a page has, or only a page and an offset lead to, is held, and kmemleak cannot see it.
    let known = ["held_list_leak", "held_page_leak"].map(|function| {
        let objects = finding(report, function).map(|finding| items(&finding["objects"]).collect::<Vec<_>>());
        let listed =
            |object: &&Value| object["address"].as_str().is_some_and(|address| listed.contains(address));
        objects.unwrap_or_default().into_iter().filter(listed).count()
    });
    let expected = traced.len() - known[0] - known[1];
    let right = orphans <= expected && orphans * 10 >= expected * 9 && orphans > 0;
    println!(
        "  kmemleak lists {} of these: {orphans} are unreachable here, of {all}; {} are held by page and offset, {} by a page{}",
        traced.len(),
        known[0],
        known[1],
        mark(right)
    );
    let old: BTreeSet<String> = items(&report["findings"])
        .flat_map(|finding| items(&finding["proof"]["reachability"]["old"]))
        .map(|old| format!("{} ({})", old["place"].as_str().unwrap_or_default(), old["objects"]))
        .collect();
    println!("    old pointers to them: {}", old.into_iter().collect::<Vec<_>>().join(", "));
    Ok(right)
}

fn mark(right: bool) -> &'static str {
    if right { "" } else { "   WRONG" }
}
