//! What leaktrace itself takes from a machine that is short of memory already.

use std::{fs, time::Duration};

use leaktrace_tests::{Holder, Trace, findings, number, require_root, turn, within};

/// CPU time of a process in user space and in system calls, in seconds (`proc(5)`: fields 14 and
/// 15 of /proc/PID/stat, in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = |index: usize| fields.split_whitespace().nth(index - 3).unwrap().parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / 100.0
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

/// The most memory that a process ever had, in KiB.
fn peak_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Tries of a measurement that others on the same cores may disturb.
const TRIES: u32 = 3;

#[test]
fn an_idle_minute_costs_next_to_nothing() {
    require_root();
    let _turn = turn();
    assert!((0..TRIES).any(|_| an_idle_minute()), "more than 1 % of a core in each of {TRIES} minutes");
}

/// Checks what memory a minute takes, and returns whether it took little CPU time.
fn an_idle_minute() -> bool {
    let trace = Trace::start(&["--duration", "60"]);
    let pid = trace.pid();
    std::thread::sleep(Duration::from_secs(58));
    let (cpu, peak) = (cpu_seconds(pid), peak_kb(pid));
    // The tables are mapped, and were stated before.
    let tables = resident_kb(pid, |name| name.contains("bpf-map"));
    let report = trace.report();
    let overhead = &report["overhead"];
    let in_all = number(&overhead["user_space_cpu_s"]);
    eprintln!(
        "{cpu:.2} s of CPU after 58 s, {in_all:.2} s with the report; peak {peak} KiB, {tables} KiB of it tables; {overhead}"
    );
    assert!(tables > 0 && peak - tables < 64 << 10, "{peak} KiB, {tables} KiB of it tables");
    assert!(tables <= number(&overhead["tables_kb"]) as u64);
    cpu < 0.58 && in_all < 0.6
}

/// With their files, inodes and the rest a pipe takes some nine objects.
const HOLDERS: u64 = 12;
const PIPES: u64 = 9_800;

#[test]
fn a_million_objects_are_scanned_in_a_tenth_of_a_second() {
    require_root();
    let _turn = turn();
    assert!((0..TRIES).any(|_| scan_of_a_million_ms() < 100.0), "100 ms and more, {TRIES} times");
}

/// Checks what is counted of a million objects, and returns how long that took.
fn scan_of_a_million_ms() -> f64 {
    let trace = Trace::start(&["--duration", "10m", "--max-objects", "1200000"]);
    let held: Vec<_> = (0..HOLDERS).map(|_| Holder::spawn(PIPES)).collect();
    std::thread::sleep(Duration::from_secs(3));
    let report = trace.stop();
    let live: f64 = report["caches"].as_array().unwrap().iter().map(|c| number(&c["traced"]["live"])).sum();
    let overhead = &report["overhead"];
    let (scan, ranking) = (number(&overhead["slowest_scan_ms"]), number(&overhead["ranking_ms"]));
    eprintln!("{live} live objects; slowest scan {scan:.1} ms, ranking {ranking:.1} ms");
    assert!(live >= 1e6, "{live}");
    assert_eq!(report["coverage"]["sampling"], 1);
    for site in findings(&report, "alloc_pipe_info") {
        within(number(&site["live"]["objects"]), (HOLDERS * PIPES) as f64, 0.01);
    }
    drop(held);
    scan + ranking
}
