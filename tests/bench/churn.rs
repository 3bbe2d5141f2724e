//! What a busy machine does to the slab allocator, a little at a time.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// Operations between two looks at the clock.
const BATCH: u32 = 64;

/// Parts of each measurement.
pub(crate) const SLICES: u32 = 10;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Churn {
    /// A byte through a socket pair: an skb and its head.
    Socket,
    /// Opening and closing a file in /proc: a file, and the state of a `seq_file`.
    Open,
    /// Making and closing a pipe: an inode, a dentry, two files, the pipe and its buffers.
    Pipe,
}

impl Churn {
    pub(crate) const ALL: [Self; 3] = [Self::Socket, Self::Open, Self::Pipe];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Socket => "socketpair write/read",
            Self::Open => "/proc file open/close",
            Self::Pipe => "pipe create/close",
        }
    }

    /// Does it for some time; returns nanoseconds for each operation in the fastest of
    /// [`SLICES`], in which nobody else had the CPU.
    pub(crate) fn run(self, time: Duration) -> Result<f64> {
        (0..SLICES).map(|_| self.slice(time / SLICES)).try_fold(f64::INFINITY, |best, ns| Ok(best.min(ns?)))
    }

    fn slice(self, time: Duration) -> Result<f64> {
        match self {
            Self::Socket => {
                let (mut writer, mut reader) = UnixStream::pair().context("cannot make a socket pair")?;
                let mut byte = [0];
                repeat(time, || {
                    writer.write_all(&[1])?;
                    reader.read_exact(&mut byte)
                })
            }
            Self::Open => repeat(time, || File::open("/proc/self/stat").map(drop)),
            Self::Pipe => repeat(time, || std::io::pipe().map(drop)),
        }
    }
}

fn repeat(time: Duration, mut operation: impl FnMut() -> std::io::Result<()>) -> Result<f64> {
    let begun = Instant::now();
    let mut operations = 0_u64;
    loop {
        for _ in 0..BATCH {
            operation()?;
        }
        operations += u64::from(BATCH);
        let elapsed = begun.elapsed();
        if elapsed >= time {
            return Ok(elapsed.as_nanos() as f64 / operations as f64);
        }
    }
}

/// Keeps this thread on one CPU, so that rounds are alike.
pub(crate) fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: an all-zero set is empty; the pointer and the size are those of a cpu_set_t.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        let last = (0..libc::CPU_SETSIZE as usize).rev().find(|&cpu| libc::CPU_ISSET(cpu, &set)).unwrap_or(0);
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(last, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    ensure!(result == 0, "cannot stay on one CPU");
    Ok(())
}
