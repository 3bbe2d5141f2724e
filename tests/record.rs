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

    /// Waits until there is a report in the file, of so many seconds after the start or later.
    fn until_it_has_a_report_of(&mut self, seconds: f64) {
        until("the report", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it ended");
            sleep(Duration::from_millis(200));
            let output = run(["report", "--format", "json", &self.1.to_string_lossy()]);
            output.status.success() && {
                let report: Value = serde_json::from_slice(&output.stdout).unwrap();
                report["recorded"]["report_s"].as_f64().is_some_and(|of| of >= seconds)
            }
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
}

/// Before the first report what every site holds is told in any form, and that nothing can be said of it.
#[test]
fn ticks_are_told_before_the_first_report() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    let mut recorder = Recorder::start(path.clone(), &[]);
    recorder.until_it_has_a_report_of(0.5);
    assert!(recorder.end(libc::SIGKILL).stderr.is_empty());
    let early = ["--at", "400ms"];
    let report = told(&path, &early);
    assert_eq!(report["headline"]["verdict"], "unknown");
    assert_eq!(report["recorded"]["report_s"], Value::Null);
    let (ticks, until_s) = (number(&report["recorded"]["ticks"]), number(&report["recorded"]["until_s"]));
    assert!((1.0..=5.0).contains(&ticks) && until_s < 0.41, "{}", report["recorded"]);
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["verdict"] == "unknown"), "{findings:#?}");
    // Functions have names, although no report has told them.
    let symbol = findings[0]["call_site"]["symbol"].as_str().expect("it has a name");
    assert!(!findings[0]["recorded"].as_array().unwrap().is_empty(), "{findings:#?}");
    for form in ["text", "html", "svg", "csv", "markdown", "folded", "pprof"] {
        let output = run(["report", &path.to_string_lossy(), "--format", form].iter().chain(&early));
        assert!(output.status.success() && !output.stdout.is_empty(), "{form}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let says_so =
            !matches!(form, "text" | "markdown") || text.contains("there is no report yet, only ticks");
        assert!(says_so && (form == "pprof" || text.contains(symbol)), "{form}: {text}");
    }
    // What needs a verdict is not made of them. The first two frames are a header and ticks: a length each, a sum, and so much.
    let bytes = fs::read(&path).unwrap();
    let after =
        |start: usize| start + 8 + u32::from_le_bytes(bytes[start..start + 4].try_into().unwrap()) as usize;
    fs::write(&path, &bytes[..after(after(8))]).unwrap();
    refused(
        &run(["diff".as_ref(), path.as_os_str(), path.as_os_str()]),
        1,
        &["has no report yet, only ticks"],
    );
    assert_eq!(told(&path, &[])["recorded"]["ticks"], 1);
}

/// What one looks for after 3 or 9 seconds is in the file then, and what is asked for in between.
#[test]
fn a_short_recording_that_is_killed_has_a_report() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    let mut recorder = Recorder::start(path.clone(), &FEW);
    until_it_ticks(recorder.0.id(), 1);
    let _held = Holder::spawn(PIPES);
    // Whatever a look costs here, the second one is of half of the time.
    recorder.until_it_has_a_report_of(1.5);
    assert!(!recorder.end(libc::SIGKILL).status.success());
    let report = told(&path, &[]);
    let (of, until_s) = (number(&report["recorded"]["report_s"]), number(&report["recorded"]["until_s"]));
    assert!(
        number(&report["recorded"]["reports"]) >= 2.0 && of < 6.0 && until_s >= of,
        "{}",
        report["recorded"]
    );
    // Others open some, too.
    for site in pipe_findings(&report) {
        assert!(number(&site["live"]["objects"]) >= PIPES as f64 * 0.9, "{site:#}");
    }
    // Half of it, as somebody asks who was told of that time.
    let early = told(&path, &["--at", "1500ms"]);
    assert!(number(&early["recorded"]["until_s"]) <= 1.5 && !early["headline"]["text"].is_null());
    damaged_anywhere(&path);
}

/// Any byte of a recording may be another: all but the frame that has it is read, and the gap is named.
fn damaged_anywhere(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let whole = told(path, &[])["recorded"]["bytes"].as_u64().unwrap();
    let name = path.to_string_lossy();
    // The beginning has all that is special, and of the rest some.
    let places =
        [0, 3, 7, 8, 9, 13, 17, 30].into_iter().chain((97..bytes.len()).step_by(97.max(bytes.len() / 40)));
    for at in places {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(path, &damaged).unwrap();
        let report = told(path, &[]);
        let recorded = &report["recorded"];
        assert_eq!(recorded["gaps"].as_array().unwrap().len(), 1, "{at}: {recorded}");
        assert!(
            number(&recorded["ticks"]) > 0.0 && number(&recorded["bytes_lost"]) > 0.0,
            "{at}: {recorded}"
        );
        let bytes = |name: &str| recorded[name].as_u64().unwrap();
        assert_eq!(bytes("bytes_lost") + bytes("bytes"), whole, "{at}");
        let text = run(["report", &name]);
        let text = String::from_utf8_lossy(&text.stdout);
        assert!(text.contains("DAMAGED  Not readable: "), "{at}: {text}");
    }
    fs::write(path, &bytes[..8]).unwrap();
    refused(&run(["report", &name]), 1, &["nothing in", "is whole"]);
    fs::write(path, bytes).unwrap();
}

/// A file may have no more than so many bytes: it is told, and what was written is readable.
#[test]
fn a_limit_of_file_size_ends_a_recording_with_a_word() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    let recorder = Recorder::start(path.clone(), &["--overhead", "100"]);
    until_it_ticks(recorder.0.id(), 3);
    let most = fs::metadata(&path).unwrap().len() + 100;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: prlimit reads one rlimit, which lives here, and writes nothing; the process is our child.
    let limited = unsafe {
        libc::prlimit(recorder.0.id() as i32, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(limited, 0);
    let output = recorder.wait();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("File too large") && said.lines().count() == 1, "{said}");
    let output = run(["report", "--format", "json", &path.to_string_lossy()]);
    // It may have been before the first tick was written.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("has no tick and no report"), "{said}");
    assert!(fs::metadata(&path).unwrap().len() <= most);
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
fn what_was_written_before_a_full_disk_is_readable() {
    require_root();
    let _turn = turn();
    let disk = Disk::new("2m");
    let mut full = Recorder::start(disk.0.path().join("recording"), &[]);
    full.until_it_has_a_report_of(1.0);
    ends_on_a_full_disk(&disk, full);
    takes_nothing_from_a_full_disk(&disk);
}

fn all_pipes_live(report: &Value) {
    for site in pipe_findings(report) {
        within(number(&site["live"]["objects"]), PIPES as f64, 0.1);
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
    // What was written is told, and no part of a frame is left.
    let report = told(&path, &[]);
    assert!(said.contains("the recording ends after"), "{said}");
    assert!(number(&report["recorded"]["ticks"]) >= 1.0, "{}", report["recorded"]);
    assert_eq!(report["recorded"]["damage"], Value::Null);
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
    // What was found is told all the same.
    assert!(said.contains("No space left on device") && said.lines().count() == 2, "{said}");
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
