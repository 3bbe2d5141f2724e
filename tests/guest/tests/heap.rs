//! What is lost in memory as it is, without having been traced: nothing on a kernel that is well, and all that a driver lost.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

use super::trace::{LEAKTRACE, items, number};

/// What the driver loses, and how many of each.
const LOST: [(&str, u64); 5] =
    [("kmalloc", 300), ("cache", 300), ("lost_session", 100), ("lost_whole", 20), ("lost_tree", 20)];
/// What it holds, or gives back.
const HELD: [(&str, Mode, u64); 4] = [
    ("unbounded_list", Mode::Leak, 200),
    ("held_list", Mode::Leak, 40),
    ("kmalloc", Mode::Balanced, 3_000),
    ("cache", Mode::Balanced, 3_000),
];
/// Objects of the caches that have nothing else that is lost: paths, objects of each, and what a size has it in.
const IN_CACHES: [(&str, u64); 4] =
    [("kmalloc-2k", 100), ("kmalloc-96", 100), ("kmalloc-512", 20 * 4), ("radix_tree_node", 20)];
/// Old pointers may lead to some that are lost: one in a hundred and a few.
const MISSED: u64 = 3;

/// Looks before and after.
pub fn test() -> Result<bool> {
    driver::load(0)?;
    let mut good = is_well(&look(&[])?);
    for tenth in 0..10 {
        let part = |whole: u64| whole * (tenth + 1) / 10 - whole * tenth / 10;
        for (path, objects) in LOST {
            driver::run(path, Mode::Leak, part(objects))?;
        }
        for (path, mode, objects) in HELD {
            driver::run(path, mode, part(objects))?;
        }
    }
    let heap = look(&[])?;
    println!("  {}", summary(&heap));
    for (cache, objects) in IN_CACHES {
        good &= lost(&heap, cache, objects);
    }
    good &= whole(&heap)?;
    let named = look(&["--cache", "kmalloc-1k"])?;
    good &= holder(&named)?;
    driver::unload()?;
    Ok(good)
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

/// Lost objects of one cache are one kind, with the driver's name.
fn lost(heap: &Value, cache: &str, objects: u64) -> bool {
    let groups: Vec<&Value> = items(&heap["groups"]).filter(|group| group["cache"] == cache).collect();
    let of_driver = |group: &&&Value| group["module"] == driver::NAME;
    let found: u64 = groups.iter().filter(of_driver).map(|group| number(&group["objects"])).sum();
    let missing = objects / 100 + MISSED;
    let nameless = matches!(cache, "kmalloc-512" | "radix_tree_node");
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
        && number(&structure["objects"]) + 2 * MISSED >= 200;
    println!("  a session and its buffer: {structure}{}", mark(right));
    if !right {
        println!("    {group}");
    }
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
