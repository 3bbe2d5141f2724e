//! The program that takes memory in one way, and triage watching meanwhile.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;

use crate::leaktrace;

/// A culprit, which lives until it is dropped.
pub struct Culprit {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Culprit {
    /// Starts the program `binary` in a way, with how much it will take, and where.
    pub fn new(binary: &str, way: &str, amount: u64, path: impl AsRef<OsStr>) -> Self {
        let mut child = Command::new(binary)
            .args([way, &amount.to_string()])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the culprit can be run");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut culprit = Self { child, said };
        culprit.hear("ready");
        culprit
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("readable");
        assert_eq!(line.trim(), word, "the culprit failed");
    }

    /// Lets it take what it was told, and waits until it has.
    pub fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"go\n").expect("it can be told");
        self.hear("done");
    }

    /// Has triage watch it.
    pub fn watched(&mut self, args: &[&str]) -> Value {
        let child = Command::new(leaktrace())
            .args(["triage", "--duration", "3", "--format", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("leaktrace can be run");
        // The first look has to be over.
        sleep(Duration::from_millis(400));
        self.go();
        let output = child.wait_with_output().expect("it can be waited for");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("the answer is JSON")
    }
}

impl Drop for Culprit {
    fn drop(&mut self) {
        // It ends when its input does; killed, it does so at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Drops a file's pages from the page cache.
pub fn forget(path: &Path) {
    use std::os::fd::AsRawFd as _;
    let file = std::fs::File::open(path).expect("it is there");
    file.sync_all().expect("it can be written back");
    // SAFETY: an open descriptor and integers.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
}
