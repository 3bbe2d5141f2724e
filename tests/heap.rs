//! `leaktrace heap` where memory cannot be read, and two looks at the heap that were saved.

use std::{fs, path::Path, process::Command};

use leaktrace::report::heap::model::{Amount, Cache, Group, Heap, SCHEMA, Sign};
use leaktrace_tests::{leaktrace, refused, require_root, run};
use serde_json::Value;

#[test]
fn what_cannot_be_done_is_refused() {
    require_root();
    for (args, said) in [
        (&["heap", "--limit", "5x"][..], "a size like 64GiB or a time like 60s"),
        (&["heap", "--format", "svg"], "possible values: text, json, html, markdown, csv"),
        (&["heap", "--watch", "never"], "--watch"),
        (&["heap", "--max-memory", "much"], "--max-memory"),
    ] {
        refused(&run(args), 2, &[said]);
    }
    refused(&run(["heap", "--module", "no_such_module"]), 1, &["module no_such_module is not loaded"]);
    refused(&run(["heap", "--report", "/nonexistent"]), 1, &["cannot read the report /nonexistent"]);
    refused(&run(["heap", "--output", "/nonexistent/heap.json"]), 1, &["/nonexistent"]);
    let hidden = "test ! -e /proc/kcore || mount --bind /dev/null /proc/kcore; exec \"$0\" heap";
    let output =
        Command::new("unshare").args(["--mount", "sh", "-c", hidden]).arg(leaktrace()).output().unwrap();
    refused(&output, 1, &["memory cannot be looked at", "/proc/kcore"]);
}

fn look(taken: &str, lost: u64) -> Heap {
    let sign =
        Sign { offset: 24, what: "symbol".into(), name: "foo_ops".into(), share: 1.0, ..Sign::default() };
    let (cache, module) = ("kmalloc-64".to_owned(), Some("foo".to_owned()));
    Heap {
        schema: SCHEMA.to_owned(),
        boot: "one".into(),
        taken: taken.into(),
        lost: Amount { objects: lost, bytes: lost * 64 },
        groups: vec![Group {
            verdict: "lost".into(),
            cache: cache.clone(),
            module,
            objects: lost,
            bytes: lost * 64,
            content: vec![sign],
            ..Group::default()
        }],
        caches: vec![Cache { cache, objects: 1_000 + lost, bytes: (1_000 + lost) * 64, ..Cache::default() }],
        ..Heap::default()
    }
}

fn saved(directory: &Path, name: &str, heap: &Heap) -> String {
    let path = directory.join(name);
    fs::write(&path, serde_json::to_string(heap).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn two_looks_are_compared() {
    let directory = tempfile::tempdir().unwrap();
    let before = saved(directory.path(), "before.json", &look("2026-11-28T08:00:00Z", 10));
    let after = saved(directory.path(), "after.json", &look("2026-11-28T10:00:00Z", 250));
    let text = run(["diff", &before, &after]);
    assert!(text.status.success(), "{text:?}");
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("In 2 h 0 min 240 objects more were lost."), "{text}");
    let json = run(["diff", &before, &after, "--format", "json"]);
    let grown: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(grown["schema"], "leaktrace.heap-diff/1");
    assert_eq!(grown["lost"][0]["objects"], serde_json::json!([10, 250]));
    assert_eq!(grown["lost"][0]["bytes_per_h"], 240.0 * 64.0 / 2.0);
    assert_eq!(grown["caches"][0]["objects"], serde_json::json!([1_010, 1_250]));
    // A report of a trace is something else, and so is what nobody wrote.
    let none = directory.path().join("none.json");
    fs::write(&none, r#"{"schema":"leaktrace.heap/1","lost":{"objects":-1,"bytes":0}}"#).unwrap();
    refused(&run(["diff", &before, none.to_str().unwrap()]), 1, &["objects is -1"]);
    refused(&run(["report", &before]), 1, &["is a look at the heap, and no report of a trace"]);
}
