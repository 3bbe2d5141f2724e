//! `leaktrace triage` finds out a driver: its slab cache, its vmalloc areas, its pages that nobody accounts for.

use std::{
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::{
    driver::{self, Mode},
    until_it_waits,
};
use serde_json::Value;

use super::trace::{LEAKTRACE, items};

/// Steps in which the driver leaks, and time between them.
const STEPS: u64 = 15;
const PAUSE: Duration = Duration::from_millis(100);

/// A path of the driver, how many objects it leaks, the bytes of memory that this takes, and the kind of the diagnosis.
const LEAKS: [(&str, u64, u64, &str); 4] = [
    ("cache", 90_000, 90_000 * 272, "slab"),
    ("large", 900, 900 * (32 << 10), "slab"),
    ("vmalloc", 3_000, 3_000 * 12_288, "vmalloc"),
    ("page", 9_000, 9_000 * 4_096, "unaccounted"),
];

/// What triage says of a driver that leaks meanwhile.
fn watched(path: &str, objects: u64) -> Result<Value> {
    let child = Command::new(LEAKTRACE)
        .args(["triage", "--duration", "1h", "--format", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {LEAKTRACE}"))?;
    // It has looked for the first time.
    until_it_waits(child.id())?;
    for _ in 0..STEPS {
        driver::run(path, Mode::Leak, objects / STEPS)?;
        sleep(PAUSE);
    }
    // It looks once more; before, the driver may take longer than one expects.
    // SAFETY: kill takes integers only; the process is our child and not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "triage ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("the answer is no JSON")
}

/// Each leak is the first diagnosis, of the right size and module; and the ledger leaves little.
pub fn test() -> Result<bool> {
    driver::need()?;
    let mut good = true;
    for (path, objects, bytes, kind) in LEAKS {
        let triage = watched(path, objects)?;
        let first = &triage["diagnosis"][0];
        let grown = first["bytes_grown"].as_f64().unwrap_or(0.0);
        let module = first["culprit"]["module"].as_str().unwrap_or("-");
        // Nobody says whose a large kmalloc or a page is.
        let named = matches!(path, "large" | "page") || module == driver::NAME;
        let right = first["kind"] == kind && named && (grown - bytes as f64).abs() <= bytes as f64 * 0.1;
        good &= right;
        println!(
            "  {path:<8} {} {grown:.0} of {bytes} bytes, {module}{}",
            first["kind"],
            if right { "" } else { "   WRONG" }
        );
        if !right {
            println!("    {}", triage["diagnosis"]);
        }
        let total = triage["memory"]["total_kb"].as_f64().unwrap_or(0.0);
        let before =
            items(&triage["ledger"]).find(|row| row["class"] == "unaccounted").context("no such row")?;
        let left = before["before_kb"].as_f64().unwrap_or(f64::MAX);
        let leaves_little = left.abs() <= total * 0.03;
        good &= leaves_little;
        if path == LEAKS[0].0 || !leaves_little {
            let mark = if leaves_little { "" } else { "   WRONG" };
            println!("  {left:.0} of {total:.0} kB unaccounted before{mark}");
        }
    }
    driver::unload()?;
    Ok(good)
}
