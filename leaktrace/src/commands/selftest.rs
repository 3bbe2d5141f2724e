//! The self-test: allocations and frees that are known, and whether each hook saw them.

use std::{io::Write as _, time::Duration};

use anyhow::{Context as _, Result};

use crate::tracer::Tracer;

/// Pipes that are made, written to and closed. Each takes, by `fs/pipe.c`, a `pipe_inode_info` and an
/// array of buffers from kmalloc, two files and an inode from their caches, and a page for what is written.
const PIPES: u64 = 200;

/// Frees may come after a grace period.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a hook should have seen, and what it saw.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Outcome {
    /// Events made.
    pub(super) expected: u64,
    /// Events seen.
    pub(super) seen: u64,
}

impl Outcome {
    /// Whether enough was seen: an interrupt may have taken a few events' place.
    pub(super) fn passed(self) -> bool {
        self.seen * 100 >= self.expected * 95
    }
}

/// Runs the test on an attached tracer; returns each hook's outcome by the hook's name.
///
/// # Errors
/// When pipes cannot be made.
pub(super) fn run(tracer: &Tracer) -> Result<Vec<(&'static str, Outcome)>> {
    let pid = std::process::id();
    let pipes = (0..PIPES)
        .map(|_| {
            let (reader, mut writer) = std::io::pipe()?;
            writer.write_all(b"x")?;
            Ok((reader, writer))
        })
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot make pipes for the self-test")?;
    // The sites that have as many objects of this process as there are pipes, or twice as many.
    let allocated: Vec<_> =
        tracer.live_of_process(pid)?.into_iter().filter(|site| site.objects * 100 >= PIPES * 95).collect();
    drop(pipes);
    let largest = |family: &str| {
        allocated
            .iter()
            .filter(|site| site.family == family)
            .map(|site| site.objects.min(PIPES))
            .max()
            .unwrap_or(0)
    };
    let mut outcomes = Vec::new();
    for (allocates, frees, family) in [
        ("kmalloc", "kfree", "kmalloc"),
        ("kmem_cache_alloc", "kmem_cache_free", "kmem_cache"),
        ("mm_page_alloc", "mm_page_free", "page"),
    ] {
        outcomes.push((allocates, Outcome { expected: PIPES, seen: largest(family) }));
        let sites: Vec<_> = allocated
            .iter()
            .filter(|site| site.family == family)
            .map(|site| (site.site, site.objects))
            .collect();
        outcomes.push((frees, Outcome { expected: PIPES, seen: most_freed(tracer, pid, &sites)? }));
    }
    outcomes.push(("task_rename", rename(tracer, pid)?));
    Ok(outcomes)
}

/// Waits until the objects of one of the sites, given with their numbers, are freed; returns how
/// many at most were.
fn most_freed(tracer: &Tracer, pid: u32, sites: &[(usize, u64)]) -> Result<u64> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let live = tracer.live_of_process(pid)?;
        let left = |site| live.iter().find(|live| live.site == site).map_or(0, |live| live.objects);
        let freed = sites
            .iter()
            .map(|&(site, objects)| objects.saturating_sub(left(site)).min(PIPES))
            .max()
            .unwrap_or(0);
        if (Outcome { expected: PIPES, seen: freed }).passed() || std::time::Instant::now() >= deadline {
            return Ok(freed);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes another name, allocates, and looks which name was noted.
fn rename(tracer: &Tracer, pid: u32) -> Result<Outcome> {
    const NAME: &std::ffi::CStr = c"leaktrace-check";
    // SAFETY: the name is a terminated string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
    // Another CPU, on which another task was noted last, would note the name in any case.
    let pipe = std::io::pipe().context("cannot make a pipe for the self-test")?;
    drop(pipe);
    let noted = tracer.task_names()?.get(&pid).is_some_and(|name| name.as_bytes() == NAME.to_bytes());
    Ok(Outcome { expected: 1, seen: u64::from(noted) })
}
