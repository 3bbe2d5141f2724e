//! leaktrace as a gate of a pipeline: a status and a reason, and none that passes because nothing was looked at.

use std::{
    fs,
    os::fd::AsRawFd as _,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{Holder, Trace, leaktrace, refused, require_root, run, turn};
use serde_json::Value;

/// Pipes that are made in a second.
const RATE: f64 = 200.0;

/// A trace of a second.
fn gate(args: &[&str]) -> Output {
    run([&["--duration", "1", "--max-objects", "8000"], args].concat())
}

/// The gate's report in JSON, and its error.
fn told(output: &Output) -> (Value, String) {
    let report = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    (report, String::from_utf8(output.stderr.clone()).expect("messages are text"))
}

/// A name that is nowhere, because it is misspelled or its module could not be loaded, is no success.
#[test]
fn what_was_never_there_does_not_pass() {
    require_root();
    let _turn = turn();
    let names = [
        (["--module", "nosuch"], "module nosuch was never loaded, so nothing was traced"),
        (["--cache", "no_such_*"], "no slab cache is named no_such_*, so nothing was traced"),
    ];
    for (filter, why) in names {
        let output = gate(&[&filter[..], &["--fail-on", "leak", "-q", "--format", "json"]].concat());
        let (report, stderr) = told(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr, format!("leaktrace: cannot tell whether anything leaks: {why}\n"));
        assert_eq!(report["headline"]["verdict"], "unknown");
        assert!(report["headline"]["text"].as_str().unwrap().contains(why), "{report:#}");
    }
    // Without a gate it is told, and no failure.
    let output = gate(&["--module", "nosuch", "-q"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text.starts_with("UNKNOWN  Cannot tell whether anything leaks: module nosuch was never"),
        "{text}"
    );
    assert!(text.contains("Recorded only allocations through module nosuch."), "{text}");
    // One of two: the other was traced. Nothing grows in it, whatever else this machine does.
    let output =
        gate(&["--cache", "kmem_cache", "--cache", "nosuch", "--until-leak", "-q", "--format", "markdown"]);
    let markdown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(markdown.starts_with("## leaktrace: unknown\n"), "{markdown}");
    assert!(markdown.contains("Recorded only slab caches named kmem_cache or nosuch"), "{markdown}");
}

#[test]
fn too_short_a_time_does_not_pass() {
    require_root();
    let _turn = turn();
    let short = ["--cache", "filp", "--interval", "300ms", "--min-age", "500ms"];
    let output = gate(&[&short[..], &["--fail-on", "suspect", "-q", "--format", "json"]].concat());
    let (report, stderr) = told(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(" is too short to tell growth from chance; trace for "), "{stderr}");
    assert_eq!(report["headline"]["verdict"], "unknown");
    assert_eq!(report["headline"]["floor_objects_per_s"], Value::Null);
}

/// This kernel has no /proc/kcore.
#[test]
fn a_proof_that_cannot_be_does_not_pass() {
    require_root();
    if fs::File::open("/proc/kcore").is_ok() {
        eprintln!("skipped: this kernel has /proc/kcore");
        return;
    }
    let _turn = turn();
    let args = ["--cache", "filp", "--prove", "--fail-on", "leak", "-q", "--duration", "3"];
    let args = [&args[..], &["--interval", "100ms", "--min-age", "500ms"]].concat();
    let output = run([&["--max-objects", "8000"], &args[..]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("leaktrace: --prove could prove nothing: "), "{stderr}");
}

/// What was asked for is there, but nothing of it was allocated.
#[test]
fn what_never_happened_does_not_pass() {
    require_root();
    let _turn = turn();
    for filter in [["--min-size", "1000000000"], ["--max-size", "1"]] {
        let gate =
            ["--duration", "3", "--max-objects", "8000", "--fail-on", "suspect", "-q", "--format", "json"];
        let output = run([&gate[..], &filter].concat());
        let (report, stderr) = told(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("nothing of what was asked for was allocated in 3"), "{stderr}");
        assert_eq!(report["headline"]["verdict"], "unknown");
        assert_eq!(report["window"]["allocated"], 0);
    }
}

/// A gate that could never have been red is no gate.
#[test]
fn too_short_a_time_for_a_leak_does_not_pass() {
    require_root();
    if fs::File::open("/proc/kcore").is_ok() {
        eprintln!("skipped: this kernel has /proc/kcore, and a leak can be proven at once");
        return;
    }
    let _turn = turn();
    let args = ["--duration", "5", "--cache", "filp", "--max-objects", "8000", "-q", "--fail-on"];
    let output = run([&args[..], &["leak"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(" is too short to be certain; trace for 18 s or longer"), "{stderr}");
}

/// A reader that goes away does not make what was found a success, and neither does a disk that is full.
#[test]
fn what_was_found_stands_whoever_reads_it() {
    require_root();
    let _turn = turn();
    // Nothing is asked for that exists: the status says so, whether the report was read or not.
    let line = format!("{} -d 1 --module nosuch --fail-on leak -q --max-objects 8000", leaktrace().display());
    let script =
        format!("set -o pipefail; {line} | true; echo ${{PIPESTATUS[0]}}; {line} -o /dev/full; echo $?");
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout, "1\n1\n", "{stderr}");
    assert!(stderr.contains("cannot write /dev/full: No space left on device"), "{stderr}");
    // `-` is standard output, as elsewhere.
    let output = gate(&["--cache", "kmem_cache", "-q", "-o", "-", "--format", "json"]);
    assert_eq!(told(&output).0["schema"], "leaktrace.report/1");
    assert!(!std::path::Path::new("-").exists());
}

/// Whoever sees only the terminal, or the log of a job, learns what the status means.
#[test]
fn a_report_in_a_file_is_summed_up() {
    require_root();
    let _turn = turn();
    leaktrace_tests::allow_pipes(RATE as u64 * 40);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let args = ["--cache", "kmalloc-cg-1*", "--max-objects", "8000", "--format", "json", "--quiet"];
    let times = ["--interval", "200ms", "--min-age", "400ms", "--duration", "6"];
    for (more, code, said) in [(&["--fail-on", "suspect"][..], 3, true), (&[], 0, false)] {
        let mut command = Command::new(leaktrace());
        command.args(args).args(times).args(more).arg("--output").arg(&path).stderr(Stdio::piped());
        let mut child = command.spawn().expect("leaktrace can be run");
        // Pipes that come all the time, and stay.
        let (begun, mut held) = (Instant::now(), Vec::new());
        while child.try_wait().expect("it is our child").is_none() {
            while (held.len() as f64) < begun.elapsed().as_secs_f64() * RATE {
                held.push(std::io::pipe().expect("a pipe can be made"));
            }
            sleep(Duration::from_millis(2));
        }
        let ended = child.wait_with_output().expect("it is our child");
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        let report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let headline = report["headline"]["text"].as_str().unwrap();
        assert_eq!(report["headline"]["verdict"], "suspect", "{headline}");
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(stderr, if said { format!("{headline}\n") } else { String::new() });
    }
}

/// A report that goes nowhere is no success, and /dev/null is a choice.
#[test]
fn a_closed_standard_output_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let closed = |arguments: &str| {
        let line = format!("exec {} {arguments} >&-", leaktrace().display());
        Command::new("sh").args(["-c", &line]).output().expect("a shell runs")
    };
    for arguments in ["triage -d 0", "completions bash", "check"] {
        refused(&closed(arguments), 1, &["standard output is closed"]);
    }
    let file = directory.path().join("triage.json");
    let written = closed(&format!("triage -d 0 --format json --output {}", file.display()));
    assert!(written.status.success() && file.metadata().unwrap().len() > 0, "{written:?}");
    for null in [fs::File::create("/dev/null"), fs::File::options().read(true).write(true).open("/dev/null")]
    {
        let null = null.unwrap();
        assert!(null.as_raw_fd() > 2);
        let status = Command::new(leaktrace())
            .args(["triage", "-d", "0"])
            .stdout(Stdio::from(null))
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}

/// A file that cannot be made is named as the user knows it, with the kernel's reason.
#[test]
fn only_names_that_the_user_gave_are_told() {
    require_root();
    for (path, why) in [("/proc/report", "No such file or directory"), ("/sys/kernel/report", "denied")] {
        let output = run(["--duration", "1", "--output", path]);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        refused(&output, 1, &[&format!("cannot write {path}: ")]);
        assert!(
            !stderr.contains(".leaktrace") && (stderr.contains(why) || stderr.contains("os error")),
            "{stderr}"
        );
    }
}

/// An edited report is not told as fact.
#[test]
fn numbers_that_cannot_be_are_refused() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&["--duration", "5m", "--max-objects", "8000"]);
    let _held = Holder::spawn(100);
    let mut report = trace.stop();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let tell = |report: &Value| {
        fs::write(&path, report.to_string()).unwrap();
        run(["report", path.to_str().unwrap()])
    };
    assert!(tell(&report).status.success());
    report["findings"][0]["live"]["objects"] = (-5).into();
    refused(&tell(&report), 1, &["no report that leaktrace wrote", "findings[0].live.objects is -5"]);
}

/// What contradicts itself is a mistake in the command.
#[test]
fn contradictions_are_usage_errors() {
    for (args, words) in [
        (
            &["--min-age", "5m", "-d", "1"][..],
            "nothing can become as old as --min-age 5 min within --duration 1.0 s",
        ),
        (&["record", "-o", "x", "-d", "10", "--min-age", "10s"], "--min-age 10 s within --duration 10 s"),
        (&["-d", "-1"], "'-1' for '--duration <TIME>': must be from 100ms to 366d"),
        (&["-d", "-1h30m"], "must be from 100ms to 366d"),
        (&["--min-age", "400d"], "must be from 0 to 366d"),
        (&["--top", "-3"], "'-3' for '--top <N>'"),
        (&["--overhead", "-1"], "must be from 0 to 100"),
    ] {
        refused(&run(args), 2, &[words, "(try --help)"]);
    }
}
