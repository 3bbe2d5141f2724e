//! `leaktrace triage` against real culprits, made one at a time.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use leaktrace_tests::{
    cpu,
    culprit::{Culprit, forget},
    leaktrace, number, refused, require_root, run, turn, until_it_waits, within,
};
use serde_json::Value;

const CULPRIT: &str = env!("CARGO_BIN_EXE_culprit");
const MIB: f64 = 1_048_576.0;

fn culprit(way: &str, amount: u64) -> Culprit {
    Culprit::new(CULPRIT, way, amount, "")
}

/// The first diagnosis, which has to be of a kind, beside what other processes do to a busy machine meanwhile: they grow, read and
/// write files, and have pages on their way that nobody accounts for yet.
fn first<'a>(triage: &'a Value, kind: &str, culprit: &Culprit) -> &'a Value {
    let is_of_others = |diagnosis: &Value| {
        let pid = &diagnosis["culprit"]["pid"];
        let is_busy =
            ["page_cache", "unaccounted"].iter().any(|busy| diagnosis["kind"] == *busy && kind != *busy);
        pid.is_number() && *pid != culprit.pid() || is_busy
    };
    let first = triage["diagnosis"].as_array().unwrap().iter().find(|diagnosis| !is_of_others(diagnosis));
    let first = first.unwrap_or_else(|| panic!("{:#}", triage["diagnosis"]));
    assert_eq!(first["kind"], kind, "{:#}", triage["diagnosis"]);
    assert!(first["grows"] == true && !first["text"].as_str().unwrap().is_empty());
    assert!(first["next"].as_array().is_some_and(|next| !next.is_empty()), "{first:#}");
    first
}

/// A directory on a disk.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_growing_process_is_named() {
    require_root();
    let _turn = turn();
    let mut culprit = culprit("heap", 200 << 20);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "process_memory", &culprit);
    assert_eq!(first["culprit"]["pid"], culprit.pid());
    assert_eq!(first["culprit"]["comm"], "culprit");
    within(number(&first["bytes_grown"]), 200.0 * MIB, 0.1);
    assert!(first["text"].as_str().unwrap().contains("native code"), "{first:#}");
    assert!(first["next"][0].as_str().unwrap().contains(&culprit.pid().to_string()));
    // The ledger has all of it, with what others have.
    assert!(number(&row(&triage, "anonymous")["after_kb"]) >= 200.0 * 1_024.0);
    let of_culprit = |process: &&Value| process["pid"] == culprit.pid();
    let grown = triage["processes"].as_array().unwrap().iter().find(of_culprit).expect("it is listed");
    within(number(&grown["anon_grown_kb"]), 200.0 * 1_024.0, 0.1);
}

/// Bytes of the page cache, without tmpfs.
fn page_cache() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let kb = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (kb("Cached:") + kb("Buffers:") - kb("Shmem:")) * 1_024.0
}

fn row<'a>(triage: &'a Value, class: &str) -> &'a Value {
    triage["ledger"].as_array().unwrap().iter().find(|row| row["class"] == class).unwrap()
}

/// Leaked open files are named with their number and kind.
fn files_are_named(way: &str, amount: u64, kind: &str, files: f64, path: &Path) -> Value {
    require_root();
    let _turn = turn();
    let mut culprit = Culprit::new(CULPRIT, way, amount, path);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "fds", &culprit);
    assert_eq!(
        (&first["culprit"]["pid"], &first["culprit"]["file_kind"]),
        (&culprit.pid().into(), &kind.into())
    );
    within(number(&first["count_grown"]), files, 0.1);
    first.clone()
}

#[test]
fn leaked_sockets_are_named() {
    let first = files_are_named("sockets", 1_500, "socket", 3_000.0, Path::new(""));
    let text = first["text"].as_str().unwrap();
    assert!(text.contains("UNIX") && text.contains("sock_inode_cache"), "{text}");
}

#[test]
fn leaked_pipes_are_named() {
    let first = files_are_named("pipes", 1_500, "pipe", 3_000.0, Path::new(""));
    let text = first["text"].as_str().unwrap();
    assert!(text.contains("reaches its limit of") && text.contains("filp"), "{text}");
}

#[test]
fn leaked_deleted_files_are_named() {
    let directory = on_disk();
    let first = files_are_named("deleted", 1_000, "deleted file", 1_000.0, directory.path());
    // A page each.
    assert!(first["text"].as_str().unwrap().contains("still take 3.9 MiB"), "{first:#}");
}

/// A tmpfs of the test's own, with a name that would harm a terminal.
struct Tmpfs(PathBuf, #[expect(dead_code, reason = "it is removed when dropped")] tempfile::TempDir);

impl Tmpfs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(OsStr::from_bytes(b"x\x1b[31m \xff\ny"));
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&path).status().unwrap();
        assert!(mounted.success());
        Self(path, directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_filling_tmpfs_is_named() {
    require_root();
    let _turn = turn();
    let tmpfs = Tmpfs::new();
    let mut culprit = Culprit::new(CULPRIT, "file", 150 << 20, &tmpfs.0);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "tmpfs", &culprit);
    let path = first["culprit"]["path"].as_str().unwrap();
    assert!(path.contains("x\u{1b}[31m \u{fffd}\ny"), "{path:?}");
    within(number(&first["bytes_grown"]), 150.0 * MIB, 0.1);
}

#[test]
fn a_large_file_that_is_read_is_only_page_cache() {
    require_root();
    let _turn = turn();
    let directory = on_disk();
    let path = directory.path().join("large");
    let mut file = fs::File::create(&path).unwrap();
    for _ in 0..400 {
        file.write_all(&vec![1; 1 << 20]).unwrap();
    }
    drop(file);
    forget(&path);
    let mut culprit = Culprit::new(CULPRIT, "read", 400 << 20, &path);
    let before = page_cache();
    let triage = culprit.watched(&[]);
    let grown = page_cache() - before;
    let first = first(&triage, "page_cache", &culprit);
    // Some machines take back what is not used all the time: what is left is what the kernel says. Others may read and
    // write files between its word and triage's.
    assert!(grown > 250.0 * MIB, "{grown}");
    within(number(&first["bytes_grown"]), grown, 0.25);
    assert!(first["text"].as_str().unwrap().contains("normal"));
}

#[test]
fn a_growing_slab_cache_is_named() {
    require_root();
    let _turn = turn();
    // No process has these pipes open: they wait in a socket.
    let mut culprit = culprit("hidden", 4_000);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "slab", &culprit);
    let cache = first["culprit"]["cache"].as_str().unwrap();
    assert!(matches!(cache, "kmalloc-cg-4k" | "kmalloc-4k"), "{first:#}");
    // Each has an array of 64 buffers in an object of 4 KiB.
    within(number(&first["bytes_grown"]), 4_000.0 * 4_096.0, 0.1);
    assert!(first["next"][0].as_str().unwrap().contains("--cache"));
}

#[test]
fn sparse_mappings_are_page_tables() {
    require_root();
    let _turn = turn();
    let mut culprit = culprit("pagetables", 10_000);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "page_tables", &culprit);
    assert_eq!(first["culprit"]["pid"], culprit.pid());
    within(number(&first["bytes_grown"]), 10_000.0 * 4_096.0, 0.1);
}

#[test]
fn leaked_threads_are_named() {
    require_root();
    let _turn = turn();
    let mut culprit = culprit("threads", 500);
    let triage = culprit.watched(&[]);
    let first = first(&triage, "threads", &culprit);
    assert_eq!(first["culprit"]["pid"], culprit.pid());
    within(number(&first["count_grown"]), 500.0, 0.1);
}

/// A trace that is started beside a leak takes more than that: its tables, and its own memory. That is not what is looked for.
#[test]
fn a_trace_beside_a_leak_is_not_blamed() {
    require_root();
    let _turn = turn();
    let mut culprit = culprit("on", 256 << 10);
    let triage = Command::new(leaktrace())
        .args(["triage", "--duration", "10", "--format", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until_it_waits(triage.id()).unwrap();
    culprit.go();
    let directory = on_disk();
    let mut trace = Command::new(leaktrace())
        .args(["record", "--quiet", "--interval", "200ms", "--output"])
        .arg(directory.path().join("recording"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let output = triage.wait_with_output().unwrap();
    let still_runs = trace.try_wait().unwrap().is_none();
    let pid = trace.id();
    let _ = trace.kill().and_then(|()| trace.wait());
    assert!(output.status.success() && still_runs, "{output:?}");
    let triage: Value = serde_json::from_slice(&output.stdout).unwrap();
    let first = first(&triage, "process_memory", &culprit);
    assert_eq!((&first["culprit"]["pid"], &first["steady"]), (&culprit.pid().into(), &true.into()));
    let found = triage["diagnosis"].as_array().unwrap();
    let callers = found.iter().filter_map(|diagnosis| diagnosis["culprit"]["caller"].as_str());
    assert!(!callers.into_iter().any(|caller| caller.ends_with("_map_alloc")), "{found:#?}");
    // It is told as what it is, after all else, with what it has. Others may run, too.
    let is_leaktrace = |diagnosis: &&Value| diagnosis["kind"] == "leaktrace";
    let last = found.last().unwrap();
    assert!(is_leaktrace(&last) && found.iter().filter(is_leaktrace).count() == 1, "{found:#?}");
    assert!(number(&last["bytes"]) > 5.0 * MIB, "{last:#}");
    let text = last["text"].as_str().unwrap();
    assert!(text.contains(&pid.to_string()), "{text}");
    assert!(text.contains("in BPF maps") && text.contains("bookkeeping, and ends with"), "{text}");
}

#[test]
fn one_process_is_shown_in_depth() {
    require_root();
    let _turn = turn();
    let mut culprit = culprit("heap", 100 << 20);
    let pid = culprit.pid().to_string();
    let depth = culprit.watched(&["--pid", &pid]);
    assert_eq!(
        (&depth["schema"], &depth["process"]["pid"]),
        (&"leaktrace.triage.process/1".into(), &culprit.pid().into())
    );
    within(number(&depth["segments"][0]["grown_kb"]), 100.0 * 1_024.0, 0.1);
    assert_eq!(depth["diagnosis"][0]["kind"], "process_memory");
    assert!(
        depth["files"].as_array().unwrap().iter().any(|files| files["kind"] == "pipe"),
        "{:#}",
        depth["files"]
    );
    assert!(number(&depth["limits"]["max_fds"]) > 0.0 && number(&depth["limits"]["max_maps"]) > 0.0);
    let text = run(["triage", "--duration", "0", "--pid", &pid]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("native code") && text.contains("anonymous") && text.contains("mappings"),
        "{text}"
    );
}

#[test]
fn all_memory_is_in_the_ledger() {
    let output = run(["triage", "--duration", "0", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    let triage: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(triage["schema"], "leaktrace.triage/1");
    let total = number(&triage["memory"]["total_kb"]);
    let sum: f64 = triage["ledger"].as_array().unwrap().iter().map(|row| number(&row["after_kb"])).sum();
    assert!((sum - total).abs() < 0.5, "{sum} of {total}");
    let left = number(&row(&triage, "unaccounted")["after_kb"]);
    assert!(left.abs() < total * 0.03, "{left} of {total}");
    assert!(!triage["diagnosis"].as_array().unwrap().is_empty());
}

/// A copy of leaktrace that anybody may run.
fn for_everybody() -> (PathBuf, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("leaktrace");
    fs::copy(leaktrace(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    (copy, directory)
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    require_root();
    let _turn = turn();
    let (copy, _directory) = for_everybody();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]);
        command.arg(&copy).arg("triage").args(args).output().unwrap()
    };
    let output = as_nobody(&["--duration", "1", "--format", "json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let triage: Value = serde_json::from_slice(&output.stdout).unwrap();
    let missing: Vec<_> =
        triage["unreadable"].as_array().unwrap().iter().map(|item| item["what"].as_str().unwrap()).collect();
    assert!(missing.contains(&"/proc/slabinfo") && missing.contains(&"/proc/vmallocinfo"), "{missing:?}");
    assert!(number(&triage["process_count"]) > 3.0 && triage["caches"].as_array().unwrap().is_empty());
    let left = number(&row(&triage, "unaccounted")["after_kb"]);
    assert!(left.abs() < number(&triage["memory"]["total_kb"]) * 0.03);
    let text = String::from_utf8(as_nobody(&["--duration", "0"]).stdout).unwrap();
    assert!(text.contains("Not readable") && text.contains("/proc/slabinfo: it is for root"), "{text}");
    // Process 1 is root's.
    let other = as_nobody(&["--duration", "0", "--pid", "1"]);
    assert!(other.status.success(), "{other:?}");
    assert!(String::from_utf8(other.stdout).unwrap().contains("Not readable: /proc/1/smaps"));
}

/// CPU seconds that it takes to read, in the plainest way, what a look reads of all the processes there are.
fn reading_all_of_them() -> f64 {
    let read = || {
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name.as_bytes()[0].is_ascii_digit()) {
                // One may have ended.
                let _ = (fs::read(path.join("status")), fs::metadata(path.join("fd")));
            }
        }
    };
    cpu::least(3, read).as_secs_f64()
}

#[test]
fn ten_thousand_processes_are_no_burden() {
    require_root();
    let _turn = turn();
    let mut crowd = culprit("crowd", 10_000);
    crowd.go();
    let output = run(["triage", "--duration", "0", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    let triage: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (peak_kb, cpu_s) = (number(&triage["cost"]["peak_rss_kb"]), number(&triage["cost"]["cpu_s"]));
    let plain_s = reading_all_of_them();
    println!("10,000 processes: {cpu_s} s of CPU, {plain_s} s to read of them, {peak_kb} kB");
    assert!(number(&triage["process_count"]) > 10_000.0);
    let names = triage["process_names"].as_array().unwrap();
    assert!(names.iter().any(|name| name["comm"] == "culprit" && number(&name["processes"]) > 10_000.0));
    assert!(cpu_s < plain_s * 4.0, "{cpu_s} s of CPU, and {plain_s} s to read of them");
    assert!(peak_kb < 100.0 * 1_024.0, "{peak_kb} kB");
}

#[test]
fn ten_thousand_processes_more_are_told_as_such() {
    require_root();
    let _turn = turn();
    // Several looks at all of them are kept.
    let mut crowd = culprit("crowd", 10_000);
    let triage = crowd.watched(&[]);
    let first = first(&triage, "processes", &crowd);
    assert_eq!(first["culprit"]["comm"], "culprit");
    within(number(&first["count_grown"]), 10_000.0, 0.1);
    let (peak_kb, cpu_s) = (number(&triage["cost"]["peak_rss_kb"]), number(&triage["cost"]["cpu_s"]));
    let plain_s = reading_all_of_them();
    // All but the first have these.
    let looks = number(&triage["window"]["looks"]) - 1.0;
    println!("{looks} looks: {cpu_s} s of CPU, {plain_s} s to read of all, {peak_kb} kB");
    assert!(peak_kb < 100.0 * 1_024.0, "{peak_kb} kB");
    assert!(cpu_s < plain_s * looks * 4.0, "{cpu_s} s of CPU in {looks} looks, and {plain_s} s for one");
}

/// A control group with a name that would harm a terminal, where groups can be made.
struct Group(Option<PathBuf>);

impl Group {
    fn new() -> Self {
        let tops = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
        let top = tops.into_iter().find(|top| Path::new(top).join("cgroup.procs").exists());
        let path = top.map(|top| Path::new(top).join(OsStr::from_bytes(b"evil\x1b]0;x\x07\xff")));
        Self(path.filter(|path| fs::create_dir(path).is_ok()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn names_do_no_harm() {
    require_root();
    let _turn = turn();
    let group = Group::new();
    let tmpfs = Tmpfs::new();
    fs::write(tmpfs.0.join("file"), vec![1; 8 << 20]).unwrap();
    let name = OsStr::from_bytes(b"\x1b[31m\xff\n\"'\\");
    let mut culprit = Culprit::new(CULPRIT, "named", 0, name);
    culprit.go();
    let text = run(["triage", "--duration", "0", "--verbose"]);
    assert!(text.status.success(), "{text:?}");
    let text = String::from_utf8(text.stdout).expect("it is UTF-8");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.contains("\\x1b[31m"), "{text}");
    let json = run(["triage", "--duration", "0", "--format", "json"]);
    assert!(!json.stdout.iter().any(|&byte| byte < b' ' && byte != b'\n'));
    let triage: Value = serde_json::from_slice(&json.stdout).expect("it is JSON");
    let mounts = triage["mounts"].as_array().unwrap();
    assert!(
        mounts.iter().any(|mount| mount["path"].as_str().unwrap().ends_with("x\u{1b}[31m \u{fffd}\ny")),
        "{mounts:#?}"
    );
    if group.0.is_some() {
        let groups = triage["cgroups"].as_array().unwrap();
        let evil = |group: &Value| group["path"].as_str().unwrap().contains("evil\u{1b}]0;x\u{7}\u{fffd}");
        assert!(groups.len() == 100 || groups.iter().any(evil), "{groups:#?}");
    }
}

#[test]
fn it_ends_early_with_its_answer() {
    let _turn = turn();
    let child = Command::new(leaktrace())
        .args(["triage", "--duration", "1h", "--format", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    // SAFETY: kill takes integers only; the process is our child and not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let triage: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(number(&triage["window"]["duration_s"]) < 60.0 && number(&triage["window"]["looks"]) >= 2.0);
}

#[test]
fn watching_shows_one_answer_after_the_other() {
    let _turn = turn();
    let mut said = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(leaktrace())
        .args(["triage", "--watch", "--duration", "2"])
        .stdin(Stdio::null())
        .stdout(said.reopen().unwrap())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let begun = std::time::Instant::now();
    let answers = |text: &str| text.matches("Where memory is").count();
    while answers(&text) < 3 && begun.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        said.read_to_string(&mut text).unwrap();
    }
    // SAFETY: as above.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert!(child.wait().unwrap().success());
    said.read_to_string(&mut text).unwrap();
    assert!((3..=5).contains(&answers(&text)), "{text}");
    // The first tells how it is, the others what has become of that.
    assert!(text.contains("one look on") && text.contains("2 looks in"), "{text}");
    // No terminal, no control sequences.
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn a_terminal_is_given_back() {
    let _turn = turn();
    let command = format!("timeout --signal INT 2.5 {} triage --watch --duration 2", leaktrace().display());
    let output =
        Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (enter, leave) = (text.find("\u{1b}[?1049h"), text.rfind("\u{1b}[?1049l"));
    assert!(enter.is_some() && enter < leave, "{text}");
    assert!(text.trim_end().ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{text}");
    // What is found comes first, and may leave no line for anything else.
    assert!(text.matches("are available (").count() >= 2 && text.contains("Ctrl-C ends"), "{text}");
}

#[test]
fn bad_requests_are_refused() {
    for (args, status, word) in [
        (&["--pid", "4194305"][..], 1, "there is no process 4194305"),
        (&["--pid", "x"], 2, "--help"),
        (&["--duration", "soon"], 2, "90s"),
        (&["--watch", "--format", "json"], 2, "--format"),
        (&["--top", "0"], 2, "1..=100"),
        (&["--output", "/no/such/place"], 1, "cannot write"),
    ] {
        refused(&run(["triage"].iter().chain(args)), status, &[word]);
    }
}
