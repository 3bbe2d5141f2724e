//! What leaktrace concludes, and what follows from it: exit statuses, baselines, differences, shaking.

use std::{
    fs,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{
    Ended, Trace, leaktrace, number, pipe_findings, refused, require_root, run, turn, within,
};
use serde_json::Value;

/// Pipes that are made in a second, and for how long: after the first third, growth has a dozen ticks of 300 ms.
const RATE: f64 = 400.0;
const SECONDS: f64 = 6.0;

/// What a trace said of pipes that were made all the time and kept.
struct Grown {
    ended: Ended,
    report: Value,
    made: usize,
    per_s: f64,
}

/// Traces while pipes are made: by the clock, so that there are as many however late this thread is.
fn grown(more: &[&str]) -> Grown {
    leaktrace_tests::allow_pipes((RATE * SECONDS) as u64 * 2);
    let args = ["--duration", "5m", "--interval", "300ms", "--min-age", "500ms", "--top", "60"];
    // A small table, so that each tick has the time to look at all of it, and nothing is estimated.
    let small = ["--cache", "kmalloc-cg-1*", "--max-objects", "8000"];
    let trace = Trace::start(&[&args[..], &small, more].concat());
    let (begun, mut held) = (Instant::now(), Vec::new());
    let mut last = 0.0;
    while last < SECONDS {
        last = begun.elapsed().as_secs_f64();
        while (held.len() as f64) < last * RATE {
            held.push(std::io::pipe().expect("a pipe can be made"));
        }
        sleep(Duration::from_millis(1));
    }
    trace.signal(libc::SIGTERM);
    let ended = trace.wait();
    let report = serde_json::from_str(&ended.out).expect("the report is JSON");
    Grown { ended, report, made: held.len(), per_s: held.len() as f64 / last }
}

fn save(directory: &Path, name: &str, report: &Value) -> String {
    let path = directory.join(name);
    fs::write(&path, report.to_string()).unwrap();
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn growth_is_suspected_baselined_and_compared() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let first = grown(&["--fail-on", "suspect"]);
    assert_eq!(first.ended.status.code(), Some(3), "{:?}", first.ended);
    for site in pipe_findings(&first.report) {
        is_suspected(site, &first);
    }
    // Both are one cause, and the process is to be looked at.
    let group = &first.report["groups"][0];
    assert_eq!(first.report["groups"].as_array().map(Vec::len), Some(1), "{:#}", first.report["groups"]);
    assert_eq!(group["findings"].as_array().map(Vec::len), Some(2), "{group}");
    assert_eq!((group["call"].as_str(), group["keeps"].as_str()), (Some("pipe2"), Some("pipes")), "{group}");
    let headline = first.report["headline"]["text"].as_str().unwrap();
    assert!(
        headline.contains(" is suspected: it keeps pipes open, ") && headline.contains(" in 2 caches, "),
        "{headline}"
    );
    // The same again is known, and fails nothing.
    let a = save(directory.path(), "a.json", &first.report);
    let again = grown(&["--fail-on", "suspect", "--baseline", &a]);
    assert_eq!(again.ended.status.code(), Some(0), "{:?}", again.ended);
    for site in pipe_findings(&again.report) {
        assert_eq!(site["known"], true, "{site:#}");
        assert_eq!(site["verdict"], "suspect", "{site:#}");
    }
    assert_ne!(again.report["headline"]["verdict"], "leak");
    // It grew by as much.
    let b = save(directory.path(), "b.json", &again.report);
    assert_eq!(changes(&a, &b), [""; 0]);
    // Of one that stopped to grow there is less than that.
    let mut still = again.report.clone();
    for site in still["findings"].as_array_mut().unwrap() {
        site["growth"]["bytes_per_s"] = 0.into();
    }
    let c = save(directory.path(), "c.json", &still);
    assert_eq!(changes(&a, &c), ["shrank"; 2]);
    assert_eq!(changes(&c, &a), ["grew"; 2]);
    let text = run(["diff", &a, &b]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("A: 20") && text.contains("\nB: 20"), "{text}");
}

fn is_suspected(site: &Value, grown: &Grown) {
    assert_eq!(site["verdict"], "suspect", "{site:#}");
    assert_eq!(site["known"], false);
    let growth = &site["growth"];
    assert_eq!(growth["shape"], "steady", "{growth}");
    assert_eq!(growth["sure"], true, "{growth}");
    assert!(number(&growth["walk"]) < 0.001 && number(&growth["ticks"]) >= 10.0, "{growth}");
    let stayed = &growth["stayed"];
    // Of those of the first 0.33 to 0.67 of the time none that was half a second old is freed, but for a few of others.
    assert!(number(&stayed["aged"]) > RATE && number(&stayed["freed"]) < RATE / 20.0, "{growth}");
    // Others make pipes, too, but keep few.
    within(number(&site["live"]["objects"]), grown.made as f64, 0.02);
    let per_object = number(&site["live"]["bytes"]) / number(&site["live"]["objects"]);
    within(number(&growth["bytes_per_s"]) / per_object, grown.per_s, 0.1);
    // This process lives, and may hold them; and it says what would settle it.
    let open = site["open"].to_string();
    let next: Vec<_> = site["settle"].as_array().unwrap().iter().map(|step| step.as_str().unwrap()).collect();
    assert!(
        open.contains("still runs") && next.iter().any(|step| step.contains("end that process")),
        "{open}"
    );
    // What is advised can be done here.
    let proves = next.iter().any(|step| step.contains("--prove"));
    assert!(!proves || fs::File::open("/proc/kcore").is_ok(), "{next:?}");
}

/// What `diff` says became of pipes.
fn changes(a: &str, b: &str) -> Vec<String> {
    let diff = run(["diff", a, b, "--format", "json"]);
    let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
    assert_eq!(diff["schema"], "leaktrace.diff/1");
    let changes = diff["findings"].as_array().unwrap().iter();
    let of_pipes = changes.filter(|change| change["function"] == "alloc_pipe_info");
    of_pipes.map(|change| change["what"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn shaking_frees_inodes_and_dentries_and_says_so() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let trace = Trace::start(&["--duration", "5m", "--shake", "--top", "200"]);
    for file in 0..3_000 {
        fs::write(directory.path().join(file.to_string()), "x").unwrap();
    }
    // What is not on the disk yet is not dropped.
    // SAFETY: it has no preconditions.
    unsafe { libc::sync() };
    let report = trace.stop();
    let shaken = report["shake"]["caches"].as_array().unwrap();
    let dentry =
        shaken.iter().find(|cache| cache["cache"] == "dentry").unwrap_or_else(|| panic!("{shaken:#?}"));
    // The kernel keeps some: what was used a moment ago has one more chance than there are rounds.
    assert!(number(&dentry["freed"]["objects"]) > 2_500.0, "{dentry}");
    assert!(number(&report["shake"]["freed"]["bytes"]) > 2_500.0 * 192.0);
}

#[test]
fn reports_that_are_none_are_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = file("check", "{\"schema\": \"leaktrace.check/1\"}");
    for (path, words) in [
        (file("no json", "leak"), "no JSON"),
        (file("no report", "{}"), "is no report"),
        (whole, "has the schema leaktrace.check/1"),
        (file("cut", "{\"schema\": \"leaktrace.report/1\"}"), "no whole report"),
        ("/nonexistent/report".to_owned(), "cannot read the report"),
    ] {
        for args in [vec!["diff", &path, &path], vec!["--baseline", &path, "--duration", "1"]] {
            refused(&run(&args), 1, &[words]);
        }
    }
    refused(&run(["--fail-on", "plateau"]), 2, &["--fail-on"]);
}

/// Everything that looks like a leak and is none, at once.
#[test]
#[ignore = "slow: a minute of innocent load"]
fn the_noisiest_innocent_load_leaks_nothing() {
    require_root();
    let _turn = turn();
    let output = Command::new(env!("CARGO_BIN_EXE_eval"))
        .arg("--leaktrace")
        .arg(leaktrace())
        .args(["--only", "everything at once", "--innocent", "60"])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("\"right\":true"), "{out}");
}
