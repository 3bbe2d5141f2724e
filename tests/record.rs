//! Recordings of a real trace: told again, cut off by a kill, and full.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use leaktrace_tests::{Holder, findings, leaktrace, number, refused, require_root, run, turn};
use serde_json::Value;

const PIPES: u64 = 1_000;

/// Records while pipes are made, and ends it by a signal.
fn record(path: &Path, seconds: u64, args: &[&str], signal: i32) {
    require_root();
    let mut child = Command::new(leaktrace())
        .args(["record", "--quiet", "--min-age", "500ms", "--interval", "200ms", "--output"])
        .arg(path)
        .args(args)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(1_500));
    let _held = Holder::spawn(PIPES);
    sleep(Duration::from_secs(seconds));
    // SAFETY: kill takes integers only; the process is our child and not waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(child.wait().unwrap().success(), signal != libc::SIGKILL);
}

fn told(path: &Path, args: &[&str]) -> Value {
    let output = run(["report", "--format", "json", &path.to_string_lossy()].iter().chain(args));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_recording_is_told_in_any_form() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    record(&path, 5, &["--overhead", "100"], libc::SIGINT);
    let report = told(&path, &[]);
    assert!(number(&report["recorded"]["ticks"]) >= 15.0, "{}", report["recorded"]);
    let site = findings(&report, "alloc_pipe_info")[0];
    assert!(number(&site["live"]["objects"]) >= PIPES as f64);
    // Its live objects were none at first, and all of them in the end.
    let points = site["recorded"].as_array().unwrap();
    let (first, last) = (&points[0], &points[points.len() - 1]);
    assert!(number(&last[1]) >= PIPES as f64, "{points:?}");
    assert!(number(&first[1]) < PIPES as f64 / 2.0 || number(&first[0]) > 1.0, "{points:?}");
    for form in ["text", "html", "svg", "csv", "markdown", "folded", "pprof"] {
        let output = run(["report", &path.to_string_lossy(), "--format", form]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{form}: {output:?}");
    }
    // It stands for its report elsewhere, too.
    let name = path.to_string_lossy();
    let diff = run(["diff", &name, &name]);
    assert!(diff.status.success(), "{diff:?}");
    let early = run(["report", &name, "--at", "100ms"]);
    let said = String::from_utf8_lossy(&early.stderr);
    assert!(early.status.code() == Some(1) && said.contains("none was recorded that early"), "{said}");
}

#[test]
fn what_was_written_before_a_kill_is_readable() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    // The first report comes when something could have been seen.
    record(&path, 20, &[], libc::SIGKILL);
    let report = told(&path, &[]);
    assert_eq!(report["recorded"]["damage"], Value::Null);
    assert!(number(&report["recorded"]["ticks"]) > 20.0, "{}", report["recorded"]);
    assert!(!findings(&report, "alloc_pipe_info").is_empty());
    let bytes = fs::read(&path).unwrap();
    // A hostile or damaged one is told as such.
    for (at, word) in [(7, "version"), (9, "header"), (3, "is no report")] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        let output = run(["report", &path.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{at}: {said}");
    }
}

/// A small file system; it goes with its test.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(place.path())
            .status()
            .unwrap();
        assert!(status.success());
        Self(place)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_ends_it_and_takes_nothing() {
    require_root();
    let _turn = turn();
    let disk = Disk::new("2m");
    let path = disk.0.path().join("recording");
    let mut child = Command::new(leaktrace())
        .args([
            "record",
            "--quiet",
            "--min-age",
            "200ms",
            "--interval",
            "100ms",
            "--duration",
            "3m",
            "--output",
        ])
        .arg(&path)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it has a report, something else takes the rest of the disk.
    let name = path.to_string_lossy().into_owned();
    while !run(["report", &name]).status.success() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        sleep(Duration::from_millis(500));
    }
    let filled = fs::write(disk.0.path().join("filled"), vec![0; 4 << 20]);
    assert!(filled.is_err(), "the disk is not full");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.lines().count() == 1, "{said}");
    // What was written is told.
    let report = told(&path, &[]);
    assert!(number(&report["recorded"]["ticks"]) > 20.0, "{}", report["recorded"]);
    // A report is written whole or not at all: the one before stays.
    let before = disk.0.path().join("report.json");
    fs::remove_file(&path).unwrap();
    fs::write(disk.0.path().join("filled"), "").unwrap();
    fs::write(&before, "before").unwrap();
    assert!(fs::write(disk.0.path().join("filled"), vec![0; 4 << 20]).is_err());
    let output =
        run(["--duration", "1", "--quiet", "--format", "json", "--output", &before.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_to_string(&before).unwrap(), "before");
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 2, "something was left");
}

#[test]
fn bad_requests_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().to_string_lossy().into_owned();
    let json = directory.path().join("a.json");
    fs::write(&json, "{}").unwrap();
    for (args, status, word) in [
        (&["record"][..], 2, "--output"),
        (&["record", "-o", &name], 1, "is a directory"),
        (&["record", "-o", "/dev/null"], 1, "is no file"),
        (&["record", "-o", "/none/such"], 1, "cannot write"),
        (&["record", "-o", "x", "--max-file", "1k"], 2, "1MiB"),
        (&["report", "--at", "1s", &json.to_string_lossy()], 1, "is none"),
    ] {
        refused(&run(args), status, &[word]);
    }
}
