//! The forms of a report that others read: files of a real trace, and the page in a real browser.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use leaktrace_tests::{
    Holder, Trace, browser::Browser, findings, number, refused, require_root, run, turn, within,
};
use serde_json::Value;

const PIPES: u64 = 1_000;
/// A name that would do harm on a page.
const EVIL: &str = "<img src=x onerror=alert(1)>\u{202e}</script>";

/// A report of a trace during which pipes were made, with every stack.
fn real_report() -> Value {
    require_root();
    let trace = Trace::start(&["--overhead", "100", "--top", "1000"]);
    let _held = Holder::spawn(PIPES);
    std::thread::sleep(Duration::from_millis(1_500));
    trace.stop()
}

/// The report in a form, by way of a file.
fn told(report: &Path, form: &str) -> Vec<u8> {
    let output = run(["report", &report.to_string_lossy(), "--format", form]);
    assert!(output.status.success(), "{form}: {output:?}");
    output.stdout
}

#[test]
fn others_read_what_was_traced() {
    let _turn = turn();
    let report = real_report();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    fs::write(&file, report.to_string()).unwrap();
    // Folded stacks have all live bytes of all findings, and the pipes' by their whole stack.
    let folded = String::from_utf8(told(&file, "folded")).unwrap();
    let mut of_pipes = 0;
    let mut all = 0;
    for line in folded.lines() {
        let (stack, bytes) = line.rsplit_once(' ').unwrap();
        let bytes: u64 = bytes.parse().unwrap();
        all += bytes;
        if stack.contains(";alloc_pipe_info;(") {
            assert!(stack.contains("do_pipe2"), "{stack}");
            of_pipes += bytes;
        }
    }
    let live = |finding: &Value| number(&finding["live"]["bytes"]) as u64;
    assert_eq!(all, report["findings"].as_array().unwrap().iter().map(live).sum::<u64>());
    let traced: u64 = findings(&report, "alloc_pipe_info").into_iter().map(live).sum();
    assert!(traced > PIPES * 1_000, "{traced}");
    within(of_pipes as f64, traced as f64, 0.02);
    let svg = String::from_utf8(told(&file, "svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("alloc_pipe_info"));
    // A line for each finding, each with all columns.
    let table = String::from_utf8(told(&file, "csv")).unwrap();
    assert_eq!(table.lines().count(), report["findings"].as_array().unwrap().len() + 1);
    assert!(table.contains("alloc_pipe_info"));
    let profile = told(&file, "pprof");
    assert_eq!(profile[..2], [0x1f, 0x8b], "it is compressed");
    assert!(String::from_utf8(told(&file, "markdown")).unwrap().starts_with("## leaktrace: "));
    // A trace writes them itself, too.
    let page = directory.path().join("page.html");
    let args = ["--duration", "1", "--quiet", "--format", "html", "--output"];
    let output = run(args.into_iter().chain([&*page.to_string_lossy()]));
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read_to_string(&page).unwrap().starts_with("<!DOCTYPE html>"));
}

/// The page of a report whose first finding is a leak with a harmful name, in a browser.
fn page() -> (tempfile::TempDir, Browser, Value) {
    let mut report = real_report();
    let first = &mut report["findings"][0];
    first["verdict"] = "leak".into();
    first["cache"] = EVIL.into();
    report["headline"]["verdict"] = "leak".into();
    report["headline"]["text"] = format!("leaks in {EVIL}").into();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    fs::write(&file, report.to_string()).unwrap();
    let page = directory.path().join("page.html");
    fs::write(&page, told(&file, "html")).unwrap();
    let mut browser = Browser::start(1_200, 900).expect("there is no Chromium: cargo xtask test installs it");
    browser.open(&format!("file://{}", page.display()));
    browser.wait("document.querySelectorAll('tr.finding').length > 0");
    (directory, browser, report)
}

#[test]
fn the_page_works_in_a_browser() {
    let _turn = turn();
    let (_directory, mut browser, report) = page();
    let all = report["findings"].as_array().unwrap().len() as u64;
    let rows = "document.querySelectorAll('tr.finding').length";
    let details = "document.querySelectorAll('tr.details').length";
    assert_eq!(browser.value(rows), all);
    // The first is open already. A name is text, whatever it says.
    assert_eq!(browser.value(details), 1);
    let text = browser.value("document.body.innerText");
    let text = text.as_str().unwrap();
    assert!(text.contains("<img src=x onerror=alert(1)>\\u202e</script>"), "{text}");
    assert_eq!(browser.value("document.images.length"), 0);
    assert_eq!(browser.value("document.getElementById('headline').className"), "leak");
    // A click closes it, and opens it again.
    browser.click("tr.finding");
    assert_eq!(browser.value(details), 0);
    browser.click("tr.finding");
    assert_eq!(browser.value(details), 1);
    assert!(number(&browser.value("document.querySelectorAll('tr.details svg.chart').length")) <= 2.0);
    // Searching, by keys.
    browser.press("/");
    browser.write("alloc_pipe_info");
    browser.wait(&format!("{rows} < {all} && {rows} > 0"));
    let found = browser.value("[...document.querySelectorAll('tr.finding')].map((row) => row.innerText)");
    assert!(found.as_array().unwrap().iter().any(|row| row.as_str().unwrap().contains("alloc_pipe_info")));
    browser.press("Escape");
    assert_eq!(browser.value(rows), all);
    // Down, down, open.
    browser.value("document.activeElement.blur()");
    for key in ["j", "j", "Enter"] {
        browser.press(key);
    }
    assert_eq!(browser.value(details), 2);
    browser.press("e");
    assert_eq!(browser.value(details), all);
    browser.press("e");
    assert_eq!(browser.value(details), 0);
    // Sorting by a column, both ways.
    let bytes = "[...document.querySelectorAll('tr.finding')].map((row) => row.cells[3].innerText)";
    browser.click("#findings th:nth-child(4) button");
    let up = browser.value(bytes);
    browser.click("#findings th:nth-child(4) button");
    let down = browser.value(bytes);
    let sorted = |names: &Value| {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        names.as_array().unwrap().iter().for_each(|name| *count.entry(name.to_string()).or_default() += 1);
        count
    };
    assert_eq!(sorted(&up), sorted(&down));
    assert_eq!(up[0], down[all as usize - 1]);
    assert_eq!(browser.value("document.querySelector('#findings th:nth-child(4)').ariaSort"), "descending");
    // A verdict can be left out.
    browser.click("#verdicts button");
    assert_eq!(browser.value(rows), all - 1);
    browser.click("#verdicts button");
    // Light and dark.
    let back = "getComputedStyle(document.body).backgroundColor";
    let before = browser.value(back);
    browser.press("t");
    assert_ne!(browser.value(back), before);
    browser.click("#help-open");
    assert_eq!(browser.value("document.getElementById('help').open"), true);
    browser.press("Escape");
    browser.wait("!document.getElementById('help').open");
    // The flame graph is in a frame of its own.
    assert_eq!(browser.value("document.querySelectorAll('#flame iframe').length"), 1);
    // On paper the leaks are open, however the page looks.
    browser.value("dispatchEvent(new Event('beforeprint'))");
    assert!(number(&browser.value(details)) >= 1.0);
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
}

#[test]
fn bad_requests_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("none.json");
    let name = file.to_string_lossy().into_owned();
    refused(&run(["report", &name]), 1, &["cannot read the report"]);
    fs::write(&file, "no JSON").unwrap();
    refused(&run(["report", &name, "--format", "html"]), 1, &["is no report"]);
    refused(&run(["report", &name, "--format", "pdf"]), 2, &["--help"]);
    refused(&run(["report"]), 2, &["--help"]);
    refused(&run(["report", &name, "--top", "0"]), 2, &["--top"]);
}
