//! A leak is called one: soon; and with the rights of the service only, although in between the clock is set, the tool is
//! stopped for a while, and the machine sleeps.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};

use super::trace::{Report, Trace, items, number, owner};

/// Turns of the driver in a trace, and when what happens in it.
const TURNS: u64 = 380;
const CLOCK_IS_SET: u64 = 80;
const TOOL_IS_STOPPED: u64 = 130;
const TOOL_GOES_ON: u64 = 190;
const MACHINE_SLEEPS: u64 = 250;
/// How long the machine sleeps: it must have fallen asleep by then, however slow it is, to be woken.
const SLEEP: &str = "+10";
const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
const POWER: &str = "/sys/power/state";
/// How far the rate may be off: ticks are scaled up, and some are missed while the tool is stopped.
const RATE_IS_OFF: f64 = 0.2;
/// Between two turns of the driver.
const PACE: Duration = Duration::from_millis(100);
/// Objects that are leaked in each turn, and those that are balanced beside them. On a slow machine a tick counts one
/// bucket in 16 of the table and scales that up: with so many it is seldom off by more than a twentieth.
const LEAKED: u64 = 20;
const BALANCED: u64 = 20;
/// How long a leak may take to be called one.
const PATIENCE: Duration = Duration::from_mins(4);

/// One turn of the driver.
fn leak_on() -> Result<()> {
    driver::run("kmalloc", Mode::Leak, LEAKED)?;
    driver::run("kmalloc", Mode::Balanced, BALANCED)
}

/// With `--until-leak` a trace ends with status 3 as soon as it is sure.
pub fn ends_the_trace() -> Result<bool> {
    driver::need()?;
    let mut trace = Trace::start(&["--until-leak"])?;
    let begun = Instant::now();
    let mut turns = Vec::new();
    while !trace.has_ended()? {
        ensure!(begun.elapsed() < PATIENCE, "no leak was called one in {PATIENCE:?}");
        leak_on()?;
        turns.push(begun.elapsed().as_secs_f64());
        std::thread::sleep(PACE);
    }
    let report = trace.end(3)?;
    let seconds = report.0["window"]["duration_s"].as_f64().unwrap_or(0.0);
    let made = turns.len() as u64 * LEAKED;
    // It goes on while the report is made, which takes a slow machine seconds.
    judged(&report, made, made / 2, seconds, rates(&turns))
}

/// The lowest and the highest rate of objects a second in any part of the time, a third of it or more. A busy machine leaks now
/// faster and now slower, and the rate that is told is that of the latest part.
fn rates(turns: &[f64]) -> (f64, f64) {
    let least = turns.last().map_or(0.0, |last| last / 3.0);
    let (mut lowest, mut highest) = (f64::INFINITY, 0.0_f64);
    for (first, from) in turns.iter().enumerate() {
        for (more, to) in turns[first..].iter().enumerate().filter(|(_, to)| **to - from >= least) {
            let rate = more as f64 * LEAKED as f64 / (to - from);
            (lowest, highest) = (lowest.min(rate), highest.max(rate));
        }
    }
    (lowest, highest)
}

/// Sets the clock an hour on.
fn set_clock() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let time = libc::timeval { tv_sec: now.as_secs() as i64 + 3_600, tv_usec: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::settimeofday(&raw const time, std::ptr::null()) };
    ensure!(result == 0, "the clock cannot be set: {}", std::io::Error::last_os_error());
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

/// The leak is called one, whatever happens to the machine and the tool meanwhile.
pub fn disturbed() -> Result<bool> {
    driver::need()?;
    let trace = Trace::start_as_service(&[])?;
    let mut slept = false;
    let begun = Instant::now();
    let mut next = begun;
    for turn in 0..TURNS {
        leak_on()?;
        match turn {
            CLOCK_IS_SET => set_clock()?,
            TOOL_IS_STOPPED => trace.signal(libc::SIGSTOP),
            TOOL_GOES_ON => trace.signal(libc::SIGCONT),
            MACHINE_SLEEPS => slept = suspend()?,
            _ => {}
        }
        // Some machines' clocks go on while they sleep: nothing is made up for then.
        next = (next + PACE).max(Instant::now());
        std::thread::sleep(next - Instant::now());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let report = trace.stop()?;
    println!("  {}", if slept { "suspended in between" } else { "suspend is not possible here" });
    let duration = report.0["window"]["duration_s"].as_f64().unwrap_or(0.0);
    let in_time = (duration - seconds).abs() < 5.0;
    if !in_time {
        println!("  the trace says {duration:.1} s, {seconds:.1} s went by   WRONG");
    }
    let rate = (TURNS * LEAKED) as f64 / seconds;
    Ok(judged(&report, TURNS * LEAKED, 0, seconds, (rate, rate))? && in_time)
}

/// The leak has rank 1 and is called one, its objects are counted exactly (but for `late` ones), and its rate is right.
fn judged(
    report: &Report,
    made: u64,
    late: u64,
    seconds: f64,
    (lowest, highest): (f64, f64),
) -> Result<bool> {
    let first = items(&report.0["findings"]).next().context("there is no finding")?;
    let function = items(&first["stacks"]).next().and_then(owner).unwrap_or_default();
    let (live, bytes) = (number(&first["live"]["objects"]), number(&first["live"]["bytes"]));
    let rate = first["growth"]["bytes_per_s"].as_f64().unwrap_or(0.0) * live as f64 / bytes as f64;
    let right = first["verdict"] == "leak"
        && function == "kmalloc_leak"
        && (made.saturating_sub(late)..=made).contains(&live)
        && (lowest * (1.0 - RATE_IS_OFF)..highest * (1.0 + RATE_IS_OFF)).contains(&rate)
        && report.0["headline"]["verdict"] == "leak";
    println!(
        "  {} {function}, {live} of {made} objects, {rate:.1} of {lowest:.1} to {highest:.1} a second in {seconds:.0} s: {}{}",
        first["verdict"],
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
