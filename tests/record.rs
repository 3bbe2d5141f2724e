//! Recordings of a real trace: told again, cut off by a kill, and full.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use leaktrace_tests::{
    Holder, leaktrace, number, pipe_findings, refused, require_root, run, turn, until, until_it_ticks, within,
};
use serde_json::Value;

const PIPES: u64 = 1_000;
/// A report in a recording has a bounded number of findings: on a busy machine pipes may be none of them.
const FEW: [&str; 2] = ["--cache", "kmalloc-cg-*"];

/// A recording that is going on.
struct Recorder(Child, PathBuf);

impl Recorder {
    /// Begins one, which ends by itself at some time.
    fn start(path: PathBuf, args: &[&str]) -> Self {
        require_root();
        let child = Command::new(leaktrace())
            .args(["record", "--quiet", "--min-age", "200ms", "--interval", "100ms", "--duration", "5m"])
            .arg("--output")
            .arg(&path)
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child, path)
    }

    /// Waits until there is a report in the file: when something could have been seen.
    fn until_it_has_a_report(&mut self) {
        until("the first report", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it ended");
            sleep(Duration::from_millis(200));
            run(["report".as_ref(), self.1.as_os_str()]).status.success()
        });
    }

    /// Sends a signal, and waits for the end.
    fn end(self, signal: i32) -> Output {
        // SAFETY: kill takes integers only; the process is our child and not waited for.
        unsafe { libc::kill(self.0.id() as i32, signal) };
        self.wait()
    }

    /// Waits for the end.
    fn wait(mut self) -> Output {
        let mut stderr = Vec::new();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status: self.0.wait().unwrap(), stdout: Vec::new(), stderr }
    }
}

impl Drop for Recorder {
    /// A test that failed must not leave the next ones a second tracer.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
    let recorder = Recorder::start(path.clone(), &["--overhead", "100", FEW[0], FEW[1]]);
    until_it_ticks(recorder.0.id(), 3);
    let held = Holder::spawn(PIPES);
    until_it_ticks(recorder.0.id(), 12);
    let output = recorder.end(libc::SIGINT);
    drop(held);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let report = told(&path, &[]);
    // The last one may be cut off by the signal.
    assert!(number(&report["recorded"]["ticks"]) >= 14.0, "{}", report["recorded"]);
    all_pipes_live(&report);
    for site in pipe_findings(&report) {
        // Its live objects were none at first, and all of them in the end.
        let points: Vec<_> = site["recorded"].as_array().unwrap().iter().map(|at| number(&at[1])).collect();
        assert!(points[0] < PIPES as f64 / 10.0, "{points:?}");
        within(points[points.len() - 1], PIPES as f64, 0.1);
    }
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

/// The first report comes when something could have been seen, so these wait for theirs at the same time.
#[test]
fn what_was_written_before_a_kill_and_on_a_full_disk_is_readable() {
    require_root();
    let _turn = turn();
    let disk = Disk::new("2m");
    let directory = tempfile::tempdir().unwrap();
    let mut killed = Recorder::start(directory.path().join("recording"), &FEW);
    let mut full = Recorder::start(disk.0.path().join("recording"), &[]);
    until_it_ticks(killed.0.id(), 1);
    let _held = Holder::spawn(PIPES);
    killed.until_it_has_a_report();
    full.until_it_has_a_report();
    let path = killed.1.clone();
    assert!(!killed.end(libc::SIGKILL).status.success());
    readable_after_a_kill(&path);
    ends_on_a_full_disk(&disk, full);
    takes_nothing_from_a_full_disk(&disk);
}

fn all_pipes_live(report: &Value) {
    for site in pipe_findings(report) {
        within(number(&site["live"]["objects"]), PIPES as f64, 0.1);
    }
}

fn readable_after_a_kill(path: &Path) {
    let report = told(path, &[]);
    assert_eq!(report["recorded"]["damage"], Value::Null);
    // Of each second in which something could be seen.
    let (ticks, until_s) = (number(&report["recorded"]["ticks"]), number(&report["recorded"]["until_s"]));
    assert!(until_s >= 16.0 && ticks >= until_s, "{}", report["recorded"]);
    all_pipes_live(&report);
    let bytes = fs::read(path).unwrap();
    // A hostile or damaged one is told as such.
    for (at, word) in [(7, "version"), (9, "header"), (3, "is no report")] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(path, damaged).unwrap();
        let output = run(["report", &path.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(word) && said.lines().count() == 1, "{at}: {said}");
    }
}

/// Something else takes the rest of the disk, and the recording ends with what it has.
fn ends_on_a_full_disk(disk: &Disk, recorder: Recorder) {
    let path = recorder.1.clone();
    let filled = fs::write(disk.0.path().join("filled"), vec![0; 4 << 20]);
    assert!(filled.is_err(), "the disk is not full");
    let output = recorder.wait();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.lines().count() == 1, "{said}");
    // What was written is told.
    let report = told(&path, &[]);
    assert!(number(&report["recorded"]["ticks"]) >= 16.0, "{}", report["recorded"]);
    fs::remove_file(&path).unwrap();
}

/// A report is written whole or not at all: the one before stays.
fn takes_nothing_from_a_full_disk(disk: &Disk) {
    let before = disk.0.path().join("report.json");
    fs::write(disk.0.path().join("filled"), "").unwrap();
    fs::write(&before, "before").unwrap();
    assert!(fs::write(disk.0.path().join("filled"), vec![0; 4 << 20]).is_err());
    let output =
        run(["--duration", "100ms", "--quiet", "--format", "json", "--output", &before.to_string_lossy()]);
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
