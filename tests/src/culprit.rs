//! The program that takes memory in one way, and triage watching meanwhile.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
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
            .process_group(0)
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
            .args(["triage", "--duration", "10", "--format", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("leaktrace can be run");
        // The first look has to be over.
        crate::until_it_waits(child.id()).expect("triage waits between its looks");
        self.go();
        // However long that took: the last look comes when it is told to end.
        sleep(Duration::from_millis(300));
        // SAFETY: kill takes integers only; the process is our child and not waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
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
        // Thousands of its children die with it, but take seconds for it: the next test shall not have them beside it.
        let begun = Instant::now();
        // SAFETY: kill takes integers only; the group is of our child, and signal 0 does nothing to it.
        while unsafe { libc::kill(-(self.child.id() as i32), 0) } == 0 && begun.elapsed().as_secs() < 60 {
            sleep(Duration::from_millis(50));
        }
    }
}

/// Drops a file's pages from the page cache: those that are on their way to the disk a little later.
pub fn forget(path: &Path) {
    use std::os::fd::AsRawFd as _;
    let file = std::fs::File::open(path).expect("it is there");
    for _ in 0..50 {
        file.sync_all().expect("it can be written back");
        // SAFETY: an open descriptor and integers.
        let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(result, 0);
        if resident(&file) == 0 {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    panic!("{} pages stay in the page cache", resident(&file));
}

/// Pages of a file that are in the page cache.
fn resident(file: &std::fs::File) -> usize {
    use std::os::fd::AsRawFd as _;
    let bytes = file.metadata().expect("it is there").len() as usize;
    let mut pages = vec![0_u8; bytes.div_ceil(4_096)];
    // SAFETY: a mapping of our own of an open file, which is only asked about and unmapped, and room for a byte a page.
    unsafe {
        let start =
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mincore(start, bytes, pages.as_mut_ptr()), 0);
        libc::munmap(start, bytes);
    }
    pages.iter().filter(|&&page| page & 1 != 0).count()
}
