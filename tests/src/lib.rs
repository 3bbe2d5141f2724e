//! What the tests of the whole tool share: running it, and kernel objects whose number is known.

pub mod browser;
pub mod cpu;
pub mod culprit;
pub mod driver;
pub mod tables;

use std::{
    ffi::{CStr, OsStr},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long anything may take that a test waits for, on the slowest of machines.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Tests that trace take turns: each counts what the kernel does.
static TURN: Mutex<()> = Mutex::new(());

/// A turn; it ends when this is dropped.
pub struct Turn {
    machine: File,
    _process: MutexGuard<'static, ()>,
}

/// Waits for a turn: in this process, and among all on this machine, because they have one kernel.
pub fn turn() -> Turn {
    let process = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // What is there on every machine.
    let machine = File::open("/").expect("there is a root directory");
    machine.lock().expect("it can be locked");
    Turn { machine, _process: process }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Not only closed: processes that were forked meanwhile have it open, too.
        let _ = self.machine.unlock();
    }
}

/// The binary under test: what `cargo xtask test` built, or the development build.
pub fn leaktrace() -> PathBuf {
    std::env::var_os("LEAKTRACE_BIN").map_or_else(
        || {
            // target/<profile>/deps/<test> -> target/<profile>/leaktrace
            let test = std::env::current_exe().expect("there is one");
            test.ancestors().nth(2).expect("it lies in target").join("leaktrace")
        },
        PathBuf::from,
    )
}

/// Runs leaktrace to its end.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(leaktrace()).args(args).stdin(Stdio::null()).output().expect("leaktrace can be run")
}

/// Fails unless the run was refused with one line that has these words.
pub fn refused(output: &Output, status: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("leaktrace: "), "{stderr}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr:?}");
    }
}

/// Waits until a process waits for events or for a time to come: until a run has started, and looked for the first time.
///
/// # Errors
/// When there is no such process, or it never waits.
pub fn until_it_waits(pid: u32) -> anyhow::Result<()> {
    // Number of epoll_wait and epoll_pwait (`syscall(2)`), which stands first where a process sleeps in one.
    let numbers: &[&str] = if cfg!(target_arch = "x86_64") { &["232", "281"] } else { &["22"] };
    let begun = Instant::now();
    loop {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
        if call.split(' ').next().is_some_and(|number| numbers.contains(&number)) {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "process {pid} does not wait for anything: {call}");
        sleep(Duration::from_millis(10));
    }
}

/// Waits until something is so, or `what` fails to come.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
}

/// Waits until a recorder has looked at its tables so often: with each tick it reads of the kernel, and between them nothing.
pub fn until_it_ticks(pid: u32, times: u32) {
    let reads = || -> Option<u64> {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("syscr: ")?.parse().ok())
    };
    for _ in 0..times {
        until_it_waits(pid).expect("it runs");
        let before = reads().expect("the kernel counts reads");
        until("the next tick", || reads().expect("the kernel counts reads") > before);
    }
}

/// How a trace ended.
#[derive(Debug)]
pub struct Ended {
    /// Standard output.
    pub out: String,
    /// Standard error since the banner.
    pub said: String,
    /// Exit status.
    pub status: ExitStatus,
}

/// A trace that is going on.
pub struct Trace {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Trace {
    /// Starts a trace with a JSON report, and waits until all hooks are attached.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(leaktrace());
        command.args(["--format", "json"]).args(args);
        Self::spawn(&mut command)
    }

    /// Starts a command that ends in leaktrace, and waits for its banner.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("leaktrace can be run");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.starts_with("Tracing ")) {
            let more = stderr.read_line(&mut said).expect("readable");
            assert!(more > 0, "leaktrace ended before tracing: {said}");
        }
        Self { child, stderr }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes integers only; the process is our child and not waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Closes the pipe that the report would be read from.
    pub fn stop_reading(&mut self) {
        drop(self.child.stdout.take());
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Ended {
        let mut out = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).expect("readable");
        }
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("readable");
        let status = self.child.wait().expect("it can be waited for");
        Ended { out, said, status }
    }

    /// Waits for the report.
    pub fn report(self) -> Value {
        let ended = self.wait();
        assert!(ended.status.success(), "{ended:?}");
        serde_json::from_str(&ended.out).expect("the report is JSON")
    }

    /// Ends the trace early, and waits for the report.
    pub fn stop(self) -> Value {
        self.signal(libc::SIGTERM);
        self.report()
    }
}

impl Drop for Trace {
    /// A test that failed must not leave the next ones a second tracer.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Allows this process as many open files as `count` pipes take.
pub fn allow_pipes(count: u64) {
    let needed = count * 2 + 256;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    limit.rlim_cur = limit.rlim_cur.max(needed);
    limit.rlim_max = limit.rlim_max.max(needed);
    // SAFETY: as above.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0, "cannot allow {needed} open files");
}

/// Pipes: each takes a `pipe_inode_info` and an array of buffers in `alloc_pipe_info`.
pub fn pipes(count: u64) -> Vec<(OwnedFd, OwnedFd)> {
    (0..count)
        .map(|_| {
            let (reader, writer) = std::io::pipe().expect("a pipe can be made");
            (reader.into(), writer.into())
        })
        .collect()
}

/// A process that holds pipes open: the limit of open files is each process's own.
pub struct Holder(libc::pid_t);

impl Holder {
    /// Makes so many pipes in a process of its own.
    pub fn spawn(pipes: u64) -> Self {
        Self::named(c"pipe-holder", pipes)
    }

    /// Makes so many pipes in a process of this name.
    pub fn named(name: &CStr, pipes: u64) -> Self {
        let (mut ready, done) = std::io::pipe().expect("a pipe can be made");
        // SAFETY: the child only makes system calls, which is what a fork of threads may do.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "cannot fork");
        if child == 0 {
            hold(name, pipes, done.as_raw_fd());
        }
        drop(done);
        let mut made = [0];
        ready.read_exact(&mut made).expect("the child makes its pipes");
        Self(child)
    }
}

/// What the child does, until it is killed.
fn hold(name: &CStr, pipes: u64, done: i32) -> ! {
    // SAFETY: plain system calls on valid pointers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        for _ in 0..pipes {
            let mut ends = [0; 2];
            if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
                libc::_exit(1);
            }
        }
        libc::write(done, [1_u8].as_ptr().cast(), 1);
        loop {
            libc::pause();
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: integers and a null pointer; the child is ours and not waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// The findings whose call site lies in a function.
pub fn findings<'a>(report: &'a Value, symbol: &str) -> Vec<&'a Value> {
    report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .filter(|finding| finding["call_site"]["symbol"] == symbol)
        .collect()
}

/// The only finding whose call site lies in a function and that is of a cache.
pub fn finding<'a>(report: &'a Value, symbol: &str, cache: &str) -> &'a Value {
    let found: Vec<_> =
        findings(report, symbol).into_iter().filter(|finding| finding["cache"] == cache).collect();
    assert_eq!(found.len(), 1, "findings of {symbol} and {cache}: {found:#?}");
    found[0]
}

/// The findings of pipes: a pipe takes two objects. Other processes' may be more, because an array of buffers is small
/// where a user without privileges has many pipes (`pipe(7)`).
pub fn pipe_findings(report: &Value) -> [&Value; 2] {
    ["kmalloc-cg-192", "kmalloc-cg-1k"].map(|cache| finding(report, "alloc_pipe_info", cache))
}

/// A number in a report.
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Whether this process may trace; without that, the tests of the tool fail and say so.
pub fn require_root() {
    // SAFETY: geteuid cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "these tests trace the kernel: run them by `cargo xtask test`");
}

/// The report's entry of a slab cache.
pub fn cache<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["caches"]
        .as_array()
        .expect("caches")
        .iter()
        .find(|cache| cache["name"] == name)
        .unwrap_or_else(|| panic!("the report has no cache {name}"))
}

/// All caches that some blind spot names.
pub fn blind_caches(report: &Value) -> Vec<String> {
    let spots = report["coverage"]["blind_spots"].as_array().expect("blind spots");
    let caches = spots.iter().flat_map(|spot| spot["caches"].as_array().expect("caches"));
    caches.map(|cache| cache.as_str().expect("a name").to_owned()).collect()
}

/// Fails unless a number is what it should be, give or take a part of that.
pub fn within(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= expected * tolerance, "{found} instead of {expected}");
}
