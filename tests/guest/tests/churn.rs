//! What comes and goes under a trace: CPUs, modules, memory; and more call sites than there is room for.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Read as _,
    os::{
        fd::AsRawFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

use super::trace::{LEAKTRACE, Live, Trace, items, number};

/// Rounds of taking a CPU and a module away and bringing them back.
const ROUNDS: u64 = 12;
const EACH: u64 = 100;
const LEARNED: Duration = Duration::from_millis(700);
const CPU: &str = "/sys/devices/system/cpu/cpu1/online";

/// Objects are counted exactly while a CPU and a module come and go, and leaktrace takes no more for it.
pub fn come_and_go() -> Result<bool> {
    driver::need()?;
    let can = Path::new(CPU).exists();
    // Symbols of a module that is gone in the end are only kept of those that are watched.
    let trace = Trace::start(&["--module", driver::NAME])?;
    sleep(Duration::from_secs(1));
    let before = (trace.resident_kb()?, trace.files()?);
    for _ in 0..ROUNDS {
        driver::run("memdup", Mode::Leak, EACH)?;
        if can {
            fs::write(CPU, "0").context("cannot take a CPU away")?;
        }
        driver::run("memdup", Mode::Leak, EACH)?;
        driver::run("memdup", Mode::Balanced, EACH)?;
        if can {
            fs::write(CPU, "1").context("cannot bring a CPU back")?;
        }
        driver::run("memdup", Mode::Balanced, EACH)?;
        driver::unload()?;
        driver::load(0)?;
        // Until its symbols are read, which only those have that are loaded.
        sleep(LEARNED);
    }
    let resident = trace.resident_kb()?;
    // Files that it has open for a moment, while it reads symbols, are none that it keeps.
    let mut files = trace.files()?;
    let begun = Instant::now();
    while files > before.1 + 1 && begun.elapsed() < Duration::from_secs(5) {
        sleep(Duration::from_millis(50));
        files = files.min(trace.files()?);
    }
    let after = (resident, files);
    let report = trace.stop()?;
    // Each stay of the module has addresses of its own.
    let of = |wanted: &str| -> u64 {
        let all = report.live();
        let those = all.iter().filter(|((function, _), _)| function == wanted);
        those.map(|(_, Live { objects, .. })| objects).sum()
    };
    let (live, balanced) = (of("memdup_leak"), of("memdup_balanced"));
    let expected = ROUNDS * EACH * 2;
    let steady = after.1 <= before.1 + 1 && after.0 < before.0 + 30_000;
    let right = live == expected && balanced == 0 && steady;
    println!(
        "  {live} of {expected} leaked while {} and the module came and went {ROUNDS} times, {balanced} of the balanced; {} and {} kB, {} and {} files{}",
        if can { "a CPU" } else { "no CPU (they stay here)" },
        before.0,
        after.0,
        before.1,
        after.1,
        mark(right)
    );
    if !right {
        for finding in items(&report.0["findings"]).take(20) {
            println!(
                "    {} {} {} x {}: {}",
                finding["module"],
                finding["cache"],
                finding["call_site"],
                finding["live"]["objects"],
                finding["stacks"][0]
            );
        }
        println!("    {}", report.0["unloads"]);
        println!("    {}", report.0["coverage"]["lost"]);
    }
    Ok(right)
}

/// Bytes that a whole leaktrace may have in a control group where it cannot live, and where it can for a while.
const GROUPS: [u64; 2] = [24 << 20, 160 << 20];
const GROUP: &str = "/tmp/cgroup/small";

/// Where memory runs out, leaktrace ends, and leaves nothing behind but what it had written.
pub fn out_of_memory() -> Result<bool> {
    let mut good = true;
    fs::create_dir_all("/tmp/cgroup")?;
    let (kind, place) = (c"cgroup2".as_ptr(), c"/tmp/cgroup".as_ptr());
    // SAFETY: all are strings that live, and this kind takes no options.
    let result = unsafe { libc::mount(kind, place, kind, 0, std::ptr::null()) };
    ensure!(result == 0, "cannot mount cgroup2: {}", std::io::Error::last_os_error());
    fs::write("/tmp/cgroup/cgroup.subtree_control", "+memory")
        .context("this kernel has no memory cgroups")?;
    driver::need()?;
    let programs = programs()?;
    for limit in GROUPS {
        let _ = fs::remove_file("/tmp/short.rec");
        fs::create_dir(GROUP)?;
        fs::write(format!("{GROUP}/memory.max"), limit.to_string())?;
        let mut command = Command::new(LEAKTRACE);
        command
            .args(["record", "--duration", "1h", "--min-age", "500ms", "--max-objects", "100000"])
            .args(["--output", "/tmp/short.rec"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec only a file that is there is written.
        unsafe {
            command.pre_exec(|| fs::write(format!("{GROUP}/cgroup.procs"), "0"));
        }
        let mut child = command.spawn()?;
        // Until it has written a report, or ended. Where memory is short, a slow machine may do neither.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_mins(2) && child.try_wait()?.is_none() && !has_report() {
            sleep(Duration::from_millis(500));
        }
        let ended = child.try_wait()?.is_some();
        let reported = has_report();
        let peak = fs::read_to_string(format!("{GROUP}/memory.peak")).unwrap_or_default();
        if !ended {
            // Of one that could live: now it cannot any more.
            fs::write(format!("{GROUP}/memory.max"), (4 << 20).to_string())?;
            // Only what it needs anew is refused: ask for its tables' and its own.
            let begun = Instant::now();
            while child.try_wait()?.is_none() && begun.elapsed() < Duration::from_secs(30) {
                driver::run("memdup", Mode::Balanced, 100)?;
                sleep(Duration::from_millis(200));
            }
            let _ = child.kill();
        }
        let status = child.wait()?;
        let mut said = String::new();
        child.stderr.take().context("it is piped")?.read_to_string(&mut said)?;
        let killed = events()?;
        let left = left_over(programs)?;
        let readable = !reported || has_report();
        // It says why in a line, or the kernel ends it.
        let told =
            status.code() == Some(1) && said.lines().count() == 1 || status.signal() == Some(libc::SIGKILL);
        let right =
            told && !said.contains("panicked") && left == 0 && readable && reported == (limit == GROUPS[1]);
        println!(
            "  with {} MiB (at most {} KiB used): {}, {status}, killed {killed} times by the kernel, {left} programs left, what was written {}; said: {}{}",
            limit >> 20,
            peak.trim().parse::<u64>().unwrap_or(0) >> 10,
            if ended { "it ended itself" } else { "it lived until there was less" },
            if readable { "is readable" } else { "is not readable" },
            said.lines().last().unwrap_or_default(),
            mark(right)
        );
        good &= right;
        // The group is empty as soon as the kernel has buried the process.
        let begun = Instant::now();
        while fs::remove_dir(GROUP).is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(10), "the group is not empty");
            sleep(Duration::from_millis(50));
        }
    }
    // SAFETY: a string that lives.
    unsafe { libc::umount(place) };
    Ok(good)
}

/// Whether what is recorded can be told.
fn has_report() -> bool {
    let mut command = Command::new(LEAKTRACE);
    command.args(["report", "/tmp/short.rec"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// How often the kernel has killed somebody of the group for its memory.
fn events() -> Result<u64> {
    let text = fs::read_to_string(format!("{GROUP}/memory.events"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("it counts no kills")?;
    line.trim().parse().context("no number")
}

/// BPF programs more than so many, once the kernel has had time to free what an ended process had.
fn left_over(before: usize) -> Result<usize> {
    let begun = Instant::now();
    loop {
        let now = programs()?;
        if now <= before || begun.elapsed() > Duration::from_secs(10) {
            return Ok(now.saturating_sub(before));
        }
        sleep(Duration::from_millis(100));
    }
}

fn programs() -> Result<usize> {
    let text = fs::read_to_string("/proc/kallsyms").context("cannot read /proc/kallsyms")?;
    Ok(text.lines().filter(|line| line.contains("bpf_prog_") && line.ends_with("[bpf]")).count())
}

/// What it needs.
pub const MANY: &str = "/guest/manysites.ko";
const PLACES: u64 = 100_000;
/// Memory that leaktrace may take with so many sites.
const MOST_KB: u64 = 300_000;

/// A module allocates from 100,000 places: nothing is lost but their names, and that is told.
pub fn many_sites() -> Result<bool> {
    let trace = Trace::start(&[])?;
    let begun = Instant::now();
    load(MANY)?;
    // Where that took long, it rises for a while: it is over for longer then.
    sleep(begun.elapsed() + Duration::from_secs(5));
    let resident = trace.resident_kb()?;
    let begun = Instant::now();
    let report = trace.stop()?;
    let took = begun.elapsed();
    let live = live_of_many(&report.0);
    let lost = number(&report.0["coverage"]["lost"]["site_overflow"]);
    let leaks = items(&report.0["findings"]).filter(|finding| finding["verdict"] == "leak").count();
    // What has no place of its own is counted in one, and other objects of such are there as well.
    let all = (PLACES..PLACES + PLACES / 10).contains(&live);
    let mut right = all && lost > PLACES / 2 && leaks == 0 && resident < MOST_KB;
    println!(
        "  {live} live objects of {PLACES} are in the report, {lost} events had no place of their own; {leaks} leaks; {resident} kB, report after {:.1} s{}",
        took.as_secs_f64(),
        mark(right)
    );
    // Freed, none of them is alive, wherever it was counted.
    let trace = Trace::start(&[])?;
    unload("manysites")?;
    load(MANY)?;
    unload("manysites")?;
    sleep(Duration::from_secs(2));
    let report = trace.stop()?;
    let left = live_of_many(&report.0);
    // Others have small objects, too.
    let none = left < PLACES / 100;
    println!("  {left} live after its removal{}", mark(none));
    right &= none;
    Ok(right)
}

/// Live objects in the cache that the module allocates from, and of those sites that found no place.
fn live_of_many(report: &Value) -> u64 {
    items(&report["findings"])
        .filter(|finding| finding["cache"] == "kmalloc-32" || finding["cache"] == "(site table full)")
        .map(|finding| number(&finding["live"]["objects"]))
        .sum()
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    // SAFETY: an open descriptor and a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    ensure!(result == 0, "cannot load {path}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn unload(name: &str) -> Result<()> {
    let name = CString::new(name)?;
    // SAFETY: a terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), 0) };
    ensure!(result == 0, "cannot remove a module: {}", std::io::Error::last_os_error());
    Ok(())
}

fn mark(right: bool) -> &'static str {
    if right { "" } else { "   WRONG" }
}
