//! Where leaktrace cannot work it says so in one line, and does nothing.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Output, Stdio},
};

use leaktrace_tests::{leaktrace, refused, require_root, turn};

/// Runs leaktrace by way of another program that changes what it finds.
fn by_way_of(program: &[&str], args: &[&str]) -> Output {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(leaktrace()).args(args);
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot run {}: {error}", program[0]))
}

/// Runs leaktrace where some files of the kernel are others, in a mount namespace of its own.
fn with_mounts(script: &str, args: &[&str]) -> Output {
    by_way_of(&["unshare", "--mount", "sh", "-c", &format!("{script} && exec \"$0\" \"$@\"")], args)
}

#[test]
fn missing_privilege_is_named() {
    require_root();
    let all = by_way_of(&["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"], &[]);
    refused(&all, 1, &["CAP_BPF and CAP_PERFMON are missing", "sudo"]);
    let bpf = by_way_of(&["setpriv", "--bounding-set", "-sys_admin,-bpf"], &[]);
    refused(&bpf, 1, &["CAP_BPF is missing", "sudo"]);
    let perfmon = by_way_of(&["setpriv", "--bounding-set", "-sys_admin,-perfmon"], &[]);
    refused(&perfmon, 1, &["CAP_PERFMON is missing", "sudo"]);
}

#[test]
fn old_kernels_are_refused_with_the_floor() {
    refused(&by_way_of(&["setarch", "--uname-2.6"], &[]), 1, &["kernel 2.6.", "too old", "5.15"]);
}

#[test]
fn missing_and_broken_btf_are_told() {
    require_root();
    let none = with_mounts("mount -t tmpfs none /sys/kernel/btf", &[]);
    refused(&none, 1, &["no BTF", "/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
    let broken = with_mounts("mount --bind /proc/version /sys/kernel/btf/vmlinux", &[]);
    refused(&broken, 1, &["/sys/kernel/btf/vmlinux is no valid BTF"]);
}

#[test]
fn lockdown_is_told() {
    require_root();
    let script = "mount -t tmpfs none /sys/kernel/security && \
                  echo 'none integrity [confidentiality]' > /sys/kernel/security/lockdown";
    refused(&with_mounts(script, &[]), 1, &["locked down (confidentiality)"]);
}

#[test]
fn without_slabinfo_it_goes_on() {
    require_root();
    let _turn = turn();
    let args = ["--duration", "1", "--format", "json"];
    let output = with_mounts("mount --bind /proc/version /proc/slabinfo", &args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("note: ") && stderr.contains("slabinfo"), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let spots = report["coverage"]["blind_spots"].as_array().unwrap();
    assert!(spots.iter().any(|spot| spot["path"] == "/proc/slabinfo"), "{spots:#?}");
    assert!(report["caches"].as_array().unwrap().iter().all(|cache| cache["agreement"] == "unchecked"));
}

#[test]
fn without_symbols_it_goes_on_with_addresses() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let symbols = directory.path().join("kallsyms");
    fs::write(&symbols, "0000000000000000 T _text\n0000000000000000 T kfree\n").unwrap();
    let script = format!("mount --bind {} /proc/kallsyms", symbols.display());
    let output = with_mounts(&script, &["--duration", "1"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("kptr_restrict"), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("0xffffffff"));
}

/// `SECCOMP_RET_ERRNO`, `SECCOMP_RET_ALLOW` and the offsets of `struct seccomp_data`
/// (`include/uapi/linux/seccomp.h`).
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const OFFSET_NR: u32 = 0;
const OFFSET_FIRST_ARGUMENT: u32 = 16;

/// Runs leaktrace where one command of `bpf()` fails, as it does where a security module forbids it.
fn without_bpf_command(bpf_command: u32, errno: i32) -> Output {
    let load = |offset| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let jump_unless = |k, jf| libc::sock_filter { code: 0x15, jt: 0, jf, k };
    let give = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let mut filter = [
        load(OFFSET_NR),
        jump_unless(libc::SYS_bpf as u32, 3),
        load(OFFSET_FIRST_ARGUMENT),
        jump_unless(bpf_command, 1),
        give(RET_ERRNO | errno as u32),
        give(RET_ALLOW),
    ];
    let mut command = Command::new(leaktrace());
    command.stdin(Stdio::null());
    let forbid = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: between fork and exec only system calls are made, on valid pointers.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: as said in the closure.
    unsafe { command.pre_exec(forbid) };
    command.output().expect("leaktrace can be run")
}

/// Commands of `bpf()` (`include/uapi/linux/bpf.h`).
const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const RAW_TRACEPOINT_OPEN: u32 = 17;

#[test]
fn what_a_security_module_forbids_is_named() {
    require_root();
    refused(&without_bpf_command(MAP_CREATE, libc::EPERM), 1, &["BPF map", "EPERM", "security module"]);
    refused(
        &without_bpf_command(PROG_LOAD, libc::EPERM),
        1,
        &["load", "the hook kmalloc", "EPERM", "security module"],
    );
    let attach = without_bpf_command(RAW_TRACEPOINT_OPEN, libc::EPERM);
    refused(&attach, 1, &["attach the hook kfree", "EPERM", "security module"]);
}

#[test]
fn refused_table_memory_is_told() {
    require_root();
    refused(&without_bpf_command(MAP_CREATE, libc::ENOMEM), 1, &["refused", "MiB", "--max-objects"]);
    let huge = leaktrace_tests::run(["--max-objects", "2000000000"]);
    refused(&huge, 1, &["2,000,000,000 objects", "half", "smaller --max-objects"]);
}

#[test]
fn bad_values_are_usage_errors() {
    for (args, word) in [
        (&["--duration", "0"][..], "100ms"),
        (&["--duration", "soon"], "90s"),
        (&["--duration=-5"], "366d"),
        (&["--interval", "1ms"], "100ms"),
        (&["--top", "0"], "1..=10000"),
        (&["--cache", "kmalloc-[a"], "--cache"),
        (&["--min-size", "many"], "4k"),
        (&["--min-size", "2k", "--max-size", "1k"], "smaller than --min-size"),
        (&["--max-size", "5G"], "4 GiB"),
        (&["--min-age", "x"], "90s"),
        (&["--stack-depth", "200"], "0..=56"),
        (&["--overhead", "101"], "0 to 100"),
        (&["--max-objects", "3"], "16..=2000000000"),
        (&["--format", "xml"], "json"),
        (&["--verbose", "--quiet"], "--quiet"),
        (&["--no-such-option"], "--no-such-option"),
        (&["no-such-command"], "no-such-command"),
        (&["check", "--format", "xml"], "json"),
        (&["compare", "report.json"], "--kmemleak"),
    ] {
        refused(&leaktrace_tests::run(args), 2, &[word, "--help"]);
    }
}

#[test]
fn unwritable_output_is_found_before_tracing() {
    require_root();
    for (path, word) in [
        ("/no/such/directory/report.json", "No such file or directory"),
        ("/tmp", "is a directory"),
        ("/proc/report.json", "/proc/report.json"),
    ] {
        // One line only: a trace would have told its begin, too.
        refused(&leaktrace_tests::run(["--output", path]), 1, &["cannot write", word]);
    }
}

#[test]
fn useless_debug_files_are_refused() {
    require_root();
    refused(&leaktrace_tests::run(["--vmlinux", "/no/such/vmlinux"]), 1, &["/no/such/vmlinux"]);
    refused(&leaktrace_tests::run(["--vmlinux", "/proc/version"]), 1, &["/proc/version"]);
}

#[test]
fn what_is_no_list_of_kmemleaks_is_refused() {
    require_root();
    let _turn = turn();
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_str().unwrap();
    let traced = leaktrace_tests::run([
        "--duration",
        "1",
        "--quiet",
        "--kmemleak",
        "--format",
        "json",
        "--output",
        path,
    ]);
    assert!(traced.status.success(), "{traced:?}");
    let saved: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    if !std::path::Path::new("/sys/kernel/debug/kmemleak").exists() {
        assert!(
            saved["kmemleak"]["error"].as_str().is_some_and(|error| !error.is_empty()),
            "{}",
            saved["kmemleak"]
        );
    }
    let compare = |list: &str, report: &str| leaktrace_tests::run(["compare", "--kmemleak", list, report]);
    refused(&compare("/no/such/list", path), 1, &["cannot read /no/such/list"]);
    refused(&compare("/proc/version", path), 1, &["/proc/version is no list of kmemleak's"]);
    refused(&compare("/proc/version", "/proc/version"), 1, &["/proc/version is no report"]);
    // Nothing listed is an answer.
    let empty = compare("/dev/null", path);
    assert!(empty.status.success(), "{empty:?}");
    assert!(String::from_utf8_lossy(&empty.stdout).contains("kmemleak lists 0 unreferenced objects"));
}

#[test]
fn check_says_why_tracing_cannot_work() {
    let output = by_way_of(&["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"], &["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("CAP_BPF"), "{output:?}");
    let output = by_way_of(&["setarch", "--uname-2.6"], &["check", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["usable"], false);
    assert!(answer["reason"].as_str().unwrap().contains("too old"), "{answer:#}");
}

/// Where memory cannot be read, a trace goes on without, and `prove` is refused.
#[test]
fn without_kcore_nothing_is_proven() {
    require_root();
    let _turn = turn();
    let traced = with_mounts(
        "test ! -e /proc/kcore || mount --bind /dev/null /proc/kcore",
        // Of a busy machine something else may be suspected.
        &["--duration", "1s", "--prove", "--format", "json", "--cache", "no-such-cache"],
    );
    let stderr = String::from_utf8_lossy(&traced.stderr);
    assert!(traced.status.success(), "{stderr}");
    assert!(stderr.contains("nothing can be proven: memory cannot be looked at: "), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&traced.stdout).expect("it is JSON");
    let error = report["reachability"]["error"].as_str().expect("it is told");
    assert!(error.contains("/proc/kcore"), "{error}");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("report.json");
    fs::write(&path, &traced.stdout).expect("a file");
    let path = path.to_str().expect("a plain name");
    refused(&leaktrace_tests::run(["prove", path]), 1, &["lists no objects of a leak or a suspect"]);
    refused(&leaktrace_tests::run(["prove", "/nonexistent"]), 1, &["cannot read the report"]);
    refused(&leaktrace_tests::run(["--prove-limit", "5m"]), 2, &["--prove"]);
    refused(
        &leaktrace_tests::run(["prove", "--prove-limit", "5x", path]),
        2,
        &["a size like 64GiB or a time like 60s"],
    );
}
