//! What leaktrace itself takes from a machine that is short of memory already.
//!
//! How long anything takes depends on the machine, and on how leaktrace was built. So CPU time is compared with what the
//! same process took to start: to have its programs verified, and to read the kernel's symbols and types.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, Trace, cpu, number, pipe_findings, require_root, turn, within};

/// A number in a process's /proc/PID/status.
fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// KiB of memory that a process has in mappings whose name `wanted` picks, now.
fn resident_kb(pid: u32, wanted: impl Fn(&str) -> bool) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut sum, mut counts) = (0, false);
    for line in smaps.lines() {
        if let Some(kb) = line.strip_prefix("Rss:") {
            sum += if counts { kb.trim().trim_end_matches(" kB").parse::<u64>().unwrap() } else { 0 };
        } else if !line.split_whitespace().next().unwrap().ends_with(':') {
            counts = wanted(line.split_whitespace().nth(5).unwrap_or_default());
        }
    }
    sum
}

#[test]
fn idling_costs_next_to_nothing() {
    idle(Duration::from_secs(10));
}

#[test]
#[ignore = "slow: a whole minute"]
fn an_idle_minute_costs_next_to_nothing() {
    idle(Duration::from_mins(1));
}

/// Objects that the tables are made for.
const MAX_OBJECTS: u64 = 1_000_000;

/// How often leaktrace looks whether such tables run short: before all CPUs together could have filled them.
fn relief_interval() -> Duration {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let last: u64 = possible.trim().rsplit(['-', ',']).next().unwrap().parse().unwrap();
    let fill = Duration::from_nanos(MAX_OBJECTS * 200 / (last + 1));
    fill.clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// Stretches of time at most: others may take CPUs, caches and memory from one.
const STRETCHES: usize = 3;

/// What a stretch of time took.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    seconds: f64,
    /// CPU seconds of leaktrace.
    cpu: f64,
    /// CPU seconds that this process took to wake up as often.
    naps: f64,
}

/// Waits for some time, waking up as often as leaktrace does.
fn stretch(pid: u32, relief: Duration, time: Duration) -> Stretch {
    let (begun, before, naps) = (Instant::now(), cpu::of_process(pid), cpu::of_this_thread());
    while begun.elapsed() < time {
        // A timer takes two waits.
        sleep(relief / 2);
    }
    Stretch {
        seconds: begun.elapsed().as_secs_f64(),
        cpu: cpu::of_process(pid).saturating_sub(before).as_secs_f64(),
        naps: cpu::of_this_thread().saturating_sub(naps).as_secs_f64(),
    }
}

/// Traces for some time, and fails if that costs more than it may.
fn idle(time: Duration) {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--duration", "10m", "--max-objects", &MAX_OBJECTS.to_string()]);
    let pid = trace.pid();
    let start = cpu::of_process(pid).as_secs_f64();
    let relief = relief_interval();
    let waits = || status(pid, "voluntary_ctxt_switches");
    let (begun, waits_before) = (Instant::now(), waits());
    // Not even in 18 s as much as was to be done once, but for waking up, which is the more frequent the more CPUs.
    let share = |one: &Stretch| one.cpu / (start * one.seconds / 18.0 + one.naps * 5.0);
    // What others do beside only ever adds to a time, so the cheapest stretch counts. Each is as long as survivors may go without
    // being counted.
    let mut stretches = Vec::new();
    while stretches.len() < STRETCHES && stretches.iter().all(|one| share(one) >= 1.0) {
        stretches.push(stretch(pid, relief, time));
    }
    let (seconds, waits) = (begun.elapsed().as_secs_f64(), waits() - waits_before);
    let peak = status(pid, "VmHWM");
    // The tables are mapped, and were stated before.
    let tables = resident_kb(pid, |name| name.contains("bpf-map"));
    let report = trace.stop();
    let ticks = number(&report["window"]["ticks"]);
    eprintln!(
        "{ticks} ticks and {waits} waits in {seconds:.1} s, {start:.3} s of CPU to start; \
         peak {peak} KiB, {tables} KiB of it tables; {stretches:.3?}"
    );
    assert!(ticks >= 1.0 && ticks <= seconds + 1.0, "{ticks} ticks in {seconds} s");
    // A tick takes some more, because it has the programs measured.
    let most = 3.0 * seconds / relief.as_secs_f64() + 10.0 * ticks;
    assert!((waits as f64) < most, "{waits} waits, instead of {most} at most");
    let least = stretches.iter().map(share).fold(f64::INFINITY, f64::min);
    assert!(least < 1.0, "{least:.2} times the CPU time that it may take at most");
    assert!(tables > 0 && peak - tables < 64 << 10, "{peak} KiB, {tables} KiB of it tables");
    assert!(tables <= number(&report["overhead"]["tables_kb"]) as u64);
}

const HOLDERS: u64 = 12;
/// With its files, inode and the rest a pipe takes some nine objects; the tables have place for more.
const PIPES: u64 = 9_800;
const OBJECTS: u64 = 9;
const PLACES: u64 = 12;

#[test]
fn looking_at_a_million_objects_costs_less_than_starting() {
    require_root();
    let _turn = turn();
    let (few, _) = look(PIPES / 10);
    // What others do beside only ever adds to a time.
    let (first, second) = (look(PIPES), look(PIPES));
    let (many, start) = (first.0.min(second.0), first.1.min(second.1));
    assert!(many < few * 10.0, "{many} s of CPU for ten times what takes {few} s");
    assert!(many < start, "{many} s of CPU to look, and {start} s to start");
}

/// CPU seconds that a look at so many pipes of each holder takes, with everything that is made of it, and those that it
/// took to start.
fn look(pipes: u64) -> (f64, f64) {
    let all = HOLDERS * pipes;
    let trace = Trace::start(&["--duration", "10m", "--max-objects", &(all * PLACES).to_string()]);
    let start = cpu::of_process(trace.pid());
    let held: Vec<_> = (0..HOLDERS).map(|_| Holder::spawn(pipes)).collect();
    let before = cpu::of_process(trace.pid());
    let report = trace.stop();
    let live: f64 = report["caches"].as_array().unwrap().iter().map(|c| number(&c["traced"]["live"])).sum();
    let overhead = &report["overhead"];
    let took = number(&overhead["user_space_cpu_s"]) - before.as_secs_f64();
    eprintln!("{live} live objects: {took:.3} s of CPU; {start:?} to start; {overhead}");
    assert!(live >= (all * OBJECTS) as f64 * 0.95, "{live}");
    assert_eq!(report["coverage"]["sampling"], 1);
    for site in pipe_findings(&report) {
        within(number(&site["live"]["objects"]), all as f64, 0.01);
    }
    drop(held);
    (took, start.as_secs_f64())
}
