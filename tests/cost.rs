//! What leaktrace itself takes from a machine that is short of memory already.
//!
//! How long anything takes depends on the machine. So its CPU time is compared with that of plain loops over the same
//! table, on the same machine at the same moment, and what it does is counted.

use std::{
    collections::HashMap,
    fs,
    hint::black_box,
    os::fd::{AsFd as _, AsRawFd as _},
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_common::{BUCKET_SLOTS, Bucket, Payload};
use leaktrace_ebpf::live;
use leaktrace_tests::{Holder, Trace, cpu, number, pipe_findings, require_root, tables, turn, within};

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

/// The table of live objects of a trace, mapped as the trace itself has it.
struct LiveTable {
    start: *const Bucket,
    buckets: usize,
}

impl LiveTable {
    /// Maps that of a process.
    fn of(pid: u32) -> Self {
        let map = tables::open(pid, "LIVE");
        let buckets = map.info().unwrap().max_entries() as usize;
        let (bytes, fd) = (buckets * size_of::<Bucket>(), map.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping of an open descriptor, which stays when that is closed.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { start: start.cast(), buckets }
    }

    /// Calls `with` for each object, in the plainest way there is.
    fn each(&self, mut with: impl FnMut(&Payload)) {
        for bucket in 0..self.buckets {
            for slot in 0..BUCKET_SLOTS {
                // SAFETY: the table is mapped as long as this is, and read by the rules of those who write.
                if let Some((_, payload)) = unsafe { live::read(self.start.add(bucket), slot) } {
                    with(&payload);
                }
            }
        }
    }

    /// Objects.
    fn count(&self) -> u64 {
        let mut objects = 0;
        self.each(|payload| objects += u64::from(black_box(payload).time_ns > 0));
        objects
    }

    /// Objects, and the oldest one, of each who allocated some: the least that a report needs.
    fn tally(&self) -> HashMap<(u32, u32, u32), (u64, u64)> {
        let mut groups = HashMap::new();
        self.each(|payload| {
            let group = groups.entry((payload.site, payload.stack, payload.tgid)).or_insert((0, u64::MAX));
            *group = (group.0 + 1, group.1.min(payload.time_ns));
        });
        groups
    }
}

impl Drop for LiveTable {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and nobody has a reference into it.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.buckets * size_of::<Bucket>()) };
    }
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

/// How often leaktrace looks whether its tables run short: before all CPUs together could have filled them.
fn relief_interval(table: &LiveTable) -> Duration {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let last: u64 = possible.trim().rsplit(['-', ',']).next().unwrap().parse().unwrap();
    let fill = Duration::from_nanos((table.buckets * BUCKET_SLOTS / 2) as u64 * 200 / (last + 1));
    fill.clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// Traces for some time, and fails if that costs more than it may.
fn idle(time: Duration) {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--duration", "10m"]);
    let pid = trace.pid();
    let table = LiveTable::of(pid);
    let relief = relief_interval(&table);
    let waits = || status(pid, "voluntary_ctxt_switches");
    let (waits_before, cpu_before, plain_before) = (waits(), cpu::of_process(pid), cpu::of_this_thread());
    let begun = Instant::now();
    while begun.elapsed() < time {
        // The least that a trace could do: wake up as often, and read the table once a second.
        let second = Instant::now();
        while second.elapsed() < Duration::from_secs(1) {
            sleep(relief / 2);
        }
        black_box(table.count());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let plain = cpu::of_this_thread().saturating_sub(plain_before);
    let (cpu, waits) = (cpu::of_process(pid).saturating_sub(cpu_before), waits() - waits_before);
    let peak = status(pid, "VmHWM");
    // The tables are mapped, and were stated before.
    let tables = resident_kb(pid, |name| name.contains("bpf-map"));
    let report = trace.stop();
    let ticks = number(&report["window"]["ticks"]);
    eprintln!(
        "{ticks} ticks and {waits} waits in {seconds:.1} s; {cpu:?} of CPU, and {plain:?} for the least; \
         peak {peak} KiB, {tables} KiB of it tables"
    );
    assert!(ticks >= 1.0 && ticks <= seconds + 1.0, "{ticks} ticks in {seconds} s");
    // A timer takes up to two waits, and a tick some more, because it has the programs measured.
    let most = 3.0 * seconds / relief.as_secs_f64() + 10.0 * ticks;
    assert!((waits as f64) < most, "{waits} waits, instead of {most} at most");
    // It reads a part of the table, and counts what each site has.
    assert!(cpu < plain * 3, "{cpu:?} of CPU, and {plain:?} for the least that it could do");
    assert!(tables > 0 && peak - tables < 64 << 10, "{peak} KiB, {tables} KiB of it tables");
    assert!(tables <= number(&report["overhead"]["tables_kb"]) as u64);
}

const HOLDERS: u64 = 12;
/// With its files, inode and the rest a pipe takes some nine objects; the tables have place for more.
const PIPES: u64 = 9_800;
const OBJECTS: u64 = 9;
const PLACES: u64 = 12;

#[test]
fn a_million_objects_are_scanned_at_once() {
    require_root();
    let _turn = turn();
    let (few, _) = scan(PIPES / 10);
    let (first, tally) = scan(PIPES);
    // What others do beside only ever adds to it.
    let many = first.min(scan(PIPES).0);
    assert!(many < few * 10.0, "{many} s of CPU for ten times what takes {few} s");
    // Several passes over the table, each of which does more than this, and all that does not depend on the objects.
    assert!(many < tally * 12.0, "{many} s of CPU, and {tally} s for nothing but counting them once");
}

/// CPU seconds that a look at so many pipes of each holder takes, with everything that is made of it, and those for
/// counting its objects in the simplest way.
fn scan(pipes: u64) -> (f64, f64) {
    let all = HOLDERS * pipes;
    let trace = Trace::start(&["--duration", "10m", "--max-objects", &(all * PLACES).to_string()]);
    let held: Vec<_> = (0..HOLDERS).map(|_| Holder::spawn(pipes)).collect();
    let table = LiveTable::of(trace.pid());
    let tally = cpu::least(5, || {
        black_box(table.tally());
    });
    let before = cpu::of_process(trace.pid());
    let report = trace.stop();
    let live: f64 = report["caches"].as_array().unwrap().iter().map(|c| number(&c["traced"]["live"])).sum();
    let overhead = &report["overhead"];
    let took = number(&overhead["user_space_cpu_s"]) - before.as_secs_f64();
    eprintln!("{live} live objects: {took:.3} s of CPU; counting them {tally:?}; {overhead}");
    assert!(live >= (all * OBJECTS) as f64 * 0.95, "{live}");
    assert_eq!(report["coverage"]["sampling"], 1);
    for site in pipe_findings(&report) {
        within(number(&site["live"]["objects"]), all as f64, 0.01);
    }
    drop(held);
    (took, tally.as_secs_f64())
}
