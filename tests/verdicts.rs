//! What leaktrace concludes, and what follows from it: exit statuses, baselines, differences, shaking.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use leaktrace_tests::{findings, leaktrace, number, refused, require_root, run, turn};
use serde_json::Value;

/// Makes pipes and keeps them, 40 a second, while something else goes on.
fn with_growing_pipes<T>(work: impl FnOnce() -> T) -> T {
    leaktrace_tests::allow_pipes(4_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            let mut held = Vec::new();
            while !stop.load(Relaxed) {
                held.push(std::io::pipe().expect("a pipe can be made"));
                std::thread::sleep(Duration::from_millis(25));
            }
            held.len()
        });
        let result = work();
        stop.store(true, Relaxed);
        assert!(maker.join().expect("the thread runs") > 100);
        result
    })
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("there is a report")).expect("it is JSON")
}

fn traced(path: &Path, more: &[&str]) -> (Output, Value) {
    let path_text = path.to_str().expect("a plain path");
    let mut args =
        vec!["--duration", "16", "--min-age", "2s", "--format", "json", "--top", "60", "--output", path_text];
    args.extend(more);
    let output = with_growing_pipes(|| run(&args));
    (output, read(path))
}

#[test]
fn growth_is_suspected_baselined_and_compared() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a.json"), directory.path().join("b.json"));
    let (output, report) = traced(&a, &["--fail-on", "suspect"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let sites = findings(&report, "alloc_pipe_info");
    assert_eq!(sites.len(), 2, "{sites:#?}");
    for site in sites {
        assert_eq!(site["verdict"], "suspect", "{site:#}");
        assert_eq!(site["known"], false);
        assert_eq!(site["growth"]["shape"], "steady", "{}", site["growth"]);
        assert!(number(&site["growth"]["p_value"]) < 0.001 && number(&site["growth"]["ticks"]) >= 6.0);
        let per_object = number(&site["live"]["bytes"]) / number(&site["live"]["objects"]);
        let rate = number(&site["growth"]["bytes_per_s"]) / per_object;
        assert!((30.0..45.0).contains(&rate), "{rate} objects a second");
        // This process lives, and may hold them; and it says what would settle it.
        let open = site["open"].to_string();
        assert!(
            open.contains("still runs") && site["settle"].to_string().contains("end that process"),
            "{open}"
        );
    }
    // The same again is known; a run that fails on leaks does not fail on these.
    let baseline = a.to_str().unwrap();
    let again = || {
        let (output, report) = traced(&b, &["--fail-on", "leak", "--baseline", baseline]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for site in findings(&report, "alloc_pipe_info") {
            assert_eq!(site["known"], true, "{site:#}");
        }
        assert_ne!(report["headline"]["verdict"], "leak");
        let diff = run(["diff", baseline, b.to_str().unwrap(), "--format", "json"]);
        let diff: Value = serde_json::from_slice(&diff.stdout).unwrap();
        assert_eq!(diff["schema"], "leaktrace.diff/1");
        let changes: Vec<Value> = diff["findings"].as_array().unwrap().clone();
        let differs = changes.into_iter().find(|change| change["function"] == "alloc_pipe_info");
        differs.map(|change| format!("{change} {:#}", findings(&report, "alloc_pipe_info")[0]))
    };
    // It grew by as much; but one of two runs may be disturbed by what else this machine does.
    if let Some(differs) = again() {
        println!("{differs}");
        assert_eq!(again(), None);
    }
    let text = run(["diff", baseline, b.to_str().unwrap()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("A: 20") && text.contains("\nB: 20"), "{text}");
}

#[test]
fn shaking_frees_inodes_and_dentries_and_says_so() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let place = directory.path().join("files");
    let mut child = Command::new(leaktrace())
        .args(["--duration", "6", "--quiet", "--shake", "--format", "json", "--top", "200", "--output"])
        .arg(&report)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    fs::create_dir(&place).unwrap();
    for file in 0..3_000 {
        fs::write(place.join(file.to_string()), "x").unwrap();
    }
    assert!(child.wait().unwrap().success());
    let report = read(&report);
    let shaken = report["shake"]["caches"].as_array().unwrap();
    let dentry =
        shaken.iter().find(|cache| cache["cache"] == "dentry").unwrap_or_else(|| panic!("{shaken:#?}"));
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

/// Everything that looks like a leak and is none, at once, for a minute.
#[test]
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
