//! What is lost in memory as it is, without having been traced: nothing on a kernel that is well, and all that a driver lost.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

use super::{
    load::Load,
    trace::{LEAKTRACE, items, number},
};

/// What the driver loses, and how many of each.
const LOST: [(&str, u64); 9] = [
    ("large", 40),
    ("compound", 60),
    ("percpu", PIECES),
    ("kmalloc", 300),
    ("cache", 300),
    ("lost_session", 100),
    ("lost_whole", 20),
    ("lost_tree", 20),
    ("vmalloc", 60),
];
/// Pieces of per-CPU memory that it loses, of 96 bytes. Those that it has of the memory that the kernel began with are not told:
/// that has room for 28 KiB (`PERCPU_DYNAMIC_RESERVE`).
const PIECES: u64 = 600;
const TOLD_PIECES: u64 = PIECES - 28 * 1_024 / 96;
/// Objects that it loses, and to which only per-CPU memory that is free again has pointers.
const LEFT: u64 = 40;
/// What it holds, or gives back.
const HELD: [(&str, Mode, u64); 5] = [
    ("vmalloc", Mode::Balanced, 100),
    ("unbounded_list", Mode::Leak, 200),
    ("held_list", Mode::Leak, 40),
    ("kmalloc", Mode::Balanced, 3_000),
    ("cache", Mode::Balanced, 3_000),
];
/// Objects of the caches that have nothing else that is lost: paths, objects of each, and what a size has it in.
const IN_CACHES: [(&str, u64); 7] = [
    ("pages-32k", 40 + 60),
    ("kmalloc-4k", LEFT),
    ("kmalloc-2k", 100),
    ("kmalloc-96", 100),
    ("kmalloc-512", 20 * 4),
    ("radix_tree_node", 20),
    ("vmalloc", 60),
];
/// Old pointers may lead to some that are lost: in each cache one in a hundred, and two structures of four; of all one in thirty.
const MISSED: u64 = 8;
const MISSED_OF_ALL: u64 = 30;
/// Addresses of vmalloc are used again and again, and old pointers lead to more of them.
const MISSED_AREAS: u64 = 20;
/// Objects, areas and blocks of pages that are lost in all.
const ALL: u64 = 300 + 300 + 100 * 2 + 20 * 5 + 20 * 10 + 60 + LEFT + 100;
/// What this process opens: pipes, watches of one inotify, and sockets; and names that it looks up in vain.
const PIPES: u64 = 5_000;
const WATCHES: u64 = 20_000;
const SOCKETS: u64 = 3_000;
const NAMES: u64 = 20_000;

/// Looks before and after.
pub fn test() -> Result<bool> {
    driver::load(0)?;
    let before = look(&[])?;
    let mut good = is_well(&before);
    for tenth in 0..10 {
        let part = |whole: u64| whole * (tenth + 1) / 10 - whole * tenth / 10;
        for (path, objects) in LOST {
            driver::run(path, Mode::Leak, part(objects))?;
        }
        for (path, mode, objects) in HELD {
            driver::run(path, mode, part(objects))?;
        }
    }
    driver::run("left_percpu", Mode::Leak, LEFT)?;
    let heap = look(&[])?;
    println!("  {}", summary(&heap));
    for (cache, objects) in IN_CACHES {
        good &= lost(&heap, cache, objects);
    }
    let pieces: u64 = of_cache(&heap, "percpu").map(|group| number(&group["objects"])).sum();
    let right = (TOLD_PIECES..=PIECES).contains(&pieces);
    println!("  percpu             {pieces} of {PIECES} lost{}", mark(right));
    good &= right;
    let found = number(&heap["lost"]["objects"]) - pieces;
    let right = found <= ALL + MISSED && found + ALL / MISSED_OF_ALL >= ALL;
    println!("  {found} of {ALL} in all{}", mark(right));
    good &= right;
    good &= whole(&heap)?;
    good &= grown(&before, &heap)?;
    let named = look(&["--cache", "kmalloc-1k"])?;
    good &= holder(&named)?;
    driver::unload()?;
    Ok(good)
}

/// A whole system that nobody does anything to has lost nothing.
pub fn well() -> Result<bool> {
    Ok(is_well(&look(&[])?))
}

/// While everything is busy nothing is called lost.
pub fn busy() -> Result<bool> {
    let load = Load::start()?;
    let begun = Instant::now();
    let heap = look(&["--limit", "2m"])?;
    let took = begun.elapsed().as_secs_f64();
    let rounds = load.stop();
    let lost = number(&heap["lost"]["objects"]);
    let right =
        lost == 0 && heap["scanned"]["cut_short"].is_null() && rounds.iter().all(|rounds| *rounds > 0);
    println!(
        "  busy ({rounds:?} rounds in {took:.0} s): {}; {}{}",
        summary(&heap),
        heap["notes"],
        mark(right)
    );
    if !right {
        println!("    {} {}", heap["groups"], heap["scanned"]);
    }
    Ok(right)
}

/// Whose open files hold the most, and what nobody holds.
pub fn holders() -> Result<bool> {
    let own = u64::from(std::process::id());
    let limit = libc::rlimit { rlim_cur: 100_000, rlim_max: 100_000 };
    // SAFETY: the limit is read only.
    ensure!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0, "cannot have more files");
    fs::write("/proc/sys/fs/inotify/max_user_watches", "100000")?;
    let pipes = (0..PIPES).map(|_| std::io::pipe()).collect::<std::io::Result<Vec<_>>>()?;
    let sockets = (0..SOCKETS / 2).map(|_| UnixDatagram::pair()).collect::<std::io::Result<Vec<_>>>()?;
    let watches = watch()?;
    for name in 0..NAMES {
        ensure!(!fs::exists(format!("/sys/kernel/nothing-{name}"))?, "a file that nobody made");
    }
    let by = |what: &'static str| {
        move |holder: &Value| holder["by"] == "file" && holder["pid"] == own && holder["chain"][0] == what
    };
    let caches = ["filp", "kmalloc-cg-192", "inotify_inode_mark", "sock_inode_cache", "dentry"];
    let args: Vec<&str> = caches.iter().flat_map(|cache| ["--cache", cache]).collect();
    let heap = look(&args)?;
    println!("  {}", summary(&heap));
    let mut good = held(&heap, "filp", PIPES * 2, &by("pipe"))?;
    good &= held(&heap, "kmalloc-cg-192", PIPES, &by("pipe"))?;
    // The kernel merges it with others: it may have the name of any of them.
    good &= held(&heap, "", WATCHES, &by("inotify"))?;
    good &= held(&heap, "sock_inode_cache", SOCKETS, &by("socket"))?;
    good &= held(&heap, "dentry", NAMES, &|holder| holder["by"] == "negative")?;
    drop((pipes, sockets, watches));
    Ok(good)
}

/// An inotify that watches many files.
fn watch() -> Result<OwnedFd> {
    // SAFETY: the call has integers only, and the descriptor is nobody else's.
    let inotify = unsafe {
        let descriptor = libc::inotify_init1(libc::IN_CLOEXEC);
        ensure!(descriptor >= 0, "no inotify");
        OwnedFd::from_raw_fd(descriptor)
    };
    fs::create_dir_all("/tmp/watched")?;
    for file in 0..WATCHES {
        let path = format!("/tmp/watched/{file}");
        fs::write(&path, "")?;
        let path = CString::new(path)?;
        // SAFETY: the path is a string that lives.
        let watch = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY) };
        ensure!(watch >= 0, "no watch: {}", std::io::Error::last_os_error());
    }
    Ok(inotify)
}

/// Whether a cache is held as it should be: as much of the sample as there are such objects in the cache.
fn held(heap: &Value, cache: &str, objects: u64, by: &dyn Fn(&Value) -> bool) -> Result<bool> {
    let named = |holding: &&Value| holding["cache"].as_str().is_some_and(|name| name.starts_with(cache));
    let of = |holding: &Value| -> u64 {
        items(&holding["holders"]).filter(|holder| by(holder)).map(|holder| number(&holder["objects"])).sum()
    };
    let holding = items(&heap["holders"])
        .filter(named)
        .max_by_key(|holding| of(holding))
        .with_context(|| format!("{cache} has no holders: {}", heap["holders"]))?;
    let of = of(holding);
    let (all, sampled) = (number(&holding["objects"]), number(&holding["sampled"]));
    // A sample of 256 is a few in a hundred off.
    let expected = sampled * objects / all.max(1);
    let off = sampled / 12 + 1;
    let right = all >= objects && of + off >= expected && of <= expected + off;
    let name = holding["cache"].as_str().unwrap_or_default();
    println!("  {name:<20} {of} of {sampled}, {expected} expected of {all}{}", mark(right));
    if !right {
        println!("    {}", holding["holders"]);
    }
    Ok(right)
}

fn look(args: &[&str]) -> Result<Value> {
    let always = ["heap", "--quiet", "--overhead", "100", "--limit", "10m", "--format", "json"];
    let output = Command::new(LEAKTRACE).args(always).args(args).output()?;
    ensure!(output.status.success(), "heap failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("it is no JSON")
}

fn summary(heap: &Value) -> String {
    let scanned = &heap["scanned"];
    format!(
        "{} objects in {} caches, {} read in {:.1} s; {} candidates, {} unclear, {} lost",
        scanned["objects"],
        scanned["caches"],
        scanned["bytes"],
        scanned["seconds"].as_f64().unwrap_or(0.0),
        scanned["candidates"],
        scanned["unclear"],
        heap["lost"]["objects"]
    )
}

fn mark(right: bool) -> &'static str {
    if right { "" } else { "   WRONG" }
}

/// A kernel that is well has lost nothing but what is always there.
fn is_well(heap: &Value) -> bool {
    let right = number(&heap["lost"]["objects"]) == 0 && heap["scanned"]["cut_short"].is_null();
    println!("  well: {}; known {}{}", summary(heap), heap["known"], mark(right));
    if !right {
        println!("    {} {}", heap["groups"], heap["scanned"]["cut_short"]);
    }
    right
}

fn of_cache<'a>(heap: &'a Value, cache: &str) -> impl Iterator<Item = &'a Value> {
    items(&heap["groups"]).filter(move |group| group["cache"] == cache)
}

/// Lost objects of one cache are one kind, with the driver's name.
fn lost(heap: &Value, cache: &str, objects: u64) -> bool {
    let groups: Vec<&Value> = of_cache(heap, cache).collect();
    let of_driver = |group: &&&Value| group["module"] == driver::NAME;
    let found: u64 = groups.iter().filter(of_driver).map(|group| number(&group["objects"])).sum();
    let missing = if cache == "vmalloc" { MISSED_AREAS } else { objects / 100 + MISSED };
    let nameless = matches!(cache, "kmalloc-512" | "radix_tree_node" | "pages-32k");
    let all: u64 = groups.iter().map(|group| number(&group["objects"])).sum();
    let right = all <= objects + MISSED && if nameless { all } else { found } + missing >= objects;
    println!("  {cache:<18} {all} of {objects} lost, {found} of them the driver's{}", mark(right));
    if !right {
        for group in groups {
            println!("    {group}");
        }
        match look(&["--cache", cache]) {
            Ok(heap) => println!("    {}", heap["holders"]),
            Err(error) => println!("    {error:#}"),
        }
    }
    right
}

/// A session with its buffer is one structure, and shows its functions and its name.
fn whole(heap: &Value) -> Result<bool> {
    let is = |group: &&Value| group["cache"] == "kmalloc-2k" && group["module"] == driver::NAME;
    let group = items(&heap["groups"]).find(is).context("sessions are no kind")?;
    let has = |what: &str, name: &str| {
        items(&group["content"]).any(|sign| sign["what"] == what && sign["name"] == name)
    };
    let structure = &group["proof"]["structures"][0];
    let right = has("symbol", "lost_session_ops")
        && has("text", "leaked session")
        && has("itself", "0x0")
        && number(&structure["structures"]) + MISSED >= 100
        && number(&structure["objects"]) + 2 * MISSED >= 200
        && number(&group["objects"]) <= 100;
    println!("  a session and its buffer: {structure}{}", mark(right));
    if !right {
        println!("    {group}");
    }
    Ok(right)
}

/// What `diff` says of the looks before and after, which reads both by the schema.
fn grown(before: &Value, after: &Value) -> Result<bool> {
    let files = ["/tmp/before.json", "/tmp/after.json"];
    for (file, heap) in files.iter().zip([before, after]) {
        fs::write(file, heap.to_string())?;
    }
    let output = Command::new(LEAKTRACE).arg("diff").args(files).args(["--format", "json"]).output()?;
    ensure!(output.status.success(), "diff failed: {}", String::from_utf8_lossy(&output.stderr));
    let diff: Value = serde_json::from_slice(&output.stdout)?;
    let of = |what: &str, cache: &str| -> [u64; 2] {
        let rows = items(&diff[what]).filter(|row| row["cache"] == cache);
        rows.map(|row| [0, 1].map(|at| number(&row["objects"][at])))
            .fold([0, 0], |sum, row| [sum[0] + row[0], sum[1] + row[1]])
    };
    let (lost, pieces) = (of("lost", "kmalloc-4k"), of("caches", "percpu"));
    let right = diff["schema"] == "leaktrace.heap-diff/1"
        && lost == [0, of_cache(after, "kmalloc-4k").map(|group| number(&group["objects"])).sum()]
        && pieces[1] >= pieces[0] + TOLD_PIECES;
    println!("  grew: kmalloc-4k {lost:?}, percpu {pieces:?}{}", mark(right));
    Ok(right)
}

/// Whose list it is that only grows.
fn holder(heap: &Value) -> Result<bool> {
    let holding = items(&heap["holders"]).next().context("no cache has holders")?;
    let holders = &holding["holders"];
    // They are more than a third of what is in this cache.
    let is = |holder: &Value| {
        holder["chain"][0] == "sessions [leakdrv]"
            && holder["on_each_other"] == true
            && number(&holder["objects"]) * 4 > number(&holding["sampled"])
    };
    let right = items(holders).any(is);
    println!("  {} of kmalloc-1k: {}{}", holding["objects"], holders[0], mark(right));
    if !right {
        println!("    {holders}");
    }
    Ok(right)
}
