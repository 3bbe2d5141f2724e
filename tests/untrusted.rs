//! Files and names of others: no damage, nothing that is not theirs to know, and a word of what is wrong.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output},
};

use leaktrace_tests::{Trace, leaktrace, refused, require_root, run, turn};

/// A short report, saved.
fn report(directory: &Path) -> String {
    let path = directory.join("report.json");
    let to = path.to_str().unwrap();
    let args = ["-q", "-d", "1", "--max-objects", "8000", "--cache", "filp", "--format", "json", "-o", to];
    assert!(run(args).status.success());
    to.to_owned()
}

fn shell(line: &str) -> Output {
    let line = line.replace("leaktrace", leaktrace().to_str().unwrap());
    Command::new("bash").args(["-c", &line]).output().expect("bash runs")
}

/// A link in a directory for everyone leads nowhere, whatever the kernel is set to.
#[test]
fn a_planted_link_is_not_followed() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let report = report(directory.path());
    let everyone = directory.path().join("everyone");
    fs::create_dir(&everyone).unwrap();
    fs::set_permissions(&everyone, fs::Permissions::from_mode(0o1777)).unwrap();
    let (mine, link) = (directory.path().join("mine"), everyone.join("leak.csv"));
    fs::write(&mine, "mine").unwrap();
    symlink(&mine, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
    let to = link.to_str().unwrap();
    refused(&run(["report", &report, "--format", "csv", "-o", to]), 1, &["a link that another user"]);
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    // One's own is followed, and stays a link.
    std::os::unix::fs::lchown(&link, Some(0), None).unwrap();
    assert!(run(["report", &report, "--format", "csv", "-o", to]).status.success());
    assert!(fs::read_to_string(&mine).unwrap().starts_with("rank,") && link.is_symlink());
}

/// A limit of file size leaves the old file, and no other.
#[test]
fn a_limit_of_file_size_is_told() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let report = report(directory.path());
    let to = directory.path().join("page.html");
    let output =
        shell(&format!("ulimit -f 4; exec leaktrace report {report} --format html -o {}", to.display()));
    refused(&output, 1, &["cannot write", "File too large"]);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A small file does not take much memory.
#[test]
fn what_would_take_much_memory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.json");
    let zeros = "0,".repeat(20_000_000);
    fs::write(&path, format!("{{\"schema\":\"leaktrace.report/1\",\"x\":[{zeros}0]}}")).unwrap();
    let output = shell(&format!("ulimit -v 400000; exec leaktrace report {}", path.display()));
    refused(&output, 1, &["too many values for a report"]);
}

/// Names of an edited report are shown as text, in every place.
#[test]
fn names_are_escaped() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = report(directory.path());
    let mut edited: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let programs = edited["overhead"]["programs"].as_array_mut().unwrap();
    for program in programs {
        program["name"] = "\u{1b}[31mred\nline".into();
        program["ns_per_run"] = 1.into();
    }
    edited["machine"]["architecture"] = "x\u{9b}2J\u{202e}".into();
    fs::write(&path, edited.to_string()).unwrap();
    for form in ["text", "json"] {
        let output = run(["report", &path, "-v", "--format", form]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let live = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(live), "{form}: {:?}", text.lines().find(|line| line.contains(live)));
        assert!(!text.lines().any(|line| line.starts_with("line")), "{text}");
    }
}

/// A recording takes no file that is not its own, and no other recording's.
#[test]
fn a_recording_spares_what_is_not_its_own() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let (path, older) = (directory.path().join("notes"), directory.path().join("notes.1"));
    let to = path.to_str().unwrap();
    let args = ["record", "-q", "-d", "1", "--max-objects", "8000", "--cache", "filp", "-o", to];
    fs::write(&older, "mine").unwrap();
    refused(&run(args), 1, &["notes.1 is no recording", "give another name"]);
    assert_eq!(fs::read_to_string(&older).unwrap(), "mine");
    fs::remove_file(&older).unwrap();
    let mut command = Command::new(leaktrace());
    let first = Trace::spawn(command.args([
        "record",
        "-d",
        "5m",
        "--max-objects",
        "8000",
        "--cache",
        "filp",
        "-o",
        to,
    ]));
    refused(&run(args), 1, &["another recording is going on there"]);
    first.signal(libc::SIGTERM);
    assert!(first.wait().status.success());
    assert!(run(["report", to]).status.success());
    // And then its place is free.
    assert!(run(args).status.success());
}
