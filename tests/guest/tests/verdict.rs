//! A leak is called one with the rights of the service only, although in between the clock is set, the tool is stopped for a
//! while, and the machine sleeps.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use leaktrace_tests::driver::{self, Mode};

use super::trace::{Trace, items, owner};

/// Seconds of the trace, and when what happens in it.
const SECONDS: u64 = 38;
const CLOCK_SET_S: u64 = 8;
const STOPPED_S: std::ops::Range<u64> = 13..19;
const SUSPENDED_S: u64 = 25;
/// How long the machine sleeps: it must have fallen asleep by then, however slow it is, to be woken.
const SLEEP: &str = "+10";
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
const POWER: &str = "/sys/power/state";
/// Between two turns of the driver.
const PACE: Duration = Duration::from_millis(100);
/// Objects a second.
const RATE: u64 = 20;

/// Sets the clock an hour on.
fn set_clock() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let time = libc::timeval { tv_sec: now.as_secs() as i64 + 3_600, tv_usec: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::settimeofday(&raw const time, std::ptr::null()) };
    anyhow::ensure!(result == 0, "the clock cannot be set: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Suspends the machine to memory, until its clock wakes it; false where that is not possible.
fn suspend() -> Result<bool> {
    let can =
        fs::read_to_string(POWER).is_ok_and(|states| states.split_ascii_whitespace().any(|is| is == "mem"));
    if !can || !Path::new(ALARM).exists() {
        return Ok(false);
    }
    fs::write(ALARM, SLEEP).context("the clock cannot be told to wake")?;
    fs::write(POWER, "mem").context("the machine cannot be suspended")?;
    Ok(true)
}

/// The leak has rank 1, its rate is right, and it is called a leak.
pub fn test() -> Result<bool> {
    if !Path::new("/sys/module").join(driver::NAME).exists() {
        driver::load(0)?;
    }
    let trace = Trace::start_as_service(&[])?;
    let mut slept = false;
    let begun = Instant::now();
    let mut next = begun;
    for slice in 0..SECONDS * 10 {
        driver::run("kmalloc", Mode::Leak, RATE / 10)?;
        driver::run("kmalloc", Mode::Balanced, 20)?;
        match slice {
            at if at == CLOCK_SET_S * 10 => set_clock()?,
            at if at == STOPPED_S.start * 10 => trace.signal(libc::SIGSTOP),
            at if at == STOPPED_S.end * 10 => trace.signal(libc::SIGCONT),
            at if at == SUSPENDED_S * 10 => slept = suspend()?,
            _ => {}
        }
        // Some machines' clocks go on while they sleep: nothing is made up for then.
        next = (next + PACE).max(Instant::now());
        std::thread::sleep(next - Instant::now());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let made = (SECONDS * RATE) as f64 / seconds;
    let report = trace.stop()?;
    let first = items(&report.0["findings"]).next().context("there is no finding")?;
    let function = items(&first["stacks"]).next().and_then(owner).unwrap_or_default();
    let size =
        first["live"]["bytes"].as_f64().unwrap_or(0.0) / first["live"]["objects"].as_f64().unwrap_or(1.0);
    let rate = first["growth"]["bytes_per_s"].as_f64().unwrap_or(0.0) / size;
    let duration = report.0["window"]["duration_s"].as_f64().unwrap_or(0.0);
    let right = first["verdict"] == "leak"
        && function == "kmalloc_leak"
        // Under emulation each tick sees one bucket in 16 of the table.
        && (rate - made).abs() < made * 0.6
        && (duration - seconds).abs() < 5.0
        && report.0["headline"]["verdict"] == "leak";
    println!(
        "  {} {function}, {rate:.1} of {made:.1} objects a second, in {duration:.0} s{}: {}{}",
        first["verdict"],
        if slept { ", suspended in between" } else { " (suspend is not possible here)" },
        report.0["headline"]["text"],
        if right { "" } else { "   WRONG" }
    );
    if !right {
        println!("  {}\n  {}", first["evidence"], first["open"]);
        for finding in items(&report.0["findings"]).filter(|finding| finding["module"] == driver::NAME) {
            println!(
                "  {} {} {} {}",
                finding["verdict"], finding["cache"], finding["evidence"], finding["growth"]
            );
        }
        println!("  {}", report.0["coverage"]["lost"]);
    }
    Ok(right)
}
