//! /proc/PID/status of every process, cheap enough for ten thousand of them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Bytes of a status that are read: what is needed comes first.
const LIMIT: usize = 4_096;
/// Characters of a name: the kernel has 15, of kernel threads up to 63.
const NAME: usize = 64;

/// What /proc/PID/status says of a process (`fs/proc/array.c`, `fs/proc/task_mmu.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its name. What is no UTF-8 is replaced, and what the kernel has escaped stays so.
    pub comm: String,
    /// Real user id.
    pub uid: u32,
    /// Parent.
    pub ppid: u32,
    /// `R`, `S`, `D`, `Z` ...
    pub state: char,
    /// Threads.
    pub threads: u64,
    /// Whether it has memory of its own: kernel threads and zombies have none.
    pub has_memory: bool,
    /// Size of its address space in kB.
    pub vsz_kb: u64,
    /// Resident anonymous memory in kB.
    pub anon_kb: u64,
    /// Resident pages of files in kB.
    pub file_kb: u64,
    /// Resident shared memory in kB.
    pub shmem_kb: u64,
    /// Swapped out, in kB.
    pub swap_kb: u64,
    /// Page tables in kB.
    pub page_tables_kb: u64,
    /// Huge pages of hugetlbfs in kB.
    pub hugetlb_kb: u64,
}

impl Status {
    /// Resident memory in kB.
    pub fn rss_kb(&self) -> u64 {
        self.anon_kb + self.file_kb + self.shmem_kb
    }

    /// Takes the file's text; `None` for a text without a name.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut status = Self::default();
        let mut named = false;
        for line in bytes.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let value = line[colon + 1..].trim_ascii();
            let number = || leading_number(value);
            match &line[..colon] {
                b"Name" => {
                    status.comm = String::from_utf8_lossy(value).chars().take(NAME).collect();
                    named = true;
                }
                b"State" => status.state = value.first().map_or('?', |&byte| char::from(byte)),
                b"PPid" => status.ppid = number() as u32,
                b"Uid" => status.uid = number() as u32,
                b"Threads" => {
                    status.threads = number();
                    // What follows is not needed, and long.
                    break;
                }
                b"VmSize" => {
                    status.has_memory = true;
                    status.vsz_kb = number();
                }
                b"RssAnon" => status.anon_kb = number(),
                b"RssFile" => status.file_kb = number(),
                b"RssShmem" => status.shmem_kb = number(),
                b"VmSwap" => status.swap_kb = number(),
                b"VmPTE" => status.page_tables_kb = number(),
                b"HugetlbPages" => status.hugetlb_kb = number(),
                _ => {}
            }
        }
        named.then_some(status)
    }
}

/// The number that a text begins with; 0 for none.
fn leading_number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

/// A process as it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Process id.
    pub pid: u32,
    /// Its status.
    pub status: Status,
    /// Its open files; `None` where they may not be counted.
    pub fds: Option<u64>,
}

/// Reads all processes.
pub struct Reader {
    proc: PathBuf,
    /// Whether the kernel says how many files are open without listing them (6.2 and later).
    counts_fds: bool,
    buffer: Vec<u8>,
}

/// What one reading of all processes found.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    /// Those that were there, by process id.
    pub found: Vec<Found>,
    /// Of how many the open files may not be counted.
    pub hidden_fds: usize,
    /// How many status files may not be read.
    pub hidden: usize,
}

impl Reader {
    /// A reader of `proc` below `root`.
    pub fn new(root: &Path) -> Self {
        let proc = root.join("proc");
        let counts_fds = fs::metadata(proc.join("self/fd")).is_ok_and(|metadata| metadata.len() > 0);
        Self { proc, counts_fds, buffer: vec![0; LIMIT] }
    }

    /// Reads them. Processes that end meanwhile are left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read(&mut self) -> Result<Processes> {
        let mut processes = Processes::default();
        let entries =
            fs::read_dir(&self.proc).with_context(|| format!("cannot read {}", self.proc.display()))?;
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            match self.one(pid) {
                Ok(Some(found)) => {
                    processes.hidden_fds += usize::from(found.fds.is_none());
                    processes.found.push(found);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => processes.hidden += 1,
                // It has ended.
                Ok(None) | Err(_) => {}
            }
        }
        processes.found.sort_unstable_by_key(|found| found.pid);
        Ok(processes)
    }

    /// Reads one.
    ///
    /// # Errors
    /// As reading the file has.
    pub fn one(&mut self, pid: u32) -> io::Result<Option<Found>> {
        let directory = self.proc.join(pid.to_string());
        let mut file = File::open(directory.join("status"))?;
        let mut length = 0;
        while length < self.buffer.len() {
            match file.read(&mut self.buffer[length..])? {
                0 => break,
                read => length += read,
            }
        }
        let Some(status) = Status::parse(&self.buffer[..length]) else { return Ok(None) };
        let fds = self.count_fds(&directory.join("fd"));
        Ok(Some(Found { pid, status, fds }))
    }

    fn count_fds(&self, directory: &Path) -> Option<u64> {
        if self.counts_fds {
            return fs::metadata(directory).ok().map(|metadata| metadata.len());
        }
        Some(fs::read_dir(directory).ok()?.count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_is_read() {
        let text = b"Name:\tbad\\n\xff\x1b[31m\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t10\nPid:\t10\nPPid:\t1\nUid:\t1000\t0\t0\t0\nVmSize:\t    8884 kB\nRssAnon:\t     1200 kB\nRssFile:\t    3000 kB\nRssShmem:\t       4 kB\nVmPTE:\t      56 kB\nVmSwap:\t       7 kB\nHugetlbPages:\t       0 kB\nThreads:\t3\nRssAnon: 9 kB\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(status.comm, "bad\\n\u{fffd}\u{1b}[31m");
        assert_eq!((status.uid, status.ppid, status.state, status.threads), (1_000, 1, 'S', 3));
        assert_eq!((status.vsz_kb, status.rss_kb(), status.swap_kb), (8_884, 4_204, 7));
        assert_eq!((status.page_tables_kb, status.has_memory), (56, true));
        assert!(Status::parse(b"nothing").is_none());
    }

    #[test]
    fn this_process_is_found() {
        let processes = Reader::new(Path::new("/")).read().unwrap();
        let me = processes.found.iter().find(|found| found.pid == std::process::id()).unwrap();
        assert!(me.status.has_memory && me.status.rss_kb() > 100 && me.fds > Some(2), "{me:?}");
        let listed = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        assert!(me.fds.unwrap().abs_diff(listed) < 100, "{me:?} {listed}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Status::parse(&bytes);
            let named = [b"Name: x\nThreads:".as_slice(), &bytes].concat();
            prop_assert!(Status::parse(&named).is_some());
        }
    }
}
