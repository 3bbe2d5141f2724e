//! What is measured: nothing, an empty program, leaktrace in three ways, and a peer.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::programs;

/// The tracepoints that leaktrace uses on a kernel since 6.1; the empty program uses the same.
const TRACEPOINTS: [&str; 4] = ["kmalloc", "kmem_cache_alloc", "kfree", "kmem_cache_free"];

/// How a machine is traced, or not.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Untraced,
    Empty,
    Leaktrace { name: &'static str, args: Vec<&'static str> },
    Peer,
}

impl Subject {
    /// All of them; the peer comes last, when there is one.
    pub(crate) fn all(peer: bool) -> Vec<Self> {
        let leaktrace = |name, args: &[&'static str]| Self::Leaktrace { name, args: args.to_vec() };
        let mut all = vec![
            Self::Untraced,
            Self::Empty,
            leaktrace("leaktrace, no stacks", &["--stack-depth", "0"]),
            leaktrace("leaktrace", &[]),
            leaktrace("leaktrace, all stacks", &["--overhead", "100"]),
        ];
        if peer {
            all.push(Self::Peer);
        }
        all
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Empty => "empty program",
            Self::Leaktrace { name, .. } => name,
            Self::Peer => "memleak",
        }
    }

    /// Starts it, and waits until its programs are there.
    pub(crate) fn start(&self, leaktrace: &Path, peer: Option<&str>) -> Result<Running> {
        let before = programs::loaded()?;
        let mut running = Running { before, child: None, empty: Vec::new() };
        match self {
            Self::Untraced => return Ok(running),
            Self::Empty => {
                running.empty = programs::attach_empty(&TRACEPOINTS)?;
            }
            Self::Leaktrace { args, .. } => {
                let mut command = Command::new(leaktrace);
                command.args(["--quiet", "--duration", "1h", "--output", "/dev/null"]).args(args);
                running.child = Some(spawn(&mut command)?);
            }
            Self::Peer => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(format!("exec {} 3600", peer.unwrap_or_default()));
                running.child = Some(spawn(&mut command)?);
            }
        }
        running.wait()?;
        Ok(running)
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// A subject that is tracing; ends when dropped.
pub(crate) struct Running {
    before: HashMap<u32, String>,
    child: Option<Child>,
    empty: Vec<OwnedFd>,
}

/// How long a set of programs must stay the same to count as complete.
const SETTLED: Duration = Duration::from_millis(700);
const LIMIT: Duration = Duration::from_mins(1);

impl Running {
    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        let (mut count, mut since) = (0, begun);
        while since.elapsed() < SETTLED || count < TRACEPOINTS.len() {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("what is to be measured ended ({status})");
            }
            if begun.elapsed() > LIMIT {
                bail!("what is to be measured has attached no programs");
            }
            let now = programs::loaded()?.keys().filter(|id| !self.before.contains_key(id)).count();
            if now != count {
                (count, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What its programs have cost so far.
    pub(crate) fn costs(&self) -> Result<programs::Costs> {
        programs::costs(&self.before)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SAFETY: kill takes integers only; the child is ours and not waited for yet.
            unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
            let _ = child.wait();
        }
    }
}
