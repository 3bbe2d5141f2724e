//! What each option does to a run and its report.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    process::{Command, Stdio},
    time::Instant,
};

use leaktrace_tests::{
    Holder, Trace, finding, findings, leaktrace, number, pipe_findings, require_root, run, turn, within,
};
use serde_json::Value;

/// Pipes that are held open.
const PIPES: u64 = 1_000;

/// A report of a trace during which pipes were made, and are held.
fn report_with_pipes(args: &[&str]) -> Value {
    require_root();
    let trace = Trace::start(args);
    let _held = Holder::spawn(PIPES);
    trace.stop()
}

/// Names of the report's caches.
fn cache_names(report: &Value) -> Vec<&str> {
    report["caches"].as_array().unwrap().iter().map(|cache| cache["name"].as_str().unwrap()).collect()
}

#[test]
fn only_caches_with_such_a_name_are_recorded() {
    let _turn = turn();
    let report = report_with_pipes(&["--cache", "kmalloc-cg-1*", "--cache", "filp", "--top", "1000"]);
    let names = cache_names(&report);
    assert!(names.contains(&"kmalloc-cg-1k") && names.contains(&"filp"), "{names:?}");
    for name in names {
        assert!(name.starts_with("kmalloc-cg-1") || name == "filp", "{name}");
    }
    for site in pipe_findings(&report) {
        within(number(&site["live"]["objects"]), PIPES as f64, 0.01);
    }
    let nothing = report_with_pipes(&["--cache", "no-such-cache-*"]);
    assert!(cache_names(&nothing).is_empty() && nothing["findings"].as_array().unwrap().is_empty());
}

#[test]
fn only_caches_of_such_a_size_are_recorded() {
    let _turn = turn();
    let report = report_with_pipes(&["--min-size", "1000", "--max-size", "1k", "--top", "1000"]);
    let site = finding(&report, "alloc_pipe_info", "kmalloc-cg-1k");
    within(number(&site["live"]["objects"]), PIPES as f64, 0.01);
    assert_eq!(findings(&report, "alloc_pipe_info").len(), 1, "the other objects are smaller");
    for finding in report["findings"].as_array().unwrap() {
        let size = number(&finding["live"]["bytes"]) / number(&finding["live"]["objects"]);
        assert!((1_000.0..=1_024.0).contains(&size), "{finding:#}");
    }
}

#[test]
fn callers_of_a_function_that_is_called_a_helper_are_told_apart() {
    let _turn = turn();
    let report = report_with_pipes(&["--helper", "alloc_pipe_info", "--overhead", "20", "--top", "1000"]);
    for site in pipe_findings(&report) {
        assert_eq!(site["split"], true);
        assert_eq!(site["responsible"]["symbol"], "create_pipe_files", "{site:#}");
        // Of its whole count, although not every object has a stack.
        within(number(&site["live"]["objects"]), PIPES as f64, 0.02);
    }
    let whole = report_with_pipes(&["--top", "1000"]);
    for site in pipe_findings(&whole) {
        assert_eq!(
            (site["split"] == true, &site["responsible"]["symbol"]),
            (false, &site["call_site"]["symbol"])
        );
    }
}

/// Objects of a site that have a stack, and the most frames of one.
fn stacks(site: &Value) -> (f64, usize) {
    let stacks = site["stacks"].as_array().unwrap();
    let frames = stacks.iter().map(|stack| stack["frames"].as_array().unwrap().len()).max();
    (stacks.iter().map(|stack| number(&stack["objects"])).sum(), frames.unwrap_or(0))
}

#[test]
fn stacks_are_captured_as_far_as_they_are_wanted() {
    let _turn = turn();
    let all = report_with_pipes(&["--overhead", "100"]);
    for site in pipe_findings(&all) {
        let (objects, frames) = stacks(site);
        assert!(objects >= PIPES as f64 * 0.99, "{objects} objects have a stack");
        assert!((6..=32).contains(&frames), "{frames} frames");
    }
    let short = report_with_pipes(&["--overhead", "100", "--stack-depth", "3"]);
    for site in pipe_findings(&short) {
        assert_eq!(stacks(site).1, 3, "{site:#}");
        assert!(site["stacks"][0]["frames"][0]["symbol"] == "alloc_pipe_info");
    }
    for none in [["--overhead", "0"], ["--stack-depth", "0"]] {
        let report = report_with_pipes(&none);
        for site in pipe_findings(&report) {
            assert!(site["stacks"].as_array().unwrap().is_empty(), "{site:#}");
        }
    }
}

#[test]
fn top_bounds_the_findings() {
    let _turn = turn();
    let report = report_with_pipes(&["--top", "2"]);
    assert_eq!(report["findings"].as_array().unwrap().len(), 2);
}

#[test]
fn min_age_decides_what_survives() {
    let _turn = turn();
    let young = report_with_pipes(&["--min-age", "1h", "--duration", "2h"]);
    let old = report_with_pipes(&["--min-age", "0"]);
    for (report, expected) in [(&young, 0.0), (&old, PIPES as f64)] {
        for site in pipe_findings(report) {
            within(number(&site["survivors"]["objects"]), expected, 0.01);
        }
    }
    within(number(&young["window"]["min_age_s"]), 3_600.0, 0.0);
}

#[test]
fn the_duration_is_kept_and_looked_at_in_between() {
    let _turn = turn();
    require_root();
    let begun = Instant::now();
    let report = Trace::start(&["--duration", "1500ms", "--interval", "100ms"]).report();
    let (duration, all) = (number(&report["window"]["duration_s"]), begun.elapsed().as_secs_f64());
    // On a busy machine it may be late, but never early.
    assert!((1.5..all).contains(&duration), "{duration} s of {all} s");
    let ticks = number(&report["window"]["ticks"]);
    // The same for each tick: 200 ms on average are very late.
    assert!((5.0..=duration * 10.0 + 1.0).contains(&ticks), "{ticks} ticks in {duration} s");
}

/// A text report of pipes that a task with a harmful name holds.
fn text_report(command: &mut Command) -> String {
    require_root();
    let trace = Trace::spawn(command);
    let held = Holder::named(c"\x1b]0;bad\x07\n", PIPES);
    trace.signal(libc::SIGTERM);
    let ended = trace.wait();
    assert!(ended.status.success());
    drop(held);
    ended.out
}

#[test]
fn text_is_for_a_page_of_100_columns() {
    let _turn = turn();
    for verbose in [false, true] {
        let mut command = Command::new(leaktrace());
        command.args(["--duration", "5m", "--overhead", "100", "--top", "40", "--cache", "*cg*"]);
        if verbose {
            command.arg("-v");
        }
        let text = text_report(&mut command);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line:?}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        for word in [
            "\\x1b]0;bad\\x07\\n (",
            "alloc_pipe_info+0x",
            "kmalloc-cg-1k",
            "/proc/slabinfo",
            "Not seen",
            "Lost: ",
            "Cost: ",
        ] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let _turn = turn();
    require_root();
    let on_terminal = |no_colour: Option<&str>| {
        let mut command = Command::new("script");
        let line = format!("{} --duration 100ms --quiet", leaktrace().display());
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_remove("NO_COLOR");
        if let Some(value) = no_colour {
            command.env("NO_COLOR", value);
        }
        let output = command.stdin(Stdio::null()).output().expect("util-linux has script");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(on_terminal(None).contains("\x1b[1;3"));
    assert!(on_terminal(Some("")).contains("\x1b[1;3"));
    assert!(!on_terminal(Some("1")).contains('\x1b'));
    let piped = run(["--duration", "100ms", "--quiet"]);
    assert!(!String::from_utf8(piped.stdout).unwrap().contains('\x1b'));
    assert!(piped.stderr.is_empty(), "{}", String::from_utf8_lossy(&piped.stderr));
}

#[test]
fn verbose_runs_pass_on_what_the_programs_say() {
    let _turn = turn();
    require_root();
    for verbose in [false, true] {
        let mut command = Command::new(leaktrace());
        command.args(["--duration", "5m", "--max-objects", "16"]);
        if verbose {
            command.arg("--verbose");
        }
        let trace = Trace::spawn(&mut command);
        drop(Holder::spawn(PIPES));
        trace.signal(libc::SIGTERM);
        let said = trace.wait().said;
        // Tables of this size lose objects before they can be relieved.
        assert_eq!(said.contains("note: no place for an object"), verbose, "{said}");
    }
}

#[test]
fn progress_is_shown_on_a_terminal() {
    let _turn = turn();
    require_root();
    let line = format!("{} --duration 500ms --interval 100ms --output /dev/null", leaktrace().display());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("util-linux has script");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for word in ["left", "events/s", "live"] {
        assert!(shown.contains(word), "{word} is not in {shown:?}");
    }
}

#[test]
fn output_replaces_a_file_and_writes_to_a_device() {
    let _turn = turn();
    require_root();
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("report.json"), directory.path().join("link"));
    fs::write(&file, "old").unwrap();
    symlink(&file, &link).unwrap();
    let args = ["--duration", "100ms", "--quiet", "--format", "json", "--output"];
    let output = run(args.iter().copied().chain([link.to_str().unwrap()]));
    assert!(output.status.success() && output.stdout.is_empty());
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["schema"], "leaktrace.report/1");
    assert!(link.is_symlink());
    // Kernel addresses are not for everyone.
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    let before = fs::symlink_metadata("/dev/null").unwrap().file_type();
    assert!(run(args.iter().copied().chain(["/dev/null"])).status.success());
    assert_eq!(fs::symlink_metadata("/dev/null").unwrap().file_type(), before);
}

#[test]
fn check_tests_each_hook() {
    let _turn = turn();
    require_root();
    let output = run(["check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Tracing works here."), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let output = run(["check", "--format", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["schema"], "leaktrace.check/1");
    assert_eq!(answer["usable"], true);
    let hooks = answer["hooks"].as_array().unwrap();
    for name in ["kmalloc", "kfree", "kmem_cache_alloc", "kmem_cache_free", "mm_page_alloc", "mm_page_free"] {
        let hook = hooks.iter().find(|hook| hook["name"] == name).unwrap();
        assert_eq!(hook["attached"], true, "{hook}");
        let test = &hook["self_test"];
        assert!(
            number(&test["expected"]) > 0.0 && number(&test["seen"]) >= number(&test["expected"]) * 0.95,
            "{hook}"
        );
    }
    assert!(!answer["blind_spots"].as_array().unwrap().is_empty());
}
