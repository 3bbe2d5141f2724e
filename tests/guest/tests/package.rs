//! The package in a clean Debian with systemd: installed, read about, started, watched over, and purged.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use leaktrace_tests::driver::{self, Mode};
use serde_json::Value;

/// What it needs.
pub const DEB: &str = "/guest/leaktrace.deb";
const UNIT: &str = "/usr/lib/systemd/system/leaktrace.service";
const DROP_IN: &str = "/run/systemd/system/leaktrace.service.d/test.conf";
const ADDRESS: &str = "127.0.0.1:9843";
const PATIENCE: Duration = Duration::from_mins(1);
/// What systemd may at most find wrong with the unit, of 10 (`systemd-analyze security`).
const EXPOSURE: f64 = 3.0;
/// What is written by the system itself, or by dpkg of every package.
const OTHERS: [&str; 9] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/log",
    "/var/lib/dpkg",
    "/var/cache/man",
    "/var/lib/systemd",
];

/// Goes through the life of the package.
pub fn test() -> Result<bool> {
    let before = files()?;
    say("dpkg", &["--install", DEB])?;
    let version = say("/usr/bin/leaktrace", &["--version"])?;
    ensure!(version.starts_with("leaktrace "), "{version}");
    println!("  installed: {}", version.trim());
    read_about()?;
    unit()?;
    works()?;
    is_watched_over()?;
    say("systemctl", &["stop", "leaktrace"])?;
    let state = property("Result")?;
    ensure!(state == "success", "stopped with {state}");
    fs::remove_dir_all(Path::new(DROP_IN).parent().context("it has one")?)?;
    say("dpkg", &["--purge", "leaktrace"])?;
    say("systemctl", &["daemon-reload"])?;
    let after = files()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left after purge: {left:?}");
    let gone: Vec<_> = before.difference(&after).collect();
    ensure!(gone.is_empty(), "gone after purge: {gone:?}");
    println!("  purged: nothing is left of {} files and directories", after.len());
    Ok(true)
}

/// Manual pages and completion.
fn read_about() -> Result<()> {
    for page in ["leaktrace", "leaktrace-serve", "leaktrace-triage"] {
        let text = say("man", &["--warnings", page])?;
        ensure!(text.contains("EXIT STATUS") && text.contains("SEE ALSO"), "{page}: {text}");
    }
    let complete = "source /usr/share/bash-completion/completions/leaktrace; complete -p leaktrace";
    let text = say("bash", &["-c", complete])?;
    ensure!(text.contains("_leaktrace"), "{text}");
    println!("  manual pages are shown, and bash completes");
    Ok(())
}

/// What systemd thinks of the unit; it is not started by being installed.
fn unit() -> Result<()> {
    let verified = Command::new("systemd-analyze").args(["verify", UNIT]).output()?;
    let about = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<_> = about.lines().filter(|line| line.contains("leaktrace")).collect();
    // The manual page is there, but systemd looks for it by a man that it finds in no PATH of ours.
    ensure!(verified.status.success() && ours.is_empty(), "systemd-analyze verify: {about}");
    let limit = format!("--threshold={}", (EXPOSURE * 10.0) as u32);
    let text = say("systemd-analyze", &["security", "--no-pager", &limit, "leaktrace.service"])?;
    println!("  {}", text.lines().last().unwrap_or_default().trim());
    for (property_of, wanted) in [("ActiveState", "inactive"), ("UnitFileState", "disabled")] {
        let is = property(property_of)?;
        ensure!(is == wanted, "{property_of} is {is} after installing");
    }
    Ok(())
}

/// Started, it traces without any right, and sees a driver's leak.
fn works() -> Result<()> {
    fs::create_dir_all(Path::new(DROP_IN).parent().context("it has one")?)?;
    fs::write(
        DROP_IN,
        "[Service]\nWatchdogSec=10s\nRestartSec=1\nEnvironment=\"LEAKTRACE_OPTIONS=--refresh 1s --min-age 1s\"\n",
    )?;
    say("systemctl", &["daemon-reload"])?;
    say("systemctl", &["start", "leaktrace"])?;
    ensure!(property("ActiveState")? == "active", "it is not active");
    let status = fs::read_to_string(format!("/proc/{}/status", property("MainPID")?))?;
    // It has not the right to shrink the bounding set, which means nothing to who may gain no privileges.
    for line in status.lines().filter(|line| line.starts_with("Cap") && !line.starts_with("CapBnd")) {
        ensure!(line.ends_with("\t0000000000000000"), "it kept capabilities: {line}");
    }
    ensure!(status.contains("NoNewPrivs:\t1"), "it may gain privileges");
    driver::load(0)?;
    let begun = Instant::now();
    let report = loop {
        for _ in 0..4 {
            driver::run("memdup", Mode::Leak, 10)?;
            sleep(Duration::from_millis(250));
        }
        let report: Value = serde_json::from_str(&get("/report.json")?).unwrap_or_default();
        let of_driver = |finding: &&Value| finding["module"] == "leakdrv" && finding["verdict"] == "leak";
        if report["findings"]
            .as_array()
            .is_some_and(|findings| findings.iter().any(|finding| of_driver(&finding)))
        {
            break report;
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "no leak was found: {}, {}",
            report["headline"]["text"],
            report["coverage"]["blind_spots"]
        );
    };
    println!(
        "  without capabilities, after {:.0} s: {}",
        begun.elapsed().as_secs_f64(),
        report["headline"]["text"]
    );
    let told = property("StatusText")?;
    ensure!(told.contains("leak"), "systemd was told {told}");
    ensure!(get("/healthz")?.trim() == "ok", "/healthz");
    Ok(())
}

/// A process that hangs is started anew.
fn is_watched_over() -> Result<()> {
    let first = property("MainPID")?;
    let id: i32 = first.parse().context("it has no process")?;
    // SAFETY: kill takes integers only.
    let result = unsafe { libc::kill(id, libc::SIGSTOP) };
    ensure!(result == 0, "cannot stop it: {}", std::io::Error::last_os_error());
    let begun = Instant::now();
    while property("MainPID")? == first || property("ActiveState")? != "active" {
        ensure!(
            begun.elapsed() < PATIENCE,
            "a process that hangs was not started anew: {}",
            property("SubState")?
        );
        sleep(Duration::from_millis(200));
    }
    println!("  hung, it was started anew after {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn property(name: &str) -> Result<String> {
    let text = say("systemctl", &["show", "--property", name, "--value", "leaktrace.service"])?;
    Ok(text.trim().to_owned())
}

/// Runs a program that has to succeed; returns what it prints.
fn say(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .env("MANPAGER", "cat")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let log = Command::new("journalctl")
            .args(["--no-pager", "--lines=30"])
            .output()
            .map(|output| output.stdout);
        bail!(
            "{program} {} failed: {text}{}\n{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&log.unwrap_or_default())
        );
    }
    Ok(text)
}

/// What is answered to a request.
fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(ADDRESS).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Everything that the system has, but for what it writes all the time.
fn files() -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut left = vec![PathBuf::from("/")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
            .flatten()
        {
            let path = entry.path();
            if OTHERS.iter().any(|other| path == Path::new(other)) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path.clone());
            }
            found.insert(path);
        }
    }
    Ok(found)
}
