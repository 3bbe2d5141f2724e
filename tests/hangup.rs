//! A terminal that goes away (a dropped ssh session, a killed tmux) ends what ran in it.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use leaktrace_tests::{cpu, leaktrace, require_root, run, turn, until, until_it_waits};
use serde_json::Value;

/// A command that has a terminal of its own.
struct Running {
    child: Child,
    /// The other side of the terminal.
    master: Option<File>,
    /// What was shown so far.
    shown: String,
}

/// How it ended.
struct Ended {
    status: ExitStatus,
    /// CPU time before the terminal went away, and after.
    before: Duration,
    after: Duration,
}

/// Both sides of a new terminal.
fn terminal() -> (File, OwnedFd) {
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: valid pointers, or null where nothing is wanted; the descriptors are new and nobody else's.
    unsafe {
        let name = std::ptr::null_mut();
        let result = libc::openpty(&raw mut master, &raw mut slave, name, std::ptr::null(), &raw const size);
        assert_eq!(result, 0, "a terminal can be made");
        // The command must not hold the side that is to be closed.
        libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(master, libc::F_SETFL, libc::O_NONBLOCK);
        (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

impl Running {
    /// Starts leaktrace in a terminal that it is the session of; `nohup` has hang-ups ignored.
    fn start(args: &[&str], nohup: bool) -> Self {
        let (master, slave) = terminal();
        let mut command = Command::new(leaktrace());
        command.args(args).env("TERM", "xterm");
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap());
        let terminal = slave.as_raw_fd();
        // SAFETY: system calls that may be made between fork and exec, with integers only.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                if libc::ioctl(terminal, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::signal(libc::SIGHUP, if nohup { libc::SIG_IGN } else { libc::SIG_DFL });
                Ok(())
            });
        }
        let child = command.stderr(slave).spawn().expect("leaktrace can be run");
        Self { child, master: Some(master), shown: String::new() }
    }

    /// Waits until some words were shown.
    fn shows(&mut self, words: &str) {
        until(words, || {
            let mut bytes = [0; 4_096];
            loop {
                match self.master.as_mut().unwrap().read(&mut bytes) {
                    Ok(count) => self.shown.push_str(&String::from_utf8_lossy(&bytes[..count])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error} before {words:?}: {}", self.shown),
                }
            }
            self.shown.contains(words)
        });
    }

    /// Takes the terminal away, and waits until the command has ended by itself.
    fn hang_up(mut self) -> Ended {
        let pid = self.child.id();
        let before = cpu::of_process(pid);
        drop(self.master.take());
        // Who has ended and was not waited for yet still has its CPU time.
        let ended = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it was not waited for");
            stat.rsplit_once(") ").unwrap().1.starts_with('Z')
        };
        until("the end after a hang-up", ended);
        let after = cpu::of_process(pid).saturating_sub(before);
        Ended { status: self.child.wait().unwrap(), before, after }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails unless a command ended in order.
fn in_order(what: &str, ended: &Ended, codes: &[i32]) {
    let status = ended.status;
    assert!(status.signal().is_none(), "{what}: {status}");
    assert!(codes.contains(&status.code().unwrap()), "{what}: {status}");
}

#[test]
fn what_shows_itself_on_a_terminal_ends_with_it() {
    require_root();
    let _turn = turn();
    for nohup in [false, true] {
        let mut top = Running::start(&["top"], nohup);
        top.shows(" Findings ");
        let ended = top.hang_up();
        // The terminal may be missed before the signal is seen.
        in_order("top", &ended, &[0, 1]);
        // There is nothing to work out at its end.
        let Ended { before, after, .. } = ended;
        assert!(after < before, "top took {after:?} after the hang-up, and {before:?} before");
        let mut watch = Running::start(&["triage", "--watch"], nohup);
        watch.shows("Ctrl-C ends)");
        in_order("triage --watch", &watch.hang_up(), &[0, 1]);
    }
}

#[test]
fn what_answers_or_reports_ends_with_its_terminal() {
    require_root();
    let _turn = turn();
    let mut serve = Running::start(&["serve", "--listen", "127.0.0.1:0"], false);
    serve.shows("Serving http://");
    in_order("serve", &serve.hang_up(), &[0]);
    // Their report is lost with the terminal, and that is a failure.
    let mut trace = Running::start(&["--duration", "1h"], false);
    trace.shows("Tracing ");
    in_order("a trace", &trace.hang_up(), &[1]);
    let triage = Running::start(&["triage", "--duration", "1h"], false);
    until_it_waits(triage.child.id()).unwrap();
    in_order("triage", &triage.hang_up(), &[1]);
}

#[test]
fn what_goes_to_a_file_is_there_after_a_hang_up() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let json = |path: &str| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };

    let report = path("report.json");
    let mut trace = Running::start(&["--duration", "1h", "--format", "json", "--output", &report], false);
    trace.shows("Tracing ");
    in_order("a trace", &trace.hang_up(), &[0]);
    assert_eq!(json(&report)["schema"], "leaktrace.report/1");

    let recording = path("recording");
    let mut record = Running::start(&["record", "--output", &recording], false);
    record.shows("Tracing ");
    in_order("record", &record.hang_up(), &[0]);
    let told = run(["report", "--format", "json", &recording]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));

    let triage_to = path("triage.json");
    let triage =
        Running::start(&["triage", "--duration", "1h", "--format", "json", "--output", &triage_to], false);
    until_it_waits(triage.child.id()).unwrap();
    in_order("triage", &triage.hang_up(), &[0]);
    assert_eq!(json(&triage_to)["schema"], "leaktrace.triage/1");
}

#[test]
fn who_ignores_hang_ups_goes_on() {
    require_root();
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let args = ["--duration", "3s", "--format", "json", "--output", report.to_str().unwrap()];
    let mut trace = Running::start(&args, true);
    trace.shows("Tracing ");
    assert_eq!(trace.hang_up().status.code(), Some(0));
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert!(report["window"]["duration_s"].as_f64().unwrap() >= 2.9, "{}", report["window"]);
}
