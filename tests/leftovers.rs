//! However a run ends, nothing of it stays: no program, no map, no open file, no half a report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use aya::{maps::loaded_maps, programs::loaded_programs};
use leaktrace_tests::{Trace, leaktrace, require_root, turn, until};

/// Ids of all programs and maps in the kernel: what bpftool lists.
fn in_kernel() -> (BTreeSet<u32>, BTreeSet<u32>) {
    // One may go while the list is made.
    (
        loaded_programs().filter_map(|program| Some(program.ok()?.id())).collect(),
        loaded_maps().filter_map(|map| Some(map.ok()?.id())).collect(),
    )
}

/// Those of them that a process has open: others may load some meanwhile, too.
fn held_by(pid: u32) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let (mut programs, mut maps) = (BTreeSet::new(), BTreeSet::new());
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        // One may be closed while the list is made.
        for line in fs::read_to_string(file.unwrap().path()).unwrap_or_default().lines() {
            match line.split_once(":\t") {
                Some(("prog_id", id)) => programs.insert(id.parse().unwrap()),
                Some(("map_id", id)) => maps.insert(id.parse().unwrap()),
                _ => false,
            };
        }
    }
    (programs, maps)
}

/// Runs a trace that `end` ends, and fails unless all its programs and maps go soon.
fn nothing_stays(args: &[&str], end: impl FnOnce(Trace)) {
    require_root();
    let _turn = turn();
    let trace = Trace::start(args);
    let (programs, maps) = held_by(trace.pid());
    assert!(programs.len() >= 4 && maps.len() >= 6, "these are not all: {programs:?}, {maps:?}");
    let now = in_kernel();
    assert!(programs.is_subset(&now.0) && maps.is_subset(&now.1), "{now:?} has not {programs:?}, {maps:?}");
    end(trace);
    // The kernel frees them after a grace period.
    until("the last program and map to go", || {
        let now = in_kernel();
        programs.is_disjoint(&now.0) && maps.is_disjoint(&now.1)
    });
}

#[test]
fn nothing_stays_after_the_end() {
    nothing_stays(&["--duration", "1"], |trace| assert!(trace.wait().status.success()));
}

#[test]
fn nothing_stays_after_an_interrupt() {
    // Who runs the tests under nohup means the tests: leaktrace would go on for its five minutes.
    // SAFETY: SIG_DFL is no function, and nothing else in this process uses the signal.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        nothing_stays(&["--duration", "5m"], |trace| {
            trace.signal(signal);
            let report = trace.report();
            assert_eq!(report["schema"], "leaktrace.report/1");
        });
    }
}

#[test]
fn nothing_stays_after_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    nothing_stays(&["--duration", "5m", "--output", path.to_str().unwrap()], |trace| {
        trace.signal(libc::SIGKILL);
        assert!(!trace.wait().status.success());
    });
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_lost_reader_leaves_nothing_either() {
    nothing_stays(&["--duration", "5m"], |mut trace| {
        trace.stop_reading();
        trace.signal(libc::SIGTERM);
        let ended = trace.wait();
        // Who closed the pipe has seen enough: that is no error.
        assert!(ended.status.success() && ended.said.is_empty(), "{ended:?}");
    });
}

/// Calls that return a new descriptor.
const OPENING: [&str; 8] =
    ["open", "openat", "socket", "epoll_create1", "eventfd2", "signalfd4", "perf_event_open", "dup"];

/// Descriptors that a trace of system calls opens and never closes, with the calls.
fn never_closed(calls: &str) -> BTreeMap<i32, String> {
    let mut open = BTreeMap::new();
    for line in calls.lines() {
        let Some((call, result)) = line.rsplit_once(" = ") else { continue };
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let name = name.rsplit(' ').next().unwrap();
        let result = result.split_whitespace().next().and_then(|number| number.parse::<i32>().ok());
        let Some(result) = result.filter(|&result| result >= 0) else { continue };
        if name == "close" {
            let closed = arguments.trim_end().trim_end_matches(')').parse().unwrap();
            assert!(open.remove(&closed).is_some(), "{line}");
        } else if OPENING.contains(&name)
            || (name == "bpf" && result > 2)
            || (name == "fcntl" && arguments.contains("F_DUPFD"))
        {
            open.insert(result, line.to_owned());
        } else if ["socketpair", "pipe2"].contains(&name) {
            let pair = arguments.rsplit_once('[').unwrap().1.split_once(']').unwrap().0;
            open.extend(pair.split(", ").map(|fd| (fd.parse().unwrap(), line.to_owned())));
        }
    }
    open
}

#[test]
fn every_descriptor_is_closed() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let (calls, report) = (directory.path().join("calls"), directory.path().join("report.json"));
    let status = strace(&calls, &["--duration", "100ms", "-q", "--output", report.to_str().unwrap()]);
    assert!(status.success());
    let calls = fs::read_to_string(&calls).unwrap();
    assert!(calls.lines().filter(|line| line.contains("bpf(BPF_PROG_LOAD")).count() >= 4);
    assert!(calls.contains("signalfd4("), "strace does not show what it should");
    let left = never_closed(&calls);
    assert!(left.is_empty(), "{left:#?}");
}

/// Runs leaktrace under strace.
fn strace(calls: &Path, args: &[&str]) -> std::process::ExitStatus {
    Command::new("strace")
        .args(["-f", "-e", "trace=%desc,bpf", "-o"])
        .arg(calls)
        .arg(leaktrace())
        .args(args)
        .status()
        .expect("strace is installed: `cargo xtask test` sees to it")
}
